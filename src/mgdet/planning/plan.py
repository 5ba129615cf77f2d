"""From a teacher, a folder of data and the name of a student to a whole run: what is decided, and why, in ten lines."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mgdet.config import METHODS, Config, DataConfig, MGDConfig, ModelConfig, OptimizerConfig
from mgdet.data.dataset import DetectionDataset, check_same_classes
from mgdet.data.open import open_splits
from mgdet.distributed import usual_device
from mgdet.engine.schedule import check_drops
from mgdet.evaluate.coco import check_truth
from mgdet.models import has_masks
from mgdet.models.recognise import PRETRAINED, recognise, with_weights
from mgdet.models.start import RANDOM
from mgdet.planning.decide import Decisions, Images
from mgdet.planning.memory import probe_detectors
from mgdet.planning.settings import apply_settings, section_with
from mgdet.planning.students import Student, choose_student, settled
from mgdet.recipes import load_recipe
from mgdet.recipes.base import one_stage_mgd, two_stage_mgd

PAIR = "pair"
FAMILIES = {
    "retinanet": ("retinanet_r50", one_stage_mgd),
    "reppoints": ("reppoints_r50", one_stage_mgd),
    "solo": ("solo_r50", one_stage_mgd),
    "faster_rcnn": ("faster_rcnn_r50", two_stage_mgd),
    "mask_rcnn": ("mask_rcnn_r50", two_stage_mgd),
    "cascade_mask_rcnn": ("cascade_mask_rcnn_x101_32x4d_dcn", two_stage_mgd),
}
"""For each of our detectors the published recipe of the detector alone, and the published setting of MGD."""
SGD_BACKBONES = ("resnet", "resnext", "mobilenetv3_large_100")
"""How the names of backbones begin that the recipes train with SGD, from ImageNet weights."""
DATA_SET = (
    *("root", "train_annotations", "train_images", "val_annotations", "val_images"),
    *("val_share", "split_seed"),
)
"""Settings of the section data that say which images there are; the others say how they are prepared."""
_WIDTH = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that was decided.

    config: the run.
    lines: what was decided and why, for people.
    folder: where the run goes that is given no place: `runs/` and the names of data set and student.
    """

    config: Config
    lines: tuple[str, ...]
    folder: str


def plan(
    teacher: str | Path,
    data: str | Path,
    *,
    student: str = "",
    settings: Mapping[str, Any] | None = None,
    processes: int = 1,
    device: torch.device | None = None,
) -> Plan:
    """Decides a distillation by the rules of docs/distill.md. What `settings` name is taken as it is.

    Args:
        teacher: a checkpoint file, its URL, a run's folder, or SOURCE:NAME of another library.
        data: folder of a data set, in any layout of docs/data.md.
        student: as `mgdet.planning.students.choose_student` takes it; empty: the teacher's detector, but small.
        settings: fields of the config by their names with dots, e.g. `{"schedule.epochs": 3}`.
        processes: that will train together.
        device: what each of them trains on; None: a GPU if there is one.

    Raises:
        UserError: teacher, data, student or a setting are not there, cannot be read, or do not go together.
    """
    teacher, data, given = str(teacher), str(data), dict(settings or {})
    known = recognise(teacher)
    if known.model.source and given.get("teacher.weights", PRETRAINED) != PRETRAINED:
        known = with_weights(known, given["teacher.weights"])
    known = replace(known, model=section_with(known.model, "teacher", given))
    chosen, images = _student_and_images(student or _named_by(given), known.model, data, given)
    recipe, why = _recipe(known.model, chosen.model, given)
    config = copy.deepcopy(recipe)
    apply_settings(config, given)
    for name in DATA_SET:
        setattr(config.data, name, getattr(images.data, name))
    if "train.metrics" not in given:
        config.train.metrics = _metrics(config.student, images)
    check_truth(images.val, config.train.metrics)
    decisions = Decisions(config, recipe, frozenset(given), known, images, processes, device or usual_device())
    student_face, teacher_face = probe_detectors(config, images.train.classes)
    size = decisions.size(student_face.native_size)
    method = decisions.methods()
    batch = decisions.batch(student_face, teacher_face)
    parts = {
        "teacher": known.lines,
        "data": (images.line.removeprefix("data in "),),
        "student": (_student_line(config.student, chosen.why),),
        "recipe": (why,),
        "images": (size,),
        "method": (method,),
        "inherits": (decisions.inherits(),),
        "batch": (batch,),
        "schedule": (decisions.schedule(),),
        "rate": (decisions.rate(),),
        "given": (", ".join(f"{name} {value}" for name, value in given.items()),) if given else (),
    }
    config.check_together()
    check_drops(config.schedule)
    lines = [line for what, texts in parts.items() for line in _titled(what, texts)]
    return Plan(config, tuple(lines), _folder(data, config.student))


def _student_and_images(name: str, teacher: ModelConfig, data: str, given: Mapping[str, Any]) -> tuple[Student, Images]:
    """The student, and the data set; which of our detectors it is can depend on whether the data has masks."""
    chosen = choose_student(name, teacher, masks=True)
    places = {f"data.{name}": given[f"data.{name}"] for name in DATA_SET if f"data.{name}" in given}
    images = _open(section_with(DataConfig(root=data), "data", places), masks=has_masks(chosen.model))
    if has_masks(chosen.model) and not images.masks:
        chosen = choose_student(name, teacher, masks=False)
        images = _open(images.data, masks=False)
    model = section_with(chosen.model, "student", given)
    return replace(chosen, model=settled(model, set(given))), images


def _named_by(given: Mapping[str, Any]) -> str:
    """The student's name where only settings give it."""
    names = (given.get("student.detector", ""), given.get("student.backbone", ""))
    return ":".join(name for name in names if name)


def _open(data: DataConfig, *, masks: bool) -> Images:
    """Opens the data set.

    Raises:
        UserError: a split is missing or cannot be read, the two have other classes, or no image can be trained on.
    """
    splits = open_splits(data, train_masks=masks, val_masks=masks)
    train, val = splits.records["train"], splits.records["val"]
    check_same_classes(train, val)
    has = masks and len(train.segmentations) > 0
    images = DetectionDataset(train, training=True, masks=has)
    return Images(splits.data, images, val, has, has and len(val.segmentations) > 0, splits.line)


def _recipe(teacher: ModelConfig, student: ModelConfig, given: Mapping[str, Any]) -> tuple[Config, str]:
    """The published recipe that a run starts from, and a sentence that names it."""
    pair = load_recipe(PAIR)
    if teacher.source or student.source:
        config, why = pair, "pair, for detectors of any library"
    else:
        name, mgd = FAMILIES[student.detector]
        config, why = load_recipe(name), f"{name}, as published"
        config.mgd = mgd()
        if student.weights == RANDOM or not student.backbone.startswith(SGD_BACKBONES):
            config.optimizer, config.schedule = pair.optimizer, pair.schedule
            reason = "from random weights" if student.weights == RANDOM else f"on a {student.backbone}"
            why += f", but with AdamW and a cosine as in {PAIR}: the published SGD is not for a student {reason}"
    if student.weights == RANDOM:
        config.optimizer.backbone_share = 1.0
    wanted = given.get("optimizer.name", config.optimizer.name)
    if wanted != config.optimizer.name:
        config.optimizer = pair.optimizer if wanted == "adamw" else OptimizerConfig(lr=0.01)
    own = ("mgd.weight", "mgd.share")
    if not any(given.get(name) for name in own) and any(
        given.get(f"{m}.{s}") for m in METHODS for s in ("weight", "share")
    ):
        config.mgd = MGDConfig()  # another method was asked for by name
    config.teacher, config.student = teacher, student
    return config, why


def _metrics(student: ModelConfig, images: Images) -> Any:
    """What is measured: boxes, and masks where the student finds them and the data has them; of SOLO those first."""
    if not (has_masks(student) and images.val_masks):
        return ("bbox",)
    return ("segm", "bbox") if student.detector == "solo" else ("bbox", "segm")


def _student_line(student: ModelConfig, why: str) -> str:
    name = student.detector if student.source else f"{student.detector} {student.backbone}"
    start = "random weights" if student.weights == RANDOM else student.weights
    hint = " (--student.weights random without a network)" if student.weights.startswith("timm:") else ""
    return f"{name} from {start}{hint}" + (f"; {why}" if why else "")


def _titled(what: str, texts: tuple[str, ...]) -> list[str]:
    return [f"{what if i == 0 else '':<{_WIDTH}} {text}" for i, text in enumerate(texts)]


def _folder(data: str, student: ModelConfig) -> str:
    parts = (Path(data).resolve().name, student.detector, student.backbone)
    return "runs/" + re.sub(r"[^\w.-]+", "-", "-".join(part for part in parts if part))
