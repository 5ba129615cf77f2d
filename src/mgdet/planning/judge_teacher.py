"""What a check says of the teacher: its classes, and what it finds in validation images."""

from __future__ import annotations

from collections.abc import Sequence

from mgdet.data.coco_names import COCO_CLASSES
from mgdet.detectors.foreign.base import match_classes
from mgdet.engine.prepare import Prepared
from mgdet.planning.report import Report, Status
from mgdet.planning.score import Score, labels_by_name, score_teacher

ENOUGH_OBJECTS = 20
"""With fewer objects in the sample, nothing found may be chance."""
NEAR_ZERO, LOW = 0.02, 0.1
FAR_BELOW, BELOW = 0.5, 0.9
"""Shares of the published AP."""
SWAPPED_BETTER = 1.1
"""So many times the AP with red and blue swapped, and the order of the channels is."""


def judge_teacher(prepared: Prepared, report: Report, *, published: float | None, seconds: float) -> float:
    """Adds the rows on a run's teacher.

    Args:
        prepared: the run.
        report: takes rows and values.
        published: the teacher's AP on COCO's val2017 at the run's image size, in [0, 1]; None if there is none.
        seconds: that may be spent.

    Returns:
        Seconds that the teacher takes for one image; 0 if it was not run.
    """
    models, classes = prepared.models, prepared.train_data.classes
    if models.teacher is None:
        return 0.0
    labels = _labels(models.teacher.detector.num_classes, models.teacher_classes, classes, report)
    if labels is None:
        return 0.0
    score = score_teacher(
        models.teacher.to(prepared.world.device),
        models.student.student,
        prepared.config,
        prepared.val_data,
        labels,
        device=prepared.world.device,
        seconds=seconds,
    )
    if score is None:
        report.add("ok", "teacher", "no validation image holds an object that it knows, so its AP is not measured")
        return 0.0
    report.values["teacher"] = {name: getattr(score, name) for name in score.__slots__}  # type: ignore[attr-defined]
    if tuple(classes) != COCO_CLASSES:
        published = None
    _judge(score, published, report)
    return score.seconds


def _labels(num_classes: int, theirs: Sequence[str] | None, classes: Sequence[str], report: Report) -> list[int] | None:
    """For each label of the teacher that of the data, or -1; None where its AP cannot be measured. One row says why."""
    if not num_classes:
        report.add("ok", "classes", "the teacher is a backbone, which finds no objects: only its maps are compared")
        return None
    if theirs is None and num_classes == len(classes):
        report.add(
            "ok",
            "classes",
            f"nothing names the teacher's {num_classes} classes, so they are taken for the data's, in their order",
        )
        return list(range(num_classes))
    if theirs is None:
        report.add(
            "ok",
            "classes",
            f"the teacher has {num_classes} classes without names, the data {len(classes)}: its AP cannot be measured, "
            "and methods that compare maps do not need it",
        )
        return None
    if list(theirs) == list(classes):
        report.add("ok", "classes", f"teacher and data have the same {len(classes)} classes in the same order")
        return list(range(num_classes))
    labels = labels_by_name(theirs, classes)
    unknown = [name for name in classes if match_classes(theirs, (name,)) is None]
    if len(unknown) == len(classes):
        report.add(
            "ok",
            "classes",
            f"the teacher knows none of the data's {len(classes)} classes ({_some(classes)}) but {_some(theirs)}: its "
            "AP cannot be measured, and methods that compare maps do not need it",
        )
        return None
    known = (
        f"{len(classes) - len(unknown)} of the data's {len(classes)} classes" if unknown else "all classes of the data"
    )
    lacking = f", not {_some(unknown)}" if unknown else ""
    report.add("ok", "classes", f"the teacher knows {known}{lacking}; it is measured on these, by their names")
    return labels


def _judge(score: Score, published: float | None, report: Report) -> None:
    metric = "mask AP" if score.metric == "segm" else "AP"
    line = (
        f"the teacher's {metric} is {_percent(score.ap)} ± {_percent(score.error)} on "
        f"{_count(score.images, 'validation image')} with {_count(score.objects, 'object')}"
    )
    most, reason = score.ap + 2 * score.error, _reason(score)
    grave: Status = "stop" if score.objects >= ENOUGH_OBJECTS else "warning"
    if score.renamed:
        report.add("stop", "teacher", f"{line}; {reason}")
    elif most < NEAR_ZERO:
        why = (
            reason or "it finds next to nothing: its weights, its normalisation or the data are not what they should be"
        )
        report.add(grave, "teacher", f"{line}; {why}")
    elif published is not None and most < FAR_BELOW * published:
        report.add(grave, "teacher", f"{line}, far below the {_percent(published)} that is published{_because(reason)}")
    elif published is not None and most < BELOW * published:
        report.add("warning", "teacher", f"{line}, below the {_percent(published)} that is published{_because(reason)}")
    elif published is None and score.ap < LOW:
        report.add("warning", "teacher", f"{line}, so there is little to learn from it{_because(reason)}")
    else:
        known = f" ({_percent(published)} is published for all of val2017)" if published is not None else ""
        report.add("warning" if reason else "ok", "teacher", f"{line}{known}{_because(reason)}")


def _because(reason: str) -> str:
    return f"; {reason}" if reason else ""


def _reason(score: Score) -> str:
    """What is probably wrong with the teacher; empty where nothing shows."""
    if score.renamed:
        (found, true), *more = score.renamed.items()
        return (
            f"its classes are in another order than the data's: what it calls '{found}' is '{true}'"
            f"{f', and {len(more)} more' if more else ''} ({score.right} of {score.matched} objects that it finds have "
            "their own name)"
        )
    if score.straight >= 0 and score.swapped > SWAPPED_BETTER * score.straight + NEAR_ZERO:
        return (
            f"with red and blue swapped its AP rises from {_percent(score.straight)} to {_percent(score.swapped)} on "
            "the first of them: it was trained on images in the other order of channels"
        )
    return ""


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
