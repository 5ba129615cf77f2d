"""Settings that our detectors have fixed: another value is named, ours is taken."""

from __future__ import annotations

import copy

import pytest

import mmdet_files as files
import refusals
from mgdet.data.coco_names import COCO_CLASSES
from mgdet.detectors.build import DETECTORS
from mgdet.interop.weights import save_checkpoint
from mgdet.models import check_agrees, recognise, recognise_checkpoint
from mgdet.models.fixed import BACKBONE, HEADS, NECK
from mgdet.transfer import transfer
from tiny import alone

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


@pytest.fixture(scope="module")
def narrow():
    return {name: files.weights(files.ours(name, channels=128)) for name in ("reppoints", "solo")}


class TestGroupsOfNarrowNorms:
    """MMDetection's 32 groups and ours in a narrow neck or head have the same names and shapes."""

    PLACES = (("reppoints", "neck"), ("reppoints", "bbox_head"), ("solo", "mask_head"))

    def described(self, detector: str, groups: int) -> dict:
        described = files.model(detector, BODY)
        for name, place in self.PLACES:
            if name == detector:
                described = set_at(described, f"{place}.norm_cfg", files.GROUP_NORM | {"num_groups": groups})
        return described

    @pytest.mark.parametrize(("detector", "place"), PLACES)
    def test_other_groups_are_named_and_ours_are_taken(self, detector, place, narrow):
        ours = self.described(detector, 16)
        for version in files.VERSIONS:
            checkpoint = files.in_memory(narrow[detector], **files.texts(version, ours))
            assert len(recognise_checkpoint(checkpoint).lines) == 1
            theirs = set_at(ours, f"{place}.norm_cfg", files.GROUP_NORM)
            message = files.refusal(narrow[detector], **files.texts(version, theirs))
            assert f"a.pth was trained with {place}.norm_cfg.num_groups 32 in place of 16, which" in message

    def test_a_config_section_with_them_is_refused_as_well(self, narrow):
        checkpoint = files.in_memory(narrow["solo"], **files.texts("2.x", self.described("solo", 32)))
        message = refusals.refusal(check_agrees, files.ours("solo", channels=128), checkpoint, role="student")
        assert "mask_head.norm_cfg.num_groups 32 in place of 16" in message

    def test_solo_has_32_where_its_config_does_not_say_it(self, narrow):
        described = files.model("solo", BODY)
        del described["mask_head"]["norm_cfg"]
        message = files.refusal(narrow["solo"], **files.texts("2.x", described))
        assert "mask_head.norm_cfg.num_groups 32 in place of 16" in message

    @pytest.mark.parametrize(("detector", "where"), [("reppoints", "neck and bbox_head"), ("solo", "mask_head")])
    def test_without_a_config_it_is_a_doubt(self, detector, where, narrow):
        assert recognise_checkpoint(files.in_memory(narrow[detector])).lines[2] == (
            f"weights do not show how many groups the norms in its {where} have, and it holds no config; taken as "
            "mgdet's own of this width: 16, where MMDetection's usual number is 32"
        )

    @pytest.mark.parametrize(("detector", "where"), [("reppoints", "neck and bbox_head"), ("solo", "mask_head")])
    def test_our_own_loads_and_mmdetection_is_told(self, detector, where, narrow, tmp_path):
        config = alone()
        config.student = files.ours(detector, channels=128)
        save_checkpoint(tmp_path / "a.pth", narrow[detector], classes=COCO_CLASSES, config=config.to_dict())
        told = f"MMDetection must build its {where} with norm_cfg=dict(type='GN', num_groups=16)"
        assert transfer(tmp_path / "a.pth", tmp_path / "b.pth").splitlines()[1] == told
        assert len(recognise(str(tmp_path / "b.pth")).lines) == 1

    def test_mmdetection_is_told_the_grids_of_a_solo(self, tmp_path):
        config = alone()
        config.student = files.ours("solo", grids=(20, 18, 12, 8, 6))
        save_checkpoint(
            tmp_path / "a.pth", files.weights(config.student), classes=COCO_CLASSES, config=config.to_dict()
        )
        told = "MMDetection must build its mask_head with num_grids=[20, 18, 12, 8, 6]"
        assert transfer(tmp_path / "a.pth", tmp_path / "b.pth").splitlines()[1] == told
