"""Reading an annotation file of COCO's size by mgdet and by pycocotools, each in a process of its own.

    python benchmarks/reading.py
    python benchmarks/reading.py --images 5000 --objects 36000 --out reading.json

Makes the file in a temporary folder: polygons, every hundredth object a crowd with a run-length mask. Prints seconds,
CPU seconds and peak memory of each reader, with masks, and of a mgdet process that shares what the first one read.
Needs pycocotools (pip install 'mgdet[test]').
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_MEASURE = """
import json, resource, sys, time
from pathlib import Path
{imports}
path, cache = Path(sys.argv[1]), Path(sys.argv[2])
start, cpu = time.perf_counter(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
{read}
seconds = time.perf_counter() - start
cpu = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
numbers = {{"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "gib": round(peak, 2)}}
print(json.dumps(numbers | {{"objects": int(objects)}}))
"""
READERS = {
    "mgdet, first process": (
        "from mgdet.data.coco import read_coco\nfrom mgdet.data.shared import load, store",
        "store(read_coco(path, path.parent, masks=True), cache); objects = len(load(cache).labels)",
    ),
    "mgdet, other processes": ("from mgdet.data.shared import load", "objects = len(load(cache).labels)"),
    "pycocotools": ("from pycocotools.coco import COCO", "objects = len(COCO(str(path)).anns)"),
}


def write_annotations(path: Path, num_images: int, num_objects: int, seed: int) -> None:
    """A file in COCO's format with as many numbers in its polygons as COCO has on average."""
    rng = np.random.default_rng(seed)
    boxes = np.round(rng.uniform(1, 300, (num_objects, 4)), 2).tolist()
    owners = np.sort(rng.integers(num_images, size=num_objects)).tolist()
    labels = rng.integers(1, 81, num_objects).tolist()
    points = rng.geometric(1 / 22, num_objects) + 3
    coordinates = [f"{v:.2f}" for v in rng.uniform(0, 480, 100_000)]
    with path.open("w") as file:
        images = (
            f'{{"license": 3, "file_name": "{i:012}.jpg", "coco_url": "http://images.cocodataset.org/train2017/'
            f'{i:012}.jpg", "height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", "id": {i}}}'
            for i in range(num_images)
        )
        categories = [{"supercategory": "thing", "id": i, "name": f"class {i}"} for i in range(1, 81)]
        file.write('{"info": {"year": 2017}, "images": [' + ", ".join(images) + "], ")
        file.write(f'"categories": {json.dumps(categories)}, "annotations": [')
        for i in range(num_objects):
            if i % 100:
                first = int(rng.integers(len(coordinates) - 2 * points[i]))
                mask = f"[[{', '.join(coordinates[first : first + 2 * points[i]])}]]"
            else:
                mask = '{"counts": [1000, 200, 306000], "size": [480, 640]}'
            file.write(
                f'{", " if i else ""}{{"segmentation": {mask}, "area": {boxes[i][2] * boxes[i][3] / 2:.4f}, '
                f'"iscrowd": {int(i % 100 == 0)}, "image_id": {owners[i]}, "bbox": {boxes[i]}, '
                f'"category_id": {labels[i]}, "id": {i + 1}}}'
            )
        file.write("]}")


def measure(reader: str, annotations: Path, cache: Path) -> dict[str, float]:
    """Seconds, CPU seconds, peak GiB and number of objects of one reader, in a new process."""
    imports, read = READERS[reader]
    command = [sys.executable, "-c", _MEASURE.format(imports=imports, read=read), str(annotations), str(cache)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Makes the file, reads it with each reader, and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--objects", type=int, default=860_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the result to this JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        annotations, cache = Path(folder) / "instances.json", Path(folder) / "shared"
        write_annotations(annotations, args.images, args.objects, args.seed)
        print(f"{args.images:,} images, {args.objects:,} objects, {annotations.stat().st_size / 2**20:,.0f} MiB")
        results = {}
        for reader in READERS:
            results[reader] = measure(reader, annotations, cache)
            r = results[reader]
            print(f"{reader:>22}  {r['seconds']:7.2f} s, CPU {r['cpu_seconds']:7.2f} s  {r['gib']:6.2f} GiB")
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
