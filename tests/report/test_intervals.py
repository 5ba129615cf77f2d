"""Differences and their intervals, against hotcoco's own, a bootstrap by pycocotools, and scipy's t."""

import contextlib
import io

import hotcoco
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats

from mgdet.data.coco import read_coco
from mgdet.data.open import take
from mgdet.errors import UserError
from mgdet.evaluate.coco import coco_scores, evaluate, evaluator
from mgdet.evaluate.truth import Truth
from mgdet.report.intervals import Bootstrap, Side, differences, images_with, student_t
from mgdet.report.numbers import STATS
from tiny import CLASSES

FEW = Bootstrap(resamples=200, seed=5)


@pytest.fixture
def records(shown):
    return read_coco(shown.root / "annotations" / "val.json", shown.root / "val", masks=False)


@pytest.fixture
def side(records):
    """Several runs as one side of a difference."""

    def make(*runs):
        truth = Truth(records)
        numbered = [truth.results(results) for results in runs]
        coco = truth.coco(masks=False)
        return Side(numbered, [coco_scores(evaluator(coco, own, "bbox"), records) for own in numbered])

    return make


def test_one_run_each(records, side, perturbed):
    before, after = side(perturbed(5)), side(perturbed(2, seed=1))
    stats_, classes = differences(records, "bbox", before, after, FEW)
    for name in STATS:
        found = stats_[name]
        if name in ("APl", "APm", "APs") and images_with(records)[name] < 10:
            assert found is None
            continue
        assert found.value == pytest.approx(after.scores[0].stats[name] - before.scores[0].stats[name], abs=1e-12)
        assert found.value - found.low == pytest.approx(found.high - found.value)
        assert not found.seeds
    assert stats_["AP"].shown and stats_["AP"].low > 0
    assert {name for name, found in classes.items() if found is not None} <= set(CLASSES)
    for name, found in classes.items():
        if found is not None:
            change = after.scores[0].per_class[name]["AP"] - before.scores[0].per_class[name]["AP"]
            assert found.value == pytest.approx(change, abs=1e-12)
            assert found.low <= found.value <= found.high


def test_the_interval_is_that_of_a_bootstrap_by_pycocotools(records, side, perturbed, truth):
    """Resampled images evaluated from scratch, each copy as an image of its own."""
    runs = [perturbed(4), perturbed(2.5, seed=1)]
    found = differences(records, "bbox", side(runs[0]), side(runs[1]), Bootstrap(resamples=1000))[0]["AP"]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        chosen = rng.choice([image["id"] for image in truth["images"]], len(truth["images"]))
        images = [{"id": i, "height": 96, "width": 96} for i in range(len(chosen))]
        both = []
        for results in runs:
            gt, annotations = COCO(), copies(truth["annotations"], chosen)
            gt.dataset = {"images": images, "annotations": annotations, "categories": truth["categories"]}
            with contextlib.redirect_stdout(io.StringIO()):
                gt.createIndex()
                matched = COCOeval(gt, gt.loadRes(copies(results, chosen)), "bbox")
                matched.evaluate()
                matched.accumulate()
                matched.summarize()
            both.append(matched.stats[0])
        drawn.append(both[1] - both[0])
    width = 2 * 1.96 * np.std(drawn, ddof=1)
    assert found.high - found.low == pytest.approx(width, rel=0.12)
    assert (found.high + found.low) / 2 == pytest.approx(np.mean(drawn), abs=0.25 * width)


def copies(entries, chosen):
    made = []
    for number, image in enumerate(chosen):
        for entry in entries:
            if entry["image_id"] == image:
                made.append({**entry, "image_id": number, "id": len(made) + 1})
    return made


def test_draws_are_a_function_of_the_seed(records, side, perturbed):
    pair = side(perturbed(4)), side(perturbed(3, seed=1))
    one, same, other = (differences(records, "bbox", *pair, Bootstrap(200, seed)) for seed in (3, 3, 4))
    assert one == same
    assert one[0]["AP"] != other[0]["AP"]


def test_no_difference_is_no_difference(records, side, perturbed):
    found, _ = differences(records, "bbox", side(perturbed(3)), side(perturbed(3, seed=1)), FEW)
    assert not found["AP"].shown
    assert found["AP"].low < 0 < found["AP"].high


def test_several_runs_give_the_difference_of_their_means_and_a_wider_interval(records, side, perturbed):
    before = side(*(perturbed(4, seed=seed) for seed in range(3)))
    after = side(*(perturbed(2, seed=seed) for seed in (7, 8)))
    found, classes = differences(records, "bbox", before, after, FEW)
    means = [np.mean([own.stats["AP"] for own in one.scores]) for one in (after, before)]
    assert found["AP"].value == pytest.approx(means[0] - means[1], abs=1e-12)
    assert found["AP"].seeds
    spread = np.sqrt(
        sum(np.var([own.stats["AP"] for own in one.scores], ddof=1) / len(one.scores) for one in (before, after))
    )
    assert (found["AP"].high - found["AP"].low) / 2 > 1.96 * spread
    assert found["AP"].high - found["AP"].value == pytest.approx(found["AP"].value - found["AP"].low)
    for name, interval in classes.items():
        if interval is not None:
            own = [np.mean([scores.per_class[name]["AP"] for scores in one.scores]) for one in (after, before)]
            assert interval.value == pytest.approx(own[0] - own[1], abs=1e-12)


def test_the_same_runs_twice_have_no_spread_and_the_interval_of_one(records, side, perturbed):
    """Copies of classes change nothing: two runs that are equal are one run."""
    before, after = perturbed(4), perturbed(2, seed=1)
    single, _ = differences(records, "bbox", side(before), side(after), FEW)
    double, _ = differences(records, "bbox", side(before, before), side(after), FEW)
    assert (double["AP"].value, double["AP"].low, double["AP"].high) == pytest.approx(
        (single["AP"].value, single["AP"].low, single["AP"].high), abs=1e-12
    )


def test_the_spread_is_welch_where_images_do_not_matter(records, side, perturbed, monkeypatch):
    """With a bootstrap that never moves the interval is Welch's, as scipy has it."""
    before = side(*(perturbed(4, seed=seed) for seed in range(3)))
    after = side(*(perturbed(2, seed=seed) for seed in (7, 8)))
    plain = hotcoco.compare

    def still(*arguments):
        drawn = plain(*arguments)
        for found in drawn["ci"].values():
            found["std_err"] = 0.0
        return drawn

    monkeypatch.setattr("mgdet.report.intervals.hotcoco.compare", still)
    found = differences(records, "bbox", before, after, FEW)[0]["AP"]
    a, b = ([own.stats["AP"] for own in one.scores] for one in (after, before))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-4)


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 3.7, 12, 200, 999, 2000])
def test_the_quantile_is_students(freedom):
    assert student_t(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3 if freedom > 1000 else 2e-4)


def test_too_few_images_give_no_interval(tiny):
    records = read_coco(tiny.root / "annotations" / "val.json", tiny.root / "val", masks=False)
    results = [{"image_id": 100, "category_id": 2, "bbox": [1, 1, 9, 9], "score": 0.5}]
    scores = evaluate(records, results)["bbox"]
    own = Side([Truth(records).results(results)], [scores])
    found, classes = differences(records, "bbox", own, own, FEW)
    assert set(found.values()) == set(classes.values()) == {None}
    one = take(records, np.array([0]))
    alone = Side([[]], [evaluate(one, [])["bbox"]])
    assert set(differences(one, "bbox", alone, alone, FEW)[0].values()) == {None}


@pytest.mark.parametrize(("arguments", "sentence"), [((50,), "50 resamples; give 100"), ((200, -1), "seed is -1")])
def test_a_bootstrap_that_says_nothing_is_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Bootstrap(*arguments)
