"""Another library's detector, opened under its own name: its head, its classes and the size of its images."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mgdet.models.opened import open_detector
from test_any_pair import save_tiny

ALIKE = [("a", "A", "b"), ("plus", "+", "-"), ("sofa", "couch", "dog"), ("cat", "cat", "dog")]


@pytest.mark.parametrize("names", ALIKE)
def test_class_names_that_look_alike_keep_their_outputs(names, tmp_path):
    folder = save_tiny("detr", tmp_path / "hf", names=names)
    opened = open_detector(f"hf:{folder}")
    assert (opened.classes, opened.detector.columns) == (names, (0, 1, 2))
    entry = "class_labels_classifier.weight"
    assert torch.equal(opened.detector.weights()[entry], load_file(folder / "model.safetensors")[entry])


def test_outputs_without_a_class_are_left_out(tmp_path):
    folder = save_tiny("detr", tmp_path / "hf", names=("N/A", "cat", "N/A", "Cat", "dog"))
    opened = open_detector(f"hf:{folder}")
    assert (opened.classes, opened.detector.columns) == (("cat", "Cat", "dog"), (1, 3, 4))
    found = opened.detector.find(torch.zeros(1, 3, 64, 64), [(64, 64)])[0]
    assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < 3
