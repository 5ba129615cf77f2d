"""YOLO's data.yaml and label files as records."""

import os
import shutil

import cv2
import numpy as np
import pytest

import formats
from formats import CLASSES, pictures, yolo_line
from mgdet.data.records import Reason
from mgdet.data.yolo import read_yaml, read_yolo
from mgdet.errors import UserError
from refusals import refusal


def read(root, split="train", *, masks=False):
    return read_yolo(root / "data.yaml", split, masks=masks)


def refused(root, split="train"):
    return refusal(read, root, split)


def write_yaml(root, text):
    (root / "data.yaml").write_text(text)


def one_image(root, lines, *, names="[cat, dog, owl]", extra=""):
    """A data set of one image, 100 pixels wide and 50 high."""
    (root / "images").mkdir()
    (root / "labels").mkdir()
    cv2.imwrite(str(root / "images/0.png"), np.zeros((50, 100, 3), np.uint8))
    (root / "labels/0.txt").write_text(lines)
    write_yaml(root, f"train: images\nnames: {names}\n{extra}")
    return read(root, masks="mask" in extra)


def test_boxes_and_images_without_label_files(tmp_path):
    formats.yolo(tmp_path)
    records = read(tmp_path)
    assert records.classes == CLASSES
    assert records.files == [f"images/train/{picture.name}" for picture in pictures("train")]
    for i, picture in enumerate(pictures("train")):
        rows = records.rows(i)
        assert (records.heights[i], records.widths[i]) == picture.pixels.shape[:2]
        assert records.labels[rows].tolist() == [thing.label for thing in picture.things]
        np.testing.assert_allclose(
            records.boxes[rows], np.array([thing.box for thing in picture.things]).reshape(-1, 4), atol=1e-9
        )
    assert not records.left_out.counts


def test_polygons_give_boxes_and_masks(tmp_path):
    records = one_image(tmp_path, "1 0.1 0.2 0.5 0.2 0.5 0.6\n0 0.5 0.5 0.2 0.4\n", extra="# mask")
    np.testing.assert_allclose(records.boxes, [[10, 10, 40, 20], [40, 15, 20, 20]])
    assert records.labels.tolist() == [1, 0]
    assert records.segmentation(0) == b"[[10.0,10.0,50.0,10.0,50.0,30.0]]"
    assert records.segmentation(1) == b""
    assert records.left_out.counts == {Reason.NO_MASK: 1}


@pytest.mark.parametrize("masks", [False, True])
def test_an_outline_without_extent_is_left_out_and_counted(tmp_path, masks):
    lines = "0 0.5 0.1 0.5 0.5 0.5 0.9\n0 1.001 0.1 1.002 0.5 1.003 0.9\n0 0.5 0.5 0.6 0.5 0.6 0.6\n"
    records = one_image(tmp_path, lines, extra="# mask") if masks else one_image(tmp_path, lines)
    assert len(records.labels) == 1
    assert records.left_out.counts == {Reason.NO_EXTENT: 2}


@pytest.mark.parametrize("ending", [".GIF", ".avif", ".jfif", ".jp2", ".ppm"])
def test_pictures_of_every_format_are_found(tmp_path, ending):
    formats.yolo(tmp_path)
    picture = tmp_path / "images/train/zz.png"
    cv2.imwrite(str(picture), np.zeros((40, 50, 3), np.uint8))
    picture.rename(picture.with_suffix(ending))
    records = read(tmp_path)
    assert records.files[-1] == f"images/train/zz{ending}"
    assert (records.heights[-1], records.widths[-1]) == (40, 50)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_labels_that_are_no_file_are_not_taken_for_none(tmp_path, make):
    formats.yolo(tmp_path)
    path = tmp_path / "labels/train/train_0.txt"
    path.unlink()
    make(path)
    with pytest.raises(UserError, match=r"train_0.txt' is a folder or a pipe, not a file of labels$"):
        read(tmp_path)


def test_one_class_is_named_as_one(tmp_path):
    with pytest.raises(UserError, match=r"has class 1, but '.*data.yaml' names only class 0$"):
        one_image(tmp_path, "1 0.5 0.5 0.2 0.2\n", names="[cat]")


def test_what_is_no_file_is_no_picture(tmp_path):
    formats.yolo(tmp_path)
    before = read(tmp_path).files
    os.mkfifo(tmp_path / "images/train/pipe.jpg")
    (tmp_path / "images/train/link.jpg").symlink_to("gone")
    assert read(tmp_path).files == before


@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_an_empty_label_file_is_an_image_without_objects(tmp_path, text):
    assert len(one_image(tmp_path, text).labels) == 0


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path):
    lines = ["0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 0.2 0.9", "0 0.5", "0 a b c d", "0 50 20 10 10", "x 0.5 0.5 0.1 0.1"]
    lines += ["0 nan 0.5 0.1 0.1", "1.0 0.5 0.5 0.2 0.2"]
    records = one_image(tmp_path, "\n".join(lines))
    assert records.labels.tolist() == [0, 1]
    assert records.left_out.counts == {Reason.NOT_A_LABEL: 5, Reason.OUT_OF_SHARES: 1}
    assert records.left_out.sentences()[0].endswith(
        "(first: line 2 of '0.txt' of image 'images/0.png': 0 0.5 0.5 0.2 0.2 0.9)"
    )


def test_a_class_without_a_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"line 2 of '0.txt' .* has class 3, but .* names 3 classes, 0 to 2"):
        one_image(tmp_path, "0 0.5 0.5 0.1 0.1\n3 0.5 0.5 0.1 0.1\n")


def test_keypoints_after_a_box_are_not_a_polygon(tmp_path):
    records = one_image(tmp_path, "0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 2\n", extra="kpt_shape: [2, 3]\n")
    np.testing.assert_allclose(records.boxes, [[40, 15, 20, 20]])


@pytest.mark.parametrize(
    "names, classes",
    [
        ("[cat, 'no', 3]", ("cat", "no", "3")),
        ("[cat, no, yes]", ("cat", "no", "yes")),
        ("{0: cat, 2: owl, 1: dog}", ("cat", "dog", "owl")),
        ("\n- cat\n- dog", ("cat", "dog")),
        ("{'0': cat}", ("cat",)),
    ],
)
def test_names_as_a_list_or_with_numbers(tmp_path, names, classes):
    assert one_image(tmp_path, "0 0.5 0.5 0.1 0.1", names=names).classes == classes


@pytest.mark.parametrize(
    "names, extra, sentence",
    [
        ("{1: cat, 2: dog}", "", "numbers its names '1, 2'; they count 0, 1, 2, ..."),
        ("{cat: 0, dog: 1}", "", "numbers its names 'cat, dog'; they count"),
        ("[[cat], dog]", "", "names that are not a list of strings"),
        ("cat", "", "names that are not a list of strings"),
        ("[]", "", "names that are not a list of strings"),
        ("[cat, dog]", "nc: 3", "nc 3 and 2 names; they must agree"),
        ("[cat]", "nc: many", "nc 'many', which is not a number of classes"),
        ("[cat]", "kpt_shape: 17", "kpt_shape that is not two numbers"),
    ],
)
def test_names_that_are_none_are_refused(tmp_path, names, extra, sentence):
    with pytest.raises(UserError) as error:
        one_image(tmp_path, "0 0.5 0.5 0.1 0.1", names=names, extra=extra)
    assert sentence in str(error.value)


def test_only_the_number_of_classes_gives_them_numbers(tmp_path):
    formats.yolo(tmp_path, text="train: images/train\nnc: 3\n")
    assert read(tmp_path).classes == ("class 0", "class 1", "class 2")


ABSOLUTE = "path: {root}\ntrain: {root}/images/train\nval: images/val"


@pytest.mark.parametrize(
    "paths",
    [
        ABSOLUTE,
        "path: ../datasets/pets\ntrain: images/train\nval: images/val",
        "path: /content/drive/pets\ntrain: images/train\nval: images/val",
        "path: C:\\Users\\me\\pets\ntrain: images\\train\nval: images\\val",
        "train: C:\\Users\\me\\pets\\images\\train\nval: D:\\images\\val",
        "train: /home/me/pets/images/train\nval: /home/me/pets/images/val",
        "train: ../images/train\nval: ../../pets/images/val",
        "train: ./images/train/\nval: ./images/val/",
        "train: [images/train]\nval:\n  - images/val",
        "train: train.txt\nval: lists/val.txt",
    ],
)
def test_paths_of_this_machine_and_of_others(tmp_path, paths):
    formats.yolo(tmp_path)
    (tmp_path / "lists").mkdir()
    lists = (("train.txt", "./images/train", "train"), ("lists/val.txt", "C:\\me\\images\\val", "val"))
    for name, folder, split in lists:
        (tmp_path / name).write_text("".join(f"{folder}/{picture.name}\r\n" for picture in pictures(split)))
    write_yaml(tmp_path, paths.format(root=tmp_path) + "\nnames: [cat, dog, owl]\n")
    for split in ("train", "val"):
        records = read(tmp_path, split)
        assert [tmp_path / file for file in records.files] == [
            tmp_path / "images" / split / picture.name for picture in pictures(split)
        ]
        assert len(records.labels) == sum(len(picture.things) for picture in pictures(split))


def test_several_folders_are_one_split(tmp_path):
    formats.yolo(tmp_path, text="train: [images/train, images/val]\nnames: [cat, dog, owl]\n")
    assert len(read(tmp_path)) == formats.NUM_TRAIN + formats.NUM_VAL


def test_labels_may_lie_beside_the_images(tmp_path):
    formats.write_images(tmp_path / "photos", "train")
    formats.write_labels(tmp_path / "photos", "train")
    write_yaml(tmp_path, "train: photos\nnames: [cat, dog, owl]\n")
    assert len(read(tmp_path).labels) == sum(len(picture.things) for picture in pictures("train"))


def test_the_last_images_in_a_path_becomes_labels(tmp_path):
    root = tmp_path / "images"
    formats.yolo(root)
    assert len(read(root).labels) == sum(len(picture.things) for picture in pictures("train"))


@pytest.mark.parametrize("beside", [False, True])
def test_labels_that_belong_to_no_image_are_counted(tmp_path, beside):
    """As of images that were renamed, or whose labels keep the image's suffix; lists and names are none."""
    formats.yolo(tmp_path)
    labels = tmp_path / "labels/train"
    if beside:
        formats.write_images(tmp_path / "photos", "train")
        formats.write_labels(tmp_path / "photos", "train")
        write_yaml(tmp_path, "train: photos\nnames: [cat, dog, owl]\n")
        labels = tmp_path / "photos"
    (labels / "train.txt").write_text("photos/train_0.png\n")
    (labels / "classes.txt").write_text("cat\ndog\nowl\n")
    (labels / "empty.txt").write_text("")
    assert not read(tmp_path).left_out.counts
    (labels / "b.jpg.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (labels / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n")
    left_out = read(tmp_path).left_out
    assert left_out.sentences() == [f"left out 2 files of labels that belong to no image (first: '{labels / 'a.txt'}')"]


def test_files_that_a_mac_leaves_are_no_images(tmp_path):
    formats.yolo(tmp_path)
    (tmp_path / "images/train/._train_0.png").write_bytes(b"\0")
    assert len(read(tmp_path)) == formats.NUM_TRAIN


def test_a_photo_that_exif_turns_has_its_upright_size(tmp_path):
    from PIL import Image

    one_image(tmp_path, "0 0.5 0.5 0.2 0.4")
    (tmp_path / "images/0.png").unlink()
    photo, exif = Image.new("RGB", (100, 50)), Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "images/0.jpg", exif=exif)
    records = read(tmp_path)
    assert (records.heights[0], records.widths[0]) == (100, 50)
    np.testing.assert_allclose(records.boxes, [[20, 30, 10, 40]])


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("train: images/nowhere", "has train: 'images/nowhere', and there is no such folder"),
        ("train: /", "has train: '/', and there is no such folder"),
        ("train: ..", "has train: '..', and there is no such folder"),
        ("train: {a: b}", "has under train: something that is not the path"),
        ("val: images/val", "has no train: with folders of images; it has val"),
        ("train: empty", "names no image for train"),
        ("train: list.txt", "lists 2 images that do not exist: ./a.png, ./b.png"),
        ("train: /me/pets/train/images\nval: /me/pets/val/images", "which both lead to"),
    ],
)
def test_paths_that_lead_nowhere_are_refused(tmp_path, text, sentence):
    formats.yolo(tmp_path, text=text + "\nnames: [cat, dog, owl]\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("./a.png\n./b.png\n./images/train/train_0.png\n")
    assert sentence in refused(tmp_path)


def test_one_folder_for_both_splits_is_meant_where_it_is_written_so(tmp_path):
    formats.yolo(tmp_path, text="train: images/train\nval: images/train\nnames: [cat, dog, owl]\n")
    assert read(tmp_path, "val").files == read(tmp_path, "train").files


def test_no_label_file_at_all_is_refused(tmp_path):
    formats.yolo(tmp_path)
    shutil.rmtree(tmp_path / "labels")
    sentence = refused(tmp_path)
    assert "none of the 6 images of train" in sentence
    assert f"'{tmp_path}/labels/train/train_0.txt'" in sentence


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "names: *a", "a: &a [*a]", "- a\n- b", "\0", "? [a]\n: b", "text", "names: " + "x" * 300_000],
    ids=range(8),
)
def test_yaml_that_is_none_is_one_sentence(tmp_path, text):
    write_yaml(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_yaml(tmp_path / "data.yaml")
    assert len(str(error.value)) < 500


def test_tags_in_yaml_run_nothing(tmp_path):
    file = tmp_path / "made"
    one_image(tmp_path, "0 0.5 0.5 0.1 0.1", names=f"!!python/object/apply:os.mkdir ['{file}']")
    assert not file.exists()


def test_the_pixels_of_an_outline_stay_in_the_image(tmp_path):
    records = one_image(tmp_path, "0 -0.005 0 1.005 0 1 1 0 1.0\n")
    assert records.boxes.tolist() == [[0, 0, 100, 50]]


def test_lines_are_as_they_were_written(tmp_path):
    thing = formats.Thing(2, (10, 5, 20, 10), [])
    records = one_image(tmp_path, yolo_line(thing, (50, 100), outline=False))
    np.testing.assert_allclose(records.boxes, [thing.box])


def test_keys_in_capital_letters_are_splits_as_others_are(tmp_path):
    formats.yolo(tmp_path)
    write_yaml(tmp_path, "Train: images/train\nVal: ../images/train\nnames: [cat, dog, owl]\n")
    assert "which both lead to" in refused(tmp_path, "Train")
    assert refused(tmp_path, "test").endswith("it has Train, Val")
