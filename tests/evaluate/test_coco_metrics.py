"""Our scores against pycocotools, bit by bit, on random annotations and detections."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as pycocotools_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mgdet.data.coco import read_coco
from mgdet.errors import UserError
from mgdet.evaluate.coco import coco_results, evaluate
from mgdet.structures import Detections

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
CATEGORIES = [{"id": 2, "name": "cup"}, {"id": 3, "name": "knife"}, {"id": 7, "name": "owl"}, {"id": 90, "name": "jar"}]


def ellipse(rng, height, width, box):
    """A mask of about this box: an ellipse with ragged rows."""
    x, y, w, h = box
    rows, columns = np.mgrid[:height, :width]
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    return inside & (rng.random((height, 1)) > 0.05)


def compressed(mask):
    rle = pycocotools_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def run_lengths(mask):
    """Uncompressed RLE, as COCO stores crowds."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts if mask.size not in edges else counts[:-1]}


def random_box(rng, height, width):
    side = np.exp(rng.uniform(np.log(6), np.log(250), 2))
    w, h = min(side[0], width - 2), min(side[1], height - 2)
    return [float(v) for v in np.round([rng.uniform(0, width - w), rng.uniform(0, height - h), w, h], 2)]


def random_annotations(rng, num_images=25):
    images, annotations = [], []
    for i in range(num_images):
        height, width = (220, 300) if i % 3 else (300, 220)
        images.append({"id": 100 + 7 * i, "file_name": f"{i}.jpg", "height": height, "width": width})
        for _ in range(rng.integers(0, 9) if i % 5 else 0):  # every fifth image is empty
            x, y, w, h = box = random_box(rng, height, width)
            crowd = bool(rng.random() < 0.15)
            polygon = [x, y, x + w, y, x + w, y + h * 0.6, x + w / 2, y + h, x, y + h * 0.6]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[-1]["id"],
                    "category_id": int(rng.choice([2, 3, 7])),  # no ground truth for 90
                    "bbox": box,
                    "area": w * h * 0.8,
                    "iscrowd": int(crowd),
                    "segmentation": run_lengths(ellipse(rng, height, width, box)) if crowd else [polygon],
                }
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def random_results(rng, truth, false_alarms=6):
    """Shifted ground truth, false alarms, ties in score, and images without a detection."""
    results = []
    for i, image in enumerate(truth["images"]):
        boxes = [
            ([v * float(rng.normal(1, 0.06)) for v in a["bbox"]], a["category_id"])
            for a in truth["annotations"]
            if a["image_id"] == image["id"] and rng.random() < 0.85
        ]
        for _ in range(int(rng.integers(0, false_alarms))):
            boxes.append((random_box(rng, image["height"], image["width"]), int(rng.choice([2, 3, 7, 90]))))
        for box, category in boxes if i % 4 else []:
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "score": round(float(rng.random()), 2),
                    "segmentation": compressed(ellipse(rng, image["height"], image["width"], box)),
                }
            )
    return results


def reference(path, results, metric):
    """pycocotools' twelve numbers, and its precision averaged for each class as COCO's AP is."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        if metric == "segm":
            results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        evaluator = COCOeval(truth, truth.loadRes([dict(r) for r in results]), metric)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    per_class = {}
    for k, category in enumerate(evaluator.params.catIds):
        precision = evaluator.eval["precision"][:, :, k, :, 2]
        parts = [precision[..., 0], precision[0, :, 0], precision[5, :, 0], *(precision[..., i] for i in (1, 2, 3))]
        numbers = [float(np.mean(p[p > -1])) if (p > -1).any() else -1.0 for p in parts]
        per_class[truth.cats[category]["name"]] = dict(zip(NAMES, numbers))
    return dict(zip(NAMES, (float(v) for v in evaluator.stats))), per_class


def score(path, results, metrics=("bbox",)):
    return evaluate(read_coco(path, path.parent, masks="segm" in metrics), results, metrics)


@pytest.fixture
def write(tmp_path):
    def _write(truth):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(truth))
        return path

    return _write


@pytest.mark.parametrize("seed", range(6))
def test_all_numbers_are_those_of_pycocotools_to_the_bit(write, seed):
    rng = np.random.default_rng(seed)
    truth = random_annotations(rng)
    path, results = write(truth), random_results(rng, truth)
    scores = score(path, results, ("bbox", "segm"))
    assert list(scores) == ["bbox", "segm"]
    for metric in ("bbox", "segm"):
        stats, per_class = reference(path, results, metric)
        assert 0 < min(stats.values()) <= max(stats.values()) < 1
        assert list(scores[metric].stats.items()) == list(stats.items())
        assert scores[metric].per_class == per_class
        assert list(scores[metric].per_class) == ["cup", "knife", "owl", "jar"]
        assert scores[metric].per_class["jar"]["AP"] == -1
    assert scores["bbox"].stats != scores["segm"].stats


def test_more_than_a_hundred_detections_an_image(write):
    rng = np.random.default_rng(0)
    truth = random_annotations(rng, num_images=6)
    path, results = write(truth), random_results(rng, truth, false_alarms=400)
    stats, per_class = reference(path, results, "bbox")
    scores = score(path, results)["bbox"]
    assert (scores.stats, scores.per_class) == (stats, per_class)


def test_no_detection_scores_zero_and_no_ground_truth_stays_minus_one(write):
    truth = random_annotations(np.random.default_rng(0))
    for scores in score(write(truth), [], ("bbox", "segm")).values():
        assert set(scores.stats.values()) == {0.0}
        assert scores.per_class["owl"]["AP"] == 0
        assert scores.per_class["jar"]["AP"] == -1
    truth["annotations"] = []
    result = {"image_id": 100, "category_id": 3, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5}
    for results in ([], [result]):
        scores = score(write(truth), results)["bbox"]
        assert set(scores.stats.values()) == {-1.0}


def test_missing_area_and_iscrowd(write):
    """The box's area (or the mask's) decides between small, medium and large; nothing is a crowd."""
    rng = np.random.default_rng(3)
    truth = random_annotations(rng)
    results = random_results(rng, truth)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        del annotation["segmentation"]
    stats, per_class = reference(write(truth), results, "bbox")
    for annotation in truth["annotations"]:
        del annotation["iscrowd"], annotation["area"]
    scores = score(write(truth), results)["bbox"]
    assert (scores.stats, scores.per_class) == (stats, per_class)
    assert min(scores.stats.values()) > 0


def test_nothing_is_printed_and_the_results_are_left_alone(write, capfd):
    rng = np.random.default_rng(0)
    truth = random_annotations(rng)
    path, results = write(truth), random_results(rng, truth)
    before = json.dumps(results)
    score(path, results, ("bbox", "segm"))
    assert json.dumps(results) == before
    assert capfd.readouterr() == ("", "")


def test_results_are_in_cocos_format():
    detections = Detections(
        boxes=torch.tensor([[1.5, 2.0, 11.5, 6.0], [0.1, 0.2, 0.4, 0.9]]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([1, 0]),
    )
    first, second = coco_results(detections, 42, (5, 9))
    assert first == {"image_id": 42, "category_id": 9, "bbox": [1.5, 2.0, 10.0, 4.0], "score": 0.75}
    assert second["category_id"] == 5
    corner = [float(np.float32(v)) for v in (0.1, 0.2, 0.4, 0.9)]
    assert second["bbox"] == [corner[0], corner[1], corner[2] - corner[0], corner[3] - corner[1]]
    json.dumps([first, second])


def test_masks_become_rle():
    masks = torch.zeros(2, 7, 9, dtype=torch.bool)
    masks[0, 2:5, 3:8] = True
    detections = Detections(torch.zeros(2, 4), torch.ones(2), torch.zeros(2, dtype=torch.int64), masks)
    results = json.loads(json.dumps(coco_results(detections, 1, [1])))
    for result, mask in zip(results, masks.numpy()):
        assert result["segmentation"] == compressed(mask)


def test_an_image_without_detections_gives_no_results():
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert coco_results(empty, 1, [1]) == []
    assert coco_results(empty._replace(masks=torch.zeros(0, 7, 9, dtype=torch.bool)), 1, [1]) == []


@pytest.mark.parametrize(
    ("results", "metric", "message"),
    [
        ([], "box", "metric is 'box'; did you mean 'bbox'"),
        ([{"image_id": 1, "category_id": 3}], "bbox", "image_id 1, which"),
        ([{"image_id": 100, "category_id": 4}], "bbox", "category_id 4, which"),
        ([{"image_id": 100, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 1}], "segm", "finds only boxes"),
    ],
)
def test_wrong_input_is_named(write, results, metric, message):
    path = write(random_annotations(np.random.default_rng(0)))
    with pytest.raises(UserError, match=message):
        score(path, results, [metric])


def test_ground_truth_without_masks_is_named(write):
    truth = random_annotations(np.random.default_rng(0))
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    with pytest.raises(UserError, match=r"no object in '.*' has one: left out .* objects without a segmentation"):
        score(write(truth), [], ["segm"])
