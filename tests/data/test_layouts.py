"""Finding a data set's splits by looking at its folder."""

import json
import os
import re
import shutil

import pytest

import formats
from mgdet.config import DataConfig
from mgdet.data import folders, layouts
from mgdet.data.folders import Place, find_layouts
from mgdet.data.layouts import find_places
from mgdet.data.open import open_splits
from refusals import refusal


def places(root, **names):
    return find_places(DataConfig(root=str(root), **names))


def refused(root, **names):
    return refusal(places, root, **names)


@pytest.mark.parametrize(
    "name, train, val, title",
    [
        (
            "coco",
            ("annotations/instances_train2017.json", "train2017"),
            ("annotations/instances_val2017.json", "val2017"),
            "COCO",
        ),
        ("simple", ("annotations/train.json", "train"), ("annotations/val.json", "val"), "COCO"),
        ("beside", ("train.json", "train"), ("val.json", "val"), "COCO"),
        (
            "roboflow",
            ("train/_annotations.coco.json", "train"),
            ("valid/_annotations.coco.json", "valid"),
            "COCO as Roboflow exports it",
        ),
        (
            "cvat",
            ("annotations/instances_Train.json", "images/Train"),
            ("annotations/instances_Validation.json", "images/Validation"),
            "COCO",
        ),
        (
            "datumaro",
            ("annotations/instances_train.json", "images"),
            ("annotations/instances_val.json", "images"),
            "COCO",
        ),
        ("yolo", ("data.yaml", "train"), ("data.yaml", "val"), "YOLO"),
        ("yolo_roboflow", ("data.yaml", "train"), ("data.yaml", "val"), "YOLO"),
        ("voc", ("ImageSets/Main/train.txt", "JPEGImages"), ("ImageSets/Main/val.txt", "JPEGImages"), "Pascal VOC"),
        ("voc_roboflow", ("train", "train"), ("valid", "valid"), "Pascal VOC with a folder for each split"),
    ],
)
def test_the_folder_alone_is_enough(tmp_path, name, train, val, title):
    formats.LAYOUTS[name](tmp_path)
    found, said = places(tmp_path)
    assert (found["train"], found["val"], said) == (train, val, title)


def test_one_split_needs_a_share_for_validation(tmp_path):
    formats.default(tmp_path)
    assert "--data.val-share 0.1" in refused(tmp_path)
    found, _ = places(tmp_path, val_share=0.25)
    assert found["train"] == found["val"] == ("annotations/instances_default.json", "images/default")


def test_a_test_split_is_found_but_never_taken_for_validation(tmp_path):
    formats.write_coco(tmp_path / "train/_annotations.coco.json", tmp_path / "train", "train")
    formats.write_coco(tmp_path / "test/_annotations.coco.json", tmp_path / "test", "val")
    assert "has train and test there" in refused(tmp_path)


def test_a_share_beside_a_named_validation_split_is_refused(tmp_path):
    formats.simple(tmp_path)
    sentence = refused(tmp_path, val_share=0.1, val_annotations="annotations/val.json", val_images="val")
    assert "leave one of the two out" in sentence


def test_a_share_wins_over_a_split_that_is_only_found(tmp_path):
    formats.simple(tmp_path)
    found, _ = places(tmp_path, val_share=0.1)
    assert found["val"] == found["train"] == ("annotations/train.json", "train")


def test_names_that_are_given_are_taken_as_they_are(tmp_path):
    names = {"train_annotations": "a.json", "train_images": "b", "val_annotations": "c.json", "val_images": "d"}
    assert places(tmp_path, **names) == ({"train": ("a.json", "b"), "val": ("c.json", "d")}, "")


def test_a_name_that_is_given_decides_and_the_rest_is_found(tmp_path):
    formats.simple(tmp_path)
    formats.write_coco(tmp_path / "annotations/mini.json", tmp_path / "train", "train")
    found, _ = places(tmp_path, train_annotations="annotations/mini.json", train_images="train")
    assert found["train"] == ("annotations/mini.json", "train")
    assert found["val"] == ("annotations/val.json", "val")
    found, _ = places(tmp_path, train_annotations="annotations/train.json")
    assert found["train"] == ("annotations/train.json", "train")


def test_two_layouts_are_said_and_an_option_decides(tmp_path):
    formats.simple(tmp_path)
    formats.yolo(tmp_path)
    sentence = refused(tmp_path)
    assert "as COCO and as YOLO" in sentence
    choices = re.search(r"--data\.train-annotations decides: (\S+) or (\S+)$", sentence)
    for choice, val in zip(choices.groups(), ("annotations/val.json", "data.yaml")):
        found, _ = places(tmp_path, train_annotations=choice)
        assert (found["train"].annotations, found["val"].annotations) == (choice, val)


def test_two_files_for_one_split_are_said_and_an_option_decides(tmp_path):
    formats.simple(tmp_path)
    formats.write_coco(tmp_path / "annotations/train_small.json", tmp_path / "train", "train")
    assert "2 files for train: annotations/train.json and annotations/train_small.json" in refused(tmp_path)
    assert places(tmp_path, train_annotations="annotations/train_small.json")[0]["train"].images == "train"


def test_cocos_own_files_win_over_others_beside_them(tmp_path):
    formats.coco(tmp_path)
    for name in ("captions_train2017", "person_keypoints_train2017", "instances_train2014", "instances_minitrain2017"):
        (tmp_path / f"annotations/{name}.json").write_text("{}")
    assert places(tmp_path)[0]["train"] == ("annotations/instances_train2017.json", "train2017")


def test_json_files_that_list_no_images_are_no_data_sets(tmp_path):
    formats.yolo(tmp_path)
    (tmp_path / "notes.json").write_text(json.dumps({"categories": ["train"]}))
    (tmp_path / "train_results.json").write_text(json.dumps([{"image_id": 1, "bbox": [1, 2, 3, 4]}]))
    assert [layout.name for layout in find_layouts(tmp_path)] == ["YOLO"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_image_folder_is_found_by_the_first_file_names(tmp_path, encoding):
    formats.write_coco(tmp_path / "train.json", tmp_path / "fotos", "train")
    formats.write_coco(tmp_path / "val.json", tmp_path / "fotos", "val")
    content = json.loads((tmp_path / "train.json").read_text())
    for image in content["images"]:
        image["file_name"] = "fotos\\" + image["file_name"]
    (tmp_path / "train.json").write_text(json.dumps(content), encoding=encoding)
    assert "--data.val-images" in refused(tmp_path)
    assert places(tmp_path, val_images="fotos")[0]["train"].images == "."


def test_trainval_is_taken_where_there_is_no_train(tmp_path):
    formats.voc(tmp_path)
    lists = tmp_path / "ImageSets/Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text())
    assert places(tmp_path)[0]["train"].annotations == "ImageSets/Main/train.txt"
    (lists / "train.txt").unlink()
    assert places(tmp_path)[0]["train"].annotations == "ImageSets/Main/trainval.txt"


def test_voc_without_lists_is_one_split(tmp_path):
    formats.voc(tmp_path)
    for file in (tmp_path / "ImageSets/Main").iterdir():
        file.unlink()
    assert places(tmp_path, val_share=0.1)[0]["train"] == ("Annotations", "JPEGImages")


def test_the_years_of_a_voc_kit_are_told_apart(tmp_path):
    formats.voc(tmp_path / "VOCdevkit/VOC2007")
    assert places(tmp_path)[0]["train"].images == "VOCdevkit/VOC2007/JPEGImages"
    formats.voc(tmp_path / "VOCdevkit/VOC2012")
    assert "Pascal VOC in VOC2007 and as Pascal VOC in VOC2012" in refused(tmp_path)


def test_a_folder_that_is_no_data_set_says_what_would_be_one(tmp_path):
    assert "there is no annotations/*.json (COCO)" in refused(tmp_path)
    formats.simple(tmp_path / "export")
    assert f"but '{tmp_path / 'export'}' in it does" in refused(tmp_path)
    assert "does not exist; --data.root names another" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is a file; give the folder" in refused(tmp_path / "file")


def test_labels_without_a_yaml_file_say_what_is_missing(tmp_path):
    formats.yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    assert "no data.yaml with names: and train:" in refused(tmp_path)


def test_a_broken_yaml_file_is_the_reason_where_there_is_nothing_else(tmp_path):
    formats.yolo(tmp_path, text="names: [cat, dog\ntrain: images/train")
    assert "data.yaml' is not a YAML file" in refused(tmp_path)
    formats.simple(tmp_path)
    assert places(tmp_path)[1] == "COCO"


def test_only_what_is_required_must_be_there(tmp_path):
    formats.write_coco(tmp_path / "annotations/val.json", tmp_path / "val", "val")
    found, _ = find_places(DataConfig(root=str(tmp_path)), required=("val",))
    assert found == {"val": Place("annotations/val.json", "val")}
    assert "no training split; COCO has val there" in refused(tmp_path)


def test_a_file_of_the_name_that_cannot_be_taken_says_why(tmp_path, monkeypatch):
    formats.beside(tmp_path)
    file = tmp_path / "train.json"
    whole = file.read_text()
    file.write_text("{}")
    assert f"COCO has val there, and '{file}' lists no images: --data.train" in refused(tmp_path)
    file.unlink()
    os.mkfifo(file)
    assert f"and '{file}' is not a file: " in refused(tmp_path)
    file.unlink()
    file.write_text(whole)
    for room in (folders, layouts):
        monkeypatch.setattr(room, "first_names", lambda path: [] if path == file else ["val_0.png"])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"and '{file}' may not be read: " in refused(tmp_path)


def test_capital_letters_name_a_splits_list_as_small_ones_do(tmp_path):
    formats.voc(tmp_path / "voc")
    lists = tmp_path / "voc/ImageSets/Main"
    (lists / "val.txt").rename(lists / "Validation.txt")
    (lists / "train.txt").rename(lists / "Train.TXT")
    found, _ = places(tmp_path / "voc")
    assert [place.annotations for place in found.values()] == [
        "ImageSets/Main/Train.TXT",
        "ImageSets/Main/Validation.txt",
    ]
    (lists / "TRAIN.txt").write_text("train_0")
    assert "2 files for train: ImageSets/Main/TRAIN.txt and ImageSets/Main/Train.TXT;" in refused(tmp_path / "voc")
    formats.yolo(tmp_path / "yolo", text="Train: images/train\nVAL: images/val\nnames: [cat, dog, owl]\n")
    found, _ = places(tmp_path / "yolo")
    assert found == {"train": ("data.yaml", "Train"), "val": ("data.yaml", "VAL")}


def test_lists_that_name_no_split_are_said_and_an_option_decides(tmp_path):
    formats.voc(tmp_path)
    lists = tmp_path / "ImageSets/Main"
    (lists / "train.txt").rename(lists / "fold_1.txt")
    (lists / "val.txt").rename(lists / "fold_2.txt")
    has = "has 3 folders and lists for train: Annotations and ImageSets/Main/fold_1.txt and ImageSets/Main/fold_2.txt"
    assert has in refused(tmp_path, val_share=0.1)
    names = {"train_annotations": "ImageSets/Main/fold_1.txt", "val_annotations": "ImageSets/Main/fold_2.txt"}
    assert [place.images for place in places(tmp_path, **names)[0].values()] == ["JPEGImages"] * 2
    (lists / "fold_2.txt").unlink()
    (lists / "fold_1.txt").rename(lists / "default.txt")
    assert places(tmp_path, val_share=0.1)[0]["train"] == ("Annotations", "JPEGImages")


def test_annotations_that_all_lie_in_folders_are_found(tmp_path):
    formats.voc(tmp_path)
    for folder, ending in (("Annotations", "xml"), ("JPEGImages", "png")):
        (tmp_path / folder / "day").mkdir()
        for file in (tmp_path / folder).glob(f"*.{ending}"):
            file.rename(tmp_path / folder / "day" / file.name)
    assert places(tmp_path)[1] == "Pascal VOC"


def test_an_xml_file_of_another_kind_makes_no_data_set(tmp_path):
    formats.yolo(tmp_path)
    (tmp_path / "project.xml").write_text("<?xml version='1.0'?>\n<project/>")
    assert places(tmp_path)[1] == "YOLO"
    (tmp_path / "a.xml").write_text("<annotation></annotation>")
    assert "as YOLO and as Pascal VOC" in refused(tmp_path)


def test_fiftyones_folders_of_pascal_voc(tmp_path):
    formats.voc(tmp_path)
    (tmp_path / "Annotations").rename(tmp_path / "labels")
    (tmp_path / "JPEGImages").rename(tmp_path / "data")
    assert places(tmp_path)[0]["val"] == ("ImageSets/Main/val.txt", "data")
    shutil.rmtree(tmp_path / "ImageSets")
    assert places(tmp_path, val_share=0.5) == ({"train": ("labels", "data"), "val": ("labels", "data")}, "Pascal VOC")
    (tmp_path / "labels").rename(tmp_path / "xml")
    assert "there is no annotations/*.json (COCO)" in refused(tmp_path)  # no word of xml/, which has no images


def test_keypoints_are_taken_for_their_boxes_where_there_is_nothing_else(tmp_path):
    formats.write_coco(tmp_path / "annotations/person_keypoints_default.json", tmp_path / "images/default", "train")
    found, title = places(tmp_path, val_share=0.5)
    assert (found["train"], title) == (("annotations/person_keypoints_default.json", "images/default"), "COCO")
    formats.beside(tmp_path)
    assert places(tmp_path)[0]["train"] == ("train.json", "train")


def test_a_file_for_each_image_is_no_cocos(tmp_path):
    formats.simple(tmp_path)
    folder = tmp_path / "annotations"
    for i in range(1000):
        (folder / f"train_{i:04}.jpg.json").write_text('{"imagePath": "train_0.png", "shapes": []}')
    assert places(tmp_path)[0]["train"].annotations == "annotations/train.json"
    for split in ("train", "val"):
        (folder / f"{split}.json").unlink()
    sentence = refused(tmp_path)
    assert "none of the 1,000 JSON files in annotations/ lists images as COCO's do (train_0000.jpg.json, " in sentence
    assert "export the data set as COCO" in sentence and len(sentence) < 400


def test_at_most_three_of_many_files_are_named(tmp_path):
    for i in range(5):
        formats.write_coco(tmp_path / f"annotations/part{i}.json", tmp_path / "images", "train")
    sentence = refused(tmp_path)
    assert "has 5 files for train: annotations/part0.json, annotations/part1.json, annotations/part2.json, ...;" in (
        sentence
    )


@pytest.mark.parametrize("images", ["images/{}", "images"])
def test_voc_with_a_folder_of_xml_files_for_each_split(tmp_path, images):
    formats.voc(tmp_path)
    shutil.rmtree(tmp_path / "ImageSets")
    (tmp_path / "Annotations").rename(tmp_path / "annotations")
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    for split in ("train", "val"):
        for folder in (tmp_path / "annotations" / split, tmp_path / images.format(split)):
            folder.mkdir(exist_ok=True)
        for file in (tmp_path / "annotations").glob(f"{split}_*.xml"):
            file.rename(file.parent / split / file.name)
        for file in (tmp_path / "images").glob(f"{split}_*.png"):
            file.rename(tmp_path / images.format(split) / file.name)
    assert places(tmp_path)[0] == {
        "train": ("annotations/train", images.format("train")),
        "val": ("annotations/val", images.format("val")),
    }
    read = open_splits(DataConfig(root=str(tmp_path))).records
    assert [len(read[split].files) for split in ("train", "val")] == [formats.NUM_TRAIN, formats.NUM_VAL]
    (tmp_path / "annotations" / "val").rename(tmp_path / "annotations" / "owls")  # of no split: all are one
    assert places(tmp_path, val_share=0.5)[0]["train"] == ("annotations", "images")


@pytest.mark.parametrize(
    "name, split",
    [
        ("instances_valid", ("val", "valid")),
        ("fold_dev_train", ("train", "train")),
        ("dev", ("val", "dev")),
        ("image_info_test-dev2017", ("test", "test")),
        ("devices", None),
    ],
)
def test_a_name_speaks_of_a_split(name, split):
    assert folders.split_word(name) == split
