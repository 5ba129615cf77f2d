"""What detectors cost: parameters and operations anywhere, milliseconds on this machine, measured side by side."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401 - declares torch.ops.torchvision
from torch.utils.flop_counter import FlopCounterMode

from mgdet.data.batch import Batch, collate
from mgdet.data.dataset import DetectionDataset
from mgdet.data.transforms import View, padded_size
from mgdet.detectors.face import Face
from mgdet.evaluate.coco import detect
from mgdet.layers.inference import inference_form
from mgdet.report.numbers import Size, Speed
from mgdet.report.sources import Sizes

IMAGES, ROUNDS = 24, 3
"""Images that are timed, and how often each."""
WARM_UP = 3
"""Forward passes of each detector before the clock counts."""
SECONDS = 60.0
"""After so long no other round is begun, and after twice as long no other image."""


def view_of(sizes: Sizes, index: int) -> View:
    """One image of the data set as a detector looks at it."""
    return View(index, sizes.long_edge, sizes.short_edge, False, sizes.square, canvas=sizes.canvas)


def measure_size(detector: Face, dataset: DetectionDataset, sizes: Sizes) -> Size:
    """Counts parameters, and operations on the image of median size; on the CPU, so that no device changes them.

    Args:
        detector: on the CPU.
        dataset: opened for testing.
        sizes: of the images that the detector looks at.
    """
    areas = []
    for index, image in enumerate(dataset.images):
        height, width = padded_size(view_of(sizes, index).size_of((image.height, image.width)))
        areas.append(height * width)
    middle = int(np.argsort(areas, kind="stable")[len(areas) // 2])
    batch = collate([dataset[view_of(sizes, middle)]]).fitted(detector.multiple, detector.native_size)
    counter = FlopCounterMode(display=False)
    with counter:
        detect(inference_form(detector, quick=False), batch)
    height, width = batch.pixels.shape[1:3]
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    return Size(parameters, counter.get_total_flops() / 1e9, height, width)


def measure_speeds(
    detectors: Sequence[tuple[Face, Sizes]],
    dataset: DetectionDataset,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Speed]:
    """Times detectors in turns, on the same images one by one, so that whatever else the machine does hits all alike.

    The clock runs from pixels on the device to detections: normalising, network, heads and NMS, in float32. Each turn
    begins with another detector.

    Args:
        detectors: on the device, each with the sizes of its images.
        dataset: opened for testing.
        device: where they are.
        progress: called after each image with how many are done and to do.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, IMAGES).round().astype(int)).tolist()
    forms = [inference_form(detector) for detector, _ in detectors]
    batches = [[collate([dataset[view_of(sizes, i)]]).to(device) for i in chosen] for _, sizes in detectors]
    for form, own in zip(forms, batches):
        for batch in own[:WARM_UP]:
            detect(form, batch)
    taken: list[list[float]] = [[] for _ in detectors]
    started, total = time.perf_counter(), ROUNDS * len(chosen)
    for turn in range(total):
        passed = time.perf_counter() - started
        if turn and (passed > 2 * SECONDS or (passed > SECONDS and turn % len(chosen) == 0)):
            break
        for place in range(len(detectors)):
            which = (turn + place) % len(detectors)
            taken[which].append(_milliseconds(forms[which], batches[which][turn % len(chosen)], device))
        progress(turn + 1, total)
    return [Speed(*np.percentile(own, (50, 25, 75)).tolist()) for own in taken]


def describe_machine(device: torch.device) -> str:
    """The processor or the GPU that the times are of, and how it was used."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, one image at a time, float32"
    threads = torch.get_num_threads()
    cores = f"{threads} thread" if threads == 1 else f"{threads} threads"
    return f"{_processor()}, {cores}, one image at a time, float32"


def _milliseconds(form: Any, batch: Batch, device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    detect(form, batch)
    _wait(device)
    return 1000 * (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
