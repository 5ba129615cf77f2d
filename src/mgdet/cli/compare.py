"""`mgdet compare RUN|CHECKPOINT|OUT.onnx|RESULTS.json ...`"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from mgdet.cli.parsing import given_settings, parse, say
from mgdet.config import DataConfig
from mgdet.errors import UserError
from mgdet.recipes import load_recipe

SIZES = ("long_edge", "short_edge", "short_edge_step", "square", "flip")
"""Settings of the data that belong to a detector."""


@dataclass(kw_only=True)
class CompareArguments:
    """Measure runs, checkpoints and files of detections on the same images, and write a page that compares them."""

    sources: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN|CHECKPOINT|OUT.onnx|RESULTS.json...")
    ]
    """Run folders, checkpoint files or their URLs, exported .onnx files, SOURCE:NAME of another library, and .json
    files of detections in COCO's results format. The others are compared with the first; runs that differ only in
    their seed are grouped. NAME=... names a source."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images to measure on, by default those of the first run. Sizes come from each source's own config."""
    teacher: str = ""
    """The teacher, in any of these forms; empty: the one that the first distilled run names, if its file is here."""
    recipe: str = ""
    """The recipe of checkpoints that mgdet did not write; empty: what they hold is recognised."""
    eval: tuple[str, ...] = ()
    """What to measure: bbox, segm or both; empty: what the first run measured during training, else bbox."""
    resamples: int = 1000
    """Resamples of the images, for the confidence intervals."""
    seed: int = 0
    """Seed of the resamples."""
    out: str = "comparison"
    """Folder for report.html and report.json."""


def run(arguments: list[str]) -> int:
    """`mgdet compare RUN|CHECKPOINT|OUT.onnx|RESULTS.json ...`"""
    default = CompareArguments(sources=tyro.MISSING)
    for name in SIZES:
        if f"data.{name}" in given_settings(arguments, default):
            option = f"--data.{name.replace('_', '-')}"
            raise UserError(f"{option} does not apply here: each source looks at images of its own config's sizes")
    parsed = parse(CompareArguments, arguments, "compare", default)
    settings = given_settings(arguments, parsed)
    given = {name.removeprefix("data."): value for name, value in settings.items() if name.startswith("data.")}

    from mgdet.report.compare import compare
    from mgdet.report.intervals import Bootstrap
    from mgdet.report.sources import data_of

    data = data_of(parsed.sources) or DataConfig()
    compare(
        parsed.sources,
        data=replace(data, **given),
        teacher=parsed.teacher or None,
        out=Path(parsed.out),
        recipe=load_recipe(parsed.recipe) if parsed.recipe else None,
        metrics=parsed.eval,
        bootstrap=Bootstrap(parsed.resamples, parsed.seed),
        say=say,
    )
    return 0
