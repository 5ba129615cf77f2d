"""docs/any-teacher.md: its table is what the tests' lists say, and its commands run, as does the README's."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from mgdet import cli
from mgdet.cli.parsing import parse
from mgdet.cli.train import TrainArguments
from mgdet.recipes import load_recipe
from test_any_pair import save_tiny, stand_in
from tiny import write_data, write_detector

ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs" / "any-teacher.md", ROOT / "README.md"


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace(" \\\n", "").splitlines()]


TYPED = [*commands(PAGE), *commands(README)]


def test_the_table_is_made_by_the_script():
    script = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    assert PAGE.read_text() == script["filled"](PAGE.read_text()), "run docs/make_tables.py"
    rows = [line for line in script["table"]().splitlines() if line.startswith("| `")]
    for source in ("torchvision", "hf", "libreyolo", "timm"):
        assert any(row.startswith(f"| `{source}:") for row in rows)
    assert "| `timm:resnet50.a1_in1k` | yes | no | |" in rows
    assert "| `torchvision:maskrcnn_resnet50_fpn` | yes | yes | boxes and masks |" in rows


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", PAGE.read_text()))))
def test_links_lead_somewhere(target):
    assert (PAGE.parent / target).exists()


def test_there_are_five_commands_and_each_has_its_options():
    assert len(commands(PAGE)) == 5 and len(commands(README)) == 1
    for line in TYPED:
        command, *rest = shlex.split(line)[1:]
        if command == "train":
            arguments = TrainArguments(config=load_recipe(rest[0]))
            parse(TrainArguments, rest[1:], command, arguments).config.check_together()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with data and a teacher's file, and what is small in place of what a name stands for."""
    for data in ("cells", "coco"):
        write_data(tmp_path / "data" / data)
    write_detector(tmp_path / "retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth", seed=7)
    save_tiny("rt_detr_v2", tmp_path / "rtdetr")
    stand_in("timm:test_vit", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = {
    "hf:PekingU/rtdetr_v2_r50vd": "hf:rtdetr",
    "hf:PekingU/rtdetr_v2_r18vd": "hf:rtdetr",
    "timm:vit_small_patch14_dinov2.lvd142m": "timm:test_vit",
    "torchvision:fasterrcnn_mobilenet_v3_large_fpn": "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
    "resnet50": "test_resnet",
    "resnext101_64x4d": "test_resnet",
    "timm:resnet50.tv_in1k": "random",
    "backbone": "random",
}
"""What the commands name and no test can download, and what is small of the same kind."""


@pytest.mark.slow
def test_the_commands_run(here, capsys):
    sizes = ["--data.long-edge", "128", "--data.short-edge", "96", "128", "--data.workers", "0"]
    length = ["--train.batch", "2", "--train.eval-every", "0", "--train.stop-after", "1"]
    for line in TYPED:
        arguments = [SMALL.get(word, word) for word in shlex.split(line)[1:]]
        if "timm:test_vit" in arguments:
            arguments[arguments.index("--teacher.weights") + 1] = "teacher.pth"
        if arguments[0] == "train":
            arguments += [*sizes, *length]
        if "test_resnet" in arguments:
            arguments += [word for side in ("teacher", "student") for word in (f"--{side}.channels", "32")]
        capsys.readouterr()
        assert cli.main(arguments) == 0, (line, capsys.readouterr().err)
        assert ("<- teacher level" in capsys.readouterr().out) == ("--teacher.detector" in arguments)
    config = json.loads((here / "rtdetr-cells" / "config.json").read_text())
    assert config["model_type"] == "rt_detr_v2" and len(config["id2label"]) == 3
