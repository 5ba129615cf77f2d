"""What float32 means on a GPU, and that a CPU does not notice."""

from __future__ import annotations

import pytest
import torch

from mgdet.precision import set_float32


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(("exact", "precision", "said"), [(True, "highest", "true float32"), (False, "high", "TF32")])
def test_products_on_a_gpu(exact, precision, said):
    set_float32(torch.device("cuda"), exact=not exact)
    assert said in set_float32(torch.device("cuda"), exact=exact)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 is not exact


def test_nothing_changes_on_a_cpu():
    set_float32(torch.device("cuda"), exact=False)
    assert set_float32(torch.device("cpu"), exact=True) == ""
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
