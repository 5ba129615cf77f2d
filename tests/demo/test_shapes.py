import hashlib
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hotcoco import COCO as HotCOCO
from pycocotools.coco import COCO

from mgdet.demo import shapes
from mgdet.demo.painting import paint
from mgdet.demo.scene import CLASSES, Shape, annotate, layout
from mgdet.demo.shapes import write_shapes
from mgdet.errors import UserError

SIZE = (160, 192)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "deep" / "shapes"
    write_shapes(folder, num_train=120, num_val=12, size=SIZE, seed=3)
    return folder


def read(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"{split}.json").read_text())


def digest(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def square(x: float, y: float, edge: float) -> Shape:
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * edge + (x, y)
    return Shape(CLASSES.index("square"), [corners], edge * edge)


def test_layout_of_the_files(root):
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "shapes.json", "train", "val"]
    assert sorted(path.name for path in root.parent.iterdir()) == ["shapes"]  # no scratch folder is left
    for split, count in (("train", 120), ("val", 12)):
        content = read(root, split)
        assert len(content["images"]) == len(list((root / split).iterdir())) == count
        assert [category["name"] for category in content["categories"]] == list(CLASSES)
        for image in content["images"]:
            pixels = cv2.imread(str(root / split / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3)
    sizes = [(image["height"], image["width"]) for image in read(root, "train")["images"]]
    assert set(sizes) == {(160, 192), (192, 160)}
    assert 30 < sizes.count(SIZE) < 90


def test_objects_cover_bands_classes_and_counts(root):
    annotations = read(root, "train")["annotations"]
    areas = np.array([annotation["area"] for annotation in annotations])
    shares = [(areas < 32**2).mean(), ((areas >= 32**2) & (areas < 96**2)).mean(), (areas >= 96**2).mean()]
    assert np.allclose(shares, (0.30, 0.58, 0.12), atol=0.08), shares
    labels = np.bincount([annotation["category_id"] for annotation in annotations], minlength=len(CLASSES) + 1)
    assert labels[0] == 0
    assert labels[1:].min() > 0.05 * len(annotations)
    per_image = np.bincount([annotation["image_id"] for annotation in annotations])[1:]
    assert per_image.min() == 1
    assert 5 <= per_image.max() <= 6


def test_train_and_val_are_different_pictures(root):
    train, val = digest(root / "train"), digest(root / "val")
    assert not set(train.values()) & set(val.values())


def test_polygons_boxes_and_areas_agree(root):
    coco = COCO(str(root / "annotations" / "train.json"))
    hot = HotCOCO(str(root / "annotations" / "train.json"))
    assert len(hot.getAnnIds()) == len(coco.anns)
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        assert min(x, y) >= 0
        assert x + w <= image["width"]
        assert y + h <= image["height"]
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in annotation["segmentation"]])
        assert np.allclose([*points.min(0), *points.max(0)], (x, y, x + w, y + h), atol=2e-3)
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        tight = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.subtract(tight, (x, y, x + w, y + h))).max() < 3.2  # a thin tip may miss every pixel centre
        assert abs(mask.sum() - annotation["area"]) < 0.02 * annotation["area"] + 12
        assert annotation["iscrowd"] == 0


def test_masks_of_one_image_do_not_overlap(root):
    coco = COCO(str(root / "annotations" / "train.json"))
    for image_id in list(coco.imgs)[:40]:
        masks = [coco.annToMask(annotation) for annotation in coco.imgToAnns[image_id]]
        covered = np.sum(masks, axis=0)
        assert (covered > 1).sum() < 0.02 * (covered > 0).sum() + 12  # rounding along shared edges


def test_same_arguments_same_files_and_other_seed_other_files(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_shapes(tmp_path / name, num_train=3, num_val=2, size=SIZE, seed=seed)
    write_shapes(tmp_path / "more", num_train=4, num_val=2, size=SIZE, seed=1)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert not set(digest(tmp_path / "a" / "train").values()) & set(digest(tmp_path / "c" / "train").values())
    assert digest(tmp_path / "a" / "train").items() < digest(tmp_path / "more" / "train").items()


def test_present_data_set_is_left_alone(tmp_path, monkeypatch):
    write_shapes(tmp_path / "s", num_train=2, num_val=1, size=SIZE, seed=0)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "s").rglob("*")}
    monkeypatch.setattr(shapes, "_write_split", lambda *_: pytest.fail("written again"))
    write_shapes(tmp_path / "s", num_train=2, num_val=1, size=SIZE, seed=0)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "s").rglob("*")} == before


def test_other_content_is_never_written_over(tmp_path):
    write_shapes(tmp_path / "s", num_train=2, num_val=1, size=SIZE, seed=0)
    before = digest(tmp_path / "s")
    with pytest.raises(UserError, match="not the data set asked for"):
        write_shapes(tmp_path / "s", num_train=2, num_val=1, size=SIZE, seed=1)
    assert digest(tmp_path / "s") == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="not the data set asked for"):
        write_shapes(tmp_path / "file", num_train=2, num_val=1, size=SIZE, seed=1)
    (tmp_path / "empty").mkdir()
    write_shapes(tmp_path / "empty", num_train=1, num_val=1, size=SIZE, seed=1)
    assert (tmp_path / "empty" / "annotations" / "val.json").is_file()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr(shapes, "annotate", fail)
    with pytest.raises(UserError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        write_shapes(tmp_path / "s", num_train=2, num_val=1, size=SIZE, seed=0)
    assert isinstance(failure, KeyboardInterrupt) or "No space left on device" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": (160, 32)}, "160 x 32"),
        ({"num_train": 0}, "num_train of the shapes is 0"),
        ({"num_val": 0}, "num_val of the shapes is 0"),
        ({"seed": -1}, "seed of the shapes is -1"),
        ({"smallest": 1e5}, "smallest of the shapes is 100000, but"),
        ({"smallest": -5.0}, "smallest of the shapes is -5.0; give 0 or more"),
        ({"smallest": float("nan")}, "smallest of the shapes is nan; give 0 or more"),
    ],
)
def test_arguments_out_of_range(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        write_shapes(tmp_path / "s", **({"num_train": 1, "num_val": 1, "size": SIZE, "seed": 0} | change))
    assert not (tmp_path / "s").exists()


def test_annotation_describes_the_visible_part():
    (below, above) = annotate([square(20, 30, 40), square(40, 10, 40)], 100, 100)
    assert np.allclose(above["bbox"], (40, 10, 40, 40), atol=0.3)
    assert np.isclose(above["area"], 1600, rtol=0.02)
    assert np.allclose(below["bbox"], (20, 30, 40, 40), atol=0.3)
    assert np.isclose(below["area"], 1600 - 20 * 20, rtol=0.02)
    (cut,) = annotate([square(-10, 30, 40)], 100, 100)
    assert np.allclose(cut["bbox"], (0, 30, 30, 40), atol=0.3)


def test_a_hole_is_no_part_of_the_polygons():
    (below, above) = annotate([square(10, 10, 60), square(31, 33, 12)], 100, 100)
    assert len(above["segmentation"]) == 1
    assert len(below["segmentation"]) == 2
    assert np.isclose(below["area"], 3600 - 144, rtol=0.03)
    assert np.allclose(below["bbox"], (10, 10, 60, 60), atol=0.3)


@pytest.mark.parametrize("size", [(64, 64), (96, 200), (400, 300)])
def test_other_sizes(size):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        objects = layout(*size, rng)
        assert 1 <= len(objects) <= 7
        image = paint(objects, *size, rng)
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8
        annotations = annotate(objects, *size)
        assert len(annotations) == len(objects)
        for annotation, shape in zip(annotations, objects):
            assert annotation["category_id"] == shape.label + 1
            assert 0.5 * shape.area < annotation["area"] < 1.05 * shape.area


def test_no_object_is_drawn_smaller_than_asked():
    rng = np.random.default_rng(0)
    areas = [shape.area for _ in range(30) for shape in layout(*SIZE, rng, 2000.0)]
    assert min(areas) >= 2000
    assert max(areas) > 96**2, "large objects are still there"


def test_generation_is_fast(tmp_path):
    start = time.process_time()
    write_shapes(tmp_path / "s", num_train=60, num_val=1, size=SIZE, seed=0)
    assert time.process_time() - start < 3  # about 0.3 s; the margin is for slow machines


def test_a_third_split_is_of_other_pictures_and_moves_none(tmp_path):
    common = {"num_train": 3, "num_val": 2, "size": (64, 80), "seed": 4}
    write_shapes(tmp_path / "two", **common)
    write_shapes(tmp_path / "three", **common, num_test=3)
    two, three = digest(tmp_path / "two"), digest(tmp_path / "three")
    assert {name: three[name] for name in two if name != "shapes.json"} == {
        name: value for name, value in two.items() if name != "shapes.json"
    }
    pictures = [value for name, value in three.items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 8
    assert len(read(tmp_path / "three", "test")["images"]) == 3
