"""Runs on data sets that are found by looking, from the command line on."""

import json
import os

import pytest

import formats
import tiny
from mgdet.cli import main
from mgdet.config import Config

NAMES = ("train_annotations", "train_images", "val_annotations", "val_images")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(root, *options, recipe="formats:looking"):
    return main(["train", recipe, "--data.root", str(root), "--run-dir", "run", "--train.stop-after", "2", *options])


def stored(folder):
    return json.loads((folder / "run/config.json").read_text())


@pytest.mark.parametrize("name", formats.LAYOUTS)
def test_two_steps_from_each_layout(folder, capsys, name):
    formats.LAYOUTS[name](folder / "data")
    assert train(folder / "data") == 0
    assert f"data in {folder / 'data'}: " in capsys.readouterr().out
    assert tiny.state_of(folder / "run").step == 2
    assert tiny.state_of(folder / "run").classes == list(formats.CLASSES)
    assert all(stored(folder)["data"][field] for field in NAMES)


@pytest.mark.parametrize("layout", [formats.roboflow, formats.yolo, formats.voc])
def test_a_run_is_measured_on_what_it_was_trained_on(folder, capsys, layout):
    layout(folder / "data")
    assert train(folder / "data") == 0
    assert main(["test", "formats:looking", "run", "--data.root", "data"]) == 0
    assert "val 3 images" in capsys.readouterr().out


def test_a_share_trains_and_is_stored(folder, capsys):
    formats.default(folder / "data")
    assert train(folder / "data") == 2
    assert "--data.val-share 0.1 takes a tenth" in capsys.readouterr().err
    assert not (folder / "run").exists()
    assert train(folder / "data", "--data.val-share", "0.3") == 0
    assert (stored(folder)["data"]["val_share"], stored(folder)["data"]["val_images"]) == (0.3, "images/default")
    assert train(folder / "data", "--data.val-share", "0.5", "--resume") == 2
    assert "a run with data.val_share 0.3, which --resume cannot change to 0.5" in capsys.readouterr().err


def test_a_run_of_named_files_goes_on_where_the_same_are_found(folder, capsys):
    """Runs of before hold COCO's names and lack the newer settings."""
    formats.coco(folder / "data")
    options = []
    for split in ("train", "val"):
        options += [f"--data.{split}-annotations", f"annotations/instances_{split}2017.json"]
        options += [f"--data.{split}-images", f"{split}2017"]
    assert train(folder / "data", *options) == 0
    config = stored(folder)
    for field in ("val_share", "split_seed"):
        del config["data"][field]
    (folder / "run/config.json").write_text(json.dumps(config))
    assert train(folder / "data", "--train.stop-after", "3", "--resume") == 0
    assert tiny.state_of(folder / "run").step == 3
    (folder / "data/val2017").rename(folder / "data/images")
    assert train(folder / "data", "--train.stop-after", "4", "--resume") == 2
    assert "a run with data.val_images 'val2017', which --resume cannot change to 'images'" in capsys.readouterr().err


def test_a_stored_config_lacks_only_what_has_a_default():
    values = formats.looking().to_dict()
    del values["data"]["val_share"]
    assert Config.from_dict(values) == formats.looking()
    del values["optimizer"]["lr"]
    with pytest.raises(ValueError, match=r"config\.optimizer lacks the field 'lr'"):
        Config.from_dict(values)


def test_names_that_are_no_text_are_written_all_the_same(folder, capsys):
    formats.yolo(folder / "data")
    (folder / "data/images/train/train_1.png").rename(folder / "data/images/train" / os.fsdecode(b"\xff.png"))
    assert train(folder / "data") == 0
    example = r"left out of training: 1 image without an object to train on (first: images/train/\udcff.png)"
    assert example in capsys.readouterr().out
    assert example in (folder / "run/log.txt").read_text()
