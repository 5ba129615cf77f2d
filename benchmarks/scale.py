"""Weak scaling on this machine, and what many GPUs would give by arithmetic.

    python benchmarks/scale.py retinanet_x101_to_r50 --processes 1 2 4 --size 320 512 --page scale.md

Measured, over processes of one thread each that gloo joins: seconds per step, the share of them in which gradients are
exchanged, memory of a process, and the time in which all of them open one annotation file of COCO's size. Exchange is
the difference to the same step, at the same time in all processes, without DistributedDataParallel. Where processes
outnumber cores, all of a step is slower, and only the share says something; below 0 it is noise. At one process there
is no exchange, so its share says how large the noise is.

Computed: floating-point operations of a step, counted while it runs, bytes of gradients, and kernels and waits as
`waits.py` counts them, put together for GPUs under assumptions that the page states. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mgdet.config import Config, DataConfig
from mgdet.data.batch import Batch
from mgdet.data.dataset import DetectionDataset
from mgdet.data.open import open_splits
from mgdet.distributed import World, join
from mgdet.engine.memory import peak_memory
from mgdet.engine.step import Step
from mgdet.methods.student import DistilledStudent
from mgdet.methods.teacher import Teacher
from mgdet.models import detector_from, with_methods
from mgdet.recipes import load_recipe
from reading import write_annotations
from waits import counting, scene

ASSUMED = {
    "peak (TFLOP/s)": (989.0, "of one H100 SXM in bf16 without sparsity, as NVIDIA publishes it"),
    "utilisation": (0.35, "share of the peak that convolutions reach"),
    "kernel (us)": (6.0, "of the host for each kernel that it launches; a step takes at least their sum"),
    "wait (us)": (500.0, "in which a GPU has nothing to do after each wait of the host"),
    "inside (GB/s)": (360.0, "of a ring over the 8 GPUs of a machine: 450 GB/s of NVLink, 80 % of it"),
    "between (GB/s)": (40.0, "of a ring over machines: 400 Gbit/s for each GPU, 80 % of it"),
    "overlap": (0.5, "share of the backward pass behind which the exchange can hide"),
}
GPUS = (1, 8, 64)
GPUS_PER_MACHINE = 8
OBJECTS = 8


def batch_of(number: int, size: tuple[int, int], classes: int) -> Batch:
    """Noise with boxes and masks."""
    targets = scene(number, OBJECTS, size)
    for target in targets:
        target.labels %= classes
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (number, *size, 3), dtype=torch.uint8, generator=draw)
    return Batch(pixels, targets, ["noise"] * number, [0] * number, [size] * number, [(1.0, 1.0)] * number)


def step_of(config: Config, world: World, classes: int = 80) -> Step:
    """The step of a recipe with random weights."""
    torch.manual_seed(0)
    student = detector_from(config.student, classes)
    model, teacher = DistilledStudent(student), None
    if config.teacher is not None and config.methods:
        teacher = Teacher(detector_from(config.teacher, classes))
        model = with_methods(config, student, teacher.detector, lambda line: None)
    step = Step(model, teacher, config, world)
    step.model.train()
    return step


def seconds_of(step: Step, batch: Batch, number: int, world: World) -> tuple[float, float]:
    """The median of some steps that all processes take at once, with and without exchange in turns."""
    models, taken = (step.model, step.student), ([], [])
    for i in range(number + 1):
        for model, seconds in zip(models, taken):
            step.model = model
            world.barrier()
            start = time.perf_counter()
            step.take([batch], number=i, lr=1e-6)
            seconds.append(time.perf_counter() - start)
    with_exchange, without = (statistics.median(seconds[1:]) for seconds in taken)  # the first makes buckets and states
    return with_exchange, without


def process(arguments: argparse.Namespace) -> None:
    """One of several processes: takes steps, opens the annotation file, and leaves its numbers in a file."""
    torch.set_num_threads(1)
    folder, found = Path(arguments.folder), dict[str, float]()
    with join() as world:
        world.barrier()
        cpu, start = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), time.perf_counter()
        data = DataConfig(root=str(folder), train_annotations="instances.json", train_images="images")
        splits = open_splits(data, train_masks=True, required=("train",), barrier=world.barrier)
        dataset = DetectionDataset(splits.records["train"], training=True, masks=True)
        found |= {"start-up (s)": time.perf_counter() - start, "images": float(len(dataset))}
        found["start-up (CPU s)"] = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - cpu
        found["memory after start-up (GiB)"] = peak_memory(world.device)
        config = load_recipe(arguments.recipe)
        config.train.batch = arguments.batch
        step, batch = step_of(config, world), batch_of(arguments.batch, tuple(arguments.size), 80)
        found["step (s)"], found["step without exchange (s)"] = seconds_of(step, batch, arguments.steps, world)
        found["memory (GiB)"] = peak_memory(world.device)
    (folder / f"{os.environ['WORLD_SIZE']}_{os.environ['RANK']}.json").write_text(json.dumps(found))


def write_data(folder: Path, num_images: int, num_objects: int) -> None:
    """An annotation file, and for each of its images a link to one grey picture."""
    write_annotations(folder / "instances.json", num_images, num_objects, seed=0)
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "grey.jpg"), np.full((480, 640, 3), 128, np.uint8))
    for i in range(num_images):
        (folder / "images" / f"{i:012}.jpg").symlink_to(folder / "grey.jpg")


def measure(arguments: argparse.Namespace, size: int, folder: Path) -> dict[str, float]:
    """The slowest of `size` processes in each number, and what follows from them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder)]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    processes = [
        subprocess.Popen(command, env=common | {"RANK": str(i), "LOCAL_RANK": str(i), "OMP_NUM_THREADS": "1"})
        for i in range(size)
    ]
    codes = [started.wait() for started in processes]
    if any(codes):
        raise SystemExit(f"processes ended with {codes}")
    rows = [json.loads((folder / f"{size}_{rank}.json").read_text()) for rank in range(size)]
    slowest = {name: max(row[name] for row in rows) for name in rows[0]}
    slowest["exchange share"] = 1 - slowest["step without exchange (s)"] / slowest["step (s)"]
    slowest["images/s"] = arguments.batch * size / slowest["step (s)"]
    return slowest


def count(config: Config, size: tuple[int, int], small: tuple[int, int], batch: int) -> dict[str, float]:
    """What a step of `batch` images asks for; operations of (h, w), waits and kernels of a small image, as they agree.

    Returns:
        Operations of the whole step and of the teacher's part for one image, bytes of gradients, kernels, waits.
    """
    world = World(rank=0, size=1, device=torch.device("cpu"))
    config.train.batch = batch
    step = step_of(config, world)
    several = batch_of(batch, small, 80)
    with counting() as work:
        step.take([several], number=0, lr=1e-6)
    one = batch_of(1, size, 80)
    with FlopCounterMode(display=False) as whole:
        step.take([one], number=0, lr=1e-6)
    with FlopCounterMode(display=False) as teacher:
        step.show(one, one.images())
    return {
        "TFLOP per image": whole.get_total_flops() / 1e12,
        "of them the teacher": teacher.get_total_flops() / 1e12,
        "MB of gradients": sum(p.numel() * p.element_size() for p in step.parameters) / 1e6,
        "kernels": float(work.kernels),
        "waits": float(work.waits.total()),
    }


def project(counted: dict[str, float], batch: int, gpus: int) -> dict[str, float]:
    """Milliseconds and images/s of a step on so many GPUs with `batch` images each, under `ASSUMED`."""
    value = {name: number for name, (number, _) in ASSUMED.items()}
    teacher = counted["of them the teacher"]
    rate = value["peak (TFLOP/s)"] * value["utilisation"]
    compute = batch * counted["TFLOP per image"] / rate
    backward = batch * (counted["TFLOP per image"] - teacher) * 2 / 3 / rate
    launch = counted["kernels"] * value["kernel (us)"] / 1e6
    wait = counted["waits"] * value["wait (us)"] / 1e6
    speed = value["inside (GB/s)"] if gpus <= GPUS_PER_MACHINE else value["between (GB/s)"]
    exchange = 2 * (gpus - 1) / gpus * counted["MB of gradients"] / 1e3 / speed
    exposed = max(0.0, exchange - value["overlap"] * backward)
    step = max(compute, launch) + wait + exposed
    return {
        "compute (ms)": 1e3 * compute,
        "launching (ms)": 1e3 * launch,
        "waiting (ms)": 1e3 * wait,
        "exchange (ms)": 1e3 * exchange,
        "of it exposed (ms)": 1e3 * exposed,
        "step (ms)": 1e3 * step,
        "images/s": gpus * batch / step,
    }


def number(value: float) -> str:
    """Whole from 1,000 on, else with four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(rows: dict[str, dict[str, float]], first: str) -> str:
    """A Markdown table with a row for each entry."""
    names = list(next(iter(rows.values())))
    lines = [f"| {first} | {' | '.join(names)} |", f"|---{'|---:' * len(names)}|"]
    lines += [f"| {key} | {' | '.join(number(row[name]) for name in names)} |" for key, row in rows.items()]
    return "\n".join(lines)


def page(arguments: argparse.Namespace, result: dict[str, Any]) -> str:
    """The results as a page."""
    height, width = arguments.size
    full_height, full_width = arguments.full_size
    assumed = "\n".join(f"- {name}: {value:g}, {why}" for name, (value, why) in ASSUMED.items())
    return f"""# Scale: {arguments.recipe}

`python benchmarks/scale.py {" ".join(sys.argv[1:])}`, torch {torch.__version__}.

## Measured: weak scaling over processes of this machine

{os.cpu_count()} CPU cores, one thread for each process, batch {arguments.batch} of {height} x {width}, float32, gloo;
an annotation file of {arguments.images:,} images and {arguments.objects:,} objects. The slowest process in each number.

{table(result["processes"], "processes")}

## Counted: one step

Operations at {full_height} x {full_width}, where they are counted: convolutions and matrix products, not deformable
sampling. Kernels and waits of a step of {arguments.gpu_batch} images.

{table({arguments.recipe: result["counted"]}, "recipe")}

## Computed, not measured: H100s

{arguments.gpu_batch} images for each GPU, bf16. A step takes the longer of computing and launching, its waits, and what
of the exchange the backward pass cannot hide; the backward pass is two thirds of what is not the teacher's. Images are
assumed to be there in time.

{assumed}

{table(result["gpus"], "GPUs")}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, default=1, help="images for each process")
    parser.add_argument("--size", type=int, nargs=2, default=[320, 512], help="height and width of measured images")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--images", type=int, default=118_000, help="in the annotation file")
    parser.add_argument("--objects", type=int, default=860_000, help="in the annotation file")
    parser.add_argument("--full-size", type=int, nargs=2, default=[800, 1344], help="where operations are counted")
    parser.add_argument("--gpu-batch", type=int, default=16, help="images for each GPU of the computed part")
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--page", type=Path, help="also write them to this page")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # makes this one of the processes
    arguments = parser.parse_args()
    if arguments.folder:
        process(arguments)
        return
    result: dict[str, Any] = {"torch": torch.__version__, "processes": {}, "gpus": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, arguments.images, arguments.objects)
        for size in arguments.processes:
            result["processes"][str(size)] = measure(arguments, size, folder)
            print(f"{size} processes:", result["processes"][str(size)], flush=True)
    full_size = tuple(arguments.full_size)
    small = (min(128, full_size[0]), min(160, full_size[1]))
    result["counted"] = count(load_recipe(arguments.recipe), full_size, small, arguments.gpu_batch)
    for gpus in GPUS:
        result["gpus"][str(gpus)] = project(result["counted"], arguments.gpu_batch, gpus)
    print(page(arguments, result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1))
    if arguments.page:
        arguments.page.write_text(page(arguments, result))


if __name__ == "__main__":
    main()
