"""Fonts for class names in any script."""

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from mgdet.evaluate import fonts

DEJAVU = "DejaVuSans-Bold.ttf"


@pytest.fixture(autouse=True)
def forgetful():
    fonts._file.cache_clear()
    fonts.font_for.cache_clear()
    yield
    fonts._file.cache_clear()
    fonts.font_for.cache_clear()


@pytest.mark.parametrize("name", ["person", "Собака", "σκύλος", "Fuß\u00adgänger", "vélo 2", ""])
def test_dejavu_writes_most_of_europe(name):
    assert fonts.can_write(name)
    assert str(fonts.font_for(name, 20).path).endswith(DEJAVU)


def test_a_font_of_the_system_writes_the_rest(monkeypatch, tmp_path):
    """DejaVu is made to lack a letter; files that are no fonts are passed over."""
    other = matplotlib.get_data_path() + "/fonts/ttf/DejaVuSerif.ttf"
    glyphs = fonts._glyphs

    def lacking(path):
        found = glyphs(path)
        return found[found != ord("Ж")] if str(path).endswith(DEJAVU) else found

    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "_glyphs", lacking)
    monkeypatch.setattr(fonts, "_system_fonts", lambda: (tmp_path / "gone.ttf", tmp_path / "broken.ttf", other))
    assert fonts.font_for("Жук", 20).path == other
    assert fonts.readable(["a", "Жук", "人"]) == ("a", "Жук", "#2")


def test_the_fonts_of_the_system_can_be_listed():
    found = fonts._system_fonts()
    assert len(found) == len(set(found)) > 10  # matplotlib's own are among them
    assert all(path.suffix.lower() in (".ttf", ".otf", ".ttc") for path in found)
    assert fonts.can_write("\U0010fffd") is False


def test_names_are_one_line():
    name = fonts.readable(["traffic\n light\t(red)"])[0]
    assert name == "traffic light (red)"
    pen = ImageDraw.Draw(Image.new("RGB", (200, 40)))
    pen.text((100, 20), name, "white", fonts.font_for(name, 16), anchor="mm")
    assert np.asarray(pen._image).any()
