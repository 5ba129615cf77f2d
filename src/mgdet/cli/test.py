"""`mgdet test [RECIPE] CHECKPOINT|RESULTS.json`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mgdet.cli.parsing import Devices, Start, count_devices, is_foreign, option_value, parse, recipe_or_file, say
from mgdet.config import DataConfig, ModelConfig
from mgdet.errors import refuse_unused
from mgdet.recipes import RECIPES, load_recipe

SIZES = ("--data.square", "--data.long-edge", "--data.short-edge")
WEIGHTS = "--student.weights"
NO_RECIPE = "alone"
"""Whose student and data make room for what a checkpoint says of itself."""


@dataclass(kw_only=True)
class TestArguments:
    """Measure a checkpoint, or what any tool found: COCO's twelve numbers and a table of each class.

    Without a recipe the checkpoint says itself which detector it holds, and the data are those of --data.root.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT|RESULTS.json")]
    """A checkpoint file, its URL, a run's folder, an exported .onnx file, SOURCE:NAME of another library, or a .json
    file of any tool's detections in COCO's results format."""
    student: ModelConfig
    """The recipe's detector."""
    data: DataConfig
    """The recipe's images."""
    file: Annotated[str, tyro.conf.arg(name="config", metavar="FILE")] = ""
    """Instead of a recipe: a JSON or YAML file with all settings, such as a run's config.json, or a run's folder."""
    devices: Devices = 1
    """Processes on this machine: one for each GPU, or each with its share of the CPU; all: as many as there are GPUs,
    or one on a machine without."""
    amp: Annotated[Literal["off", "bf16", "fp16"], tyro.conf.arg(name="train.amp")] = "off"
    """Run backbone and neck in this precision, as training does; off: exact float32."""
    batch: int = 4
    """Images per forward pass."""
    eval: tuple[str, ...]
    """What to measure: bbox, segm or both; else what the recipe measures in training."""
    out: str = ""
    """Also write the detections to this file, in COCO's results format."""
    ema: bool = False
    """Take the copy that the file keeps under the name of an exponential moving average."""


def run(arguments: list[str]) -> int:
    """`mgdet test [RECIPE] CHECKPOINT ...`"""
    from mgdet.detectors.exported import is_exported, load_exported
    from mgdet.evaluate.results import is_results_file

    lines: tuple[str, ...] = ()
    if arguments and is_results_file(arguments[0]):
        start = Start(load_recipe(NO_RECIPE), "RESULTS.json", arguments)
        config = start.config
    elif arguments and is_exported(arguments[0]):
        from mgdet.models.opened import data_of

        data = data_of(load_exported(arguments[0]))
        start = Start(replace(load_recipe(NO_RECIPE), data=data), "OUT.onnx", arguments)
        config = start.config
    elif arguments and is_foreign(arguments[0]):
        from mgdet.models.recognise import recognise

        config = replace(load_recipe(NO_RECIPE), student=recognise(arguments[0]).model, data=DataConfig())
        start = Start(config, "SOURCE:NAME", arguments)
    elif arguments and _is_checkpoint(arguments[0]):
        from mgdet.models.recognise import recognise

        recognised = recognise(arguments[0])
        config = replace(load_recipe(NO_RECIPE), student=recognised.model, data=recognised.data())
        start, lines = Start(config, "CHECKPOINT", arguments), recognised.lines
    else:
        start = recipe_or_file(arguments, "test")
        config = start.config
    default = TestArguments(
        checkpoint=tyro.MISSING, student=config.student, data=config.data, eval=config.train.metrics
    )
    parsed = parse(TestArguments, start.rest, f"test {start.words}", default)
    config = replace(config, student=parsed.student, data=parsed.data)

    from mgdet.distributed import join, launch, under_torchrun
    from mgdet.report.measure import test_checkpoint

    devices = count_devices(parsed.devices)
    _refuse_unused(parsed.checkpoint, start.rest, devices)
    if devices > 1 and not under_torchrun():
        return launch(devices, ["test", *arguments])
    with join() as world:
        for line in lines if world.main else ():
            say(line)
        test_checkpoint(
            config,
            parsed.checkpoint,
            metrics=parsed.eval,
            out=Path(parsed.out) if parsed.out else None,
            world=world,
            say=say,
            ema=parsed.ema,
            amp=parsed.amp,
            batch=parsed.batch if option_value(start.rest, "--batch") else None,
            own_sizes=is_foreign(parsed.checkpoint) and not _sizes_in(start.rest),
        )
    return 0


def _refuse_unused(source: str, words: list[str], devices: int) -> None:
    """Refuses options that mean nothing to what is tested.

    Raises:
        UserError: one was given.
    """
    from mgdet.detectors.exported import is_exported, load_exported
    from mgdet.evaluate.results import is_results_file
    from mgdet.report.measure import not_a_checkpoint

    given = _options(words)
    what, made = not_a_checkpoint(source), is_results_file(source)
    if not what:
        return refuse_unused(f"{source} is what is tested", {WEIGHTS: WEIGHTS in given})
    refuse_unused(what, {word: True for word in given if word.startswith("--student.")})
    sizes = dict.fromkeys(_sizes_in(words), True)
    if made:
        return refuse_unused(what, sizes | {"--devices": devices > 1})
    if sizes and is_exported(source) and (canvas := load_exported(source).canvas):
        refuse_unused(f"{what} for images of {canvas[0]} x {canvas[1]} pixels", sizes)


def _options(words: list[str]) -> list[str]:
    """The options that were given, as they are written in the help."""
    return [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]


def _sizes_in(words: list[str]) -> list[str]:
    return [word for word in _options(words) if word in SIZES]


def _is_checkpoint(first: str) -> bool:
    """Is the first word a file, a run's folder or a URL, and no recipe?"""
    is_named = "://" in first or first.endswith((".pth", ".pt", ".safetensors"))
    return first not in RECIPES and (is_named or Path(first).exists())
