"""What `mgdet data` says of data sets that are good and of others."""

import json
import re

import cv2
import numpy as np
import pytest

import formats
from mgdet.cli import main
from mgdet.report import dataset


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ask(capsys):
    """Runs `mgdet data`: its exit code and what it prints."""

    def run(*arguments):
        code = main(["data", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert all(len(line) <= 80 for line in out.splitlines() if "/" not in line), out
        return code, re.sub(r"\n  (?=\S)", " ", out + err)  # without the line breaks in sentences

    return run


def rows(text, first):
    """The cells of the table row that begins with `first`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{first} ")]
    return line.split()[len(first.split()) :]


@pytest.mark.parametrize("name", formats.LAYOUTS)
def test_every_layout_can_be_trained_on(folder, ask, name):
    formats.LAYOUTS[name](folder / "data")
    code, said = ask("data")
    assert code == 0
    things = {split: [t for p in formats.pictures(split) for t in p.things] for split in ("train", "val")}
    assert rows(said, "all")[:2] == [str(len(things["train"])), str(len(things["val"]))]
    assert "1 image without an object to train on (first: " in said
    assert "cannot be trained on" not in said


def test_numbers_by_class_and_size(folder, ask):
    boxes = [[0, 0, 10, 10], [0, 0, 31, 33], [0, 0, 32, 32], [0, 0, 96, 95], [0, 0, 96, 96]]
    labels = [1, 1, 2, 2, 2]
    for split in ("train", "val"):
        (folder / split).mkdir()
        cv2.imwrite(f"{split}/a.png", np.zeros((100, 120, 3), np.uint8))
        annotations = [
            {"id": i, "image_id": 1, "category_id": label, "bbox": box}
            for i, (box, label) in enumerate(zip(boxes, labels))
        ]
        annotations.append({"id": 9, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1})
        content = {"images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 120}]}
        content |= {"annotations": annotations, "categories": [{"id": i, "name": f"class[{i}]"} for i in (1, 2)]}
        (folder / f"{split}.json").write_text(json.dumps(content))
    code, said = ask(".")
    assert code == 0
    assert re.search(r"^train +1 +0 +6 +0 +1$", said, re.MULTILINE)
    assert rows(said, "class[1]") == ["2", "2", "4", "0", "0"]
    assert rows(said, "class[2]") == ["3", "3", "0", "4", "2"]
    assert rows(said, "all") == ["5", "5", "4", "4", "2"]
    assert "120 x 100  120 x 100  120 x 100  120 x 100 (1)" in said
    assert "1 crowd (iscrowd is set)" in said


def test_masks_are_asked_for_only_where_they_are_wanted(folder, ask):
    formats.yolo(folder / "data")
    code, said = ask("data")
    assert code == 0
    assert "segmentation" not in said
    code, said = ask("data", "--masks")
    assert code == 2
    assert "10 objects without a segmentation" in said
    assert "metric segm needs masks" in said
    formats.yolo_polygons(folder / "polygons")
    assert ask("polygons", "--masks")[0] == 0


def test_a_picture_of_samples(folder, ask):
    formats.yolo_polygons(folder / "data")
    code, said = ask("data", "--out", "seen")
    assert code == 0
    assert "seen/samples.jpg shows samples" in said
    page = cv2.imread("seen/samples.jpg")
    assert page.shape[0] > 2 * 480 and page.shape[1] > 4 * 300  # five samples in rows of four
    saturation = cv2.cvtColor(page, cv2.COLOR_BGR2HSV)[..., 1]
    assert (saturation > 80).mean() > 0.05  # masks are tinted
    code, said = ask("data", "--out", "seen")
    assert code == 2
    assert "already holds samples.jpg" in said


def test_a_picture_that_cannot_be_written_is_no_fault_of_the_data(folder, ask):
    formats.beside(folder / "data")
    (folder / "seen").write_text("a file")
    code, said = ask("data", "--out", "seen")
    assert code == 2
    assert "mgdet: the folder seen cannot be made" in said
    assert "cannot be trained on" not in said


def test_dark_pictures_are_said(folder, ask):
    formats.beside(folder / "data")
    path = folder / "data/train/train_0.png"
    height, width = cv2.imread(str(path)).shape[:2]
    cv2.imwrite(str(path), np.full((height, width), 4000, np.uint16))
    code, said = ask("data")
    assert code == 0
    assert "16 bits per pixel and use 12" in said


def test_validation_images_that_are_trained_on_are_said(folder, ask):
    formats.simple(folder / "data")
    assert "the same picture" not in ask("data")[1]
    formats.write_coco(folder / "data/annotations/val.json", folder / "data/val", "train")
    code, said = ask("data")
    assert code == 0
    assert "are the same picture, so scores will be too high: data/val/train_0.png" in said


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda root: (root / "val.json").unlink(), "has no validation split"),
        (
            lambda root: (root / "train/train_0.png").unlink(),
            "train_0.png', listed in 'data/train.json', does not exist",
        ),
        (lambda root: (root / "val/val_0.png").unlink(), "val_0.png', listed in 'data/val.json', does not exist"),
        (lambda root: (root / "train.json").write_text('{"file_name": "train_0.png"'), "is not JSON"),
        (lambda root: rename_class(root / "val.json"), "the same classes in the same order"),
    ],
)
def test_what_cannot_be_trained_on_says_why(folder, ask, spoil, reason):
    formats.beside(folder / "data")
    spoil(folder / "data")
    code, said = ask("data")
    assert code == 2
    assert reason in said.split("It cannot be trained on:")[1]
    assert "image sizes" in said  # what there is, is said all the same


def rename_class(file):
    file.write_text(file.read_text().replace('"owl"', '"eagle"'))


def test_no_data_set_is_one_sentence(folder, ask):
    code, said = ask("nowhere")
    assert code == 2
    assert said == "mgdet: the data set's folder 'nowhere' does not exist; --data.root names another\n"


def test_a_share_is_shown_as_the_validation_split(folder, ask):
    formats.default(folder / "data")
    code, said = ask("data", "--data.val-share", "0.34")
    assert code == 0
    assert "val: 0.34 of train, by data.split_seed 0" in said
    assert "cannot be trained on" not in said


def test_a_test_split_is_shown_and_hinders_nothing(folder, ask):
    formats.roboflow(folder / "data")
    assert "test: test/_annotations.coco.json, test" in ask("data")[1]
    (folder / "data/test/_annotations.coco.json").write_text("broken")
    code, said = ask("data")
    assert code == 0
    assert "cannot be trained on" not in said


def test_every_image_is_looked_at(folder, ask):
    formats.beside(folder / "data")
    image = np.full((64, 96, 3), 90, np.uint8)
    for split in ("train", "val"):
        path = folder / f"data/{split}.json"
        content = json.loads(path.read_text())
        for i in range(100, 112):
            cv2.imwrite(f"data/{split}/{i}.jpg", image)
            content["images"].append({"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 96})
        path.write_text(json.dumps(content))
    assert ask("data")[0] == 0
    (folder / "data/val/110.jpg").write_bytes(b"")
    code, said = ask("data")
    assert code == 2
    assert "image 'data/val/110.jpg' cannot be decoded" in said
    whole = (folder / "data/train/109.jpg").read_bytes()
    (folder / "data/train/109.jpg").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite("data/train/110.jpg", image.transpose(1, 0, 2))
    for name in ("111.jpg", "train_0.png"):
        (folder / "data/train" / name).write_bytes(b"no image")
    code, said = ask("data")
    assert code == 2
    assert "4 of the 18 images of 'data/train.json' cannot be used: image 'data/train/train_0.png' cannot be" in said
    assert "'data/train/109.jpg' is truncated" in said
    assert "image 'data/train/110.jpg' is 64 x 96 pixels, but 'data/train.json' says 96 x 64; ..." in said
    assert said.count("train_0.png") == 1


def test_a_split_without_an_object_has_the_classes_of_the_others(folder, ask):
    formats.voc(folder / "data")
    lists = folder / "data/ImageSets/Main"
    (lists / "val.txt").write_text("val_1")  # the picture without objects
    code, said = ask("data")
    assert code == 0
    assert "no class to learn" not in said
    (lists / "test.txt").write_text("nothing_of_this_name")
    assert ask("data")[0] == 0


def test_masks_that_do_not_fit_stop_only_those_who_need_them(folder, ask):
    formats.beside(folder / "data")
    path = folder / "data/train.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    whole = {"size": [10, 10], "counts": [50, 50]}
    content["annotations"][0]["segmentation"] = whole
    content["annotations"][1]["segmentation"] = [whole, {"size": [20, 10], "counts": [50, 150]}]
    path.write_text(json.dumps(content))
    code, said = ask("data", "--out", "seen")
    assert (code, (folder / "seen/samples.jpg").exists()) == (0, True)
    code, said = ask("data", "--masks")
    assert code == 2
    assert "an RLE is of size [10, 10]" in said
    content["annotations"][0]["segmentation"] = content["annotations"][2]["segmentation"]
    path.write_text(json.dumps(content))
    code, said = ask("data", "--masks")
    assert code == 0
    assert "its RLEs are of the sizes [10, 10] and [20, 10]" in said


def test_each_split_is_read_once_where_one_is_faulty(folder, ask, monkeypatch):
    formats.beside(folder / "data")
    (folder / "data/val.json").write_text('{"file_name": "val_0.png"')
    splits, read_places = [], dataset.read_places

    def read(root, places, masks):
        splits.extend(places)
        return read_places(root, places, masks)

    monkeypatch.setattr(dataset, "read_places", read)
    assert ask("data")[0] == 2
    assert sorted(splits) == ["train", "val"]
