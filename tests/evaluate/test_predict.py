"""`predict`: which pictures, in which batches, under which names, and what is said of the rest."""

from __future__ import annotations

import json
import os
import time
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from mgdet.data.transforms import read_image
from mgdet.detectors.retinanet import RetinaNet
from mgdet.errors import UserError
from mgdet.evaluate import fonts
from mgdet.evaluate import predict as module
from mgdet.evaluate.predict import predict
from mgdet.evaluate.sources import find_pictures, listed
from tiny import CLASSES, write_detector


def write(path, height=40, width=60, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def run(tiny, folder, *images, **options):
    said = []
    arguments = {"recipe": None, "out": folder / "out", "score": 0.0, "say": said.append} | options
    return predict(str(tiny.teacher), [str(image) for image in images], **arguments), said


@pytest.fixture
def photos(tmp_path):
    """Nine pictures: three sizes, mixed, in folders."""
    folder = tmp_path / "photos"
    for i in range(9):
        height, width = ((40, 60), (60, 40), (30, 90))[i % 3]
        write(folder / ("deep/er" if i % 2 else ".") / f"{i}.png", height, width, seed=i)
    return folder


def test_batches_find_what_single_pictures_find_and_keep_the_order(tiny, tmp_path, photos):
    checkpoint = torch.load(tiny.teacher, weights_only=True)
    checkpoint["state_dict"]["bbox_head.retina_cls.weight"] *= 30
    checkpoint["state_dict"]["bbox_head.retina_cls.bias"].zero_()  # so that it finds something
    torch.save(checkpoint, tmp_path / "keen.pth")
    one, many = (
        predict(
            str(tmp_path / "keen.pth"),
            [str(photos)],
            recipe=None,
            out=tmp_path / f"out{batch}",
            score=0,
            batch=batch,
            say=lambda text: None,
        )
        for batch in (1, 3)
    )
    assert [entry["file"] for entry in one] == [entry["file"] for entry in many]
    assert [entry["picture"] for entry in many[:6]] == ["0.jpg", "2.jpg", "4.jpg", "6.jpg", "8.jpg", "deep/er/1.jpg"]
    for a, b in zip(one, many):
        assert len(a["objects"]) == len(b["objects"]) > 0
        for mine, theirs in zip(a["objects"], b["objects"]):
            assert mine["label"] == theirs["label"]
            assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)
            assert mine["box"] == pytest.approx(theirs["box"], abs=1e-2)
    assert json.loads((tmp_path / "out3" / "detections.json").read_text()) == many
    assert sorted(path.relative_to(tmp_path / "out3").as_posix() for path in (tmp_path / "out3").rglob("*.jpg")) == (
        sorted(entry["picture"] for entry in many)
    )


def test_batches_are_full_of_one_size_and_each_picture_is_decoded_once(tiny, tmp_path, photos, monkeypatch):
    read, shapes = Counter(), []
    find = RetinaNet.find

    def counted(path):
        read[path] += 1
        return read_image(path)

    def watched(detector, images, *rest):
        shapes.append(tuple(images.shape))
        return find(detector, images, *rest)

    monkeypatch.setattr(module, "read_image", counted)
    monkeypatch.setattr(RetinaNet, "find", watched)
    run(tiny, tmp_path, photos, batch=3)
    assert len(read) == 9 and set(read.values()) == {1}
    assert [shape[0] for shape in shapes] == [3, 3, 3]
    assert len({shape[2:] for shape in shapes}) == 3


def test_tiny_and_long_pictures(tiny, tmp_path):
    sizes = [(1, 1), (2, 2), (1, 700), (700, 1), (5, 4000)]
    for i, (height, width) in enumerate(sizes):
        write(tmp_path / "photos" / f"{i}.png", height, width)
    report, _ = run(tiny, tmp_path, tmp_path / "photos")
    assert [(entry["height"], entry["width"]) for entry in report] == sizes


@pytest.mark.parametrize("size", [(40, 66_000), (66_000, 2)])
def test_a_picture_that_is_too_large_for_jpeg_has_a_smaller_copy(tiny, tmp_path, size):
    small, large = write(tmp_path / "a.png"), write(tmp_path / "b.png", *size)
    report, _ = run(tiny, tmp_path, small, large)
    assert [(entry["height"], entry["width"]) for entry in report] == [(40, 60), size]
    copy = read_image(tmp_path / "out/b.jpg")
    assert max(copy.shape) == 65_500
    assert copy.shape[size[0] > size[1]] == min(size) * 65_500 // 66_000


def test_folders_are_walked_and_the_rest_is_counted(tiny, tmp_path):
    folder = tmp_path / "photos"
    for name in ("b.jpg", "cam1/a.JPG", "cam2/a.jpg"):
        write(folder / name)
    (folder / "cam1" / "._a.JPG").write_bytes(b"\0\5\x16\7")
    (folder / "cam1" / "notes.TXT").write_text("hello")
    (folder / "more.txt").write_text("hello")
    (folder / "README").write_text("hello")
    (folder / "d.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    report, said = run(tiny, tmp_path, folder, folder / "cam2")
    assert [entry["picture"] for entry in report] == ["b.jpg", "cam1/a.jpg", "cam2/a.jpg", "a.jpg"]
    assert "5 other files were left out: 2 .txt, 1 " in said[1]
    assert all(
        text in said[1] for text in ("1 ._ (AppleDouble)", "1 without an ending", "1 .heic (pip install pillow-heif)")
    )


def test_in_folders_what_is_no_file_is_counted_and_never_opened(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    write(folder / "a.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "gone.png").symlink_to("nothing")
    (folder / "loop").symlink_to(folder)
    write(tmp_path / "disk/b.jpg")
    (folder / "link").symlink_to(tmp_path / "disk")
    pictures, skipped = find_pictures([str(folder)])
    assert [picture.file for picture in pictures] == [folder / "a.jpg", folder / "link/b.jpg"]
    assert listed(skipped) == "2 unreadable (broken link or pipe)"

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"the folder '.*photos' cannot be read: Permission denied$"):
        find_pictures([str(folder)])


def test_names_that_are_no_text(tiny, tmp_path):
    folder = tmp_path / "photos"
    write(folder / "a.jpg")
    (folder / "a.jpg").rename(folder / os.fsdecode(b"\xff\xfe.jpg"))
    (entry,), _ = run(tiny, tmp_path, folder)
    assert os.fsencode(entry["picture"]) == b"\xff\xfe.jpg"
    (folder / os.fsdecode(b"\xfd.jpg")).write_bytes(b"hello")
    with pytest.raises(UserError, match="cannot be decoded"):
        run(tiny, tmp_path / "again", folder)


def test_names_of_copies_are_their_own_and_quickly_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"")
    (tmp_path / "a" / "x.png").write_bytes(b"")
    (tmp_path / "a" / "X_2.png").write_bytes(b"")
    started = time.perf_counter()
    pictures, _ = find_pictures([str(tmp_path / "a")] * 2000)
    assert time.perf_counter() - started < 5  # 6,000 equal names
    names = [picture.copy.as_posix().lower() for picture in pictures]
    assert len(set(names)) == len(names) == 6_000
    assert names[:3] == ["x_2.jpg", "x.jpg", "x_3.jpg"]


def test_a_picture_that_fails_in_the_middle_leaves_nothing(tiny, tmp_path, photos):
    damaged = write(photos / "z" / "z.png")
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(UserError, match=r"z\.png' cannot be decoded"):
        run(tiny, tmp_path, photos, batch=1)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"z\.png' cannot be decoded"):
        run(tiny, tmp_path, photos, batch=1)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_ctrl_c_leaves_nothing_in_the_way_of_the_next_try(tiny, tmp_path, photos, monkeypatch):
    drawn = []

    def draw(image, *args, **options):
        drawn.append(image)
        if len(drawn) > 1:
            raise KeyboardInterrupt
        return image

    monkeypatch.setattr(module, "draw_detections", draw)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path, photos, batch=1)
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_a_file_is_found_before_the_detector_is_loaded(tmp_path, tiny):
    write(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-400])
    for text, content in (("b.jpg' is truncated", None), ("b.jpg' cannot be decoded", b"hello" * 99)):
        if content is not None:
            (tmp_path / "b.jpg").write_bytes(content)
        with pytest.raises(UserError, match=text):
            predict("no such file.pth", [str(tmp_path)], recipe=None, out=tmp_path / "out", score=0, say=print)


def test_deep_pictures_are_said(tiny, tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.full((40, 60), 4000, np.uint16))
    _, said = run(tiny, tmp_path, tmp_path / "x.png")
    assert "x.png' and others have 16 bits per pixel and use 12: divided by 256" in said[1]
    assert "their brightest pixel is 15 of 255" in said[1]


def test_classes_that_no_font_can_write_get_numbers_and_a_legend(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    fonts._file.cache_clear()
    write_detector(tmp_path / "d.pth", seed=7, classes=("人", "Собака", "车"))
    write(tmp_path / "x.png")
    said = []
    report = predict(
        str(tmp_path / "d.pth"), [str(tmp_path / "x.png")], recipe=None, out=tmp_path / "out", score=0, say=said.append
    )
    assert said[1] == "no font here can write these classes, so the pictures show numbers: #0 人, #2 车"
    assert {entry["class"] for entry in report[0]["objects"]} <= {"人", "Собака", "车"}
    fonts._file.cache_clear()


def test_usual_names_need_no_legend(tiny, tmp_path):
    assert all(map(fonts.can_write, CLASSES))
    _, said = run(tiny, tmp_path, write(tmp_path / "x.png"))
    assert len(said) == 2
    assert torch.is_inference_mode_enabled() is False
