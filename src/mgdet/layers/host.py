"""Between the host and the device: the only two ways in which a value crosses while losses are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(values: list[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers that the host knows as a tensor on the device, without a wait.

    Args:
        values: numbers or nested lists of them.
        device: where the tensor is to be.
        dtype: of the tensor; by default what torch makes of the numbers.
    """
    tensor = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":  # a copy from pageable memory waits for everything before it
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Any:
    """The number or nested lists of numbers in a small tensor.

    The host waits for the device here, and in `losses` nowhere else.
    """
    return tensor.tolist()
