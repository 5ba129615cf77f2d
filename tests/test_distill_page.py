"""docs/distill.md: its commands can be typed, its numbers are those of the rules, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import mgdet
from mgdet.cli.distill import DistillArguments, names_two, parse_distill
from mgdet.detectors.build import DETECTORS
from mgdet.planning import decide, memory, rules
from mgdet.planning.plan import FAMILIES, SGD_BACKBONES
from mgdet.recipes import RECIPES

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "distill.md").read_text()
COMMANDS = [
    line.partition("   #")[0]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


def test_every_command_can_be_read():
    read = 0
    for command in COMMANDS:
        _, name, *arguments = shlex.split(command)
        if name == "train":
            assert arguments[0] == "--config"
            continue
        assert name in ("distill", "check") and names_two(arguments)
        parse_distill(arguments, DistillArguments, name)
        read += 1
    assert read >= 5


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[\w.-]+)[^`]*`", PAGE))))
def test_every_option_is_there(option, capsys):
    with pytest.raises(SystemExit):
        parse_distill(["--help"], DistillArguments, "distill")
    assert option.replace("_", "-") in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_the_numbers_are_those_of_the_rules():
    (table,) = re.findall(r"\| what \| rule \|\n(.*?)\n\n", PAGE, re.DOTALL)
    numbers = (
        f"{rules.FEWEST_STEPS:,} steps",
        f"at most {rules.MOST_EPOCHS}",
        f"{rules.MOST_EPOCHS} epochs hold {rules.FEWEST_STEPS:,} steps",
        f"up to {rules.EDGE_DIVISOR} pixels",
        f"a share of {decide.SHARE:g}",
        f"{decide.PUBLISHED_SIZE[1]} x {decide.PUBLISHED_SIZE[0]}",
        f"{decide.PUBLISHED_CHANNELS} wide",
    )
    for number in numbers:
        assert number in table, number
    assert (rules.HELD, rules.WARMUP_SHARE, decide.LEAST_AREA) == (0.9, 1 / 8, 0.5)
    for words in ("nine tenths", "an eighth", "half the area"):
        assert words in table
    assert f"Up to {memory.GPU_SHARE:.0%} of a GPU's" in PAGE and memory.HOST_SHARE == 0.5
    assert SGD_BACKBONES == ("resnet", "resnext", "mobilenetv3_large_100")


def test_every_detector_has_a_recipe():
    assert FAMILIES.keys() == DETECTORS.keys()
    assert all(recipe in RECIPES for recipe, _ in FAMILIES.values())


def test_the_python_names_exist():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    compile(example, "distill.md", "exec")
    used = set(re.findall(r"mgdet\.(\w+)\(", example))
    assert used == {"plan", "check", "train", "distill", "load"} and used <= set(mgdet.__all__)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", PAGE))))
def test_links_lead_somewhere(target):
    assert (DOCS / target).exists()
