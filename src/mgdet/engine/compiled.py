"""`train.compile`: backbone and neck of student and teacher as compiled graphs, one for all image sizes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from mgdet.detectors.base import Detector
from mgdet.errors import UserError
from mgdet.methods.student import DistilledStudent
from mgdet.methods.teacher import Teacher

COMPILERS = ("g++", "clang++", "c++", "cl")


def compile_pyramids(
    student: DistilledStudent, teacher: Teacher | None, *, backend: str | Callable[..., Any] = "inductor"
) -> Iterator[str]:
    """Compiles what makes the pyramids, with shapes that may change; the rest of a step asks for values as it goes.

    Modules keep their names, so state dicts stay as they are, and a copy of a module is not compiled. The work is done
    when the first images come.

    Args:
        student: its own detector's backbone and neck are compiled.
        teacher: likewise.
        backend: torch's, for `torch.compile`.

    Yields:
        A sentence for each side: what is compiled, or why not.

    Raises:
        UserError: this machine has no compiler, or a share is to be measured on taps that only the graph reads.
    """
    if backend == "inductor" and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        raise UserError("train.compile needs a C++ compiler, and this machine has none; install g++, or leave it off")
    neck = getattr(student.student, "neck", None)
    if student.balance.shares and neck is not None and any(isinstance(m, nn.GroupNorm) for m in neck.modules()):
        method = next(iter(student.balance.shares)).removeprefix("loss_").partition("_")[0]
        raise UserError(
            f"{method}.share cannot be measured with train.compile: norms lie between the student's taps and its "
            f"heads, and are compiled with the neck; leave train.compile off, or give --{method}.share 0 and a "
            f"--{method}.weight"
        )
    for side, detector in (("student", student.student), ("teacher", teacher and teacher.detector)):
        if isinstance(detector, Detector):
            for part in (detector.backbone, detector.neck):
                part.compile(dynamic=True, backend=backend)
            yield f"the {side}'s backbone and neck are compiled at the first step, which takes a while"
        elif isinstance(detector, nn.Module):
            yield f"train.compile leaves the {side} as it is: it is a detector of another library"
