"""Reading, resizing and flipping: recorded sizes, and pixels by numpy's own arithmetic."""

import json
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mgdet.data import transforms
from mgdet.data.transforms import View, make_example, read_image, resize, resize_masks, resized_size
from mgdet.errors import UserError

RECORDED = json.loads((Path(__file__).parents[1] / "parity" / "pipeline.json").read_text())["train"]


def bilinear(image, size):
    """Pixel centres at half positions, edges repeated; in float."""
    for axis, length in enumerate(size):
        old = image.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, old - 1)
        image = image.take(low, axis) * (1 - part) + image.take(high, axis) * part
    return image


@pytest.mark.parametrize("record", RECORDED[::2], ids=lambda r: r["file"])
def test_recorded_sizes(record):
    height, width = record["img_shape"][:2]
    original = (round(height / record["scale_factor"][1]), round(width / record["scale_factor"][0]))
    assert resized_size(original, 1333, 800) == (height, width)
    assert transforms.padded_size((height, width)) == tuple(record["pad_shape"][:2])


def test_both_edges_are_rounded():
    assert resized_size((426, 640), 1333, 800) == (800, 1202)  # 1201.9
    assert resized_size((640, 426), 1333, 800) == (1202, 800)


def test_long_edge_limits_a_wide_image():
    assert resized_size((100, 400), 1333, 800) == (333, 1333)
    assert resized_size((3, 4000), 1333, 800) == (1, 1333)


@pytest.mark.parametrize("size", [(80, 107), (31, 41), (48, 64)])
def test_resize_is_bilinear(size):
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert np.abs(resize(image, size) - bilinear(image.astype(float), size)).max() <= 1


@pytest.mark.parametrize(
    ("flip", "expected"),
    [
        (False, [[120, 20, 180, 40], [160, 60, 200, 100]]),
        (True, [[20, 20, 80, 40], [0, 60, 40, 100]]),
    ],
)
def test_objects_follow_the_image(flip, expected):
    image = np.zeros((50, 100, 3), np.uint8)
    image[10:20, 60:90] = 255
    boxes = np.array([[60, 10, 90, 20], [80, 30, 120, 60]], np.float32)
    mask = image[..., 0] // 255
    example = make_example(
        image, View(0, 240, 100, flip), file="a.png", boxes=boxes, labels=np.array([4, 2]), masks=[mask, mask]
    )
    assert example.image.shape == (100, 200, 3)
    assert (example.original, example.scale, example.target.size) == ((50, 100), (2.0, 2.0), (100, 200))
    assert example.target.boxes.dtype == torch.float32
    assert example.target.boxes.tolist() == expected
    assert example.target.labels.tolist() == [4, 2]

    x1, y1, x2, y2 = expected[0]
    filled = torch.zeros(128, 224, dtype=torch.uint8)
    filled[y1:y2, x1:x2] = 1
    assert torch.equal(example.target.masks, torch.stack([filled, filled]))
    bright = np.argwhere(example.image[..., 0] > 127)
    assert [*bright.min(0)[::-1], *(bright.max(0)[::-1] + 1)] == expected[0]


def test_an_image_without_objects():
    target = make_example(np.zeros((50, 100, 3), np.uint8), View(0, 100, 50, True), file="a.png", masks=[]).target
    assert target.boxes.shape == (0, 4)
    assert target.labels.shape == (0,)
    assert target.masks.shape == (0, 64, 128)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "grey.png"])
def test_read_image_is_bgr(tmp_path, name):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0] = 200
    stored = pixels[..., 0] if name == "grey.png" else pixels
    cv2.imwrite(str(tmp_path / name), stored)
    expected = [200, 200, 200] if name == "grey.png" else [200, 0, 0]
    assert np.abs(read_image(tmp_path / name).astype(int) - expected).max() <= 2


def write_jpeg(path, progressive=0):
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])
    return path.read_bytes()


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_jpeg_is_named(tmp_path, progressive, share, monkeypatch):
    path = tmp_path / "cut.jpg"
    data = write_jpeg(path, progressive)
    path.write_bytes(data[: int(share * len(data))])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((64, 64, 3), np.uint8))  # as OpenCV 4: grey, no error
    with pytest.raises(UserError, match=r"cut\.jpg' is truncated"):
        read_image(path)


def test_jpeg_with_something_appended_is_read(tmp_path):
    path = tmp_path / "film.jpg"
    data = write_jpeg(path)
    plain = read_image(path)
    path.write_bytes(data + bytes(5000))
    assert np.array_equal(read_image(path), plain)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_image_is_named(tmp_path, content):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.jpg"):
        read_image(path)
    with pytest.raises(UserError, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")


def test_masks_are_resized_alike_however_they_lie_in_memory():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width, h, w = rng.integers(1, 90, 4).tolist()
        mask = rng.integers(0, 2, (height, width), dtype=np.uint8)
        expected = cv2.resize(mask, (w, h), interpolation=cv2.INTER_NEAREST)
        for stored in (mask, np.asfortranarray(mask)):
            assert np.array_equal(resize_masks([stored], (h, w), False)[0, :h, :w], expected)
            assert np.array_equal(resize_masks([stored], (h, w), True)[0, :h, :w], expected[:, ::-1])


def test_one_mask_of_full_size_is_alive_at_a_time():
    """A photo of 12 megapixels with 150 objects would take 1.8 GB otherwise."""

    class Masks:
        alive, most = 0, 0

        def __len__(self):
            return 20

        def __getitem__(self, i):
            if i == len(self):
                raise IndexError
            mask = np.ones((30, 40), np.uint8)
            Masks.alive += 1
            Masks.most = max(Masks.most, Masks.alive)
            weakref.finalize(mask, self.forget)
            return mask

        def forget(self):
            Masks.alive -= 1

    assert resize_masks(Masks(), (15, 20), False).sum() == 20 * 15 * 20
    assert Masks.most <= 2


def test_a_square_view_squashes_image_and_boxes():
    boxes = np.array([[10, 10, 50, 30]], np.float32)
    example = make_example(
        np.zeros((40, 100, 3), np.uint8), View(0, 100, 50, False, 64), file="a.png", boxes=boxes, labels=np.array([0])
    )
    assert example.image.shape == (64, 64, 3)
    assert example.scale == (0.64, 1.6)
    np.testing.assert_allclose(example.target.boxes[0], [6.4, 16, 32, 48], rtol=1e-6)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("size", [(30, 47), (97, 201), (60, 80), (1, 1)])
def test_masks_are_resized_as_opencv_resizes_them_whole(size, flipped):
    rng = np.random.default_rng(0)
    masks = [np.zeros((60, 80), np.uint8) for _ in range(4)]
    masks[0][10:25, 30:70] = rng.integers(0, 2, (15, 40))
    masks[1][:] = 1
    masks[2][59, 79] = 1  # and the last is empty
    resized = resize_masks(masks, size, flipped)
    height, width = size
    for own, mask in zip(resized, masks):
        whole = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(own[:height, :width], cv2.flip(whole, 1) if flipped else whole)
        assert not own[height:].any() and not own[:, width:].any()
