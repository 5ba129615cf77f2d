"""Holds a finished run against the published row of its recipe: is it within the spread that is to be expected?

    python benchmarks/published.py runs/retinanet_x101_to_r50

A run is compared only if it is the recipe: same settings, 16 images per step, COCO's train2017 and val2017, the whole
schedule. What it may choose freely are places, processes, precision, seed and logging. Its score is that of the last
evaluation.

Exit code 0: within the spread; 1: outside of it, above or below; 2: not comparable, and a sentence why.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mgdet.config import Config
from mgdet.engine.checkpoint import flatten, read_config
from mgdet.errors import UserError, nearest
from mgdet.recipes import RECIPES, load_recipe

SPREAD = 0.3
"""AP in percent by which runs that differ in chance alone are expected to differ at most.

What is said of it: MMDetection's maintainers see less than 0.3 on COCO (github.com/open-mmlab/mmdetection/issues/3496),
usually less than 0.2 (issues/3624); the authors of GFL about 0.1 (github.com/implus/GFocal/issues/8). The published
figures are single runs, too.
"""
STEPS_PER_EPOCH = 7330
"""117,266 training images with an object, 16 to a step, each orientation filled up to whole batches."""
TOLERANCE = 0.01
"""Of the steps in an epoch, for another way to fill up."""
VAL = "instances_val2017.json"
FREE = ("data.root", "data.train_", "data.val_", "data.workers", "train.", "teacher.weights", "teacher.precision")
"""What a run may choose; names that end in a dot or an underscore stand for all that begin so."""
METRICS = {"box": "bbox", "mask": "segm"}


def published(name: str) -> dict[str, float]:
    """The published AP in percent of a recipe, by metric: with the method, or of training alone."""
    recipe = RECIPES[name]
    found = re.findall(r"(box|mask) ([\d.]+)", recipe.distilled or recipe.baseline)
    return {METRICS[kind]: float(value) for kind, value in found}


def differences(config: Config, name: str) -> list[str]:
    """The settings in which a run is not the recipe, as sentences."""
    mine, theirs = flatten(config.to_dict()), flatten(load_recipe(name).to_dict())
    return [
        f"{key} is {mine.get(key)}, in {name} {theirs.get(key)}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key) and not key.startswith(FREE)
    ]


def recipe_of(config: Config, asked: str) -> str:
    """The published recipe that a run is.

    Raises:
        UserError: it is none, or not the one that was asked for; the message says what differs from the nearest.
    """
    names = [name for name in RECIPES if published(name)]
    if asked and asked not in names:
        raise UserError(f"--recipe is '{asked}', of which nothing is published{nearest(asked, names)}")
    candidates = [asked] if asked else names
    name = min(candidates, key=lambda own: len(differences(config, own)))
    differing = differences(config, name)
    if differing:
        more = f", and {len(differing) - 1} settings more" if len(differing) > 1 else ""
        raise UserError(f"this run is not {name}, the nearest published one: {differing[0]}{more}")
    return name


def last_scores(folder: Path, config: Config) -> dict[str, float]:
    """AP in percent of the evaluation at the end of a schedule, by metric.

    Raises:
        UserError: the run is not at its end, or its steps or its images are others than the published.
    """
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'metrics.jsonl'} cannot be read: {error}") from None
    last = max((line["step"] for line in lines), default=0)
    epoch = max((line["epoch"] for line in lines if line["kind"] == "train"), default=0.0)
    found = {line["metric"]: 100 * line["AP"] for line in lines if line["kind"] == "eval" and line["step"] == last}
    if epoch < config.schedule.epochs or not found:
        raise UserError(f"{folder} is not at its end: {epoch:.2f} of {config.schedule.epochs} epochs")
    per_epoch = last / config.schedule.epochs
    if abs(per_epoch / STEPS_PER_EPOCH - 1) > TOLERANCE:
        raise UserError(
            f"{folder} took {per_epoch:,.0f} steps per epoch, the published runs {STEPS_PER_EPOCH:,}: 16 images per "
            "step of COCO's train2017; set train.batch, train.accumulate and --devices so that they make 16"
        )
    if not config.data.val_annotations.endswith(VAL):
        raise UserError(f"{folder} was evaluated on {config.data.val_annotations}, the published runs on {VAL}")
    return found


def judge(folder: Path, recipe: str) -> tuple[bool, list[str]]:
    """Whether a run is within the spread in every published metric, and a sentence on each.

    Raises:
        UserError: the run cannot be compared.
    """
    config = read_config(folder)
    if config is None:
        raise UserError(f"{folder} holds no run; give the folder of one")
    name = recipe_of(config, recipe)
    scores = last_scores(folder, config)
    sentences, within = [], True
    for metric, expected in published(name).items():
        kind = next(own for own, value in METRICS.items() if value == metric)
        if metric not in scores:
            raise UserError(f"{folder} was not evaluated for {metric}; the published figure of {name} is {kind} AP")
        off = round(round(scores[metric], 1) - expected, 1)  # with one decimal, as what is published
        fits = abs(off) <= SPREAD
        within &= fits
        where = "within" if fits else "above" if off > 0 else "below"
        sentences.append(
            f"{name}: {kind} AP {scores[metric]:.1f}, published {expected:.1f} ({off:+.1f}), {where} the spread of "
            f"{SPREAD:g} that chance alone is expected to make"
        )
    teacher, theirs = config.teacher, load_recipe(name).teacher
    if teacher is not None and theirs is not None and file_of(teacher.weights) != file_of(theirs.weights):
        sentences.append(f"the teacher was {teacher.weights}, the published one {file_of(theirs.weights)}")
    return within, sentences


def file_of(weights: str) -> str:
    """The name of a file of weights, wherever it lies."""
    return unquote(weights).rpartition("/")[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--recipe", default="", help="the recipe that it must be; else the one that it is")
    arguments = parser.parse_args()
    try:
        within, sentences = judge(arguments.run, arguments.recipe)
    except UserError as error:
        sys.stderr.write(f"published: {error}\n")
        return 2
    print("\n".join(sentences))
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
