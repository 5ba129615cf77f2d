"""Settings that our detectors have fixed: another value is named, ours is taken."""

from __future__ import annotations

import copy

import pytest

import mmdet_files as files
from mgdet.detectors.build import DETECTORS
from mgdet.models import recognise_checkpoint
from mgdet.models.fixed import BACKBONE, HEADS, NECK

BODY = files.backbone(50, "pytorch")


def set_at(model: dict, path: str, value: object) -> dict:
    model = copy.deepcopy(model)
    place, names = model, path.split(".")
    for name in names[:-1]:
        place = place[int(name)] if name.isdecimal() else place.setdefault(name, {})
    place[names[-1]] = value
    return model


def other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"Other{value}"
    if isinstance(value, list | tuple):
        return [other(value[0]), *value[1:]]
    return value + 2


SETTINGS = [
    (name, fixed.path, fixed.value)
    for name in DETECTORS
    for fixed in (*(BACKBONE + NECK if name == "retinanet" else ()), *HEADS[name])
    if not (name == "faster_rcnn" and "mask_roi" in fixed.path)
]


@pytest.mark.parametrize(("detector", "path", "value"), SETTINGS, ids=[f"{n}-{p}" for n, p, _ in SETTINGS])
def test_another_value_is_named_and_ours_is_taken(detector, path, value, states):
    described = files.model(detector, BODY)
    same = files.texts("3.x", set_at(described, path, list(value) if isinstance(value, tuple) else value))
    assert len(recognise_checkpoint(files.in_memory(states[detector], **same)).lines) == 1
    message = files.refusal(states[detector], **files.texts("3.x", set_at(described, path, other(value))))
    assert f"a.pth was trained with {path} " in message
    assert " in place of " in message and f"the nearest is a {detector} with mgdet's own" in message


def test_extra_levels_of_the_necks_own(states):
    described = files.model("retinanet", BODY)
    for value in ("on_output", "on_lateral", False):
        message = files.refusal(
            states["retinanet"], **files.texts("2.x", set_at(described, "neck.add_extra_convs", value))
        )
        assert f"neck.add_extra_convs {value} in place of on_input" in message
    found = set_at(described, "neck.add_extra_convs", True)
    assert recognise_checkpoint(files.in_memory(states["retinanet"], **files.texts("2.x", found)))
