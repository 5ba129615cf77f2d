"""Which level of the teacher teaches which level of the student: by stride, as measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mgdet.errors import UserError
from mgdet.structures import Level

HALF_AN_OCTAVE = 0.5


class Pair(NamedTuple):
    """Positions of two taps, finest first."""

    student: int
    teacher: int


def pair_levels(student: Sequence[Level], teacher: Sequence[Level], wanted: Sequence[str] = ()) -> list[Pair]:
    """Pairs levels of two detectors.

    Each level of the student takes the teacher's level of the nearest stride within half an octave (a factor of 1.41),
    and else stays alone. If none finds a partner, the nearest pair of all is taken. A level of the teacher may teach
    several.

    Args:
        student, teacher: the taps of both sides.
        wanted: pairs that replace the rule, as strides: `16:14` is the student's level of stride 16 and the teacher's
            of stride 14.

    Raises:
        UserError: a side has no level, or `wanted` names a stride that a side does not have.
    """
    if not student or not teacher:
        raise UserError(
            f"nothing can be distilled: the student has {_strides(student)}, the teacher {_strides(teacher)}"
        )
    if wanted:
        pairs = [_wanted_pair(text, student, teacher) for text in wanted]
        return list({pair.student: pair for pair in pairs}.values())  # see check_pairs
    nearest = [min((octaves(mine, theirs), i) for i, theirs in enumerate(teacher)) for mine in student]
    pairs = [Pair(i, found) for i, (distance, found) in enumerate(nearest) if distance <= HALF_AN_OCTAVE]
    if not pairs:
        i = min(range(len(student)), key=lambda level: nearest[level])
        pairs = [Pair(i, nearest[i][1])]
    return pairs


def check_pairs(wanted: Sequence[str], student: Sequence[Level], teacher: Sequence[Level], *, finest: int = 0) -> None:
    """Refuses pairs of which some would be left out without a word.

    It is asked where a run starts: in a run of an earlier version the last pair of a level counts.

    Args:
        wanted, student, teacher: as `pair_levels` takes them.
        finest: so many of the pairs a method takes, from the finest level on; 0: all.

    Raises:
        UserError: two pairs have the same level of the student, or those that the method takes are not the finest.
    """
    places = [_wanted_pair(text, student, teacher).student for text in wanted]
    for i, place in enumerate(places):
        if place in places[:i]:
            first = wanted[places.index(place)]
            raise UserError(
                f"pairing.pairs has {first} and {wanted[i]}, but the student's level of stride "
                f"{student[place].stride:g} learns from one level; leave one of them out"
            )
    if finest and set(places[:finest]) != set(sorted(places)[:finest]):
        ordered = [wanted[places.index(place)] for place in sorted(places)]
        raise UserError(
            f"pkd.levels is {finest}, from the finest level on, but pairing.pairs begins with {wanted[0]}; give "
            f"--pairing.pairs {' '.join(ordered)}"
        )


def octaves(a: Level, b: Level) -> float:
    """How far two strides lie apart: 1 is a factor of two."""
    return abs(math.log2(a.stride / b.stride))


def _strides(levels: Sequence[Level]) -> str:
    return f"strides {', '.join(f'{level.stride:g}' for level in levels)}" if levels else "no level"


def _wanted_pair(text: str, student: Sequence[Level], teacher: Sequence[Level]) -> Pair:
    try:
        strides = [float(part) for part in text.split(":")]
        mine, theirs = strides
    except ValueError:
        raise UserError(f"pairing.pairs has '{text}'; give strides as STUDENT:TEACHER, e.g. 16:16") from None
    places = []
    for side, levels, stride in (("student", student, mine), ("teacher", teacher, theirs)):
        place = next((i for i, level in enumerate(levels) if math.isclose(level.stride, stride, rel_tol=0.01)), None)
        if place is None:
            raise UserError(
                f"pairing.pairs has '{text}', but the {side} has no level of stride {stride:g}: the student has "
                f"{_strides(student)}, the teacher {_strides(teacher)}"
            )
        places.append(place)
    return Pair(*places)


def pairing_lines(pairs: Sequence[Pair], student: Sequence[Level], teacher: Sequence[Level]) -> list[str]:
    """The table of pairs, one line per level of the student."""
    partner = dict(pairs)
    lines = []
    for i, mine in enumerate(student):
        left = f"student level {i}: stride {mine.stride:g}, {mine.channels} channels"
        if i not in partner:
            lines.append(f"{left} <- nothing")
            continue
        theirs = teacher[partner[i]]
        lines.append(f"{left} <- teacher level {partner[i]}: stride {theirs.stride:g}, {theirs.channels} channels")
    return lines


def fit_size(teacher: Tensor, size: tuple[int, int]) -> Tensor:
    """The teacher's map (B, C, H', W') on the student's grid: (B, C, *size), bilinear with antialiasing."""
    if (teacher.shape[2], teacher.shape[3]) == size:
        return teacher
    return F.interpolate(teacher.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
