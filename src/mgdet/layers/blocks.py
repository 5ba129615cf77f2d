"""How much of a big intermediate result is held at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch


class BlockSize(NamedTuple):
    """Numbers per block: few enough for the caches of a processor, or so many that a GPU launches few kernels.

    On a GPU every block is a number of launches. Batches of eight should have few more of them than batches of two,
    and 800 objects at 1333 x 800 pixels take less than 300 MB.

    cpu: on a CPU.
    gpu: on everything else.
    """

    cpu: int
    gpu: int

    def on(self, device: torch.device) -> int:
        """The size on this device."""
        return self.cpu if device.type == "cpu" else self.gpu
