"""Measures the training data pipeline: reading, resizing, flipping and batching images, in images a second.

    python benchmarks/data.py data/coco
    python benchmarks/data.py data/coco --workers 0 2 8 --batch 8 --json data.json

The first table takes one process apart, in CPU time; the second runs the loader as training does, in wall time.
OpenCV and torch use one thread a process.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from itertools import islice
from pathlib import Path

import cv2
import torch
from rich.console import Console
from rich.table import Table

from mgdet.config import AugmentConfig
from mgdet.data.batch import collate
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.loader import train_loader
from mgdet.data.sampler import TrainSampler
from mgdet.data.transforms import read_image


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of a data set in COCO format")
    parser.add_argument("--annotations", default="annotations/instances_train2017.json", help="file inside root")
    parser.add_argument("--images", default="train2017", help="folder inside root")
    parser.add_argument("--size", type=int, nargs=2, default=(1333, 800), metavar=("LONG", "SHORT"))
    parser.add_argument("--batch", type=int, default=2, help="images a batch")
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2), help="numbers of processes to try")
    parser.add_argument("--num-images", type=int, default=400, help="images of each measurement")
    parser.add_argument("--masks", action="store_true", help="read segmentations too")
    parser.add_argument("--crop", type=float, default=0.0, help="probability of a random crop")
    parser.add_argument("--color-jitter", type=float, default=0.0, help="strength of changes of colour")
    parser.add_argument("--mosaic", type=float, default=0.0, help="probability of a mosaic")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser.parse_args()


def sampler(dataset: DetectionDataset, args: argparse.Namespace) -> TrainSampler:
    long_edge, short_edge = args.size
    return TrainSampler(
        dataset.portrait,
        batch=args.batch,
        accumulate=1,
        rank=0,
        world_size=1,
        seed=0,
        long_edge=long_edge,
        short_edge=(short_edge, short_edge),
        short_edge_step=1,
        flip=0.5,
        seeds=True,
    )


def stages(dataset: DetectionDataset, args: argparse.Namespace) -> dict[str, float]:
    """CPU milliseconds an image of each part, in this process."""
    seconds = {"read and decode": 0.0, "resize, flip, annotations": 0.0, "collate": 0.0}
    num_images = 0
    for views in islice(sampler(dataset, args), max(1, args.num_images // args.batch)):
        start = time.process_time()
        for view in views:
            read_image(dataset.records.folder / dataset.images[view.index].file_name)
        read = time.process_time()
        examples = [dataset[view] for view in views]
        ready = time.process_time()
        collate(examples)
        seconds["read and decode"] += read - start
        seconds["resize, flip, annotations"] += (ready - read) - (read - start)
        seconds["collate"] += time.process_time() - ready
        num_images += len(views)
    return {name: 1000 * value / num_images for name, value in seconds.items()}


def throughput(dataset: DetectionDataset, args: argparse.Namespace, workers: int) -> float:
    """Images a second of the loader, after a warm-up that fills its queues."""
    batches = train_loader(dataset, sampler(dataset, args), workers=workers, pin=False)
    for _ in range(4 * max(1, workers)):
        next(batches)
    num_batches = max(1, args.num_images // args.batch)
    start = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    return num_batches * args.batch / (time.perf_counter() - start)


def main() -> None:
    args = arguments()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    augment = AugmentConfig(crop=args.crop, color_jitter=args.color_jitter, mosaic=args.mosaic)
    records = read_coco(args.root / args.annotations, args.root / args.images, masks=args.masks)
    dataset = DetectionDataset(records, training=True, masks=args.masks, augment=augment)
    milliseconds = stages(dataset, args)
    speeds = {workers: throughput(dataset, args, workers) for workers in args.workers}

    console = Console()
    table = Table("part", "CPU ms an image", title=f"One process, {args.size[0]} x {args.size[1]}")
    for name, value in milliseconds.items():
        table.add_row(name, f"{value:.2f}")
    total = sum(milliseconds.values())
    table.add_row("sum", f"{total:.2f} ({1000 / total:.0f} images/s)")
    console.print(table)

    table = Table("workers", "images/s", "images/s a process", title=f"Loader, batches of {args.batch}")
    for workers, speed in speeds.items():
        table.add_row(str(workers), f"{speed:.0f}", f"{speed / max(1, workers):.0f}")
    console.print(table)

    if args.json:
        result = {
            "data": str(args.root),
            "size": list(args.size),
            "batch": args.batch,
            "masks": args.masks,
            "augment": {"crop": args.crop, "color_jitter": args.color_jitter, "mosaic": args.mosaic},
            "cpu_ms_an_image": milliseconds,
            "images_per_second": {str(workers): speed for workers, speed in speeds.items()},
            "cpu": platform.processor() or platform.machine(),
            "opencv": cv2.__version__,
            "torch": torch.__version__,
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
