"""What `mgdet export` does: a checkpoint becomes one ONNX file, which is compared with torch before it is written."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgdet.detectors.exported import IMAGE, SUFFIX, Exported, is_exported
from mgdet.detectors.face import Face
from mgdet.errors import UserError
from mgdet.export.metadata import Notes, preprocessing_of
from mgdet.export.pictures import calibration_images, find_images, fit, with_turned
from mgdet.files import atomic_write
from mgdet.layers.inference import inference_form
from mgdet.models.opened import Opened

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SHOWN = 3


class Demand(NamedTuple):
    """How much of what torch finds a graph of few bits must find again, from which overlap of the boxes on."""

    share: float
    overlap: float


FEW_BITS = {"fp16": Demand(0.9, 0.9), "int8": Demand(0.5, 0.5)}


def export(
    opened: Opened,
    out: str | Path,
    *,
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    half: bool = False,
    int8: str | Path | None = None,
    images: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes a trained detector as one ONNX graph: from the image to boxes, scores, labels and masks.

    The graph takes `image`, (1, h, w, 3) uint8 RGB, and gives, best first, `boxes` (N, 4) float32 xyxy in pixels of
    it, `scores` (N,) float32, `labels` (N,) int64 and, of detectors with masks, `masks` (N, h, w) bool. Class names and
    preprocessing are in its metadata, as JSON. Without `size` and `dynamic` it takes what `mgdet test` gives the
    checkpoint: squares where the run squashes images, else images of any size.

    Before it is written ONNX Runtime and torch are compared on pictures: boxes within 0.05 pixels, scores within 1e-4,
    equal labels.

    Args:
        opened: the detector, as `mgdet.models.opened.open_detector` gives it; it stays as it is.
        out: a file that does not exist yet, ending in .onnx.
        size: (h, w) of all images, in pixels.
        dynamic: images of any size.
        half: weights and network in half precision; what makes boxes of it stays in float32.
        int8: a folder of pictures to calibrate with: convolutions in eight bits.
        images: a folder of pictures to compare on; else the run's validation images, or drawn ones.
        say: is told what the graph takes, how it compares, how fast it is and what was written.

    Returns:
        `out`.

    Raises:
        UserError: bad input, a package is missing, the detector cannot be traced, or the two do not agree. Then no
            file is written.
    """
    out = Path(out)
    _check(out, size=size, dynamic=dynamic, half=half, int8=int8)
    if isinstance(opened.detector, Exported):
        raise UserError(f"{opened.source} is an exported graph already; give the checkpoint that it was made of")
    require_packages()
    from mgdet.export.graph import build_graph, canvas_of
    from mgdet.export.half import to_half
    from mgdet.export.int8 import to_int8
    from mgdet.export.latency import latency_line

    detector = inference_form(opened.detector).to("cpu")
    how = preprocessing_of(detector, opened.data, size, dynamic=dynamic)
    say(f"{IMAGE}: 1 x {how.height or 'height'} x {how.width or 'width'} x 3, uint8, RGB; {how.line()}")
    notes = Notes(opened.classes, how, opened.name, opened.sha256)
    pictures = find_images(images, opened.data)
    calibration = None if int8 is None else calibration_images(int8, how)
    fitted = [fit(image, how) for image in pictures.images]
    shown = fitted if how.height else with_turned(fitted)

    model = build_graph(detector, canvas_of(detector, (how.height, how.width) if how.height else None))
    content = notes.file_of(model, "fp32")
    exported = _opened(content, out)
    say(_compared(detector, exported, shown, pictures.what))
    if half or calibration is not None:
        precision = "fp16" if calibration is None else "int8"
        model = to_half(model) if calibration is None else to_int8(model, calibration)
        content = notes.file_of(model, precision)
        exported = _opened(content, out)
        say(_resembling(detector, exported, shown, pictures.what, precision))
    say(latency_line(detector, exported, fitted[0]))
    atomic_write(out, lambda file: file.write(content))
    say(f"wrote {out}: {len(content) / 1e6:.1f} MB")
    return out


def require_packages() -> None:
    """Has what the extra `[export]` brings.

    Raises:
        UserError: one of its packages is missing.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"mgdet export needs {package}: pip install 'mgdet[export]'")


def _check(out: Path, *, size: tuple[int, int] | None, dynamic: bool, half: bool, int8: str | Path | None) -> None:
    if not is_exported(out):
        raise UserError(f"{out} ends in '{out.suffix}'; give the name of a file that ends in {SUFFIX}")
    if out.exists():
        raise UserError(f"{out} exists already; give the name of a new file")
    if not out.parent.is_dir():
        raise UserError(f"the folder {out.parent} of {out.name} does not exist; make it first")
    if size is not None and dynamic:
        raise UserError("--size and --dynamic exclude each other; leave one out")
    if size is not None and min(size) < 1:
        raise UserError(f"--size is {size[0]} {size[1]}; give a height and a width in pixels")
    if half and int8 is not None:
        raise UserError("--half and --int8 exclude each other; leave one out")


def _opened(content: bytes, out: Path) -> Exported:
    """What ONNX Runtime makes of a graph that was just built.

    Raises:
        UserError: it runs no such graph.
    """
    try:
        return Exported(content, path=out)
    except UserError as error:
        raise UserError(f"torch's exporter writes no valid graph of this detector: {error}") from None


def _compared(detector: Face, exported: Exported, images: Sequence[np.ndarray], what: str) -> str:
    """The line that says how closely a float32 graph finds what torch finds.

    Raises:
        UserError: it does not, or there is nothing to compare it by.
    """
    from mgdet.export.forms import form_of
    from mgdet.export.verify import MOST_CHOSEN, MOST_ROUNDING, compare

    form = form_of(detector)
    try:
        agreement = compare(detector, exported, images, form.limits)
    except UserError:
        if exported.canvas is not None:
            raise
        raise UserError(
            "a graph of this detector takes images of one size only; give it, e.g. --size 640 640"
        ) from None
    differing = [*agreement.lacking, *agreement.tied]
    number = len(differing)
    if number > MOST_CHOSEN * agreement.pairs or (agreement.lacking and not form.chooses_inside):
        shown = "; ".join(differing[:SHOWN])
        raise UserError(
            f"the graph does not find what torch finds on {what}: {number} of {agreement.pairs + number} detections "
            f"differ ({shown}), so nothing is written"
        )
    if agreement.rounding > MOST_ROUNDING * agreement.pairs:
        raise UserError(
            f"on {what} the detector gives {agreement.rounding} of {agreement.pairs + agreement.rounding} objects "
            "scores that rounding decides between, so the graph cannot be compared by them; train the detector first, "
            "or give --images with a folder of pictures in which it finds something"
        )
    if not agreement.pairs:
        raise UserError(
            f"on {what} the detector finds nothing, so there is nothing to compare the graph by; give --images with a "
            "folder of pictures in which it finds something"
        )
    return f"the same as torch on {what}: {agreement.line(masks=detector.has_masks)}"


def _resembling(detector: Face, exported: Exported, images: Sequence[np.ndarray], what: str, precision: str) -> str:
    """The line that says how much of what torch finds a graph of few bits finds again.

    Raises:
        UserError: too little, or there is nothing to compare it by.
    """
    from mgdet.export.verify import resemble

    demand = FEW_BITS[precision]
    resemblance = resemble(detector, exported, images, overlap=demand.overlap)
    if not resemblance.objects:
        raise UserError(
            f"on {what} the detector finds nothing that it is sure of, so there is nothing to compare {precision} by; "
            "give --images with a folder of pictures in which it does"
        )
    if resemblance.share < demand.share:
        option = {"fp16": "--half", "int8": "--int8"}[precision]
        raise UserError(
            f"{precision} changes too much on {what}, so nothing is written: {resemblance.line()}; leave {option} out"
        )
    return f"{precision}: {resemblance.line()}"
