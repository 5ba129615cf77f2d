"""Image files at the start: all there, of the right size, and where else they might be."""

import os
import struct

import cv2
import neighbours
import numpy as np
import pytest
from neighbours import HEIGHT, WIDTH
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset, check_same_classes
from mgdet.data.image_files import list_images
from mgdet.data.images import find_missing, header_size
from mgdet.data.transforms import View, read_image
from mgdet.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """`photos/0.jpg` ... `photos/2.jpg`."""
    (tmp_path / "photos").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.jpg"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    return tmp_path / "photos"


def open_with(change, folder, *, training=True, masks=False):
    path = neighbours.write(change, folder.parent / "a.json")
    return DetectionDataset(read_coco(path, folder, masks=masks), training=training, masks=masks)


def rename(new):
    return lambda data: [image.update(file_name=new(image["file_name"])) for image in data["images"]]


@pytest.mark.parametrize("training", [True, False])
def test_the_first_three_missing_files_are_named_with_the_count(folder, training):
    def add(data):
        for i in range(5):
            data["images"].insert(1, {"id": 90 + i, "file_name": f"gone{i}.jpg", "height": HEIGHT, "width": WIDTH})

    message = r"5 of 8 images listed in '.*a.json' do not exist: '.*gone4.jpg', '.*gone3.jpg', '.*gone2.jpg', ...$"
    with pytest.raises(UserError, match=message):
        open_with(add, folder, training=training)


def test_one_missing_file_is_named(folder):
    (folder / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"image '.*1\.jpg', listed in '.*a\.json', does not exist$"):
        open_with(lambda data: None, folder)


def test_files_may_lie_in_folders_of_any_depth_and_anywhere(folder):
    (folder / "cam 1" / "ä").mkdir(parents=True)
    names = ["0.jpg", "cam 1/ä/b%20.JPG", str(folder / "2.jpg"), "cam 1/../1.jpg", "./0.jpg", "cam 1/gone.jpg", "\x00"]
    (folder / names[1]).write_bytes(b"")
    assert find_missing(folder, names) == [5, 6]


@pytest.mark.parametrize("kind", ["pipe", "folder", "broken link", "link to itself"])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_no_file_is_never_opened(folder, kind, training):
    path = folder / "1.jpg"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("gone" if kind == "broken link" else path.name)
    text = "is not a file" if kind in ("pipe", "folder") else "does not exist"
    with pytest.raises(UserError, match=rf"image '.*1\.jpg', listed in '.*a\.json', {text}$"):
        open_with(lambda data: None, folder, training=training)


def test_links_to_images_are_images(folder):
    (folder / "1.jpg").rename(folder / "moved.png")
    (folder / "1.jpg").symlink_to("moved.png")
    assert len(open_with(lambda data: None, folder)) == 3


@pytest.fixture
def linked(tmp_path):
    """A folder with pictures in folders, and links: to one elsewhere, to one that is here, and in circles."""
    root, elsewhere = tmp_path / "set/images", tmp_path / "disk"
    for name in (root / "a.jpg", root / "z/b.jpg", root / ".cache/b.jpg", elsewhere / "c.jpg", elsewhere / "in/d.jpg"):
        name.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(name), np.zeros((40, 40, 3), np.uint8))
    (root / "far").symlink_to(elsewhere)
    (root / "again").symlink_to(root / "z")
    (root / "z/up").symlink_to("../..")
    (elsewhere / "in/round").symlink_to("..")
    (elsewhere / "back").symlink_to(root)
    return root


def test_links_to_folders_are_followed_and_no_folder_comes_twice(linked):
    assert list_images(linked) == ["a.jpg", "far/c.jpg", "far/in/d.jpg", "z/b.jpg"]


def test_a_folder_in_it_that_may_not_be_read_is_said_so(linked, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("far"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"the folder '.*images/far' cannot be read: Permission denied$"):
        list_images(linked)


def test_a_folder_that_may_not_be_read_is_said_so(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"the folder '.*photos' cannot be read: Permission denied$"):
        find_missing(folder, ["0.jpg"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "cannot be decoded"),
        (b"hello", "cannot be decoded"),
        (cv2.imencode(".jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1].tobytes()[:300], "is truncated"),
        (cv2.imencode(".tif", np.ones((HEIGHT, WIDTH), np.float32))[1].tobytes(), "has float32 pixels"),
    ],
)
def test_what_is_wrong_with_the_first_images_is_said_at_the_start(folder, content, text, training):
    (folder / "2.jpg").write_bytes(content)
    with pytest.raises(UserError, match=rf"image '.*2\.jpg' {text}"):
        open_with(lambda data: None, folder, training=training)


def test_the_size_of_a_very_large_image_is_compared_without_decoding_it(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # twice as many and Pillow refuses
    assert header_size(folder / "0.jpg") == (HEIGHT, WIDTH)
    assert Image.MAX_IMAGE_PIXELS == 10


HINTS = {
    "backslashes": (lambda name: f"inner\\{name}", "write slashes: did you mean 'inner/0.jpg'"),
    "backslashes of another machine": (lambda name: f"C:\\data\\{name}", "write slashes: did you mean '0.jpg'"),
    "folder twice": (lambda name: f"photos/{name}", "; it is in '{parent}', give that folder"),
    "folder too high": (lambda name: f"a{name}", "; it is in '{folder}/inner', give that folder"),
    "folder too much": (lambda name: f"images/{name}", "; did you mean '{folder}/0.jpg', without the folder"),
    "capital letters": (lambda name: name.upper(), "; did you mean '{folder}/0.jpg'"),
    "another suffix": (lambda name: name.replace("jpg", "png"), "; did you mean '{folder}/0.jpg'"),
    "no suffix": (lambda name: name.removesuffix(".jpg"), "; did you mean '{folder}/0.jpg'"),
    "letters in two parts": (lambda name: f"e\u0301{name}", "; did you mean '{folder}/\xe90.jpg', whose letters are"),
}


@pytest.mark.parametrize("case", HINTS)
def test_where_a_missing_file_might_be(folder, case):
    (folder / "inner").mkdir()
    for i in range(3):
        for name in (f"{i}.jpg", f"a{i}.jpg"):
            (folder / "inner" / name).write_bytes((folder / f"{i}.jpg").read_bytes())
    (folder / "\xe90.jpg").write_bytes((folder / "0.jpg").read_bytes())
    new, hint = HINTS[case]
    with pytest.raises(UserError) as caught:
        open_with(rename(new), folder)
    assert hint.format(folder=folder, parent=folder.parent) in str(caught.value)


@pytest.mark.parametrize("size", [{"height": -1, "width": -1}, {"height": 0}, {"width": None}, {"height": ""}])
def test_unknown_sizes_are_read_from_the_files(folder, size):
    dataset = open_with(neighbours.every("images", **size), folder, masks=True)
    assert [(info.height, info.width) for info in dataset.images] == [(HEIGHT, WIDTH)] * 3
    assert dataset.portrait == [False] * 3
    assert dataset.notes[0].endswith("a.json' does not give the size of 3 images; it was read from the files")
    assert dataset[View(0, WIDTH, HEIGHT, False)].target.masks.sum() == 18 * 18


def test_an_rle_of_another_size_than_the_file_is_named(folder):
    def change(data):
        data["images"][1]["width"] = 0
        data["annotations"][1]["segmentation"] = {"size": [10, 10], "counts": [50, 50]}

    with pytest.raises(
        UserError, match=r"object 1 of image '1.jpg' in '.*' does not fit the file '.*1.jpg'.*\[10, 10\]"
    ):
        open_with(change, folder, masks=True)


def turn(path, orientation):
    """Stores a photo with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(path, exif=exif)


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (HEIGHT, WIDTH)])
def test_the_size_of_a_tiff_is_that_of_its_tags_whatever_pillow_says(tmp_path, monkeypatch, size):
    turn(tmp_path / "a.tif", 6)
    monkeypatch.setattr(TiffImageFile, "size", size)
    assert header_size(tmp_path / "a.tif") == (WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp", "avif"])
def test_sizes_from_headers_are_those_of_the_image_as_it_is_read(tmp_path, orientation, ending):
    path = tmp_path / f"a.{ending}"
    turn(path, orientation)
    assert header_size(path) == read_image(path).shape[:2]


def png_chunks(path):
    data, at = path.read_bytes(), 8
    while at < len(data):
        length = 12 + struct.unpack(">I", data[at : at + 4])[0]
        yield data[at : at + length]
        at += length


def test_exif_data_behind_the_pixels_of_a_png_counts_as_it_does_for_opencv(tmp_path):
    turn(tmp_path / "a.png", 6)
    exif = [chunk for chunk in png_chunks(tmp_path / "a.png") if chunk[4:8] == b"eXIf"]
    *others, end = [chunk for chunk in png_chunks(tmp_path / "a.png") if chunk not in exif]
    path = tmp_path / "late.png"
    path.write_bytes((tmp_path / "a.png").read_bytes()[:8] + b"".join([*others, *exif, end]))
    assert len(exif) == 1
    assert header_size(path) == read_image(path).shape[:2]


def test_of_a_png_only_the_header_is_read(folder):
    path = folder / "damaged.png"
    content = cv2.imencode(".png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1].tobytes()
    path.write_bytes(content[:50] + bytes(200))  # whoever decodes it fails
    assert header_size(path) == (HEIGHT, WIDTH)


def test_a_photo_that_exif_turns_is_said_so_at_the_start(folder):
    turn(folder / "1.jpg", 6)
    message = (
        rf"1.jpg' is {HEIGHT} x {WIDTH} pixels, but '.*' says {WIDTH} x {HEIGHT}, its size before the EXIF orientation"
    )
    with pytest.raises(UserError, match=message):
        open_with(lambda data: None, folder)


def test_and_where_it_was_not_looked_at_when_it_is_read(folder):
    dataset = open_with(lambda data: None, folder)
    turn(folder / "1.jpg", 6)
    with pytest.raises(
        UserError, match="before the EXIF orientation turns it upright; give size and boxes of the upri"
    ):
        dataset[View(1, WIDTH, HEIGHT, False)]


def classes(tmp_path, name, *pairs):
    def change(data):
        data.update(categories=[{"id": i, "name": name} for i, name in pairs], annotations=[])

    return read_coco(neighbours.write(change, tmp_path / name), tmp_path)


def test_classes_that_differ_are_named(tmp_path):
    train = classes(tmp_path, "train.json", (1, "cat"), (2, "dog"), (3, "owl"))
    check_same_classes(train, classes(tmp_path, "val.json", (30, "owl"), (1, "cat"), (2, "dog")))
    with pytest.raises(UserError, match=r"only '.*train.json' has 'dog', 'owl', and only '.*val.json' has 'fox'"):
        check_same_classes(train, classes(tmp_path, "val.json", (1, "cat"), (2, "fox")))
    with pytest.raises(
        UserError,
        match=r"\(that of the category ids\): .*train.json' has 'cat', 'dog', 'owl', and .* has 'dog', 'cat', 'owl'$",
    ):
        check_same_classes(train, classes(tmp_path, "val.json", (1, "dog"), (2, "cat"), (3, "owl")))
    with pytest.raises(UserError, match="'c7' and 12 more"):
        check_same_classes(train, classes(tmp_path, "val.json", *((i, f"c{i:x}") for i in range(20))))
