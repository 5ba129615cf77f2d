"""`mgdet demo`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mgdet.cli.parsing import parse, say


@dataclass(kw_only=True)
class DemoArguments:
    """Make a data set, train a teacher and its student alone, inheriting and with MGD, and compare them."""

    pair: str = "faster_rcnn"
    """Which pair, in small: faster_rcnn, mask_rcnn, retinanet, reppoints or solo."""
    quick: bool = False
    """A shorter version, about three minutes on two CPU cores."""
    out: str = ""
    """Folder for the data set, the runs, the table and the pictures; empty: demo, or demo-quick."""
    seed: int = 0
    """Seed of the data set and of all runs."""


def run(arguments: list[str]) -> int:
    """`mgdet demo`"""
    parsed = parse(DemoArguments, arguments, "demo")

    from mgdet.demo.run import demo as run_demo

    out = Path(parsed.out or ("demo-quick" if parsed.quick else "demo"))
    return run_demo(out, pair=parsed.pair, quick=parsed.quick, seed=parsed.seed, say=say)
