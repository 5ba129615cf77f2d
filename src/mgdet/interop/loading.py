"""Loads weights into a detector, all or nothing, and accounts for every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mgdet.errors import UserError
from mgdet.interop.names import DETECTOR_HEADS, into_backbone, some
from mgdet.interop.weights import Checkpoint, read_checkpoint

STATISTICS = (".running_mean", ".running_var")
WITH_BACKGROUND = ".fc_cls."
"""In the names of the predictors that have an output for no class, those of the second stage."""
MISSING, UNEXPECTED, RESHAPED = "missing", "unexpected", "of another shape"


@dataclass(slots=True)
class LoadReport:
    """What came of loading one file into a detector.

    matched: tensors that were loaded.
    missing: names that only the detector has; they keep their start values.
    unexpected: names that only the file has.
    mismatched: "name: file (shape), model (shape)".
    sha256: the file's hash.
    path: the file.
    taken: which of two copies in the file was loaded; empty where it has one.
    """

    matched: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    sha256: str
    path: Path
    taken: str = ""

    def line(self) -> str:
        """All of it in one line."""
        parts = [f"{self.path}: {self.matched} tensors loaded"]
        for what, names in self.differences():
            parts.append(f"{len(names)} {what} ({some(names)})" if names else f"0 {what}")
        taken = f"; taken: {self.taken}" if self.taken else ""
        return ", ".join(parts) + f"{taken}; SHA-256 {self.sha256}"

    def differences(self) -> list[tuple[str, list[str]]]:
        """What differs and the names that do."""
        return [(MISSING, self.missing), (UNEXPECTED, self.unexpected), (RESHAPED, self.mismatched)]


def load_checkpoint(
    detector: nn.Module, source: str | Path | Checkpoint, *, partial: tuple[str, ...] = ()
) -> LoadReport:
    """Loads a file into a detector: all of it, or nothing.

    A backbone's file fills `backbone.`; what it has behind the last stage, such as a classifier, counts as unexpected
    and is left out. Only the batch norms' step counters,
    which no detector reads, may be missing without being named in `partial`.

    Args:
        detector: takes the weights; it is untouched where the file is refused.
        source: what `read_checkpoint` takes, or what it gave.
        partial: prefixes of names that may be missing, unexpected or of another shape; they are in the report.

    Raises:
        UserError: the file cannot be read, anything else differs, or a number is not finite.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    ours = detector.state_dict()
    theirs, beside = checkpoint.state_dict, set[str]()
    if checkpoint.kind == "backbone" and ours.keys().isdisjoint(theirs):
        theirs, beside = into_backbone(theirs, ours)
    fitting = {name: value for name, value in theirs.items() if name in ours and value.shape == ours[name].shape}
    report = LoadReport(
        matched=len(fitting),
        missing=[name for name in ours if name not in theirs],
        unexpected=[name for name in theirs if name not in ours],
        mismatched=[
            f"{name}: file {tuple(value.shape)}, model {tuple(ours[name].shape)}"
            for name, value in theirs.items()
            if name in ours and name not in fitting
        ],
        sha256=checkpoint.sha256,
        path=checkpoint.path,
        taken=checkpoint.taken,
    )
    refused = {
        what: bad
        for what, names in report.differences()
        if (bad := [name for name in names if name not in beside and not _is_allowed(name, what, partial)])
    }
    if refused:
        differences = ", ".join(f"{len(bad)} {what} ({some(bad)})" for what, bad in refused.items())
        raise UserError(
            f"{checkpoint.path} does not fit this detector: {report.matched} tensors match, {differences};"
            f" {_hint(detector, checkpoint, refused)}"
        )
    check_finite(checkpoint.path, detector, fitting)
    detector.load_state_dict(fitting, strict=False)
    return report


def check_finite(path: Path, detector: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights with a NaN or an infinity: a detector with them finds nothing, and says nothing about it.

    Buffers other than the statistics of batch norms may hold infinities, as the anchors of some transformers do.

    Raises:
        UserError: it names the file and the tensors.
    """
    learned = {name for name, _ in detector.named_parameters()}
    refuse_infinite(path, {name: own for name, own in tensors.items() if name in learned or name.endswith(STATISTICS)})


def refuse_infinite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses any number that is not finite.

    Raises:
        UserError: it names the file and the tensors.
    """
    bad = [name for name, value in tensors.items() if not value.isfinite().all()]
    if bad:
        raise UserError(
            f"{path} holds numbers that are not finite, in {some(bad)}: its training diverged, or half precision could "
            "not hold them; give an earlier checkpoint"
        )


def _is_allowed(name: str, what: str, prefixes: tuple[str, ...]) -> bool:
    counter = what == MISSING and name.endswith(".num_batches_tracked")
    return counter or name.startswith(prefixes)


def _hint(detector: nn.Module, checkpoint: Checkpoint, refused: Mapping[str, list[str]]) -> str:
    """The probable reason why a file does not fit."""
    names = [name for bad in refused.values() for name in bad]
    if checkpoint.kind == "backbone":
        if any(name.startswith("backbone.") for name in names):
            return "it holds another backbone than this detector's; give weights of the same backbone"
        return "it holds only a backbone; give the checkpoint of a whole detector"
    here = getattr(detector, "num_classes", None)
    there = count_classes(detector, checkpoint)
    only_heads = UNEXPECTED not in refused and all(name.startswith(DETECTOR_HEADS) for name in names)
    if isinstance(here, int) and there not in (None, here) and only_heads:
        return f"it was trained for {there} classes, this detector has {here}"
    student = (checkpoint.config or {}).get("student")
    if isinstance(student, Mapping):
        cells = student.get("grids")
        grids = f" and grids of {' '.join(map(str, cells))} cells" if isinstance(cells, list | tuple) and cells else ""
        return f"it holds a {student.get('detector')} with the backbone {student.get('backbone')}{grids}"
    if refused.keys() == {RESHAPED}:
        return "the names agree, the sizes do not; check the recipe's backbone and the width of its neck and heads"
    return (
        "it probably holds another architecture, as the file lacks what is missing and the detector what is "
        "unexpected; check the recipe, its detector and its backbone"
    )


def count_classes(detector: nn.Module, checkpoint: Checkpoint) -> int | None:
    """How many classes a file was trained for: its names say so, else the size of the first predictor that differs.

    Of another library's detector only the names say it.
    """
    if checkpoint.classes is not None:
        return len(checkpoint.classes)
    here = getattr(detector, "num_classes", None)
    predictors: tuple[str, ...] = getattr(detector, "class_predictors", ())
    for name, ours in detector.state_dict().items():
        theirs = checkpoint.state_dict.get(name)
        if not isinstance(here, int) or theirs is None or theirs.ndim == 0 or not name.startswith(predictors):
            continue
        background = int(WITH_BACKGROUND in name)
        outputs = ours.shape[0] // (here + background)
        count, rest = divmod(theirs.shape[0], max(1, outputs))
        if theirs.shape[0] != ours.shape[0] and theirs.shape[1:] == ours.shape[1:] and not rest:
            return count - background
    return None
