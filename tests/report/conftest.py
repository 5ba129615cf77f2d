"""What comparisons are made of: a data set with enough images, real runs on it, and detections of known quality."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mgdet.engine.loop import train
from mgdet.files import atomic_write
from tiny import ALONE, CATEGORY_IDS, Tiny, alone, distilled, write_data, write_detector

NUM_VAL = 30
"""Evaluation images; every other one holds two objects."""


@pytest.fixture(scope="session")
def shown(tmp_path_factory):
    """A data set and a teacher, as `tiny` is, with more evaluation images; read it only."""
    folder = tmp_path_factory.mktemp("shown")
    kept = Tiny.__new__(Tiny)
    kept.root, kept.teacher = folder / "data", folder / "teacher.pth"
    write_data(kept.root, num_val=NUM_VAL)
    write_detector(kept.teacher, seed=7)
    return kept


@pytest.fixture(scope="session")
def runs(shown, tmp_path_factory):
    """Runs by name: `alone` and `mgd` with the seeds 0 and 1, as `alone-0` ..."""
    folder = tmp_path_factory.mktemp("runs")
    folders = {}
    for name, recipe in (("alone", alone), ("mgd", distilled)):
        for seed in (0, 1):
            config = recipe()
            config.data.root = str(shown.root)
            if config.teacher is not None:
                config.teacher.weights = str(shown.teacher)
            config = replace(config, train=replace(config.train, seed=seed, eval_every=2))
            folders[f"{name}-{seed}"] = folder / f"{name}-{seed}"
            assert train(config, folders[f"{name}-{seed}"], resume=False, world=ALONE) == 0
    return folders


@pytest.fixture(scope="session")
def truth(shown):
    """The evaluation file."""
    return json.loads((shown.root / "annotations" / "val.json").read_text())


@pytest.fixture(scope="session")
def perturbed(truth):
    """Detections near the truth: the farther, the larger `noise`; a share of objects is missed."""

    def make(noise, *, seed=0, missed=0.1):
        rng = np.random.default_rng(seed)
        results = []
        for annotation in truth["annotations"]:
            if rng.random() >= missed:
                box = np.array(annotation["bbox"]) + rng.normal(size=4) * noise
                box[2:] = np.maximum(box[2:], 1)
                results.append(
                    {
                        "image_id": annotation["image_id"],
                        "category_id": annotation["category_id"],
                        "bbox": box.tolist(),
                        "score": float(rng.uniform(0.3, 1)),
                    }
                )
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(rng.choice(CATEGORY_IDS)),
                    "bbox": [1.0, 2.0, 20.0, 20.0],
                    "score": float(rng.uniform(0, 0.6)),
                }
            )
        return results

    return make


@pytest.fixture
def detections(perturbed, tmp_path):
    """Writes detections as a file; arguments as those of `perturbed`."""

    def write(name, noise, **options):
        path = tmp_path / f"{name}.json"
        content = json.dumps(perturbed(noise, **options)).encode()
        atomic_write(path, lambda file: file.write(content))
        return path

    return write
