"""Settings of all tests, and what many of them share."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mgdet.cli import main
from refusals import contents
from tiny import Tiny

# On small tensors more threads only wait for each other: here, and in the commands that tests run.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A data set and a teacher for runs of a second; read it only."""
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back() -> Iterator[None]:
    """What a file's tests have freed goes back to the system: in glibc's hands it would pile up over all files."""
    yield
    _give_back()


@pytest.fixture(autouse=True)
def much_memory_goes_back() -> Iterator[None]:
    """Also after one test that took much: whole detectors hang in cycles of references, which nobody looks for soon."""
    before = _resident()
    yield
    if _resident() - before > 1 << 28:
        _give_back()


def _give_back() -> None:
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say it so."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the test works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], folder: Path) -> Callable[..., str]:
    """Runs a command that must be refused: one line, which it returns, exit code 2, and every file as it was."""

    def run(*arguments: object) -> str:
        before = contents(folder)
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 2
        assert err.startswith("mgdet: ") and err.count("\n") == 1 and err.endswith("\n")
        assert "Traceback" not in out
        assert contents(folder) == before
        return err.removeprefix("mgdet: ").rstrip("\n")

    return run
