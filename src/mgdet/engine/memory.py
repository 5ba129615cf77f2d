"""How much memory a run uses, and how much there is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

CGROUP_LIMIT, CGROUP_NOW = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
MEMINFO = Path("/proc/meminfo")


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


def memory_now(device: torch.device) -> float:
    """The memory in use now, in GiB; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**30
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def total_memory(device: torch.device) -> float:
    """The memory that there is, in GiB: of the GPU, this machine or container; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError):  # Windows
        return 0.0
    try:
        return min(total, int(CGROUP_LIMIT.read_text()) / 2**30)
    except (OSError, ValueError):  # no container, or one without a limit
        return total


def free_memory(device: torch.device) -> float:
    """The memory that programs can still take, in GiB: of the GPU, this machine or container.

    Half of all where the system does not tell, and 0 where it does not even tell that.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) / 2**20
    except (OSError, KeyError, ValueError):  # not Linux
        return total_memory(device) / 2
    try:
        return min(free, (int(CGROUP_LIMIT.read_text()) - int(CGROUP_NOW.read_text())) / 2**30)
    except (OSError, ValueError):  # no container, or one without a limit
        return free
