"""Where torch's general operators beat torchvision's kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def eager_on_cpu(x: Tensor) -> bool:
    """Is this a tensor on a CPU, outside compiling and exporting? torchvision's kernels serve everything else."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
