"""`--config FILE`: a run's own config or a file written by hand, in place of a recipe."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from mgdet import api
from mgdet.cli import main
from mgdet.cli.parsing import Start, count_devices, recipe_or_file
from mgdet.config import Config
from mgdet.config.file import find_config, load_config
from mgdet.errors import UserError
from mgdet.recipes import RECIPES
from tiny import alone, assert_same_run, state_of


@pytest.fixture(autouse=True)
def in_a_folder(folder):
    """Each test works in an empty folder."""


@pytest.mark.parametrize("name", RECIPES)
def test_json_and_yaml_give_back_every_recipe(name, folder):
    config = RECIPES[name].build()
    for file, dump in (("a.json", json.dumps), ("a.yaml", yaml.safe_dump), ("a.yml", json.dumps)):
        (folder / file).write_text(dump(config.to_dict()))
        assert load_config(folder / file) == config


def test_yaml_as_people_write_it(folder):
    """PyYAML alone reads `off` as false and `2e-5` as text."""
    text = yaml.safe_dump(alone().to_dict()).replace("amp: 'off'", "amp: off").replace("lr: 0.08", "lr: 2e-3")
    text = text.replace("flip: 0.5", "flip: 1")
    (folder / "mine.yaml").write_text(text)
    config = load_config(folder / "mine.yaml")
    assert (config.train.amp, config.optimizer.lr, config.data.flip) == ("off", 0.002, 1.0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'{"student": 3}', "a.json is not a run's config: config lacks the field 'data'"),
        ("a.json", b"{", "a.json is not a run's config: Expecting property name"),
        ("a.json", b"[]", "a.json is not a run's config: config is [], not a section"),
        ("a.json", b"\xff\xfe\x00", "a.json is not a run's config: it is not text in UTF-8"),
        ("a.json", b"[" * 100_000, "a.json is not a run's config: maximum recursion depth"),
        ("a.yaml", b"a: [1\nb: 2", "a.yaml is not a run's config: while parsing a flow sequence"),
        ("a.yaml", b"!!python/object/apply:os.mkdir [broken]", "could not determine a constructor"),
        ("a.yaml", b"studnet: {}", "config has no field 'studnet'; did you mean 'student'?"),
    ],
)
def test_a_file_that_is_none(name, content, words, folder, refused):
    (folder / name).write_bytes(content)
    assert words in refused("train", "--config", name)
    assert [path.name for path in folder.iterdir()] == [name]


def test_refusals(folder, refused):
    assert refused("train", "--config", "none.json").startswith("there is no config 'none.json'; give a run's")
    assert refused("train", "--config", ".").startswith("there is no config 'config.json'")
    text = refused("train", "pair", "--config", "none.json")
    assert text == "the recipe pair and --config none.json are both given; leave one of them out"
    assert "needs a recipe first" in refused("train", "--config")
    assert "needs a recipe first" in refused("test")
    assert refused("data") == "mgdet data needs the folder of a data set, or --config FILE"


def test_a_run_from_a_file_is_that_of_the_recipe(tiny, folder, capsys):
    """With options on top, in folders that never hold another run, and resumed where it lies."""
    stop = ["--train.stop-after", "2"]
    assert main([*tiny.arguments("train"), *stop, "--run-dir", "runs/first"]) == 0
    assert main(["train", "--config", "runs/first/config.json", *stop]) == 0
    assert main(["train", "--config", "runs/first", "--train.stop-after=3", "--train.seed", "5"]) == 0
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["first", "first-2", "first-3"]
    assert_same_run(*(folder / "runs" / name for name in ("first", "first-2")), best=False)
    assert state_of(folder / "runs" / "first-3").step == 3
    assert main(["train", "--config=runs/first-2", "--train.stop-after", "4", "--resume"]) == 0
    assert state_of(folder / "runs" / "first-2").step == 4
    assert load_config(folder / "runs" / "first-3" / "config.json").train.seed == 5


def test_where_a_run_goes(folder):
    config = alone()

    def place(file, resume=False):
        return str(Start(config, "own:recipe", [], file and folder / file).folder(resume=resume))

    assert place(None) == "runs/own.recipe"
    assert place("my.yaml") == place("my.yaml", resume=True) == "runs/my"
    assert place("a/config.json") == "runs/a-2"
    assert place("a/config.json", resume=True) == str(folder / "a")
    (folder / "runs" / "a-2").mkdir(parents=True)
    assert place("a/config.json") == "runs/a-3"


def test_test_and_data_take_it_too(tiny, folder, capsys):
    config = tiny.config(distil=False)
    (folder / "mine.json").write_text(json.dumps(config.to_dict()))
    assert main(["test", "--config", "mine.json", str(tiny.teacher)]) == 0
    from_file = capsys.readouterr().out
    assert main(["test", "tiny:alone", str(tiny.teacher), "--data.root", str(tiny.root), "--data.workers", "0"]) == 0
    assert from_file == capsys.readouterr().out
    assert main(["data", "--config", "mine.json"]) == 0
    from_file = capsys.readouterr().out
    names = [f"--data.{name}={getattr(config.data, name)}" for name in ("train_annotations", "train_images")]
    names += [f"--data.{name}={getattr(config.data, name)}" for name in ("val_annotations", "val_images")]
    assert main(["data", str(tiny.root), *names]) == 0
    assert from_file == capsys.readouterr().out


def test_data_asks_for_masks_where_the_student_finds_them(tiny, folder, monkeypatch):
    import mgdet.report.dataset as report

    asked = []
    monkeypatch.setattr(report, "describe_data", lambda data, **options: asked.append(options["masks"]) or 0)
    for detector in ("retinanet", "mask_rcnn"):
        config = alone()
        config.student.detector = detector
        (folder / "a.json").write_text(json.dumps(config.to_dict()))
        assert main(["data", "--config", "a.json"]) == 0
    assert asked == [False, True]


def test_help_shows_the_files_settings(folder, capsys):
    config = alone()
    config.schedule.epochs = 77
    (folder / "a.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(SystemExit):
        main(["train", "--config", "a.json", "--help"])
    out = capsys.readouterr().out
    assert "usage: mgdet train --config a.json" in out and "(default: 77)" in out


def test_options_stay_with_the_command():
    start = recipe_or_file(["pair", "--data.root", "x"], "train")
    assert (start.words, start.rest, start.file) == ("pair", ["--data.root", "x"], None)
    assert isinstance(start.config, Config) and dataclasses.is_dataclass(start.config)


def test_a_run_folder_means_its_config(folder):
    (folder / "config.json").write_text(json.dumps(alone().to_dict()))
    assert find_config(folder) == folder / "config.json"
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="there is no config"):
        find_config(folder)


@pytest.mark.parametrize(("given", "gpus", "number"), [("all", 0, 1), ("all", 4, 4), (3, 4, 3), (1, 0, 1)])
def test_devices(given, gpus, number, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert count_devices(given) == number


def test_all_devices_are_started_together(tiny, monkeypatch, folder):
    import mgdet.distributed as distributed

    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "launch", lambda devices, arguments: started.append((devices, arguments)) or 0)
    test = ["test", "tiny:alone", str(tiny.teacher), "--devices", "all"]
    assert main(test) == 0
    assert started == [(2, test)]

    def launch(devices, arguments):
        command, option, file, *rest = arguments
        assert (devices, command, option, rest) == (2, "train", "--config", ["--run-dir", "runs/tiny.distilled"])
        started.append(load_config(Path(file)))
        return 0

    monkeypatch.setattr(api, "launch", launch)
    assert main([*tiny.arguments("train"), "--devices", "all"]) == 0
    assert started[1:] == [tiny.config()]
