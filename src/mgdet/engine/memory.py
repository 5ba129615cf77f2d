"""How much memory a run has used so far."""

from __future__ import annotations

import sys

import torch


def peak_memory(device: torch.device) -> float:
    """The most memory in use so far, in GiB: on the GPU, or of this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**30 if sys.platform == "darwin" else most / 2**20  # bytes there, KiB elsewhere
