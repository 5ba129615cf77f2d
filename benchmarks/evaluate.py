"""COCO evaluation by hotcoco and by pycocotools, side by side on the same detections.

    python benchmarks/evaluate.py data/coco/annotations/instances_val2017.json --detections 100

The detections are synthetic: jittered ground truth and false alarms, up to `--detections` an image. Prints the
seconds of each, from the annotation file to the twelve numbers, and whether the numbers are equal to the bit.
Needs pycocotools (pip install 'mgdet[test]').
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mgdet.data.coco import read_coco
from mgdet.evaluate.coco import evaluate


def synthetic_results(annotations: Path, per_image: int, masks: bool, seed: int) -> list[dict[str, Any]]:
    """`per_image` detections for every image, boxes [x, y, w, h] in pixels; a mask is the ground truth's own."""
    rng = np.random.default_rng(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
    categories = sorted(truth.cats)
    results = []
    for image_id, image in truth.imgs.items():
        objects = truth.imgToAnns[image_id]
        for i in range(per_image):
            if objects and (masks or i < len(objects)):
                source = objects[i % len(objects)]
                box, category = np.array(source["bbox"]) * rng.normal(1, 0.1, 4), source["category_id"]
            elif masks:
                break
            else:
                corner = rng.random(4) * [image["width"], image["height"], image["width"] / 2, image["height"] / 2]
                box, category = corner, int(rng.choice(categories))
            result = {
                "image_id": image_id,
                "category_id": category,
                "bbox": [float(v) for v in box],
                "score": float(rng.random()),
            }
            if masks:
                rle = truth.annToRLE(source)
                result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            results.append(result)
    return results


def ours(annotations: Path, results: list[dict[str, Any]], metric: str) -> list[float]:
    """The twelve numbers by hotcoco."""
    records = read_coco(annotations, annotations.parent, masks=metric == "segm")
    return list(evaluate(records, results, [metric])[metric].stats.values())


def reference(annotations: Path, results: list[dict[str, Any]], metric: str) -> list[float]:
    """The twelve numbers by pycocotools."""
    if metric == "segm":
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluator = COCOeval(truth, truth.loadRes(results), metric)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats]


def main() -> None:
    """Runs both and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="COCO annotation file")
    parser.add_argument("--detections", type=int, default=100, help="detections an image (default 100)")
    parser.add_argument("--metric", choices=("bbox", "segm"), default="bbox")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the result to this JSON file")
    args = parser.parse_args()

    results = synthetic_results(args.annotations, args.detections, args.metric == "segm", args.seed)
    print(f"{args.annotations}: {len(results):,} detections, {args.metric}")
    seconds, numbers = {}, {}
    for name, run in (("hotcoco", ours), ("pycocotools", reference)):
        start = time.perf_counter()
        numbers[name] = run(args.annotations, results, args.metric)
        seconds[name] = round(time.perf_counter() - start, 3)
        print(f"{name:>12}  {seconds[name]:8.2f} s   AP {numbers[name][0]:.16f}")
    equal = numbers["hotcoco"] == numbers["pycocotools"]
    print(f"{'':>12}  {seconds['pycocotools'] / seconds['hotcoco']:8.1f} times faster, equal to the bit: {equal}")
    if args.out:
        record = {"detections": len(results), "metric": args.metric, "seconds": seconds, "equal": equal}
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
