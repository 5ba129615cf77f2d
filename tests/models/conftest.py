"""Weights of each detector as MMDetection names them."""

from __future__ import annotations

import pytest
from torch import Tensor

import mmdet_files as files
from mgdet.detectors.build import DETECTORS


@pytest.fixture(scope="session")
def states() -> dict[str, dict[str, Tensor]]:
    """Of each detector on a ResNet-50; read them only."""
    return {name: files.weights(files.ours(name)) for name in DETECTORS}
