"""An exported graph behind the outer face: what `mgdet export` wrote, run by ONNX Runtime alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgdet.detectors.face import Face, Learned
from mgdet.errors import UserError, shortage
from mgdet.structures import Detections, Pixels, Seen, Target

SUFFIX = ".onnx"
IMAGE = "image"
OUTPUTS = ("boxes", "scores", "labels", "masks")
CLASSES, PREPROCESSING, ORIGIN = "classes", "preprocessing", "mgdet"
"""Keys of the graph's metadata; each value is JSON."""
MASK_SHARE = 0.5


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the input of a graph. What is normalised and padded to a multiple is done inside.

    rule: `scale`: as large as fits into `long_edge` and `short_edge`, with its ratio; other sizes are taken too.
        `letterbox`: as large as fits into `height` x `width`, with its ratio, in the upper left corner; the rest is
        `fill`. `squash`: stretched to a square of `square`.
    height, width: of the input, in pixels; 0: any.
    long_edge, short_edge: what the edges of the resized picture are at most, in pixels.
    square: edge of the square, in pixels; 0 where the ratio is kept.
    fill: R, G, B of what a letterbox leaves free.
    mean, std: of the normalisation inside, for R, G, B from 0 to 255; for information.
    """

    rule: str
    height: int
    width: int
    long_edge: int
    short_edge: int
    square: int
    fill: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def line(self) -> str:
        """The rule in one sentence."""
        if self.rule == "squash":
            others = "" if self.height else "; other sizes are taken too, and padding is inside"
            return f"resize to exactly {self.square} x {self.square} pixels, whatever the ratio{others}"
        if self.rule == "letterbox":
            colour = ", ".join(map(str, self.fill))
            return (
                f"resize to as large as fits into {self.height} x {self.width} (height x width), with the ratio kept, "
                f"put it into the upper left corner and fill the rest with ({colour})"
            )
        return (
            f"resize to as large as fits into a longer edge of {self.long_edge} and a shorter edge of "
            f"{self.short_edge} pixels, with the ratio kept; other sizes are taken too, and padding is inside"
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it and the sentence, with the name, the layout and the type of the input, ready for JSON."""
        layout = {"input": IMAGE, "layout": "NHWC", "type": "uint8", "colours": "RGB", "interpolation": "bilinear"}
        return layout | asdict(self) | {"text": self.line()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What `to_dict` gave."""
        own: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in own.items()
        }
        return cls(**plain)


def is_exported(source: str | Path) -> bool:
    """Is this the name of a graph?"""
    return Path(source).suffix.lower() == SUFFIX


class Exported(Face):
    """A graph as a detector that finds, one image after the other.

    Images come as pixels from 0 to 255, see `pixels`: the graph normalises. They may have any size up to the graph's.

    path: of the file.
    classes: class names.
    preprocessing: what the file says of it.
    origin: what the file says of where it comes from: version, detector, precision, SHA-256 of the checkpoint.

    Args:
        model: the path of the file, or its content.
        path: for messages.

    Raises:
        UserError: ONNX Runtime is missing or refuses the file, or the file was not written by `mgdet export`.
    """

    trains = False
    pixels = Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    multiple = 1

    def __init__(self, model: Path | bytes, *, path: Path):
        super().__init__()
        self.path = path
        self.session = open_session(model, path)
        found = self.session.get_modelmeta().custom_metadata_map
        self.classes, self.preprocessing, self.origin = _read(found, path)
        self.num_classes = len(self.classes)
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.has_masks = OUTPUTS[3] in self.outputs

    def __deepcopy__(self, memo: Any) -> Exported:
        return self  # nothing in it changes, and a session cannot be copied

    @property
    def canvas(self) -> tuple[int, int] | None:
        """The (h, w) that pictures are fitted into; None where the graph takes any size."""
        own = self.preprocessing
        return (own.height, own.width) if own.height else None

    def line(self) -> str:
        """What the file is, in one line."""
        name, precision = self.origin.get("detector", ""), self.origin.get("precision", "")
        return (
            f"{self.path}: {name} in {precision}, {self.num_classes} classes, run by ONNX Runtime on {self.device_name}"
        )

    @property
    def device_name(self) -> str:
        """What the graph runs on."""
        return "CUDA" if "CUDAExecutionProvider" in self.session.get_providers() else "CPU"

    def run(self, image: np.ndarray) -> Detections:
        """What the graph finds in an image (h, w, 3) uint8, RGB, of the size that it takes, in pixels of it.

        Raises:
            UserError: ONNX Runtime cannot run it on this image.
        """
        try:
            found = self.session.run(None, {IMAGE: image[None]})
        except Exception as error:  # of ONNX Runtime's own types, which no base but this joins
            if shortage(error):
                raise
            height, width = image.shape[:2]
            raise UserError(
                f"ONNX Runtime cannot run {self.path} on an image of {height} x {width} ({_first_line(error)})"
            ) from None
        by_name: dict[str, Any] = {name: torch.from_numpy(value) for name, value in zip(self.outputs, found)}
        return Detections(**by_name)

    def find(
        self, images: Tensor, sizes: list[tuple[int, int]], scales: list[tuple[float, float]] | None = None
    ) -> list[Detections]:
        """See `Face.find`. What lies in the padding of a letterbox alone is left out.

        Masks are drawn in the pixels of the input and resized from there.
        """
        pixels = images.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        results = []
        for place, (image, (height, width)) in enumerate(zip(pixels, sizes)):
            found = self.run(self.placed(np.ascontiguousarray(image[:height, :width])))
            found = within(found, (height, width))
            results.append(found if scales is None else _scaled(found, (height, width), scales[place]))
        return [_moved(found, images.device) for found in results]

    def placed(self, image: np.ndarray) -> np.ndarray:
        """An image (h, w, 3) in the upper left corner of the graph's canvas."""
        if self.canvas in (None, image.shape[:2]):
            return image
        canvas = np.empty((*self.canvas, 3), np.uint8)  # type: ignore[misc]
        canvas[:] = self.preprocessing.fill
        canvas[: image.shape[0], : image.shape[1]] = image
        return canvas

    def see(self, images: Tensor, sizes: list[tuple[int, int]], *, outputs: bool = False) -> Seen:
        """Refused: a graph shows no maps."""
        self._refuse("teach")

    def learn(self, images: Tensor, targets: list[Target], *, outputs: bool = False) -> Learned:
        """Refused: a graph has no losses."""
        self._refuse("learn")

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(f"{self.path} is an exported graph and cannot {what}; give the checkpoint that it was made of")


def load_exported(source: str | Path) -> Exported:
    """The graph in a file.

    Raises:
        UserError: see `Exported`; or there is no such file.
    """
    path = Path(source)
    if "://" in str(source):
        raise UserError(f"{source} is an address, and an exported graph has to be a file here; download it first")
    if not path.is_file():
        raise UserError(f"there is no file '{path}'")
    return Exported(path, path=path)


def open_session(model: Path | bytes, path: Path) -> Any:
    """ONNX Runtime's session, on CUDA where it can, with as many threads as torch has.

    Raises:
        UserError: ONNX Runtime is missing or refuses the model.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path} needs onnxruntime: pip install 'mgdet[export]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it cannot run, it raises
    wanted = [name for name in onnxruntime.get_available_providers() if name.startswith(("CUDA", "CPU"))]
    try:
        return onnxruntime.InferenceSession(str(model) if isinstance(model, Path) else model, options, wanted)
    except Exception as error:  # of ONNX Runtime's own types, which no base but this joins
        raise UserError(f"{path} is damaged, or no graph that ONNX Runtime can run ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def within(found: Detections, size: tuple[int, int]) -> Detections:
    """The detections inside of the upper left (h, w), in pixels of it."""
    height, width = size
    boxes = torch.minimum(found.boxes, found.boxes.new_tensor([width, height, width, height]))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) | (boxes == found.boxes).all(dim=1)
    masks = None if found.masks is None else found.masks[kept][:, :height, :width]
    return Detections(boxes[kept], found.scores[kept], found.labels[kept], masks)


def _moved(found: Detections, device: torch.device) -> Detections:
    masks = None if found.masks is None else found.masks.to(device)
    return Detections(found.boxes.to(device), found.scores.to(device), found.labels.to(device), masks)


def _scaled(found: Detections, size: tuple[int, int], scale: tuple[float, float]) -> Detections:
    x, y = scale
    masks = found.masks
    if masks is not None:
        out = round(size[0] / y), round(size[1] / x)
        resized = torch.zeros((len(masks), *out), dtype=torch.bool)
        for place, mask in enumerate(masks):  # one by one: all of them as floats may not fit
            drawn = F.interpolate(mask[None, None].float(), size=out, mode="bilinear")[0, 0]
            resized[place] = drawn >= MASK_SHARE
        masks = resized
    return found._replace(boxes=found.boxes / found.boxes.new_tensor([x, y, x, y]), masks=masks)


def _read(found: Mapping[str, str], path: Path) -> tuple[tuple[str, ...], Preprocessing, dict[str, Any]]:
    try:
        classes: Sequence[str] = json.loads(found[CLASSES])
        return tuple(classes), Preprocessing.from_dict(json.loads(found[PREPROCESSING])), json.loads(found[ORIGIN])
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path} was not written by mgdet export: its metadata do not say how it is used") from None
