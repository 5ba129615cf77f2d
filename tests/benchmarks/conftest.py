"""A pair so small that its figures mean nothing, for the benchmark of evidence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as Python does for a script; last, so that `data` stays the tests' own


class Evidence:
    """The benchmark on the pair `tiny`, in this process or in one of its own."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(self, command: str, *options: str) -> int:
        from evidence.commands import main

        arguments = [command, "--root", str(self.root), "--only", "tiny", *options]
        with patch.object(sys, "argv", ["evidence", *arguments]):  # pages show what was typed
            return main(arguments)

    def start(self, command: str, *, epochs: int) -> subprocess.Popen[str]:
        """The command in a process that can be killed, with students of so many epochs."""
        code = (
            f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(BENCHMARKS)!r}]; import conftest; "
            f"from evidence.commands import main; conftest.add_tiny({epochs}); sys.exit(main(sys.argv[1:]))"
        )
        arguments = [command, "--root", str(self.root), "--only", "tiny"]
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def add_tiny(epochs: int = 1) -> None:
    """Adds the pair, lets no schedule be doubled more than once, and draws few crops."""
    from evidence import backbones, pairs

    backbones.PICTURES, backbones.OTHER_PICTURES = 40, 4
    pairs.PAIRS["tiny"] = pairs.Pair(
        teacher="retinanet",
        student="retinanet",
        images=pairs.Shapes(size=(64, 64), num_train=8, num_val=3, num_test=4),
        teacher_backbone="test_resnet",
        pretraining=2,
        channels=32,
        batch=2,
        amp="off",
        epochs=epochs,
        longest=2,
        teacher_epochs=1,
        teacher_longest=2,
        rates=(0.002,),
        strengths={"mgd": (1e-3,)},
        teacher_num_train=9,
        note="Settings mean nothing here.",
        seeds=2,
    )


@pytest.fixture
def plain(monkeypatch):
    """A pair of known settings under a name of the real ones."""
    from evidence.pairs import PAIRS, Pair

    monkeypatch.setitem(PAIRS, "retinanet", Pair(teacher="retinanet", student="retinanet", seeds=5))


@pytest.fixture
def tiny_pair(monkeypatch):
    """Adds the pair `tiny` while a test runs."""
    from evidence import backbones, pairs

    for name in ("PICTURES", "OTHER_PICTURES"):
        monkeypatch.setattr(backbones, name, getattr(backbones, name))
    before = dict(pairs.PAIRS)
    add_tiny()
    yield pairs.PAIRS["tiny"]
    pairs.PAIRS.clear()
    pairs.PAIRS.update(before)


@pytest.fixture
def evidence(tmp_path, tiny_pair) -> Evidence:
    """The benchmark in a fresh folder."""
    return Evidence(tmp_path / "root")
