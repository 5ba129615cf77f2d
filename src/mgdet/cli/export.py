"""`mgdet export CHECKPOINT OUT.onnx`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgdet.cli.parsing import parse, say
from mgdet.recipes import load_recipe


@dataclass(kw_only=True)
class ExportArguments:
    """Write a detector as one ONNX graph, from the image to boxes, scores, labels and masks, compared with torch."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint file, its URL, a run's folder, or SOURCE:NAME of another library."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT.onnx")]
    """The file to write."""
    size: tuple[int, int] | None = None
    """Height and width of all images, in pixels; else squares where the run squashes images, or any size."""
    dynamic: bool = False
    """Images of any size, also where the run squashes them."""
    half: bool = False
    """The network in half precision, for GPUs."""
    int8: str = ""
    """The convolutions in eight bits, calibrated with the pictures of this folder."""
    images: str = ""
    """Folder of pictures to compare ONNX Runtime and torch on; else the run's validation images, or drawn pictures."""
    recipe: str = ""
    """The checkpoint's recipe; empty: recognise what the checkpoint holds."""
    ema: bool = False
    """Take the copy that the file keeps under the name of an exponential moving average."""


def run(arguments: list[str]) -> int:
    """`mgdet export CHECKPOINT OUT.onnx`"""
    parsed = parse(ExportArguments, arguments, "export")

    from mgdet.export.run import export
    from mgdet.models.opened import open_detector

    recipe = load_recipe(parsed.recipe) if parsed.recipe else None
    opened = open_detector(parsed.checkpoint, recipe=recipe, ema=parsed.ema)
    for line in opened.lines:
        say(line)
    export(
        opened,
        Path(parsed.out),
        size=parsed.size,
        dynamic=parsed.dynamic,
        half=parsed.half,
        int8=parsed.int8 or None,
        images=parsed.images or None,
        say=say,
    )
    return 0
