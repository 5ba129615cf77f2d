"""`mgdet train RECIPE`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgdet.cli.parsing import check_devices, parse, recipe_first
from mgdet.config import Config
from mgdet.recipes import load_recipe


@dataclass(kw_only=True)
class TrainArguments:
    """Train a student, with its teacher or alone; the recipe's settings follow."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    """The recipe's settings."""
    run_dir: str = ""
    """Folder of the run; empty: runs/RECIPE."""
    devices: int = 1
    """Processes on this machine: one for each GPU, or each with its share of the CPU."""
    resume: bool = False
    """Resume the run in the folder."""


def run(arguments: list[str]) -> int:
    """`mgdet train RECIPE ...`"""
    name, rest = recipe_first(arguments, "train")
    config = load_recipe(name)
    parsed = parse(TrainArguments, rest, f"train {name}", TrainArguments(config=config))
    folder = Path(parsed.run_dir or f"runs/{name.replace(':', '.')}")

    from mgdet.distributed import join, launch, under_torchrun
    from mgdet.engine.loop import train as run_train

    check_devices(parsed.devices)
    if parsed.devices > 1 and not under_torchrun():
        return launch(parsed.devices, ["train", *arguments])
    with join() as world:
        return run_train(parsed.config, folder, resume=parsed.resume, world=world)
