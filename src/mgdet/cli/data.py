"""`mgdet data DIR`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from mgdet.cli.parsing import parse, say
from mgdet.config import DataConfig


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


def run(arguments: list[str]) -> int:
    """`mgdet data DIR`"""
    parsed = parse(DataArguments, arguments, "data", DataArguments(root=tyro.MISSING, data=DataConfig()))

    from mgdet.report.dataset import describe_data

    config = replace(parsed.data, root=parsed.root)
    return describe_data(config, masks=parsed.masks, out=Path(parsed.out) if parsed.out else None, say=say)
