"""Times the training step of a recipe on this machine: images/s, memory, and where the time goes.

The step is the one that training takes. Its parts are timed apart in further steps, with the device synchronised around
each, so their sum is a little more than a free-running step; what no part holds counts as backward. Images are real.

    python benchmarks/step.py retinanet_x101_to_r50 --data.root data/coco --batch 8 16 --steps 50 --amp bf16

Weights are random: they do not change the time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from mgdet.config import Config
from mgdet.data.batch import Batch
from mgdet.data.dataset import DetectionDataset
from mgdet.data.loader import train_loader
from mgdet.data.open import open_splits
from mgdet.data.sampler import TrainSampler
from mgdet.detectors.build import detector_class
from mgdet.distributed import World
from mgdet.engine.ahead import ahead
from mgdet.engine.compiled import compile_pyramids
from mgdet.engine.step import Step
from mgdet.layers.inference import inference_form
from mgdet.methods.student import DistilledStudent
from mgdet.methods.teacher import Teacher
from mgdet.models import detector_from, with_methods
from mgdet.precision import AMP_TYPES, set_float32
from mgdet.recipes import load_recipe

PARTS = ("data", "teacher", "student forward", "methods", "backward", "update")


class Clock:
    """Seconds of each part of each step."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}

    def wrap(self, owner: object, name: str, part: str) -> None:
        """Times every call of a method of `owner`, and adds it to a part of the step."""
        work = getattr(owner, name)

        def timed(*arguments: object, **options: object) -> object:
            self.synchronize()
            start = time.perf_counter()
            result = work(*arguments, **options)
            self.synchronize()
            self.seconds[part][-1] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Bench:
    """The step of a recipe and its data."""

    def __init__(self, config: Config, data: DetectionDataset, batch: int, amp: str, workers: int, compiled: bool):
        config.train.batch, config.train.amp = batch, amp
        world = World.alone()
        self.device = world.device
        student = detector_from(config.student, len(data.classes))
        model, teacher = DistilledStudent(student), None
        if config.teacher is not None and config.methods:
            precision = "bf16" if amp == "bf16" else config.teacher.precision
            form = inference_form(detector_from(config.teacher, len(data.classes)))
            model, teacher = with_methods(config, student, form, lambda line: None), Teacher(form, precision)
        if compiled:
            list(compile_pyramids(model, teacher))
        set_float32(world.device, exact=False)
        self.step = Step(model, teacher, config, world)
        self.step.model.train()
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
        self.loader = ahead(train_loader(data, sampler, workers=workers, pin=self.device.type == "cuda"), self.device)

    def take(self) -> None:
        """A step as the loop takes it."""
        self.step.take([next(self.loader)], number=0, lr=1e-5)

    def watch(self, clock: Clock) -> None:
        """From now on the parts of each step are timed."""
        clock.wrap(self, "_next", "data")
        clock.wrap(self.step, "show", "teacher")
        clock.wrap(self.step.student.student, "learn", "student forward")
        for method in self.step.student.distill_losses.values():
            clock.wrap(method, "forward", "methods")
        clock.wrap(self.step, "_update", "update")

    def _next(self) -> Batch:
        return next(self.loader)

    def timed_take(self, clock: Clock) -> None:
        for seconds in clock.seconds.values():
            seconds.append(0.0)
        start = time.perf_counter()
        self.step.take([self._next()], number=0, lr=1e-5)
        total = time.perf_counter() - start
        clock.seconds["backward"][-1] = total - sum(clock.seconds[part][-1] for part in PARTS if part != "backward")


def measure(bench: Bench, batch: int, warmup: int, steps: int) -> dict[str, float]:
    clock = Clock(bench.device)
    for _ in range(warmup):
        bench.take()
    clock.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        bench.take()
    clock.synchronize()
    result = {"batch": batch, "images_per_second": batch * steps / (time.perf_counter() - start)}
    bench.watch(clock)
    for _ in range(steps):
        bench.timed_take(clock)
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
    parser.add_argument("--compile", action="store_true", help="compile backbones and necks")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    arguments = parser.parse_args()

    config = load_recipe(arguments.recipe)
    masks = detector_class(config.student.detector).has_masks
    splits = open_splits(replace(config.data, root=arguments.root), train_masks=masks, required=("train",))
    data = DetectionDataset(splits.records["train"], training=True, masks=masks)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    print(
        f"{arguments.recipe} on {name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.amp}"
    )
    results = []
    for batch in arguments.batch:
        torch.manual_seed(0)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        bench = Bench(config, data, batch, arguments.amp, arguments.workers, arguments.compile)
        results.append(measure(bench, batch, arguments.warmup, arguments.steps))
        print("  ".join(f"{key} {value:.4g}" for key, value in results[-1].items()), flush=True)
        del bench
    if arguments.out:
        content = {"recipe": arguments.recipe, "device": name, "amp": arguments.amp, "steps": arguments.steps}
        content["compiled"] = arguments.compile
        arguments.out.write_text(json.dumps(content | {"torch": torch.__version__, "results": results}, indent=1))


if __name__ == "__main__":
    main()
