"""What a teacher's file holds: detector, backbone, classes and pixels, from its config, its names and its shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgdet.config import Config, DataConfig, ModelConfig
from mgdet.detectors.foreign import library
from mgdet.errors import UserError
from mgdet.interop.mmdet_config import UNKNOWN
from mgdet.interop.names import shown as shortened
from mgdet.interop.weights import Checkpoint, read_checkpoint
from mgdet.layers.conv import MAX_GROUPS, count_groups
from mgdet.models.agree import CAFFE, CAFFE_PIXELS, old_doubts, pixel_words, refuse_lacks, refuse_old
from mgdet.models.fixed import groups_said, lacks, testing_notes
from mgdet.models.said import Said, said_by
from mgdet.models.shown import Shown, read_shapes
from mgdet.models.strangers import TORCHVISIONS, strangers
from mgdet.structures import IMAGENET, Pixels

PRETRAINED = "pretrained"
USUAL_CHANNELS = 256


@dataclass(frozen=True, slots=True)
class Recognised:
    """A detector that somebody brings, as this package builds it.

    model: the detector with its weights; `build_models` takes it as a teacher, `load_detector` as what to test.
    classes: the class names; None where nothing names them.
    num_classes: how many classes it knows; None for a backbone, and where it takes a download to know.
    long_edge: pixels of the longer edge that it was tested at; None where nothing says it.
    short_edge: pixels of the shorter edge that it was tested at; None where nothing says it.
    lines: what was recognised, and why where in doubt, one sentence each.
    square: edge in pixels of the squares that images were squashed to; 0 where they kept their ratio.
    """

    model: ModelConfig
    classes: tuple[str, ...] | None
    num_classes: int | None
    long_edge: int | None
    short_edge: int | None
    lines: tuple[str, ...]
    square: int = 0

    def data(self) -> DataConfig:
        """Images as it was tested on, or in MMDetection's usual size where nothing says it."""
        usual = DataConfig()
        long_edge, short_edge = self.long_edge or usual.long_edge, self.short_edge or usual.short_edge[1]
        return DataConfig(long_edge=long_edge, short_edge=(short_edge, short_edge), square=self.square)


def recognise(source: str) -> Recognised:
    """Says what a teacher is, without building it.

    Args:
        source: a checkpoint file, its URL, a run's folder, or SOURCE:NAME of another library.

    Raises:
        UserError: the source cannot be read, or holds a detector that this package does not have.
    """
    if is_name(source):
        return _foreign(source)
    return recognise_checkpoint(read_checkpoint(source), source)


def is_name(source: str) -> bool:
    """Does this name a detector of another library, SOURCE:NAME, and no file, folder or URL?"""
    prefix, colon, _ = source.partition(":")
    is_place = "://" in source or len(prefix) == 1  # a drive of Windows
    return bool(colon) and not is_place and not Path(source).exists()


def recognise_checkpoint(checkpoint: Checkpoint, source: str = "") -> Recognised:
    """Says what a file is that has been read already.

    Args:
        checkpoint: what `read_checkpoint` gave.
        source: where it came from, for `model.weights`; empty: its path.

    Raises:
        UserError: it holds a detector that this package does not have.
    """
    source = source or str(checkpoint.path)
    if checkpoint.config is not None:
        return _own(checkpoint, checkpoint.config, source)
    if strangers(checkpoint.state_dict, TORCHVISIONS) and (found := _torchvisions(checkpoint, source)):
        return found
    return _theirs(checkpoint, source)


def _foreign(source: str) -> Recognised:
    """A name of another library, with its own weights."""
    model = ModelConfig(detector=source, weights=PRETRAINED)
    classes = library(model.source).known_classes(source.partition(":")[2])
    count = f", {_count(len(classes))}" if classes else ""
    whose = "of that folder" if Path(source.partition(":")[2]).is_dir() else "as published"
    return Recognised(model, classes, len(classes or ()) or None, None, None, (f"{source}, {whose}{count}",))


def with_weights(known: Recognised, weights: str) -> Recognised:
    """A detector of another library with the weights that the user names, in place of the library's own.

    Args:
        known: what its name says.
        weights: as in `model.weights`.

    Raises:
        UserError: they are a file that cannot be read.
    """
    model, number, classes = replace(known.model, weights=weights), None, None
    line = f"{model.detector} with {weights}"
    if model.source == "torchvision" and Path(weights).is_file():
        from mgdet.detectors.foreign import torchvision

        number, classes = torchvision.read_classes(model.detector.partition(":")[2], read_checkpoint(weights))
        line += f", {_counted(number, classes)}"
    return Recognised(model, classes, number, None, None, (line,), known.square)


def _torchvisions(checkpoint: Checkpoint, source: str) -> Recognised | None:
    """A state dict of torchvision's; None where it is none of a detector that this package takes from there.

    Raises:
        UserError: it may be one of two detectors.
    """
    from mgdet.detectors.foreign import torchvision

    path, names = checkpoint.path, [f"torchvision:{name}" for name in torchvision.recognise(checkpoint)]
    if not names:
        return None
    if len(names) > 1:
        raise UserError(
            f"{path} may be any of {', '.join(names)}, which have the same weights and other image sizes; as a teacher "
            "or a student give one of these names, and the file as its weights"
        )
    name = names[0].partition(":")[2]
    number, classes = torchvision.read_classes(name, checkpoint)
    line = f"{path}: {names[0]}, {_counted(number, classes)}"
    model, square = ModelConfig(detector=names[0], weights=source), torchvision.only_square(name)
    return Recognised(model, classes, number, None, None, (line,), square)


def _own(checkpoint: Checkpoint, values: dict[str, Any], source: str) -> Recognised:
    """A checkpoint of this package, which holds its config."""
    try:
        config = Config.from_dict(values)
    except UserError as error:
        raise UserError(f"the config in {checkpoint.path} cannot be read: {error}") from None
    model, data, classes = replace(config.student, weights=source), config.data, checkpoint.classes
    count = f", {_count(len(classes))}" if classes else ""
    line = f"{checkpoint.path}: a checkpoint of mgdet, {_described(model)}{count}"
    num_classes = len(classes or ()) or None
    return Recognised(model, classes, num_classes, data.long_edge, data.short_edge[1], (line,), data.square)


def _theirs(checkpoint: Checkpoint, source: str) -> Recognised:
    """A detector under MMDetection's names: what weights show, and what its config says beside them."""
    shown = read_shapes(checkpoint)
    said, silence = said_by(checkpoint, shown.depth)
    refuse_old(checkpoint, said.model, shown.model.detector, shown.num_classes)
    found = lacks(said.model, shown.model.detector, shown.model.channels)
    refuse_lacks(checkpoint, found, shown.model.detector)
    model, doubts = _with_pixels(shown, said, silence, _hint(checkpoint, said))
    doubts += old_doubts(checkpoint, said.model, shown.model.detector) + _group_doubts(shown, said, silence)
    classes, naming = _classes(checkpoint, shown, said)
    long_edge, short_edge = said.scale or (None, None)
    size = f", images of {long_edge} x {short_edge}" if said.scale else ""
    line = f"{checkpoint.path}: {_described(model)}, {_count(shown.num_classes)}{naming}{size}"
    return Recognised(
        model=replace(model, weights=source),
        classes=classes,
        num_classes=shown.num_classes,
        long_edge=long_edge,
        short_edge=short_edge,
        lines=(line, *doubts, *_testing_notes(shown, said)),
        square=long_edge or 0 if not said.keep_ratio and long_edge == short_edge else 0,
    )


def _with_pixels(shown: Shown, said: Said, silence: str, hint: str) -> tuple[ModelConfig, list[str]]:
    """The model as it was trained, and a line on what nothing says for sure.

    Args:
        shown: what weights show.
        said: what the config says.
        silence: why it does not say more.
        hint: a name that says caffe, if one does.
    """
    style, pixels = said.style if shown.has_style else "pytorch", said.pixels  # without bottlenecks styles are one
    unsure = [name for name, value in (("style", style), ("normalisation", pixels)) if value is None]
    style = style or ("caffe" if hint else "pytorch")
    pixels = pixels or (CAFFE_PIXELS if style == "caffe" else IMAGENET)
    model = replace(shown.model, style=style, mean=pixels.mean, std=pixels.std, bgr=pixels.bgr)
    if said.frozen_stages is not None:
        model = replace(model, frozen_stages=said.frozen_stages)
    if said.rois_per_image is not None and shown.detector.rois_per_image:
        model = replace(model, rois_per_image=said.rois_per_image)
    if not unsure:
        return model, []
    assumed = {"style": f"{style} style", "normalisation": pixel_words(pixels)}
    basis = f"as the name '{hint}' says" if hint and style == "caffe" else "as is usual"
    return model, [
        f"weights do not show its {' and '.join(unsure)}, and {silence}; taken {basis}: "
        f"{', '.join(assumed[name] for name in unsure)}"
    ]


def _group_doubts(shown: Shown, said: Said, silence: str) -> list[str]:
    """A line on norms of a narrow detector, of which neither weights nor the config say how many groups they have."""
    groups = count_groups(shown.model.channels)
    unsure = [place for place, number in groups_said(said.model, shown.model.detector).items() if number is UNKNOWN]
    if groups == MAX_GROUPS or not unsure:
        return []
    return [
        f"weights do not show how many groups the norms in its {' and '.join(unsure)} have, and {silence}; taken as "
        f"mgdet's own of this width: {groups}, where MMDetection's usual number is {MAX_GROUPS}"
    ]


def _hint(checkpoint: Checkpoint, said: Said) -> str:
    """The first name that says caffe: of the file, or of the config that a distiller has its student from."""
    student = said.settings.get("student_cfg")
    names = [checkpoint.path.name, Path(student).name if isinstance(student, str) else ""]
    return next((shortened(name) for name in names if CAFFE.search(name)), "")


def _classes(checkpoint: Checkpoint, shown: Shown, said: Said) -> tuple[tuple[str, ...] | None, str]:
    """The class names, and a word on them where they are not the file's own.

    Raises:
        UserError: the file names more or fewer classes than its head predicts.
    """
    if checkpoint.classes is not None:
        if len(checkpoint.classes) == shown.num_classes:
            return checkpoint.classes, ""
        raise UserError(
            f"{checkpoint.path} names {len(checkpoint.classes)} classes, but its head predicts {shown.num_classes}; "
            "give a file with the names of its own classes"
        )
    if said.classes is not None and len(said.classes) == shown.num_classes:
        return said.classes, " (named by its config)"
    return None, " (not named)"


def _testing_notes(shown: Shown, said: Said) -> list[str]:
    lines = []
    if said.scale is not None and not said.keep_ratio and said.scale[0] != said.scale[1]:
        lines.append(
            "its config squashes images to {} x {}, which is not done here: they keep their ratio".format(*said.scale)
        )
    if notes := testing_notes(said.model, said.settings, shown.detector):
        lines.append(f"its config tests with other settings than mgdet: {', '.join(notes)}")
    return lines


def _count(classes: int) -> str:
    return "1 class" if classes == 1 else f"{classes} classes"


def _counted(number: int, classes: Sequence[str] | None) -> str:
    return f"{_count(number)}{'' if classes else ' (not named)'}"


def _described(model: ModelConfig) -> str:
    """A model in words."""
    if model.source:
        return model.detector
    caffe = " in caffe style" if model.style == "caffe" else ""
    deformable = ", deformable" if model.deformable else ""
    width = "" if model.channels == USUAL_CHANNELS else f", {model.channels} channels"
    pixels = Pixels(model.mean, model.std, model.bgr)
    normalised = "" if pixels == IMAGENET else f", {pixel_words(pixels)}"
    grids = f", grids of {' '.join(map(str, model.grids))} cells" if model.grids else ""
    return f"{model.detector} with {model.backbone}{caffe}{deformable}{width}{grids}{normalised}"
