"""A distillation that was decided before goes on with what its folder holds, not with what would be decided now.

The free memory of a machine is never twice the same, and a batch that follows it would make another run.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mgdet.config import Config, ModelConfig
from mgdet.engine.checkpoint import read_config
from mgdet.errors import UserError
from mgdet.models.recognise import PRETRAINED, is_name
from mgdet.planning.settings import apply_settings
from mgdet.planning.students import choose_student


def planned_before(
    folder: Path, *, teacher: str, data: str, student: str, settings: Mapping[str, Any], resume: bool
) -> Config | None:
    """The config of the run that a folder holds, with the teacher's and the data's place as they are given now.

    Args:
        folder: of the run.
        teacher, data, student, settings: as `mgdet.planning.plan.plan` takes them; settings that would make another run
            of it are refused when it resumes.
        resume: is it to go on?

    Returns:
        None where the folder holds no run.

    Raises:
        UserError: there is a run and it is not to be resumed, or its student or its teacher has another name.
    """
    config = read_config(folder)
    if config is None:
        return None
    if not resume:
        raise UserError(f"{folder} already holds a run; add --resume to resume it, or choose another --run-dir")
    if config.teacher is None:
        raise UserError(f"{folder} holds a run without a teacher; choose another --run-dir")
    if student:
        asked = _asked(student, config.teacher)
        held = _name(config.student)
        if held not in asked:
            raise UserError(f"{folder} holds a run of the student {held}, not of {asked[0]}; choose another --run-dir")
    if is_name(teacher) or config.teacher.weights == PRETRAINED:
        if teacher != config.teacher.detector:
            known = config.teacher.detector if config.teacher.weights == PRETRAINED else config.teacher.weights
            raise UserError(f"{folder} holds a run of the teacher {known}, not of {teacher}; choose another --run-dir")
    else:
        config.teacher.weights = teacher
    config.data.root = data
    apply_settings(config, settings)
    return config


def _asked(student: str, teacher: ModelConfig) -> list[str]:
    """The students that a name can stand for, by whether the data has masks."""
    names = [_name(choose_student(student, teacher, masks=True).model)]
    with suppress(UserError):  # it names a detector that learns masks
        names.append(_name(choose_student(student, teacher, masks=False).model))
    return names


def _name(model: ModelConfig) -> str:
    return f"{model.detector}:{model.backbone}" if model.backbone else model.detector
