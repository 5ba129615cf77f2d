"""Times two versions of mgdet beside each other on a CPU: training steps, inference and reading, as ratios.

    python benchmarks/against.py 7bbd9e8 HEAD
    python benchmarks/against.py 7bbd9e8 . --rows "RetinaNet" "data" --rounds 9

A version is a git revision or a folder with a checkout. Every row runs in one process for each version, and the two
take turns, so that both see the same machine. All input is made here. A ratio below 1 says that NEW is faster;
`processor` is the ratio of processor seconds, which a busy machine changes less. The last column is the ratio to the
original system: that of 7bbd9e8 on these rows, measured once, times this one; it holds where OLD is 7bbd9e8.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP_SIZE = (512, 672)
INFERENCE_SIZE = (800, 1088)
NUM_OBJECTS = 8
IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Pair:
    """A published distillation onto a ResNet-50."""

    student: str
    teacher: str
    backbone: str
    deformable: bool
    levels: int
    weight: float
    mask_ratio: float


CASCADE = ("cascade_mask_rcnn", "resnext101_32x4d", True, 4, 5e-7, 0.45)
PAIRS = {
    "RetinaNet": Pair("retinanet", "retinanet", "resnext101_64x4d", False, 5, 2e-5, 0.65),
    "Faster": Pair("faster_rcnn", *CASCADE),
    "Mask": Pair("mask_rcnn", *CASCADE),
    "RepPoints": Pair("reppoints", "reppoints", "resnext101_32x4d", True, 5, 2e-5, 0.65),
    "SOLO": Pair("solo", "solo", "resnet101", False, 4, 2e-5, 0.65),
}


@dataclass(frozen=True)
class Row:
    """One workload.

    kind: step, inference or data.
    what: the pair, the detector, or boxes or masks.
    amp: off or bf16.
    teacher: the teacher's own precision, where a version can set it.
    original: time of 7bbd9e8 as a share of the original system's; None where that was not measured.
    """

    kind: str
    what: str
    amp: str = "off"
    teacher: str = "step"
    original: float | None = None


ROWS = {
    "step RetinaNet fp32": Row("step", "RetinaNet", original=0.93),
    "step RetinaNet fp32, teacher bf16": Row("step", "RetinaNet", teacher="bf16", original=0.93),
    "step RetinaNet bf16": Row("step", "RetinaNet", "bf16", original=0.53),
    "step Faster fp32": Row("step", "Faster", original=0.91),
    "step Faster bf16": Row("step", "Faster", "bf16", original=0.74),
    "step Mask fp32": Row("step", "Mask"),
    "step RepPoints fp32": Row("step", "RepPoints", original=0.81),
    "step RepPoints bf16": Row("step", "RepPoints", "bf16"),
    "step SOLO fp32": Row("step", "SOLO", original=0.77),
    "step SOLO bf16": Row("step", "SOLO", "bf16", original=0.49),
    "inference RetinaNet": Row("inference", "retinanet", original=1.04),
    "inference Mask R-CNN": Row("inference", "mask_rcnn", original=0.71),
    "data boxes": Row("data", "boxes", original=0.53),
    "data masks": Row("data", "masks", original=0.37),
}


def step(row: Row) -> Callable[[], object]:
    """A training step of a pair at batch 1, as the training loop takes it."""
    import torch

    from mgdet import MGD, DistilledStudent, Teacher, build_detector

    pair = PAIRS[row.what]
    student = build_detector(pair.student, backbone="resnet50", num_classes=80)
    frozen = build_detector(pair.teacher, backbone=pair.backbone, num_classes=80, deformable=pair.deformable)
    precision = "bf16" if row.amp == "bf16" else row.teacher
    form = inference_form()
    teacher = Teacher(frozen) if form is None else Teacher(form(frozen), precision)
    teacher.to(memory_format=torch.channels_last)
    levels = [MGD(256, 256, weight=pair.weight, mask_ratio=pair.mask_ratio) for _ in range(pair.levels)]
    model = DistilledStudent(student, levels).to(memory_format=torch.channels_last).train()
    with contextlib.suppress(ImportError):  # as the training loop has it, in versions that do
        from mgdet.layers.winograd import quicken

        quicken(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(1, 3, *STEP_SIZE).contiguous(memory_format=torch.channels_last)
    targets = [make_target()]

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=row.amp == "bf16"):
            losses = model(images, targets, teacher(images))
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 35.0)
        optimizer.step()

    return run


def inference(row: Row) -> Callable[[], object]:
    """One image through a detector that finds as much as it may."""
    import torch

    from mgdet import build_detector

    detector = build_detector(row.what, backbone="resnet50", num_classes=80).eval()
    with torch.no_grad():
        if row.what == "retinanet":
            detector.bbox_head.retina_cls.bias[0] = 0.0  # the first anchor of every cell, in the first class
        else:
            detector.roi_head.bbox_head.fc_cls.bias[0] = 6.0  # every region, in the first class
    images = torch.randn(1, 3, *INFERENCE_SIZE)
    form = inference_form()
    if form is not None:
        detector, images = form(detector), images.contiguous(memory_format=torch.channels_last)

    def run() -> int:
        with torch.inference_mode():
            return len(detector.detect(detector.pyramid(images).maps, [INFERENCE_SIZE])[0].scores)

    if run() < 100:
        raise RuntimeError(f"{row.what} finds fewer than 100 objects, so this would measure less than it says")
    return run


def data(row: Row, folder: Path) -> Callable[[], object]:
    """Files to normalised images of 1333 x 800 at most, with boxes or masks, one by one in one process."""
    import cv2
    import torch

    from mgdet.data.batch import collate
    from mgdet.data.transforms import View

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    write_coco(folder)
    masks = row.what == "masks"
    dataset: Any
    try:
        from mgdet.data.coco import read_coco
        from mgdet.data.dataset import DetectionDataset

        records = read_coco(folder / "annotations.json", folder, masks=masks)
        dataset = DetectionDataset(records, training=True, masks=masks)
    except ImportError:  # a version from before records
        from mgdet.data.coco import CocoDataset  # type: ignore[attr-defined]

        dataset = CocoDataset(folder / "annotations.json", folder, training=True, masks=masks)

    def run() -> None:
        for i in range(IMAGES_AT_ONCE):
            collate([dataset[View(i, 1333, 800, i % 2 == 1)]]).images()

    return run


def inference_form() -> Callable[[Any], Any] | None:
    """What a version does with a detector that only looks; None for versions that do nothing."""
    try:
        from mgdet.layers.inference import inference_form as form
    except ImportError:
        return None
    return form


def make_target() -> Any:
    """Objects of mixed sizes, with masks that fill their boxes."""
    import torch

    from mgdet import Target

    height, width = STEP_SIZE
    corner = torch.rand(NUM_OBJECTS, 2) * torch.tensor([width - 100.0, height - 100.0])
    edges = 20 + torch.rand(NUM_OBJECTS, 2) * torch.tensor([250.0, 200.0])
    boxes = torch.cat([corner, torch.minimum(corner + edges, torch.tensor([width - 1.0, height - 1.0]))], dim=1)
    masks = torch.zeros(NUM_OBJECTS, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    return Target(boxes, torch.randint(0, 80, (NUM_OBJECTS,)), masks, size=STEP_SIZE)


def write_coco(folder: Path) -> None:
    """Pictures as smooth as photographs, 640 x 480, with polygons of 24 corners."""
    import cv2
    import numpy as np

    draw = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(IMAGES_AT_ONCE):
        rough = draw.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        picture = cv2.resize(rough, (640, 480), interpolation=cv2.INTER_CUBIC)
        noise = draw.integers(-6, 7, picture.shape)
        cv2.imwrite(str(folder / f"{i}.jpg"), np.clip(picture + noise, 0, 255).astype(np.uint8))
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480})
        for _ in range(NUM_OBJECTS):
            centre, reach = draw.uniform((100, 100), (540, 380)), draw.uniform(20, 90)
            turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            corners = centre + reach * draw.uniform(0.7, 1, (24, 1)) * np.stack([np.cos(turn), np.sin(turn)], axis=1)
            low, high = corners.min(axis=0), corners.max(axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": float(np.prod(high - low)),
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "segmentation": [corners.flatten().tolist()],
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations.json").write_text(json.dumps(content))


def work(name: str, threads: int) -> None:
    """Runs one row once for every line that comes in, and answers with wall and processor seconds."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        run = data(row, Path(folder)) if row.kind == "data" else {"step": step, "inference": inference}[row.kind](row)
        run()
        print("ready", flush=True)
        for _ in sys.stdin:
            usage, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            run()
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
            busy = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
            print(json.dumps([wall, busy]), flush=True)


@contextlib.contextmanager
def source(version: str) -> Iterator[Path]:
    """The folder that holds the package of a revision, or of a checkout."""
    if Path(version).is_dir():
        yield Path(version).resolve() / "src"
        return
    root = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", checkout, version], cwd=root, check=True)
        try:
            yield checkout / "src"
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", checkout], cwd=root, check=True)


class Worker:
    """One row of one version, in a process of its own."""

    def __init__(self, path: Path, name: str, threads: int):
        command = [sys.executable, __file__, "--work", name, "--threads", str(threads)]
        env = os.environ | {"PYTHONPATH": str(path)}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.process.args} ended with {self.process.wait()}")
        return line

    def seconds(self) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        result: list[float] = json.loads(self.answer())
        return result

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(name: str, paths: tuple[Path, Path], rounds: int, threads: int) -> dict[str, Any]:
    """Medians and ratios of one row over so many rounds; each round runs both versions, in turns who is first."""
    workers: list[Worker] = []
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    try:
        for path in paths:  # one after the other: both at once would not fit every machine's memory while they build
            workers.append(Worker(path, name, threads))
            workers[-1].answer()
        for number in range(rounds):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                times[side].append(workers[side].seconds())
    finally:
        for worker in workers:
            worker.stop()
    (old, old_busy), (new, new_busy) = (map(statistics.median, zip(*side)) for side in times)
    original = ROWS[name].original
    return {
        "row": name,
        "old (s)": old,
        "new (s)": new,
        "new / old": new / old,
        "processor": new_busy / old_busy,
        "to the original": None if original is None else original * new / old,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", help="git revision, or folder of a checkout")
    parser.add_argument("new", nargs="?", help="git revision, or folder of a checkout")
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows whose names hold one of these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="threads of steps and inference")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, arguments.threads)
        return
    if arguments.new is None:
        parser.error("give two versions, OLD and NEW")
    names = [name for name in ROWS if any(part in name for part in arguments.rows)]
    results = []
    with source(arguments.old) as old, source(arguments.new) as new:
        print(f"{'row':36}{'old':>9}{'new':>9}{'new/old':>9}{'processor':>11}{'to the original':>17}", flush=True)
        for name in names:
            found = compare(name, (old, new), arguments.rounds, arguments.threads)
            original = found["to the original"]
            print(
                f"{name:36}{found['old (s)']:8.3f}s{found['new (s)']:8.3f}s{found['new / old']:9.2f}"
                f"{found['processor']:11.2f}{'-' if original is None else f'{original:.2f}':>17}",
                flush=True,
            )
            results.append(found)
    if arguments.json:
        content = {"old": arguments.old, "new": arguments.new, "rounds": arguments.rounds, "results": results}
        arguments.json.write_text(json.dumps(content | {"threads": arguments.threads}, indent=1) + "\n")


if __name__ == "__main__":
    main()
