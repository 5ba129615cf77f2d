"""Refuses weights that a config would use otherwise than they were trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mgdet.config import ModelConfig
from mgdet.errors import UserError
from mgdet.interop.mmdet_config import UNKNOWN, get
from mgdet.interop.weights import Checkpoint
from mgdet.models.fixed import PYRAMID_OF_ONE_STAGE, Lack, lacks
from mgdet.models.said import said_by
from mgdet.models.strangers import Stranger, lacking
from mgdet.sections import read
from mgdet.structures import Pixels

CAFFE = re.compile(r"(?<![a-z])(caffe|msra)(?![a-z])", re.IGNORECASE)
"""In the names that MMDetection gives to files of caffe backbones."""
CAFFE_PIXELS = Pixels((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), bgr=True)
"""What MMDetection normalises with for nearly all of them."""
DEPTH = re.compile(r"res(?:net|next)(\d+)(?!\d)")
"""In timm's names of backbones."""
OLD = ("0.", "1.")
"""How versions of MMDetection begin that count boxes otherwise."""
BOTTLENECKS = 50
"""From this depth on a ResNet has bottlenecks."""


def check_agrees(
    config: ModelConfig, checkpoint: Checkpoint, *, role: str, advice: str = "", head: bool = True
) -> None:
    """Refuses one of our detectors with another style, other pixels or fixed settings than a file was trained with.

    What the file does not say is not checked, but for a name that says caffe.

    Args:
        config: the section of the config.
        checkpoint: the file.
        role: student or teacher, for messages.
        advice: what to do; empty: to give the options that fit.
        head: does it matter how the head was trained?

    Raises:
        UserError: names what differs, and the options that fit.
    """
    if config.source:
        return
    said, found = _own(checkpoint), tuple[Lack, ...]()
    if not said:
        said, found = _theirs(config, checkpoint)
    refuse_lacks(checkpoint, [lack for lack in found if head or lack.part != "head"], config.detector)
    named = "style" not in said and _depth(config.backbone) >= BOTTLENECKS and CAFFE.search(checkpoint.path.name)
    if named and config.style == "pytorch":
        caffe = {"style": "caffe", **CAFFE_PIXELS._asdict()}
        raise UserError(
            f"{checkpoint.path} says {named[0]} in its name, but {role} would run it with style pytorch, and no weight "
            f"shows which is right; {advice or f'give {_options(role, caffe)}'}, or rename the file"
        )
    wrong = {name: value for name, value in said.items() if not _same(value, getattr(config, name))}
    if wrong:
        raise UserError(
            f"{checkpoint.path} was trained with {_words(said)}, but {role} would run it with "
            f"{_words({name: getattr(config, name) for name in said})}; {advice or f'give {_options(role, wrong)}'}"
        )


def refuse_lacks(checkpoint: Checkpoint, found: Sequence[Lack], detector: str) -> None:
    """Refuses a file that was trained with settings that our detector of a name has otherwise.

    Raises:
        UserError: names them.
    """
    if found:
        raise UserError(
            f"{checkpoint.path} was trained with {' and '.join(lack.what for lack in found)}, which mgdet's {detector} "
            f"does not have; the nearest is a {detector} with mgdet's own"
        )


def refuse_old(checkpoint: Checkpoint, model: Mapping[str, Any], detector: str, num_classes: int | None) -> None:
    """Refuses a detector of one stage of MMDetection 1.x, whose names and shapes are those of 2.x.

    The config of 1.x counts the background as a class. The version decides nothing: files that were trained on the way
    to 2.0 have a 1.x in theirs.

    Args:
        checkpoint: the file.
        model: the config of the model in it, empty where there is none.
        detector: the name of ours.
        num_classes: what the file predicts, without background; None where that is not known.

    Raises:
        UserError: it is one.
    """
    old = num_classes is not None and get(model, "bbox_head", "num_classes") == num_classes + 1
    if old and detector in PYRAMID_OF_ONE_STAGE:
        what = Stranger(
            f"a {detector} of MMDetection 1.x, with other anchors and boxes", "one of MMDetection 2.x or 3.x"
        )
        raise lacking(checkpoint.path, [what])


def old_doubts(checkpoint: Checkpoint, model: Mapping[str, Any], detector: str) -> list[str]:
    """A line on a file that may be of MMDetection 1.x, of which its config does not say whether it is.

    Args:
        checkpoint: the file.
        model: the config of the model in it, empty where there is none.
        detector: the name of ours.
    """
    told = get(model, "bbox_head", "num_classes")
    if detector not in PYRAMID_OF_ONE_STAGE or told is not UNKNOWN or not checkpoint.version.startswith(OLD):
        return []
    return [
        f"MMDetection {checkpoint.version} wrote it: if that was a release of 1.x and not a development version of "
        "2.0, its anchors and boxes are not those that mgdet uses"
    ]


def pixel_words(pixels: Pixels) -> str:
    """A normalisation in words."""
    mean, std = (" ".join(f"{value:g}" for value in side) for side in (pixels.mean, pixels.std))
    return f"mean {mean}, deviation {std}, {'BGR' if pixels.bgr else 'RGB'}"


def _own(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the config of this package says, if the file holds one."""
    values = (checkpoint.config or {}).get("student")
    if not isinstance(values, dict) or "detector" not in values:
        return {}
    names = ("detector", "style", *Pixels._fields)
    student = read(ModelConfig, {name: values[name] for name in names if name in values}, f"{checkpoint.path}: student")
    return {} if student.source else {name: getattr(student, name) for name in names[1:]}


def _theirs(config: ModelConfig, checkpoint: Checkpoint) -> tuple[dict[str, Any], tuple[Lack, ...]]:
    """What MMDetection's config says, if the file holds one of this backbone."""
    depth = _depth(config.backbone)
    said, _ = said_by(checkpoint, depth)
    refuse_old(checkpoint, said.model, config.detector, None if checkpoint.classes is None else len(checkpoint.classes))
    known: dict[str, Any] = {"style": said.style} if said.style is not None and depth >= BOTTLENECKS else {}
    if said.pixels is not None:
        known |= said.pixels._asdict()
    return known, lacks(said.model, config.detector, config.channels)


def _depth(backbone: str) -> int:
    """The depth in timm's name of a ResNet; 0 for others."""
    found = DEPTH.search(backbone)
    return int(found[1]) if found else 0


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-2) for a, b in zip(one, other))
    return bool(one == other)


def _words(values: dict[str, Any]) -> str:
    style = f"style {values['style']}" if "style" in values else ""
    pixels = pixel_words(Pixels(values["mean"], values["std"], values["bgr"])) if "mean" in values else ""
    return ", ".join(filter(None, (style, pixels)))


def _options(role: str, values: dict[str, Any]) -> str:
    """The options of the command line that set these values."""
    given = []
    for name, value in values.items():
        if isinstance(value, bool):
            given.append(f"--{role}.{'' if value else 'no-'}{name}")
        else:
            given.append(f"--{role}.{name} {' '.join(f'{v:g}' for v in value) if isinstance(value, tuple) else value}")
    return " ".join(given)
