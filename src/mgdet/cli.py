"""The commands: each a thin plain function over the package's own parts."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console

from mgdet.config import Config, DataConfig, ModelConfig
from mgdet.errors import TrainingError, UserError, nearest, shortage
from mgdet.recipes import RECIPES, Recipe, load_recipe

USAGE = """\
usage: mgdet COMMAND ...

  recipes                                   what can be trained, and what is published about it
  train RECIPE [--section.field value ...]  train a student, with its teacher or alone
  test RECIPE CHECKPOINT                    COCO mAP of a checkpoint
  transfer IN OUT                           checkpoints to and from MMDetection, or to safetensors
  predict CHECKPOINT IMAGE_OR_FOLDER ...    annotated pictures and one JSON
  data DIR                                  what a data set holds, and whether it can be trained on
  demo                                      all of it on a data set that it makes, in minutes, on any machine

mgdet COMMAND --help says more of one of them; mgdet --version prints the version."""

RECIPE_KINDS = {
    "distillation": "Teacher -> student: the config is the original MGD's, the checkpoint is the teacher's",
    "student": "Students alone: the config and the checkpoint are MMDetection's",
    "teacher": "Teachers to train: the config and the checkpoint are MMDetection's",
    "any": "Any teacher -> any student, on your own data",
    "demo": "What mgdet demo trains",
}
Arguments = TypeVar("Arguments")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADVICE = {
    "train": "lower --train.batch and raise --train.accumulate as much, add --train.amp bf16, lower --data.short-edge "
    "and --data.long-edge, or lower --data.workers",
    "test": "lower --data.short-edge and --data.long-edge, or --data.workers",
    "predict": "lower --batch",
}
"""What to do when memory is short."""
COMMAND_STYLE = (tyro.conf.AvoidSubcommands,)


@dataclass(kw_only=True)
class RecipesArguments:
    """List what can be trained, and what is published about it."""


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


@dataclass(kw_only=True)
class TestArguments:
    """Measure a checkpoint on the evaluation images of a recipe: COCO's twelve numbers and a table of each class."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint file, its URL, or a run's folder."""
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


@dataclass(kw_only=True)
class PredictArguments:
    """Find objects in pictures."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint file, its URL, or a run's folder."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE_OR_FOLDER...")]
    """Image files, or folders of them, which are walked."""
    recipe: str = ""
    """The checkpoint's recipe; only needed for checkpoints that do not come from mgdet."""
    out: str = "predictions"
    """Folder for the annotated pictures and detections.json."""
    score: float = 0.3
    """Only objects with at least this score."""
    batch: int = 4
    """Images per forward pass."""
    ema: bool = False
    """Take the copy that the file keeps under the name of an exponential moving average."""


@dataclass(kw_only=True)
class DataArguments:
    """Say what a data set holds and what training leaves out of it; exit code 2 if it cannot be trained on."""

    root: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder of the data set: COCO, YOLO or Pascal VOC, in any of the layouts in docs/data.md."""
    data: DataConfig
    """The names in it, as for training."""
    masks: bool = False
    """It is meant for a detector that finds masks."""
    out: str = ""
    """Also draw sixteen samples with boxes and masks, into this folder."""


@dataclass(kw_only=True)
class TransferArguments:
    """Read a checkpoint of mgdet, MMDetection 2.x or 3.x, or an MGD training run, and write the detector alone."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IN")]
    """A checkpoint file, its URL, or a run's folder."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """The file to write: .pth as MMDetection reads it, or .safetensors."""
    ema: bool = False
    """Take the copy that the file keeps under the name of an exponential moving average."""


@dataclass(kw_only=True)
class DemoArguments:
    """Make a data set, train a teacher, a student alone and the same student with MGD, and compare the three."""

    pair: str = "retinanet"
    """Which pair, in small: retinanet, faster_rcnn, mask_rcnn, reppoints or solo."""
    quick: bool = False
    """A shorter version, about two minutes on two CPU cores."""
    out: str = ""
    """Folder for the data set, the runs, the table and the pictures; empty: demo, or demo-quick."""
    seed: int = 0
    """Seed of the data set and of the three runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; what went wrong is said in one sentence.

    0: done. 1: a run that cannot go on: a number that is not finite, too little memory, a process that died or hangs.
    2: bad input, or a disk that is full. 130: Ctrl-C. 128 + n: signal n.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _let_memory_grow()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in letters that the terminal's encoding lacks
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from mgdet import __version__

        _print(f"mgdet {__version__}")
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"there is no command '{arguments[0]}'{nearest(arguments[0], COMMANDS)}")
        return COMMANDS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        text, code = _explain(error, arguments[0])
        if not text:
            raise
        sys.stderr.write(f"mgdet: {text}\n")
        return code


def _let_memory_grow() -> None:
    """Image sizes change from step to step; pieces of a GPU's memory that grow do not fragment. The user's word counts.

    Read by torch when CUDA starts, which is later. Only Linux has it.
    """
    if sys.platform == "linux" and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def _explain(error: Exception, command: str) -> tuple[str, int]:
    """The sentence and the exit code of an error; the sentence is empty for those that are our own fault."""
    if isinstance(error, UserError):
        return str(error), 2
    if lacking := shortage(error):
        advised = ";" in lacking or command not in ADVICE
        return lacking if advised else f"{lacking}; {ADVICE[command]}", 1
    if isinstance(error, TrainingError):
        return str(error), 1
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return "no space is left on the disk; free some, then resume a run with --resume", 2
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}", 2
    return "", 0


def recipes(arguments: list[str]) -> int:
    """`mgdet recipes`"""
    _parse(RecipesArguments, arguments, "recipes")
    console = Console(soft_wrap=True, highlight=False)
    for kind, title in RECIPE_KINDS.items():
        console.print(f"{title}\n", style="bold underline", markup=False)
        for name, recipe in RECIPES.items():
            if recipe.kind == kind:
                console.print(f"{name:<47}{_published(recipe)}".rstrip(), style="bold", markup=False)
                console.print("\n".join(f"    {line}" for line in _description(recipe)), end="\n\n", markup=False)
    _print("mAP on COCO val2017 as published, in percent. A recipe of your own is MODULE:FUNCTION.")
    return 0


def _published(recipe: Recipe) -> str:
    return f"{recipe.baseline} -> {recipe.distilled} with MGD" if recipe.distilled else recipe.baseline


def _description(recipe: Recipe) -> list[str]:
    lines = [f"{recipe.teacher} -> {recipe.student}" if recipe.teacher else recipe.student]
    lines += [f"config      {recipe.original}"] if recipe.original else []
    lines += [f"checkpoint  {recipe.checkpoint}"] if recipe.checkpoint else []
    return lines


def train(arguments: list[str]) -> int:
    """`mgdet train RECIPE ...`"""
    name, rest = _recipe_first(arguments, "train")
    config = load_recipe(name)
    parsed = _parse(TrainArguments, rest, f"train {name}", TrainArguments(config=config))
    folder = Path(parsed.run_dir or f"runs/{name.replace(':', '.')}")

    from mgdet.distributed import join, launch, under_torchrun
    from mgdet.engine.loop import train as run

    _check_devices(parsed.devices)
    if parsed.devices > 1 and not under_torchrun():
        return launch(parsed.devices, ["train", *arguments])
    with join() as world:
        return run(parsed.config, folder, resume=parsed.resume, world=world)


def test(arguments: list[str]) -> int:
    """`mgdet test RECIPE CHECKPOINT ...`"""
    name, rest = _recipe_first(arguments, "test")
    config = load_recipe(name)
    default = TestArguments(
        checkpoint=tyro.MISSING, student=config.student, data=config.data, eval=config.train.metrics
    )
    parsed = _parse(TestArguments, rest, f"test {name}", default)
    config = replace(config, student=parsed.student, data=parsed.data)

    from mgdet.distributed import join, launch, under_torchrun
    from mgdet.report.measure import test_checkpoint

    _check_devices(parsed.devices)
    if parsed.devices > 1 and not under_torchrun():
        return launch(parsed.devices, ["test", *arguments])
    with join() as world:
        out = Path(parsed.out) if parsed.out else None
        test_checkpoint(
            config, parsed.checkpoint, metrics=parsed.eval, out=out, world=world, say=_print, ema=parsed.ema
        )
    return 0


def transfer(arguments: list[str]) -> int:
    """`mgdet transfer IN OUT`"""
    parsed = _parse(TransferArguments, arguments, "transfer")

    from mgdet.transfer import transfer as run

    _print(run(parsed.source, Path(parsed.out), ema=parsed.ema))
    return 0


def predict(arguments: list[str]) -> int:
    """`mgdet predict CHECKPOINT IMAGE_OR_FOLDER...`"""
    parsed = _parse(PredictArguments, arguments, "predict")

    from mgdet.evaluate.predict import predict as run

    recipe = load_recipe(parsed.recipe) if parsed.recipe else None
    out = Path(parsed.out)
    run(
        parsed.checkpoint,
        parsed.images,
        recipe=recipe,
        out=out,
        score=parsed.score,
        batch=parsed.batch,
        say=_print,
        ema=parsed.ema,
    )
    return 0


def data(arguments: list[str]) -> int:
    """`mgdet data DIR`"""
    parsed = _parse(DataArguments, arguments, "data", DataArguments(root=tyro.MISSING, data=DataConfig()))

    from mgdet.report.dataset import describe_data

    config = replace(parsed.data, root=parsed.root)
    return describe_data(config, masks=parsed.masks, out=Path(parsed.out) if parsed.out else None, say=_print)


def demo(arguments: list[str]) -> int:
    """`mgdet demo`"""
    parsed = _parse(DemoArguments, arguments, "demo")

    from mgdet.demo.run import demo as run

    out = Path(parsed.out or ("demo-quick" if parsed.quick else "demo"))
    return run(out, pair=parsed.pair, quick=parsed.quick, seed=parsed.seed, say=_print)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "recipes": recipes,
    "train": train,
    "test": test,
    "transfer": transfer,
    "predict": predict,
    "data": data,
    "demo": demo,
}


def _recipe_first(arguments: list[str], command: str) -> tuple[str, list[str]]:
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if any(argument in ("-h", "--help") for argument in arguments):
        return next(iter(RECIPES)), arguments
    raise UserError(f"mgdet {command} needs a recipe first, e.g. mgdet {command} {next(iter(RECIPES))}")


def _parse(kind: type[Arguments], arguments: list[str], command: str, default: Arguments | None = None) -> Arguments:
    """tyro's parsing, with its errors as one sentence."""
    options: dict[str, Any] = {"default": default} if default is not None else {}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=arguments, prog=f"mgdet {command}", config=COMMAND_STYLE, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_sentence(complaint.getvalue(), command)) from None


def _sentence(complaint: str, command: str) -> str:
    """The message in tyro's frame, in one sentence, and the option that it thinks was meant.

    Where the terminal has no UTF-8 the frame is of hyphens, and its title stands above the first line of them.
    """
    lines = [line.strip("│ ") for line in complaint.splitlines() if not line.startswith(("╭", "╰"))]
    lines = [line for line in lines if line]
    rules = [i for i, line in enumerate(lines) if set(line) <= {"─", "-"}]
    if "╭" not in complaint and rules:
        lines = lines[rules[0] + 1 :]
        rules = [rule - rules[0] - 1 for rule in rules[1:]]
    rule = rules[0] if rules else len(lines)
    text = " ".join(lines[:rule]).rstrip(".")
    text = re.sub(r"^Error parsing (?:config\.)?(?:(\w+): (?=\1\.))?", "", text)
    text = re.sub(
        r"^(--\S+): (?:invalid literal|could not convert).*: '(.*)'$", r"\1 is '\2', which is not a number", text
    )
    meant = next((line.split()[0].strip(",|") for line in lines[rule:] if re.match(r"--\w", line)), "")
    if text.startswith("Unrecognized options") and meant:
        text += f"; did you mean {meant}?"
    return f"{text} (mgdet {command} --help lists all options)" if text else f"mgdet {command} cannot be read"


def _check_devices(devices: int) -> None:
    if devices < 1:
        raise UserError(f"--devices is {devices}; give 1 or more")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
