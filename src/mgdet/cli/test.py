"""`mgdet test RECIPE CHECKPOINT`, or `mgdet test RECIPE RESULTS.json`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from mgdet.cli.parsing import check_devices, parse, recipe_first, say
from mgdet.config import DataConfig, ModelConfig
from mgdet.recipes import load_recipe


@dataclass(kw_only=True)
class TestArguments:
    """Measure a checkpoint on the evaluation images of a recipe, or what any tool found in them: COCO's twelve numbers
    and a table of each class."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT|RESULTS.json")]
    """A checkpoint file, its URL, a run's folder, or a .json file of any tool's detections in COCO's results format."""
    student: ModelConfig
    """The recipe's detector."""
    data: DataConfig
    """The recipe's images."""
    devices: int = 1
    """Processes on this machine: one for each GPU, or each with its share of the CPU."""
    eval: tuple[str, ...]
    """What to measure: bbox, segm or both; else what the recipe measures in training."""
    out: str = ""
    """Also write the detections to this file, in COCO's results format."""
    ema: bool = False
    """Take the copy that the file keeps under the name of an exponential moving average."""


def run(arguments: list[str]) -> int:
    """`mgdet test RECIPE CHECKPOINT ...`"""
    name, rest = recipe_first(arguments, "test")
    config = load_recipe(name)
    default = TestArguments(
        checkpoint=tyro.MISSING, student=config.student, data=config.data, eval=config.train.metrics
    )
    parsed = parse(TestArguments, rest, f"test {name}", default)
    config = replace(config, student=parsed.student, data=parsed.data)

    from mgdet.distributed import join, launch, under_torchrun
    from mgdet.report.measure import test_checkpoint

    check_devices(parsed.devices)
    if parsed.devices > 1 and not under_torchrun():
        return launch(parsed.devices, ["test", *arguments])
    with join() as world:
        out = Path(parsed.out) if parsed.out else None
        test_checkpoint(config, parsed.checkpoint, metrics=parsed.eval, out=out, world=world, say=say, ema=parsed.ema)
    return 0
