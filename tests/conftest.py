"""Settings of all tests, and what many of them share."""

import pytest
import torch

from tiny import Tiny

torch.set_num_threads(1)  # on small tensors more threads only wait for each other


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A data set and a teacher for runs of a second; read it only."""
    return Tiny(tmp_path_factory.mktemp("tiny"))
