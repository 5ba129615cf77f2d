"""How a check shows images to a teacher."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mgdet import Target
from mgdet.config import MGDConfig, ModelConfig
from mgdet.data.batch import Batch
from mgdet.planning.score import _Look
from mgdet.recipes import load_recipe
from mgdet.structures import IMAGENET


@pytest.mark.parametrize(("original", "size"), [((3000, 4000), (800, 1067)), ((1001, 333), (1201, 400))])
def test_a_teachers_canvas_keeps_the_original_size_of_masks(original, size):
    """Masks are pasted into images of size / scale."""
    seen: list[tuple[Any, Any]] = []
    detector = SimpleNamespace(native_size=None, multiple=32, pixels=IMAGENET)
    teacher = SimpleNamespace(detector=detector, find=lambda images, *where: seen.append(where))
    teacher_model = ModelConfig(detector="retinanet", canvas=(800, 800))
    config = replace(load_recipe("alone"), teacher=teacher_model, mgd=MGDConfig(weight=1e-5))
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), size=size)
    pixels = torch.zeros(1, *(32 * -(-edge // 32) for edge in size), 3, dtype=torch.uint8)
    scales = [(size[1] / original[1], size[0] / original[0])]
    batch = Batch(pixels, [target], [""], [0], [original], scales)
    look: Any = _Look(teacher, None, config, None, None, torch.device("cpu"))  # type: ignore[arg-type]
    look._find(batch)
    (((height, width),), ((x, y),)) = seen[0]
    assert (round(height / y), round(width / x)) == original
