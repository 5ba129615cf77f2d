"""Levels by stride."""

from __future__ import annotations

import pytest
import torch

from mgdet.errors import UserError
from mgdet.methods.mgd import MGD
from mgdet.methods.pairing import Pair, check_pairs, fit_size, pair_levels, pairing_lines
from mgdet.methods.student import DistilledStudent, LevelMethod
from mgdet.models import build_models
from mgdet.structures import Level
from refusals import refusal
from tiny import CLASSES


def levels(*strides: float) -> list[Level]:
    return [Level(stride, 16) for stride in strides]


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ((8, 16, 32, 64, 128), (8, 16, 32, 64, 128), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        ((4, 8, 16, 32), (8, 16, 32, 64, 128), [(1, 0), (2, 1), (3, 2)]),
        ((8, 16, 32), (14,), [(1, 0)]),
        ((8, 12, 16), (14,), [(1, 0), (2, 0)]),
        ((32,), (4, 8), [(0, 1)]),
        ((8, 16), (64, 128), [(1, 0)]),
    ],
)
def test_nearest_stride_within_half_an_octave_or_the_nearest_of_all(student, teacher, pairs):
    assert pair_levels(levels(*student), levels(*teacher)) == [Pair(*pair) for pair in pairs]


def test_pairs_can_be_given_as_strides():
    assert pair_levels(levels(8, 16, 32), levels(14, 28), ["32:14", "8:28"]) == [Pair(2, 0), Pair(0, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16", "give strides as STUDENT:TEACHER"),
        ("a:b", "give strides as STUDENT:TEACHER"),
        (
            "64:14",
            "the student has no level of stride 64: the student has strides 8, 16, 32, the teacher strides 14, 28",
        ),
        ("8:16", "the teacher has no level of stride 16"),
    ],
)
def test_what_cannot_be_paired_is_said(text, message):
    with pytest.raises(UserError, match=message):
        pair_levels(levels(8, 16, 32), levels(14, 28), [text])


@pytest.mark.parametrize(
    ("wanted", "finest", "message"),
    [
        (
            ["8:14", "16:14", "8:28"],
            0,
            "pairing.pairs has 8:14 and 8:28, but the student's level of stride 8 learns from one level; leave one of",
        ),
        (["8:14", "8.01:28"], 0, "pairing.pairs has 8:14 and 8.01:28, but the student's level of stride 8 "),
        (
            ["32:14", "8:28"],
            1,
            "pkd.levels is 1, from the finest level on, but pairing.pairs begins with 32:14; give --pairing.pairs "
            "8:28 32:14",
        ),
    ],
)
def test_pairs_that_would_be_left_out_are_refused(wanted, finest, message):
    text = refusal(check_pairs, wanted, levels(8, 16, 32), levels(14, 28), finest=finest)
    assert text.startswith(message)


def test_pairs_that_all_count_are_taken_in_any_order():
    for finest in (0, 2):
        check_pairs(["16:14", "8:28", "32:14"], levels(8, 16, 32), levels(14, 28), finest=finest)
    check_pairs([], levels(8), levels(14), finest=4)


def test_in_an_earlier_run_the_last_pair_of_a_level_counts():
    assert pair_levels(levels(8, 16), levels(14, 28), ["8:14", "16:14", "8:28"]) == [Pair(0, 1), Pair(1, 0)]


def test_a_module_that_would_replace_another_is_refused():
    twice = [LevelMethod(MGD(4, 4, weight=1.0, mask_ratio=0.5), Pair(0, teacher)) for teacher in (0, 1)]
    with pytest.raises(ValueError, match="two modules are loss_mgd_fpn_0; a method compares each level of the student"):
        DistilledStudent(torch.nn.Identity(), twice)


def test_a_run_with_a_pair_too_many_does_not_start(tiny):
    config = tiny.config()
    config.pairing.pairs = ("8:8", "8:16", "16:16")
    text = refusal(build_models, config, CLASSES, fresh=True, say=lambda line: None)
    assert text.startswith("pairing.pairs has 8:8 and 8:16, but")
    assert len(build_models(config, CLASSES, fresh=False, say=lambda line: None).student.distill_losses) == 2


def test_without_levels_nothing_can_be_paired():
    with pytest.raises(UserError, match="the student has strides 8, the teacher no level"):
        pair_levels(levels(8), [])


def test_the_table_shows_every_level_of_the_student():
    lines = pairing_lines([Pair(1, 0)], levels(4, 16), levels(14))
    assert lines == [
        "student level 0: stride 4, 16 channels <- nothing",
        "student level 1: stride 16, 16 channels <- teacher level 0: stride 14, 16 channels",
    ]


def test_a_teacher_map_takes_the_grid_of_the_student():
    ramp = torch.arange(8.0).expand(1, 2, 6, 8)
    fitted = fit_size(ramp, (3, 4))
    assert fitted.shape == (1, 2, 3, 4)
    assert fitted[0, 0, 1, 1:3].tolist() == pytest.approx([2.5, 4.5], abs=0.1)
    assert fit_size(ramp, (6, 8)) is ramp
