"""`mgdet predict CHECKPOINT IMAGE_OR_FOLDER ...`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgdet.cli.parsing import parse, say
from mgdet.recipes import load_recipe


@dataclass(kw_only=True)
class PredictArguments:
    """Find objects in pictures."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint file, its URL, a run's folder, or an exported .onnx file."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE_OR_FOLDER...")]
    """Image files, or folders, which are searched recursively."""
    recipe: str = ""
    """The checkpoint's recipe; empty: recognise what the checkpoint holds."""
    out: str = "predictions"
    """Folder for the annotated pictures and detections.json."""
    score: float = 0.3
    """Only objects with at least this score."""
    batch: int = 4
    """Images per forward pass."""
    ema: bool = False
    """Take the copy that the file keeps under the name of an exponential moving average."""


def run(arguments: list[str]) -> int:
    """`mgdet predict CHECKPOINT IMAGE_OR_FOLDER...`"""
    parsed = parse(PredictArguments, arguments, "predict")

    from mgdet.evaluate.predict import predict as run_predict

    recipe = load_recipe(parsed.recipe) if parsed.recipe else None
    out = Path(parsed.out)
    run_predict(
        parsed.checkpoint,
        parsed.images,
        recipe=recipe,
        out=out,
        score=parsed.score,
        batch=parsed.batch,
        say=say,
        ema=parsed.ema,
    )
    return 0
