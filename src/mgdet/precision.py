"""How exact numbers are: the type that a setting means, the context that uses it, and what float32 means on a GPU."""

from __future__ import annotations

import platform

import torch

from mgdet.config import Config

AMP_TYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The autocast context of the setting `amp`, a key of `AMP_TYPES`; `off` turns autocast off."""
    return torch.autocast(device.type, dtype=AMP_TYPES[amp], enabled=amp != "off")


def cpu_has_bfloat16() -> bool:
    """Has this CPU instructions for bfloat16? Without them it is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def cpu_has_float16() -> bool:
    """Has this CPU instructions for float16? Without them it is many times slower than float32."""
    return bool(torch.cpu._is_amx_tile_supported())  # the processors with AMX are those with AVX-512 for float16


def slow_types(config: Config, device: torch.device) -> list[str]:
    """What to say of settings that ask a CPU for a type it has no instructions for.

    Nothing is said of CPUs other than x86: torch does not tell what they have.
    """
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return []
    able = {"bf16": cpu_has_bfloat16, "fp16": cpu_has_float16}
    asked: list[tuple[str, str, str]] = [("train.amp", config.train.amp, "off")]
    if config.teacher is not None:
        asked.append(("teacher.precision", config.teacher.precision, "fp32"))
    return [
        f"{name} is {value}, but this CPU has no instructions for it and float32 is faster; give --{name} {instead}"
        for name, value, instead in asked
        if value in able and not able[value]()
    ]


def set_float32(device: torch.device, *, exact: bool) -> str:
    """Decides for this process what a product of float32 is on a GPU; on a CPU it always is float32.

    Args:
        device: where the work is done.
        exact: true float32, to measure and to predict; else TF32, which rounds factors to 10 bits and is several times
            faster, to train.

    Returns:
        A sentence for the log; empty on a CPU.
    """
    if device.type != "cuda":
        return ""
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    kind = "true float32" if exact else "TF32: factors are rounded to 10 bits"
    return f"products of float32 on the GPU are {kind}"
