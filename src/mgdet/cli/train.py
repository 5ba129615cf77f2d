"""`mgdet train RECIPE`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgdet.cli.parsing import Devices, check_schedule, count_devices, parse, recipe_or_file, say, take_auto
from mgdet.config import Config


@dataclass(kw_only=True)
class TrainArguments:
    """Train a student, with its teacher or alone; the recipe's settings follow."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    """The recipe's settings."""
    file: Annotated[str, tyro.conf.arg(name="config", metavar="FILE")] = ""
    """Instead of a recipe: a JSON or YAML file with all settings, such as a run's config.json, or a run's folder."""
    run_dir: str = ""
    """Folder of the run; empty: runs/RECIPE, runs/ and the name of the config file, or, for a run's own config, a new
    folder such as runs/NAME-2."""
    devices: Devices = 1
    """Processes on this machine: one for each GPU, or each with its share of the CPU; all: as many as there are GPUs,
    or one on a machine without."""
    resume: bool = False
    """Resume the run in the folder, or start it if there is none."""
    check: bool = True
    """Check the run first, as mgdet check does, and do not start it if a row says STOP."""


def run(arguments: list[str]) -> int:
    """`mgdet train RECIPE ...`"""
    start = recipe_or_file(arguments, "train")
    rest, fit_batch = take_auto(start.rest, "--train.batch")
    parsed = parse(TrainArguments, rest, f"train {start.words}", TrainArguments(config=start.config))
    folder = Path(parsed.run_dir) if parsed.run_dir else start.folder(resume=parsed.resume)
    check_schedule(rest, parsed.config, folder, resume=parsed.resume)

    from mgdet.api import train

    trained = train(
        parsed.config,
        folder,
        resume=parsed.resume,
        check=parsed.check,
        devices=count_devices(parsed.devices),
        fit_batch=fit_batch,
        say=say,
    )
    return trained.code
