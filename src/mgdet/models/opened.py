"""A detector from wherever it lies, with its classes and the size of its images, ready to find objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mgdet.config import Config, DataConfig, ModelConfig
from mgdet.data.coco_names import COCO_CLASSES
from mgdet.data.transforms import View
from mgdet.detectors.exported import Exported, is_exported, load_exported
from mgdet.detectors.face import Face
from mgdet.detectors.foreign import names_library
from mgdet.detectors.foreign.base import PLACEHOLDERS, Foreign, match_classes
from mgdet.errors import UserError, refuse_unused
from mgdet.interop.loading import count_classes
from mgdet.interop.names import some
from mgdet.interop.weights import Checkpoint, read_checkpoint
from mgdet.models.agree import check_agrees
from mgdet.models.detectors import check_classes, detector_from, foreign_from, load_detector
from mgdet.models.recognise import recognise, recognise_checkpoint


@dataclass(frozen=True, slots=True)
class Opened:
    """A detector with its weights, in eval mode on the CPU, and what is known of it.

    source: where it came from.
    detector: the network.
    classes: names by label.
    data: how its images are resized; of a run's checkpoint also which images the run was evaluated on.
    lines: what was recognised and loaded, for people.
    name: what it is, in a few words.
    sha256: of its file; empty for a detector of another library.
    """

    source: str
    detector: Face
    classes: tuple[str, ...]
    data: DataConfig
    lines: tuple[str, ...]
    name: str
    sha256: str = ""

    @property
    def view(self) -> View:
        """How it looks at any picture."""
        data, canvas = self.data, self.detector.canvas if isinstance(self.detector, Exported) else None
        return View(0, data.long_edge, data.short_edge[1], False, data.square, canvas=canvas)


def open_detector(source: str, *, recipe: Config | None = None, ema: bool = False) -> Opened:
    """Reads a detector from anywhere.

    Args:
        source: a checkpoint file, its URL, a run's folder, an exported graph, or SOURCE:NAME of another library.
        recipe: what the file holds; None to recognise it.
        ema: take the copy that the file keeps under the name of an exponential moving average.

    Raises:
        UserError: it is missing, damaged, or no detector that this package knows.
    """
    if names_library(source):
        refuse_unused(f"{source} is another library's detector", {"--recipe": recipe is not None, "--ema": ema})
        known = recognise(source)
        return open_library(known.model, known.lines)
    if is_exported(source):
        return _exported(source, recipe=recipe, ema=ema)
    checkpoint = read_checkpoint(source, ema=ema)
    if recipe is None:
        known = recognise_checkpoint(checkpoint)
        model, data, lines = known.model, known.data(), known.lines
        classes = known.classes or (_numbered(known.num_classes) if known.num_classes else None)
        if checkpoint.config is not None:  # our own say nothing new
            data, lines = Config.from_dict(checkpoint.config).data, ()
    else:
        check_agrees(recipe.student, checkpoint, role="the recipe", advice="leave --recipe out")
        model, data, classes, lines = recipe.student, recipe.data, checkpoint.classes, ()
    classes = classes or _counted(model, checkpoint)
    detector, line = load_detector(model, checkpoint, classes)
    return Opened(source, detector, classes, data, (*lines, line), _name(model), checkpoint.sha256)


def open_library(model: ModelConfig, lines: Sequence[str] = ()) -> Opened:
    """A detector of another library, with all classes that its weights name.

    Args:
        model: its name and its weights.
        lines: what is known of it, for people.

    Raises:
        UserError: it is missing, or it is a backbone.
    """
    nothing = UserError(f"{model.detector} is a backbone, which finds nothing; give a detector")
    if model.source == "timm":
        raise nothing  # before anything is downloaded
    said = list(lines)
    detector = foreign_from(model, None, said.append, role="model")
    if not detector.num_classes:
        raise nothing
    names = detector.output_names or tuple(f"class {column}" for column in range(max(detector.columns) + 1))
    columns = [column for column in detector.columns if names[column] not in PLACEHOLDERS]
    detector.keep(columns)
    classes = tuple(names[column] for column in columns)
    name = model.detector
    return Opened(name, detector.eval(), classes, _tested_on(detector), tuple(said), name)


def keep_classes(opened: Opened, classes: Sequence[str]) -> None:
    """Makes a detector of another library find the data's classes alone, which it knows by name.

    Raises:
        UserError: it does not know one of them; or an exported graph has other classes than these.
    """
    detector = opened.detector
    if isinstance(detector, Exported):
        return check_classes(detector.path, detector.classes, classes)
    assert isinstance(detector, Foreign)
    places = match_classes(opened.classes, classes)
    if places is None:
        strange = [name for name in classes if match_classes(opened.classes, [name]) is None]
        why = f"not {some(strange)} of the data" if strange else "and two of the data stand for the same one"
        raise UserError(
            f"{opened.source} knows {len(opened.classes)} classes ({some(opened.classes)}), {why}; measure a detector "
            "that was trained for the data's classes"
        )
    detector.keep([detector.columns[place] for place in places])


def _tested_on(detector: Foreign) -> DataConfig:
    """Images as the detector's own library resizes them, or in the usual size where nothing says it."""
    if detector.native_size is not None:
        return DataConfig(square=detector.native_size[0])
    size = detector.tested_size
    if size is None:
        return DataConfig()
    return DataConfig(long_edge=size.long_edge, short_edge=(size.short_edge, size.short_edge), square=size.square)


def _exported(source: str, *, recipe: Config | None, ema: bool) -> Opened:
    """What `mgdet export` wrote, which says all of itself."""
    refuse_unused(f"{source} is an exported graph", {"--recipe": recipe is not None, "--ema": ema})
    graph = load_exported(source)
    return Opened(
        source,
        graph,
        graph.classes,
        data_of(graph),
        (graph.line(),),
        graph.origin["detector"],
        graph.origin["checkpoint_sha256"],
    )


def data_of(graph: Exported) -> DataConfig:
    """How an exported graph wants images of any size resized; where it takes one size, `Exported.canvas` says it."""
    how = graph.preprocessing
    return DataConfig(long_edge=how.long_edge, short_edge=(how.short_edge, how.short_edge), square=how.square)


def _name(model: ModelConfig) -> str:
    return model.detector if model.source else f"{model.detector} with {model.backbone}"


def _counted(model: ModelConfig, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Class names where nothing gives them: COCO's for 80 classes, or else numbers."""
    return _numbered(count_classes(detector_from(model, len(COCO_CLASSES)), checkpoint) or len(COCO_CLASSES))


def _numbered(number: int) -> tuple[str, ...]:
    return COCO_CLASSES if number == len(COCO_CLASSES) else tuple(f"class {i}" for i in range(number))
