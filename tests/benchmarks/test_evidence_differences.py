"""Means, differences, intervals and sentences, from detections that are forged so that the answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from evidence import words
from evidence.arms import ALONE, INHERITS, LABELS, SAME, START, SWEPT, TWICE, Arm
from evidence.differences import RESAMPLING, Difference, Row, compared_with, fill
from evidence.measure import Measured
from evidence.pairs import Pair, sweeps_of
from evidence.runs import Finished, gradient_share
from mgdet.data.coco import read_coco
from mgdet.data.records import Records
from mgdet.report.intervals import image_errors, matched_sides

NUM_IMAGES, NUM_CLASSES = 40, 2
MGD = Arm("mgd-inherits", "mgd", True)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Records:
    """One square of each class in every image."""
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 200, "width": 200} for i in range(1, NUM_IMAGES + 1)]
    annotations = [
        {
            "id": NUM_CLASSES * (image["id"] - 1) + label,
            "image_id": image["id"],
            "category_id": label,
            "bbox": [100 * (label - 1), 10, 50, 50],
            "area": 2500,
            "iscrowd": 0,
            "segmentation": [
                [100 * (label - 1), 10, 100 * label - 50, 10, 100 * label - 50, 60, 100 * (label - 1), 60]
            ],
        }
        for image in images
        for label in (1, 2)
    ]
    categories = [{"id": 1, "name": "left"}, {"id": 2, "name": "right"}]
    file = tmp_path_factory.mktemp("records") / "val.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_coco(file, file.parent, masks=True)


def detections(records: Records, share: float, seed: int) -> list[dict]:
    """Finds a share of all objects, exactly, and as many things that are not there."""
    draw = np.random.default_rng(seed)
    found = []
    for row, (x, y, w, h) in enumerate(records.boxes.tolist()):
        hit = draw.random() < share
        box = [x, y, w, h] if hit else [x, y + 100, w, h]
        polygon = [[x, box[1], x + w, box[1], x + w, box[1] + h, x, box[1] + h]]
        common = {"image_id": row // NUM_CLASSES + 1, "category_id": row % NUM_CLASSES + 1}
        common["score"] = float(draw.random())
        found.append({**common, "bbox": box, "segmentation": polygon})
    return found


def ap_of(records: Records, runs: list[list[dict]], metric: str) -> dict[str, float]:
    """AP, AP50 and AP75, from (10 IoUs, 101 recalls, K classes, 4 areas, 3 limits)."""
    (matched,) = matched_sides(records, metric, runs)
    assert matched.eval is not None
    precision = matched.eval["precision"][..., 0, 2]
    return {"AP": precision.mean(), "AP50": precision[0].mean(), "AP75": precision[5].mean()}


def measured(records: Records, share: float, seed: int, metric: str = "bbox") -> Measured:
    results = detections(records, share, seed)
    scores = {metric: ap_of(records, [results], metric)}
    return Measured(Path("run"), seed, Finished({"bbox": {"AP": share}}), scores, results)


@pytest.mark.parametrize("metric", ["bbox", "segm"])
def test_several_runs_as_one_have_the_mean_of_their_ap(records, metric):
    runs = [measured(records, share, seed, metric) for seed, share in enumerate((0.3, 0.6, 0.9))]
    together = ap_of(records, [run.results for run in runs], metric)["AP"]
    assert together == pytest.approx(np.mean([run.scores[metric]["AP"] for run in runs]), abs=1e-9)
    assert len({run.scores[metric]["AP"] for run in runs}) == 3


def rows_of(records: Records, shares: dict[Arm, float], seeds: int) -> list[Row]:
    return [Row(arm, [measured(records, share, seed) for seed in range(seeds)]) for arm, share in shares.items()]


def test_a_large_difference_is_shown_and_none_is_not(records):
    rows = rows_of(records, {ALONE: 0.2, INHERITS: 0.2, MGD: 0.8}, seeds=3)
    fill(rows, measured(records, 1.0, 9), records, ["bbox"])
    alone, inherits, mgd = rows
    assert alone.differences["bbox"] == []
    (same,) = inherits.differences["bbox"]
    assert same.mean == 0
    assert same.low == same.high == 0
    assert not same.shown
    to_alone, to_inherits = mgd.differences["bbox"]
    assert to_alone.mean == pytest.approx((mgd.mean("bbox") or 0) - (alone.mean("bbox") or 0))
    assert to_alone.low < to_alone.mean < to_alone.high
    assert to_alone.above == 3
    assert to_alone.shown
    assert to_inherits.other == INHERITS
    distance = 1.0 - (alone.mean("bbox") or 0)
    assert mgd.gap["bbox"] == pytest.approx(((mgd.mean("bbox") or 0) - (alone.mean("bbox") or 0)) / distance)
    assert "about one in twenty of these 3 would still exclude 0." in words.of_many(rows, "bbox")
    assert words.of_many([alone], "bbox").endswith("with 95 % intervals.")
    of_inherits, of_mgd = words.of_arms(rows, "bbox")
    assert of_inherits == "**inherits only**: no difference from **alone** is shown, 0.0 [0.0, 0.0]."
    gain = words.signed(to_alone.mean)
    assert of_mgd.startswith(f"**MGD, inherits**: above **alone**, {gain} [+")
    assert of_mgd.endswith("], with 3 of 3 seeds.")
    (source,) = words.of_methods(rows, "bbox")
    assert f"it is {gain} above the student alone and {gain} [" in source
    assert source.endswith("] above inheriting only.")


def test_methods_are_ranked_over_the_seeds_that_all_have(records):
    pkd = Arm("pkd-inherits", "pkd", True)
    rows = rows_of(records, {ALONE: 0.2, INHERITS: 0.3, MGD: 0.7, pkd: 0.6}, seeds=2)
    rows[-1].runs[1] = Measured(Path("run"), 1, Finished({}, error="nan"), {}, [])
    rows[2].runs[1].finished.val["bbox"]["AP"] = 0.1  # lower than any of pkd's, with a seed that pkd has lost
    fill(rows, None, records, ["bbox"])
    (source,) = words.of_methods(rows, "bbox")
    assert source.startswith("Of the arms that inherit and distill, MGD, inherits is best")


def test_what_a_method_does_without_inheriting_is_said_beside_it(records):
    bare = Arm("mgd", "mgd")
    rows = rows_of(records, {ALONE: 0.2, INHERITS: 0.3, bare: 0.5, MGD: 0.8}, seeds=2)
    fill(rows, None, records, ["bbox"])
    (source,) = words.of_methods(rows, "bbox")
    assert f"Without inheriting, MGD gives {words.signed(rows[2].differences['bbox'][0].mean)} [" in source


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.00002, 0.026, "[+0.002, +2.600]"),
        (0.0004, 0.026, "[+0.04, +2.60]"),
        (0.011, 0.026, "[+1.1, +2.6]"),
        (0.0, 0.0, "[0.0, 0.0]"),
    ],
)
def test_an_interval_tells_its_bounds_from_zero(low, high, text):
    assert words.interval(Difference(ALONE, {0: low}, low, high, False)) == text


@pytest.mark.parametrize(
    ("seeds", "low", "high", "verdict"),
    [
        ((0.02, 0.03), 0.01, 0.04, "was not at its plateau with these seeds"),
        ((0.0, 0.012), -0.01, 0.02, "may have been at its plateau; that it gains less than 0.5 AP is not shown"),
        ((-0.01, 0.005), -0.01, 0.004, "was at its plateau with these seeds, if 0.5 AP are the limit"),
        ((-0.01,), -0.01, 0.004, "may have been at its plateau; that it gains less than 0.5 AP is not shown"),
    ],
)
def test_what_twice_the_length_is_worth_is_always_said(records, seeds, low, high, verdict):
    rows = rows_of(records, {ALONE: 0.2, TWICE: 0.8}, seeds=len(seeds))
    rows[1].differences["bbox"] = [Difference(ALONE, dict(enumerate(seeds)), low, high, False)]
    choices = {"pair": {}, "teacher": {"plateau": True}, "length": {"plateau": True}, "arms": {}}
    (sentence,) = words.of_teacher(None, rows, choices, "bbox")
    assert sentence.startswith(
        f"The student alone {verdict}: twice as long is worth {words.signed(np.mean(seeds))} box AP ["
    )
    assert sentence.endswith(" on the test images, +60.0 on the validation images.")


def test_a_longer_run_that_broke_off_is_no_gain():
    tried = [{"epochs": 32, "AP": 0.4}, {"epochs": 64, "AP": -1.0}]
    choices = {"pair": {}, "teacher": {"plateau": False, "tried": tried}, "length": {"plateau": True}, "arms": {}}
    (sentence,) = words.of_teacher(None, [], choices, "bbox")
    assert sentence == "Whether the teacher had reached its plateau is not known: a longer run broke off."


def test_only_seeds_of_both_arms_are_compared(records):
    alone, mgd = rows_of(records, {ALONE: 0.2, MGD: 0.8}, seeds=3)
    del alone.runs[1]
    fill([alone, mgd], None, records, ["bbox"])
    (found,) = mgd.differences["bbox"]
    assert list(found.seeds) == [0, 2]
    assert mgd.gap == {}, "no teacher was measured"


def test_a_run_that_broke_off_is_no_zero(records):
    (row,) = rows_of(records, {ALONE: 0.5}, seeds=2)
    whole = row.mean("bbox")
    row.runs.append(Measured(Path("run"), 2, Finished({}, error="nan"), {}, []))
    assert row.mean("bbox") == whole
    assert row.deviation("bbox") is not None


@pytest.mark.parametrize(
    ("seeds", "low", "high", "lost", "shown"),
    [
        ((0.02, 0.03), 0.01, 0.04, False, True),
        ((-0.02, -0.03), -0.04, -0.01, False, True),
        ((0.02, 0.03), -0.01, 0.04, False, False),  # other images and seeds might say the opposite
        ((0.02,), 0.01, 0.04, False, False),  # one seed
        ((0.02, 0.03), 0.01, 0.04, True, False),  # a run broke off: these are the survivors
    ],
)
def test_when_a_difference_is_shown(seeds, low, high, lost, shown):
    assert Difference(ALONE, dict(enumerate(seeds)), low, high, lost).shown is shown


def test_the_interval_holds_the_images_and_the_paired_seeds(records):
    alone, mgd = rows_of(records, {ALONE: 0.4, MGD: 0.7}, seeds=4)
    fill([alone, mgd], None, records, ["bbox"])
    (found,) = mgd.differences["bbox"]
    each = [a.scores["bbox"]["AP"] - b.scores["bbox"]["AP"] for a, b in zip(mgd.runs, alone.runs)]
    assert list(found.seeds.values()) == pytest.approx(each)
    seeds_alone = stats.t.ppf(0.975, 3) * np.std(each, ddof=1) / 2
    before, after = matched_sides(records, "bbox", *([run.results for run in row.runs] for row in (alone, mgd)))
    error = image_errors(before, after, RESAMPLING, NUM_IMAGES)["AP"]
    assert error > 0
    assert found.high - found.mean > max(seeds_alone * 0.6, 1.96 * error)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)


def test_where_the_method_adds_nothing_is_said(records):
    rows = rows_of(records, {ALONE: 0.2, INHERITS: 0.8, MGD: 0.5}, seeds=3)
    fill(rows, None, records, ["bbox"])
    (said,) = words.of_methods(rows, "bbox")
    assert said.endswith("above the student alone, but not shown to be above inheriting only.")
    rows = rows_of(records, {ALONE: 0.5, INHERITS: 0.8, MGD: 0.2}, seeds=3)
    fill(rows, None, records, ["bbox"])
    assert words.of_methods(rows, "bbox")[0].endswith("it is not shown to be above the student alone.")


def test_what_an_arm_is_compared_with():
    assert compared_with(ALONE) == []
    assert compared_with(TWICE) == [ALONE]
    assert compared_with(LABELS) == [ALONE]
    assert compared_with(START) == [LABELS], "what has seen the same images"
    assert compared_with(SAME) == [LABELS, START]
    assert compared_with(INHERITS) == [ALONE, TWICE, LABELS]
    assert compared_with(Arm("mgd-inherits.mask-0", "mgd", True, (("mgd.mask_ratio", 0.0),))) == [SWEPT]
    assert compared_with(Arm("mgd", "mgd")) == [ALONE, TWICE, LABELS]
    assert compared_with(MGD) == [ALONE, TWICE, LABELS, INHERITS]


def test_a_weak_teacher_and_searches_at_the_edge_are_said(records):
    rows = rows_of(records, {ALONE: 0.8}, seeds=1)

    def search(what: str, best: float) -> dict:
        tried = [{"value": value, "AP": 0.5} for value in (0.1, 1.0, 10.0)]
        return {"what": what, "value": best, "at_edge": best != 1.0, "tried": tried}

    choices = {
        "pair": {"strength": "share"},
        "teacher": {"plateau": False, "tried": [{"epochs": 32, "AP": 0.5}, {"epochs": 64, "AP": 0.512}]},
        "length": {"plateau": True},
        "arms": {
            "alone": {"strength": 0.0, "searches": [search("rate", 0.1), search("decay", 10.0)]},
            "mgd": {
                "strength": 1.0,
                "searches": [search("rate", 0.1), search("decay", 10.0), search("strength", 10.0)],
            },
        },
    }
    text = "\n".join(words.of_teacher(measured(records, 0.8, 0), rows, choices, "bbox"))
    assert "short of the 10 that are required" in text
    assert "The teacher had not reached its plateau: 64 epochs instead of 32 still gained 1.2 AP on the" in text
    assert "The student alone" not in text
    assert (
        "at the edge of its search: rate of alone (smallest tried), decay of alone (largest tried), share of mgd ("
        in text
    )


def test_sweeps_name_the_best_and_the_worst_value(records):
    shares = {0.25: 0.3, 0.45: 0.9}
    swept = [
        Row(
            Arm(f"mgd-inherits.mask-{value}", "mgd", True, (("mgd.mask_ratio", value),)),
            [measured(records, share, seed) for seed in (0, 1)],
        )
        for value, share in shares.items()
    ]
    (base,) = rows_of(records, {MGD: 0.88}, seeds=2)
    base.runs.append(measured(records, 1.0, 2))  # a seed that the sweep has not
    given = (sweeps_of(Pair(teacher="a", student="a")), {"mgd.mask_ratio": 0.65, "mgd.weight": 1e-5}, "bbox")
    (sentence,) = words.of_sweeps(swept, base, *given)
    assert sentence == (
        "mgd.mask_ratio: on the validation images best at 0.45 with AP 90.0, worst at 0.25 with 30.0. Seeds differ by "
        "2.3 (standard deviation)."
    )
    fill(swept, None, records, ["bbox"], others=[base])
    (low,), (high,) = (row.differences["bbox"] for row in swept)
    assert (low.other, list(low.seeds)) == (MGD, [0, 1])
    assert low.shown
    assert not high.shown
    (sentence,) = words.of_sweeps(swept, base, *given)
    size = f"{words.signed(low.mean)} {words.interval(low)}"
    assert sentence.endswith(f" On the test images 0.25 ({size}) differs from **MGD, inherits**.")
    (sentence,) = words.of_sweeps(swept[1:], base, *given)
    assert sentence.endswith(" On the test images no value is shown to differ from **MGD, inherits**.")
    for row in swept:
        del row.runs[1]
    fill(swept, None, records, ["bbox"], others=[base])
    (sentence,) = words.of_sweeps(swept, base, *given)
    assert sentence.endswith(" no value is compared with **MGD, inherits**: one seed each shows nothing yet.")


def test_a_weight_is_no_point_of_a_sweep_of_shares(records):
    swept = [
        Row(
            Arm(f"mgd-inherits.share-{value}", "mgd", True, (("mgd.share", value), ("mgd.weight", 0.0))),
            [measured(records, share, 0)],
        )
        for value, share in {0.3: 0.5, 1.0: 0.7}.items()
    ]
    assert swept[0].arm.title == "MGD, inherits, mgd.share 0.3", "that the weight is 0 then need not be said"
    (base,) = rows_of(records, {MGD: 0.9}, seeds=1)
    (sentence,) = words.of_sweeps(
        swept, base, sweeps_of(Pair(teacher="a", student="a")), {"mgd.mask_ratio": 0.65, "mgd.weight": 1e-5}, "bbox"
    )
    assert sentence.startswith("mgd.share: on the validation images best at 1 with AP 70.0, worst at 0.3 with 50.0.")


def test_the_share_of_a_run_is_the_mean_of_what_its_log_has(tmp_path):
    lines = [{"step": 1, "share_mgd": 2.0}, {"step": 1, "kind": "eval"}, {"step": 2, "share_mgd": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert gradient_share(tmp_path, "mgd") == 1.5
    assert gradient_share(tmp_path, "fgd") is None
