"""Times the training step of a recipe on this machine: images/s, memory, and where the time goes.

The parts (data, teacher, student forward, MGD, backward, step) are timed apart, with the device synchronised after
each, so their sum is a little more than a free-running step, which is timed as well. Images and objects are real.

    python benchmarks/step.py retinanet_x101_to_r50 --data.root data/coco --batch 8 16 --steps 50 --amp bf16

Weights are random: they do not change the time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mgdet.config import Config
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.loader import train_loader
from mgdet.data.sampler import TrainSampler
from mgdet.detectors.build import detector_class
from mgdet.engine.loop import AMP_TYPES, make_optimizer
from mgdet.methods.mgd import MGD
from mgdet.methods.student import DistilledStudent
from mgdet.methods.teacher import Teacher
from mgdet.models import detector_from
from mgdet.recipes import load_recipe

PARTS = ("data", "teacher", "student forward", "MGD", "backward", "step")


class Clock:
    """Seconds of each part of each step."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}

    def time(self, part: str, work: Callable[[], object]) -> object:
        self.synchronize()
        start = time.perf_counter()
        result = work()
        self.synchronize()
        self.seconds[part].append(time.perf_counter() - start)
        return result

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Bench:
    """The models of a recipe and its data, ready to step."""

    def __init__(self, config: Config, data: DetectionDataset, batch: int, amp: str, workers: int):
        self.config, self.amp = config, amp
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        student = detector_from(config.student, len(data.classes))
        levels = []
        self.teacher: Teacher | None = None
        if config.teacher is not None and config.mgd is not None:
            teacher = detector_from(config.teacher, len(data.classes))
            self.teacher = Teacher(teacher).to(self.device).to(memory_format=torch.channels_last)
            levels = [
                MGD(
                    student.tap_channels,
                    teacher.tap_channels,
                    weight=config.mgd.weight,
                    mask_ratio=config.mgd.mask_ratio,
                )
                for _ in range(student.num_taps)
            ]
        self.model = DistilledStudent(student, levels).to(self.device).to(memory_format=torch.channels_last).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config.optimizer, self.parameters, lr=1e-5)
        sampler = TrainSampler(
            data.portrait,
            batch=batch,
            accumulate=1,
            rank=0,
            world_size=1,
            seed=0,
            long_edge=config.data.long_edge,
            short_edge=config.data.short_edge,
            short_edge_step=config.data.short_edge_step,
            flip=config.data.flip,
        )
        self.loader = train_loader(data, sampler, workers=workers, pin=self.device.type == "cuda")

    def step(self, clock: Clock) -> None:
        autocast = torch.autocast(self.device.type, dtype=AMP_TYPES[self.amp], enabled=self.amp != "off")
        batch = clock.time("data", lambda: next(self.loader).to(self.device, non_blocking=True))
        images = batch.images().contiguous(memory_format=torch.channels_last)
        with autocast:
            taps = clock.time("teacher", lambda: self.teacher(images) if self.teacher is not None else [])

            def forward() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
                maps, mine = self.model.student.pyramid(images)
                return mine, list(self.model.student.losses(maps, batch.targets).values())

            mine, losses = clock.time("student forward", forward)
            levels = self.model.distill_losses.values()
            losses += clock.time("MGD", lambda: [mgd(s, t) for mgd, s, t in zip(levels, mine, taps)])
        clock.time("backward", torch.stack(losses).sum().backward)
        clock.time("step", self._update)

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def free_step(self) -> None:
        """The same step without a wait between its parts."""
        batch = next(self.loader).to(self.device, non_blocking=True)
        images = batch.images().contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=AMP_TYPES[self.amp], enabled=self.amp != "off"):
            taps = self.teacher(images) if self.teacher is not None else []
            losses = self.model(images, batch.targets, taps)
        torch.stack(list(losses.values())).sum().backward()
        self._update()


def measure(bench: Bench, batch: int, warmup: int, steps: int) -> dict[str, float]:
    clock = Clock(bench.device)
    for _ in range(warmup):
        bench.step(clock)
    clock.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        bench.free_step()
    clock.synchronize()
    result = {"batch": batch, "images_per_second": batch * steps / (time.perf_counter() - start)}
    clock = Clock(bench.device)
    for _ in range(steps):
        bench.step(clock)
    result |= {f"{part} (ms)": 1000 * statistics.median(clock.seconds[part]) for part in PARTS}
    if bench.device.type == "cuda":
        result["peak memory (GiB)"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data.root", dest="root", default="data/coco")
    parser.add_argument("--batch", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--amp", choices=list(AMP_TYPES), default="off")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    arguments = parser.parse_args()

    config = load_recipe(arguments.recipe)
    root, masks = Path(arguments.root), detector_class(config.student.detector).has_masks
    records = read_coco(root / config.data.train_annotations, root / config.data.train_images, masks=masks)
    data = DetectionDataset(records, training=True, masks=masks)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    print(
        f"{arguments.recipe} on {name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.amp}"
    )
    results = []
    for batch in arguments.batch:
        torch.manual_seed(0)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        bench = Bench(config, data, batch, arguments.amp, arguments.workers)
        results.append(measure(bench, batch, arguments.warmup, arguments.steps))
        print("  ".join(f"{key} {value:.4g}" for key, value in results[-1].items()), flush=True)
        del bench
    if arguments.out:
        content = {"recipe": arguments.recipe, "device": name, "amp": arguments.amp, "steps": arguments.steps}
        arguments.out.write_text(json.dumps(content | {"torch": torch.__version__, "results": results}, indent=1))


if __name__ == "__main__":
    main()
