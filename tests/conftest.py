"""Settings of all tests, and what many of them share."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch

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
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
