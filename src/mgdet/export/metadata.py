"""What a graph says of itself: class names, preprocessing and origin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgdet.config import DataConfig
from mgdet.detectors.exported import CLASSES, ORIGIN, PREPROCESSING, Preprocessing
from mgdet.detectors.face import Face
from mgdet.errors import UserError
from mgdet.version import __version__

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Notes:
    """What is written into the metadata of a graph, whatever its precision.

    classes: class names.
    how: how pictures become its input.
    detector: what it is, in a few words.
    sha256: of the checkpoint; empty where there is none.
    """

    classes: tuple[str, ...]
    how: Preprocessing
    detector: str
    sha256: str

    def file_of(self, model: onnx.ModelProto, precision: str) -> bytes:
        """The content of the file of a graph in fp32, fp16 or int8."""
        origin = {"version": __version__, "detector": self.detector, "precision": precision}
        origin["checkpoint_sha256"] = self.sha256
        model.producer_name, model.producer_version = "mgdet", __version__
        del model.metadata_props[:]
        for key, value in ((CLASSES, self.classes), (PREPROCESSING, self.how.to_dict()), (ORIGIN, origin)):
            entry = model.metadata_props.add()
            entry.key, entry.value = key, json.dumps(value)
        return model.SerializeToString()


def preprocessing_of(detector: Face, data: DataConfig, size: tuple[int, int] | None, *, dynamic: bool) -> Preprocessing:
    """How pictures become what the graph takes: as in the run, but for a size that is asked for.

    Raises:
        UserError: the detector or the run does not go with that size.
    """
    native, square = detector.native_size, data.square
    if native is not None and (dynamic or size not in (None, native)):
        only = f"the detector takes images of {native[0]} x {native[1]} pixels only"
        raise UserError(f"{only}; leave out {'--dynamic' if dynamic else '--size'}")
    if square and size is not None:
        if size[0] != size[1]:
            raise UserError(
                f"--size is {size[0]} {size[1]}, but the run squashes images to squares; give --size {square} {square}"
            )
        square = size[0]
    if native is not None:
        square, size = native[0], native
    if square and not dynamic:
        size = (square, square)
    height, width = size or (0, 0)
    rule = "squash" if square else "letterbox" if size else "scale"
    mean, std, bgr = detector.pixels
    if bgr:
        mean, std = mean[::-1], std[::-1]
    red, green, blue = (round(min(255.0, max(0.0, value))) for value in mean)
    edges = data.long_edge, data.short_edge[1]
    return Preprocessing(rule, height, width, *edges, square, (red, green, blue), mean, std)
