"""A detector in Python: pictures in any form, boxes in their pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mgdet.errors import UserError
from mgdet.evaluate.predict import predict
from mgdet.loaded import load
from refusals import refusal
from tiny import CLASSES, write_detector


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The file of a detector that finds much: no class is unlikely."""
    path = tmp_path_factory.mktemp("trained") / "trained.pth"
    content = torch.load(tiny.teacher, weights_only=True)
    content["state_dict"]["bbox_head.retina_cls.bias"].zero_()
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def model(trained):
    return load(trained, device="cpu")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, (height, width) in enumerate(((64, 96), (96, 64), (64, 96))):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
    return folder


def assert_same(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)
        assert a.size == b.size and a.names == b.names


def test_it_finds_what_the_command_finds(model, trained, photos, tmp_path):
    report = predict(str(trained), [str(photos)], recipe=None, out=tmp_path / "out", score=0.01, say=lambda _: None)
    found = model.predict(photos, score=0.01)
    assert [str(one.file) for one in found] == [entry["file"] for entry in report]
    assert sum(map(len, found)) > 0
    for one, entry in zip(found, report):
        assert one.size == (entry["height"], entry["width"])
        assert list(one.names) == [thing["class"] for thing in entry["objects"]]
        assert one.boxes.tolist() == [thing["box"] for thing in entry["objects"]]
        assert one.scores.tolist() == [thing["score"] for thing in entry["objects"]]


def test_every_form_of_a_picture_gives_the_same(model, photos):
    files = sorted(photos.iterdir())
    arrays = [cv2.imread(str(file))[..., ::-1] for file in files]
    expected = model.predict(photos, score=0.01)
    assert_same(model.predict([str(file) for file in files], score=0.01), expected)
    assert_same(model.predict(arrays, score=0.01), expected)
    assert_same(model.predict([Image.fromarray(array) for array in arrays], score=0.01), expected)
    mixed = model.predict([files[0], arrays[1], Image.fromarray(arrays[2])], score=0.01)
    assert_same(mixed, expected)
    assert [one.file for one in mixed] == [files[0], None, None]
    assert_same(model.predict(arrays[1], score=0.01), expected[1:2])
    assert_same(model.predict(str(files[1]), score=0.01), expected[1:2])


def test_grey_is_three_equal_channels(model):
    grey = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    assert_same(model.predict(grey, score=0.01), model.predict(np.stack([grey] * 3, axis=2), score=0.01))


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_pillows_pixels_of_16_bits_are_those_of_the_file(model, kind, tmp_path):
    deep = np.random.default_rng(0).integers(0, 2**16, (64, 96), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    expected = model.predict(tmp_path / "deep.png", score=0.01)
    mode = "I;16" if kind == "<u2" else "I;16B"
    image = Image.frombytes(mode, (96, 64), deep.astype(kind).tobytes())
    assert_same(model.predict([image], score=0.01), expected)
    assert_same(model.predict([Image.open(tmp_path / "deep.png")], score=0.01), expected)
    assert_same(model.predict((deep >> 8).astype(np.uint8), score=0.01), expected)


@pytest.mark.parametrize(
    "mode, words",
    [
        ("I", "a Pillow image of mode I has int32 pixels, and what is white among them is not known; convert it to 8"),
        ("F", "a Pillow image of mode F has float32 pixels, and what is white among them is not known"),
    ],
)
def test_pillow_images_of_other_modes(model, mode, words):
    assert words in refusal(model.predict, Image.new(mode, (96, 64)))


@pytest.mark.parametrize("as_file", [True, False])
def test_pictures_are_turned_upright(model, tmp_path, as_file):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    turned = tmp_path / "turned.png" if as_file else Image.open(tmp_path / "turned.png")
    (found,) = model.predict(turned, score=0.01)
    assert found.size == (96, 64)
    assert_same([found], model.predict(np.asarray(picture.rotate(-90, expand=True)), score=0.01))


def test_the_score_is_a_limit(model, photos):
    everything = model.predict(photos, score=0.0)
    limit = float(everything[0].scores.median())
    some = model.predict(photos, score=limit)
    assert 0 < len(some[0]) < len(everything[0])
    assert torch.equal(some[0].boxes, everything[0].boxes[everything[0].scores >= limit])


def test_it_draws_what_it_found(model, photos):
    files = sorted(photos.iterdir())
    pixels = cv2.imread(str(files[0]))[..., ::-1].copy()
    of_file, of_pixels = model.predict([files[0], pixels], score=0.01)
    assert of_file.draw().shape == pixels.shape and of_file.draw().dtype == np.uint8
    assert np.array_equal(of_file.draw(), of_pixels.draw())
    assert not np.array_equal(of_file.draw(), pixels)
    (nothing,) = model.predict(pixels, score=1.0)
    assert np.array_equal(nothing.draw(), pixels)


def test_it_says_what_it_is(model, photos):
    assert model.classes == CLASSES
    assert "RetinaNet, 3 classes" in repr(model)
    assert any("tensors loaded" in line for line in model.lines)
    found = model.predict(photos, score=0.01)[0]
    assert repr(found).startswith(f"Prediction({found.file}: {len(found)} found")


def test_no_picture_is_no_prediction(model):
    assert model.predict([]) == []


@pytest.mark.parametrize(
    "images, words",
    [
        ("no such file.jpg", "there is no image or folder 'no such file.jpg'"),
        (Path("nowhere"), "there is no image or folder 'nowhere'"),
        (np.zeros((8, 8, 3), np.float32), "an array of 8 x 8 x 3 float32; give height x width x 3 uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), "an array of 2 x 8 x 8 x 3 uint8"),
        (np.zeros((8, 8, 4), np.uint8), "an array of 8 x 8 x 4 uint8"),
        (np.zeros((0, 8, 3), np.uint8), "an array of 0 x 8 x 3 uint8"),
        (7, "a picture is int; give a file, a folder"),
    ],
)
def test_what_is_no_picture_is_refused(model, images, words):
    for given in (images, [images]):
        with pytest.raises(UserError) as error:
            model.predict(given)
        assert words in str(error.value)


def test_limits_are_checked(model, photos):
    with pytest.raises(UserError, match="score is 2"):
        model.predict(photos, score=2)
    with pytest.raises(UserError, match="batch is 0"):
        model.predict(photos, batch=0)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "a.pth").write_text("hello")
    with pytest.raises(UserError, match=r"a\.pth"):
        load(tmp_path / "a.pth")


def test_a_file_without_names_of_classes_numbers_them(tmp_path):
    write_detector(tmp_path / "a.pth", seed=1)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    del content["meta"]["CLASSES"]
    torch.save(content, tmp_path / "b.pth")
    assert load(tmp_path / "b.pth", device="cpu").classes == ("class 0", "class 1", "class 2")
