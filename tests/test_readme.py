"""What the README tells a user to type, typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from mgdet import cli
from mgdet.cli import parsing, predict, test
from mgdet.cli.parsing import parse
from mgdet.cli.train import TrainArguments
from mgdet.config import Config
from mgdet.recipes import RECIPES, load_recipe
from tiny import distilled, write_data, write_detector

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(start: str) -> list[str]:
    """The lines of the README's shell blocks that begin so, without their comments."""
    lines = [line.split("   #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith(start)]


def small(name: str) -> Config:
    """Any recipe of the README, on a data set and with a teacher that take seconds."""
    config = distilled()
    config.data.root = "data/coco"
    assert config.teacher is not None
    config.teacher.weights = "teacher.pth"
    config.schedule.epochs, config.schedule.drops = 1, ()
    config.data.long_edge, config.data.short_edge = 192, (128, 128)  # in bf16 torch's CPU kernels need maps 2 wide
    return config


def test_make_targets_exist():
    targets = (ROOT / "Makefile").read_text()
    asked = [line.split()[1] for line in commands("make ")]
    assert asked == ["demo", "test"]
    assert all(f"\n{target}: $(INSTALLED)" in targets for target in asked)


def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    typed = commands("mgdet ")
    assert {line.split()[1] for line in typed} == {"recipes", "train", "test", "transfer", "predict"}
    assert all(line.split()[2] in RECIPES for line in typed if line.split()[1] in ("train", "test"))
    write_data(tmp_path / "data/coco")
    write_detector(tmp_path / "teacher.pth", seed=7)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/one.jpg"), np.full((60, 90, 3), 99, np.uint8))
    monkeypatch.chdir(tmp_path)
    for module in (parsing, predict):
        monkeypatch.setattr(module, "load_recipe", small)
    for line in typed:
        arguments = shlex.split(line)[1:]
        if "--devices" in arguments:  # many processes are the concern of tests/train/test_distributed.py
            arguments[arguments.index("--devices") + 1] = "1"
        assert cli.main(arguments) == 0, line
        assert "mgdet: " not in capsys.readouterr().err, line
    for made in ("results.json", "retinanet_r50_mgd.pth", "predictions/detections.json", "predictions/one.jpg"):
        assert (tmp_path / made).is_file(), made


def test_every_option_belongs_to_its_recipe():
    rows = re.findall(r"^\|.*\| `mgdet (train|test) (.*)` \|$", README, re.MULTILINE)
    assert len(rows) >= 6
    lines = [line.split()[1:] for line in commands("mgdet train ") + commands("mgdet test ")]
    lines += [[command, *arguments.split()] for command, arguments in rows]
    for command, name, *rest in lines:
        config = load_recipe("faster_rcnn_r50" if name == "RECIPE" else name)
        if command == "train":
            parse(TrainArguments, rest, command, TrainArguments(config=config))
        else:
            default = test.TestArguments(
                checkpoint="", student=config.student, data=config.data, eval=config.train.metrics
            )
            assert parse(test.TestArguments, rest, command, default).checkpoint


def test_the_python_example_runs():
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert set(names["losses"]) == {"loss_cls", "loss_bbox", *(f"loss_mgd_fpn_{level}" for level in range(5))}  # type: ignore[call-overload]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_the_published_table_is_that_of_the_recipes():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w+ [\d.]+) \| (\w+ [\d.]+) \|$", README, re.MULTILINE)
    assert len(rows) == 5
    for name, baseline, distilled_ap in rows:
        assert baseline in RECIPES[name].baseline
        assert distilled_ap in RECIPES[name].distilled
