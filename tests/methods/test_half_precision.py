"""What half precision may change of a method's loss and gradient, and what it may not."""

from __future__ import annotations

import pytest
import torch

from mgdet import MGD

CELLS = (40, 60)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_generators_follow_autocast_and_the_sum_is_float32(dtype):
    """On a map of a full-size image the sum alone would overflow float16."""
    torch.manual_seed(0)
    method = MGD(256, 256, weight=2e-5, mask_ratio=0.65)
    student, teacher = torch.randn(1, 256, *CELLS), torch.randn(1, 256, *CELLS)
    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        mine = student.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            loss = method(mine, teacher)
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss, mine)
        results.append((loss.item(), gradient.flatten().double()))
    (full, exact), (half, near) = results
    assert half != full, "the convolutions compute in half precision"
    assert half == pytest.approx(full, rel=1e-5)
    cosine = torch.cosine_similarity(exact, near, dim=0).item()
    assert cosine > 0.999, cosine
    assert full / 2e-5 > torch.finfo(torch.float16).max
