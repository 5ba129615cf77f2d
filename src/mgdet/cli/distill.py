"""`mgdet distill TEACHER DATA`"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from mgdet.cli.parsing import Devices, count_devices, given_settings, option_value, parse, say
from mgdet.config import Config
from mgdet.errors import UserError
from mgdet.recipes import load_recipe

if TYPE_CHECKING:
    from mgdet.planning.plan import Plan

Arguments = TypeVar("Arguments", bound="DistillArguments")
SHOWN = "retinanet_x101_to_r50"
"""The recipe whose values `--help` shows; a plan has its own."""


@dataclass(kw_only=True)
class DistillArguments:
    """Distil any teacher into a small student on your own data.

    Settings that you give are kept. All others are decided from the teacher, the data and the student, whatever default
    is shown below, and reported.
    """

    teacher: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEACHER")]
    """A checkpoint file, its URL, a run's folder, or a detector of another library: torchvision:NAME, hf:NAME,
    libreyolo:NAME, timm:NAME."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """Folder of the data set: COCO, YOLO or Pascal VOC, in any of the layouts in docs/data.md."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    """The settings."""
    student: str = ""
    """A timm backbone (resnet50, mobilenetv3_large_100, ...), one of our detectors, DETECTOR:BACKBONE, or a detector of
    another library; empty: the teacher's detector with a ResNet-18."""
    run_dir: str = ""
    """Folder of the run; empty: runs/ and the names of data and student."""
    baseline: bool = False
    """Also train the same student alone, from the same seed, and compare the two."""
    seed: int | None = None
    """Seed of the run, as --train.seed."""
    devices: Devices = 1
    """Processes on this machine: one for each GPU, or each with its share of the CPU; all: as many as there are GPUs,
    or one on a machine without."""
    resume: bool = False
    """Go on with what the folder holds."""
    check: bool = True
    """Check the run first, as mgdet check does, and do not start it if a row says STOP."""


def run(arguments: list[str]) -> int:
    """`mgdet distill TEACHER DATA ...`"""
    parsed = parse_distill(arguments, DistillArguments, "distill")

    from mgdet.api import distill

    trained = distill(
        parsed.teacher,
        parsed.data,
        student=parsed.student,
        run_dir=parsed.run_dir,
        baseline=parsed.baseline,
        resume=parsed.resume,
        check=parsed.check,
        devices=count_devices(parsed.devices),
        settings=settings_of(parsed, arguments),
        say=say,
    )
    return trained.code


def decide(parsed: DistillArguments, arguments: list[str]) -> Plan:
    """What `distill` would do."""
    from mgdet.planning.plan import plan

    return plan(
        parsed.teacher,
        parsed.data,
        student=parsed.student,
        settings=settings_of(parsed, arguments),
        processes=count_devices(parsed.devices),
    )


def settings_of(parsed: DistillArguments, arguments: list[str]) -> dict[str, Any]:
    """The settings that were typed, by their names with dots."""
    seed = {} if parsed.seed is None else {"train.seed": parsed.seed}
    return given_settings(arguments, parsed.config) | seed


def names_two(arguments: list[str]) -> bool:
    """Do the arguments begin with a teacher and its data, and not with a recipe alone?"""
    return len(arguments) > 1 and not any(argument.startswith("-") for argument in arguments[:2])


def parse_distill(arguments: list[str], kind: type[Arguments], command: str) -> Arguments:
    """Reads the options, each for itself: what settings must be together is checked once a plan has set the others.

    Args:
        kind: `DistillArguments`, or what derives from it.

    Raises:
        UserError: the options cannot be read.
    """
    if option_value(arguments, "--train.batch") == "auto":
        raise UserError(
            f"--train.batch auto is for mgdet train; mgdet {command} decides the batch by the memory that is free: "
            "leave it out, or give a number"
        )
    config = load_recipe(SHOWN)
    if not any(argument in ("-h", "--help") for argument in arguments):
        config.data.long_edge, config.data.short_edge, config.optimizer.lr = 2**20, (1, 1), 1e-4
    return parse(kind, arguments, command, kind(teacher=tyro.MISSING, data=tyro.MISSING, config=config))
