"""`mgdet transfer IN OUT`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgdet.cli.parsing import parse, say


@dataclass(kw_only=True)
class TransferArguments:
    """Read a checkpoint of mgdet, MMDetection 2.x or 3.x, or an MGD training run, and write the detector alone."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IN")]
    """A checkpoint file, its URL, or a run's folder."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """The file to write: .pth as MMDetection reads it, or .safetensors."""
    ema: bool = False
    """Take the copy that the file keeps under the name of an exponential moving average."""


def run(arguments: list[str]) -> int:
    """`mgdet transfer IN OUT`"""
    parsed = parse(TransferArguments, arguments, "transfer")

    from mgdet.transfer import transfer as run_transfer

    say(run_transfer(parsed.source, Path(parsed.out), ema=parsed.ema))
    return 0
