"""Which images are shown, and what is counted in them."""

from dataclasses import replace

import numpy as np
import pytest

from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.evaluate.coco import evaluator
from mgdet.evaluate.truth import Truth
from mgdet.report.differing import Counts, Seen, _best_threshold, choose_images, draw_image, look


@pytest.fixture
def dataset(shown):
    records = read_coco(shown.root / "annotations" / "val.json", shown.root / "val", masks=True)
    return DetectionDataset(records, training=False, masks=True)


def looked(dataset, results):
    truth = Truth(dataset.records)
    return truth, look(evaluator(truth.coco(masks=False), truth.results(results), "bbox"))


def test_what_was_found_is_counted_image_by_image(dataset, truth):
    """In the first image both objects are found; the second object of the third one is of another class."""
    results = [
        {name: annotation[name] for name in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for annotation in truth["annotations"]
        if annotation["image_id"] in (100, 102)
    ]
    results[3]["category_id"] = next(c for c in (2, 5, 9) if c != results[3]["category_id"])
    results.append(results[0] | {"score": 0.1})  # found twice, but below every other score
    numbers, seen = looked(dataset, results)
    by_id = {dataset.images[numbers.order[n - 1]].id: counts for n, counts in seen.counts.items()}
    assert seen.threshold == 0.9
    assert by_id[100] == Counts(2, 0, 0)
    assert by_id[102] == Counts(1, 1, 1)
    assert by_id[101] == Counts(0, 0, 0)  # a grey image
    assert by_id[104] == Counts(0, 2, 0)
    assert by_id[100].f1 == by_id[101].f1 == 1
    assert by_id[102].f1 == 0.5
    assert len(by_id) == len(dataset)


def test_crowds_are_neither_found_nor_missed(dataset, truth):
    crowd = np.arange(len(dataset.records.labels)) == 0
    dataset = DetectionDataset(replace(dataset.records, crowd=crowd), training=False)
    first = truth["annotations"][0]
    results = [{"image_id": 100, "category_id": first["category_id"], "bbox": first["bbox"], "score": 0.9}]
    _, seen = looked(dataset, results)
    assert seen.counts[1] == Counts(0, 1, 0)


def test_nothing_found_draws_nothing(dataset):
    _, seen = looked(dataset, [])
    assert seen.threshold == 1.0
    assert {counts.found for counts in seen.counts.values()} == {0}


def test_the_threshold_is_that_of_the_best_f1():
    assert _best_threshold([(0.9, True), (0.8, False), (0.7, True), (0.7, False), (0.2, False)], 4) == 0.7
    rng = np.random.default_rng(0)
    for _ in range(50):
        scored = [(round(float(rng.random()), 1), bool(rng.random() < 0.4)) for _ in range(20)]
        if any(right for _, right in scored):
            assert f1(scored, _best_threshold(list(scored), 12), 12) == max(
                f1(scored, score, 12) for score, _ in scored
            )


def f1(scored, threshold, objects):
    kept = [right for score, right in scored if score >= threshold]
    return 2 * sum(kept) / (len(kept) + objects)


def test_images_are_chosen_in_both_directions():
    def seen(*counts):
        return Seen(0.5, {i + 1: Counts(*own) for i, own in enumerate(counts)})

    before = seen((0, 4, 0), (2, 0, 0), (1, 1, 0), (0, 0, 0), (0, 2, 0))
    after = seen((4, 0, 0), (2, 0, 0), (0, 2, 3), (0, 0, 2), (2, 0, 0))
    assert choose_images(before, after) == ([1, 5], [4, 3])


def test_pictures_show_truth_and_what_each_found(dataset, truth):
    results = [annotation | {"score": 0.8} for annotation in truth["annotations"] if annotation["image_id"] == 100]
    categories = {category: label for label, category in enumerate(dataset.category_ids)}
    found = {"alone": ([], 1.0, Counts(0, 2, 0)), "MGD": (results, 0.5, Counts(2, 0, 0))}
    pictures = draw_image(dataset, 0, found, categories)
    assert [(title, caption) for title, caption, _ in pictures] == [
        ("truth", "2 objects"),
        ("alone", "0 found, 2 missed, 0 false"),
        ("MGD", "2 found, 0 missed, 0 false"),
    ]
    images = [image for _, _, image in pictures]
    assert {image.shape for image in images} == {(384, 576, 3)}  # of 64 x 96, each pixel six times
    empty = images[1].astype(int)
    changed = [np.abs(image - empty).max(axis=2) > 40 for image in images]
    assert changed[0].mean() > 0.02 and changed[2].mean() > 0.02
    x, y, w, h = (round(6 * v) for v in truth["annotations"][0]["bbox"])
    inside = changed[2][y : y + h, x : x + w]
    assert inside.mean() > 0.5  # masks are drawn, too
