"""Picture files beyond 8-bit JPEG and PNG: read, or refused for what they are."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from mgdet.data import pictures
from mgdet.data.transforms import check_readable, read_image
from mgdet.errors import UserError

COLOURS = np.zeros((48, 64, 3), np.uint8)
COLOURS[:, :32], COLOURS[:, 32:] = (200, 30, 10), (10, 60, 220)  # RGB


@pytest.fixture
def no_opencv(monkeypatch):
    """An OpenCV that knows none of the formats, as version 4 does not know all."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    monkeypatch.setattr(cv2, "haveImageReader", lambda *_: False)


@pytest.mark.parametrize("name", ["a.gif", "a.avif", "a.jp2", "a.webp", "a.ppm"])
def test_what_opencv_cannot_read_goes_through_pillow(tmp_path, no_opencv, name):
    Image.fromarray(COLOURS).save(tmp_path / name, **({"quality": 100} if name == "a.avif" else {}))
    check_readable(tmp_path / name)
    found = read_image(tmp_path / name)
    assert found.shape == COLOURS.shape and found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.abs(found[..., ::-1][:, 4::8].astype(int) - COLOURS[:, 4::8]).max() < 16
    assert pictures.is_picture(name)


def test_the_first_frame_of_a_film(tmp_path, no_opencv):
    frames = [Image.fromarray(np.full((20, 30, 3), level, np.uint8)) for level in (10, 120, 240)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif") == 10).all()


def test_pillow_turns_upright_and_takes_any_mode(tmp_path, no_opencv):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").shape == (64, 48, 3)
    for mode in ("1", "L", "P", "LA", "RGBA"):
        Image.fromarray(COLOURS).convert(mode).save(tmp_path / "mode.png")
        assert read_image(tmp_path / "mode.png").shape == (48, 64, 3)
    deep = np.full((5, 6), 0x1234, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png") == 0x12).all()


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3)])
@pytest.mark.parametrize("kind", ["float32", "float64", "int32"])
def test_pixels_without_a_range_are_named(tmp_path, capfd, kind, shape):
    cv2.imwrite(str(tmp_path / "a.tif"), np.ones(shape, kind))
    capfd.readouterr()
    with pytest.raises(UserError, match=rf"a\.tif' has {kind} pixels, and what is white among them is not known; conv"):
        read_image(tmp_path / "a.tif")
    assert capfd.readouterr() == ("", "")  # OpenCV has nothing to add


def test_a_float_tiff_that_only_pillow_knows(tmp_path, no_opencv):
    Image.fromarray(np.ones((5, 6), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="has float32 pixels"):
        read_image(tmp_path / "a.tif")


def test_what_git_lfs_did_not_bring_is_said_so(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for refuse in (read_image, check_readable):
        with pytest.raises(UserError, match="Git LFS has put a note in its place; git lfs pull brings the file"):
            refuse(path)


def test_heic_names_what_reads_it(tmp_path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    assert pictures.is_foreign(path)
    for refuse in (read_image, check_readable):
        with pytest.raises(UserError, match=r"a\.heic' is HEIC, which nothing here can decode; install pillow-heif"):
            refuse(path)
    called = []
    plugin = SimpleNamespace(register_heif_opener=lambda: called.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    pictures.is_foreign(path)
    assert called


@pytest.mark.parametrize("name", ["._a.jpg", ".hidden.png", "a.txt", "Thumbs.db", "jpg", "a.jpg.bak"])
def test_what_is_no_picture(name):
    assert not pictures.is_picture(name)


@pytest.mark.parametrize("name", ["a.JPG", "TIM截图 1.jpeg", "x%20y.jfif", "a.HEIC"])
def test_what_is_one(name):
    assert pictures.is_picture(name)


class TestDepth:
    def write(self, path, brightest):
        cv2.imwrite(str(path), np.linspace(0, brightest, 600).reshape(20, 30).astype(np.uint16))
        return path

    @pytest.mark.parametrize(("name", "brightest", "bits"), [("a.png", 4095, 12), ("a.tif", 1023, 10), ("a.png", 0, 1)])
    def test_unused_bits_are_said(self, tmp_path, name, brightest, bits):
        (note,) = pictures.depth_notes([self.write(tmp_path / name, brightest)])
        assert f"have 16 bits per pixel and use {bits}: divided by 256" in note
        assert read_image(tmp_path / name).max() == brightest // 256

    def test_all_bits_or_eight_are_not(self, tmp_path):
        full, eight = self.write(tmp_path / "full.png", 65535), tmp_path / "eight.png"
        cv2.imwrite(str(eight), np.ones((5, 5, 3), np.uint8))
        assert pictures.depth_notes([full, eight, tmp_path / "gone.png"]) == []
        assert pictures.depth_notes([]) == []
