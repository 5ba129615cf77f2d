"""Numbers of half the size: which type a setting means, and the context in which a forward pass uses it."""

from __future__ import annotations

import torch

AMP_TYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The autocast context of the setting `amp`, a key of `AMP_TYPES`; `off` turns autocast off."""
    return torch.autocast(device.type, dtype=AMP_TYPES[amp], enabled=amp != "off")
