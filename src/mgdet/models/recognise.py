"""What a teacher's file holds: detector, backbone, classes and pixels, from its config, its names and its shapes."""

from __future__ import annotations

from dataclasses import dataclass

from mgdet.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Recognised:
    """A detector that somebody brings, as this package builds it.

    model: the detector with its weights; `build_models` takes it as a teacher, `load_detector` as what to test.
    classes: the class names; None where nothing names them.
    num_classes: how many classes it knows; None for a backbone, and where it takes a download to know.
    long_edge: pixels of the longer edge that it was tested at; None where nothing says it.
    short_edge: pixels of the shorter edge that it was tested at; None where nothing says it.
    lines: what was recognised, and why where in doubt, one sentence each.
    """

    model: ModelConfig
    classes: tuple[str, ...] | None
    num_classes: int | None
    long_edge: int | None
    short_edge: int | None
    lines: tuple[str, ...]


def recognise(source: str) -> Recognised:
    """Says what a teacher is, without building it.

    Args:
        source: a checkpoint file, its URL, a run's folder, or SOURCE:NAME of another library.

    Raises:
        UserError: the source cannot be read, or holds a detector that this package does not have.
    """
    raise NotImplementedError(source)
