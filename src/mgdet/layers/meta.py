"""Networks of which only names and shapes are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

STARTS = {
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.erfinv_,
    Tensor.mul_,
    Tensor.add_,
    Tensor.clamp_,
    Tensor.fill_,
    Tensor.zero_,
}
"""What weights are initialised by; each keeps its tensor's shape."""


@contextmanager
def on_meta() -> Iterator[None]:
    """Networks that are built inside take no memory for their weights and no time to draw them.

    On torch's meta device alone, much of the time goes into drawing values that there are not.
    """
    with torch.device("meta"), _NoStart():
        yield


class _NoStart(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in STARTS and args[0].is_meta else func(*args, **(kwargs or {}))
