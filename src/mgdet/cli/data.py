"""`mgdet data DIR`"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from mgdet.cli.parsing import option_value, parse, say
from mgdet.config import DataConfig
from mgdet.config.file import find_config, load_config
from mgdet.errors import UserError


@dataclass(kw_only=True)
class DataArguments:
    """Say what a data set holds and what training leaves out of it; exit code 2 if it cannot be trained on."""

    root: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")] = ""
    """Folder of the data set: COCO, YOLO or Pascal VOC, in any of the layouts in docs/data.md."""
    data: DataConfig
    """The names in it, as for training."""
    file: Annotated[str, tyro.conf.arg(name="config", metavar="FILE")] = ""
    """Take the data set and the names from a JSON or YAML file with all settings, such as a run's config.json."""
    masks: bool = False
    """Check it for a detector that finds masks."""
    out: str = ""
    """Also draw sixteen samples with boxes and masks, into this folder."""


def run(arguments: list[str]) -> int:
    """`mgdet data DIR`"""
    given = option_value(arguments, "--config")
    config = load_config(find_config(given)) if given else None
    default = DataArguments(data=config.data if config else DataConfig())
    parsed = parse(DataArguments, arguments, "data", default)
    if not parsed.root and config is None:
        raise UserError("mgdet data needs the folder of a data set, or --config FILE")

    from mgdet.models import has_masks
    from mgdet.report.dataset import describe_data

    data = replace(parsed.data, root=parsed.root) if parsed.root else parsed.data
    masks = parsed.masks or (config is not None and has_masks(config.student))
    return describe_data(data, masks=masks, out=Path(parsed.out) if parsed.out else None, say=say)
