"""Levels by stride."""

from __future__ import annotations

import pytest
import torch

from mgdet.errors import UserError
from mgdet.methods.pairing import Pair, fit_size, pair_levels, pairing_lines
from mgdet.structures import Level


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
