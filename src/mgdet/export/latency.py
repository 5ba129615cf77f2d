"""How long one image takes, in ONNX Runtime and in torch, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from mgdet.detectors.exported import Exported
from mgdet.detectors.face import Face
from mgdet.evaluate.coco import detect
from mgdet.export.verify import as_batch

LEAST_RUNS, MOST_RUNS = 3, 30
SECONDS = 3.0
"""How long each side is measured at most, once it has run three times."""


def latency_line(detector: Face, exported: Exported, image: np.ndarray) -> str:
    """Both in milliseconds, each from the image (h, w, 3) uint8 to its detections.

    Args:
        detector: what runs in torch, best the `inference_form`, on a CPU.
        exported: the graph.
        image: as the graph takes it.
    """
    threads = torch.get_num_threads()
    runtime = _median(lambda: exported.run(image))
    batch = as_batch(image)
    plain = _median(lambda: detect(detector, batch))
    where = f"{threads} thread{'s' * (threads > 1)} of a CPU"
    if exported.device_name != "CPU":
        where = f"{exported.device_name}, torch on {where}"
    return (
        f"one image of {image.shape[0]} x {image.shape[1]}: ONNX Runtime {1000 * runtime:.0f} ms, torch "
        f"{1000 * plain:.0f} ms ({where}; medians)"
    )


def _median(run: Callable[[], object]) -> float:
    run()
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or (len(seconds) < MOST_RUNS and sum(seconds) < SECONDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
