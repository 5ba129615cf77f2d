"""The MGD loss against the recorded values of the original."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recorded
from mgdet import MGD

CASES = ["equal", "unequal", "equal_045"]


def make(case: str) -> tuple[dict, MGD, torch.Tensor, torch.Tensor]:
    """(record, MGD with the recorded weights, student map, teacher map)."""
    stored = recorded.record("mgd_loss")[case]
    mgd = MGD(
        stored["student_channels"],
        stored["teacher_channels"],
        weight=stored["alpha_mgd"],
        mask_ratio=stored["lambda_mgd"],
    )
    recorded.fill(mgd)
    batch, height, width = stored["shape"]
    student = recorded.synthetic(f"mgd.{case}.S", (batch, stored["student_channels"], height, width))
    teacher = recorded.synthetic(f"mgd.{case}.T", (batch, stored["teacher_channels"], height, width))
    return stored, mgd, student.requires_grad_(), teacher


@pytest.mark.parametrize("case", CASES)
def test_keys(case):
    stored, mgd, _, _ = make(case)
    assert {key: list(value.shape) for key, value in mgd.state_dict().items()} == stored["keys"]


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case, monkeypatch):
    stored, mgd, student, teacher = make(case)
    monkeypatch.setattr(torch, "rand", recorded.mgd_uniform)
    loss = mgd(student, teacher)
    assert loss.item() == pytest.approx(stored["loss"], rel=1e-5)
    loss.backward()
    recorded.assert_gradients(mgd, stored["grad_norms"], tolerance=1e-4)
    expected = recorded.arrays("mgd_loss")[f"{case}.grad_S"]
    np.testing.assert_allclose(student.grad, expected, rtol=0, atol=1e-4 * expected.std())


@pytest.mark.parametrize("case", CASES)
def test_a_masked_cell_gets_no_gradient_in_any_channel(case, monkeypatch):
    _, mgd, student, teacher = make(case)
    monkeypatch.setattr(torch, "rand", recorded.mgd_uniform)
    mgd(student, teacher).backward()
    kept = torch.from_numpy(recorded.arrays("mgd_loss")[f"{case}.mask"]).bool().expand_as(student)
    assert (student.grad[~kept] == 0).all()
    assert (student.grad[kept] != 0).float().mean() > 0.99


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 1.0), (0.65, 0.35), (1.0, 0.0)])
def test_share_of_kept_cells(ratio, share):
    torch.manual_seed(0)
    mgd = MGD(4, 4, weight=1.0, mask_ratio=ratio)
    student = torch.ones(4, 4, 64, 64, requires_grad=True)
    mgd(student, torch.zeros(4, 4, 64, 64)).backward()
    assert (student.grad.abs().sum(dim=1) > 0).float().mean().item() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_half_precision_map_keeps_a_finite_exact_loss(dtype):
    mgd = MGD(32, 32, weight=1.0, mask_ratio=0.5)
    student = torch.randn(1, 32, 96, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    teacher = 20 * torch.randn(1, 32, 96, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=dtype):
        half = mgd(student, teacher)
    torch.manual_seed(2)
    assert half.dtype == torch.float32 and half.item() > 65504
    torch.testing.assert_close(half, mgd(student.float(), teacher.float()))


def test_maps_that_do_not_match_are_refused():
    mgd = MGD(4, 4, weight=1.0, mask_ratio=0.5)
    with pytest.raises(ValueError, match=r"\(1, 4, 8, 8\).*\(1, 4, 4, 4\)"):
        mgd(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 4, 4))
