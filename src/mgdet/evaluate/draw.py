"""Pictures for people: boxes and masks on an image, a grid that compares models, and curves."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from mgdet.evaluate.fonts import font_for, readable
from mgdet.structures import Detections, Target

_INK, _GRID, _PAPER = "#22262b", "#d9dde2", "#ffffff"
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: safe for colour-blind eyes
_Box = tuple[int, int, int, int]


def draw_detections(
    image: np.ndarray, detections: Detections, classes: Sequence[str], *, score: float = 0.3, zoom: int = 1
) -> np.ndarray:
    """Draws what a detector found: boxes, class names with scores, masks where there are any.

    Args:
        image: (H, W, 3) uint8, BGR; left as it is.
        detections: boxes xyxy in pixels of `image`, masks (N, H, W).
        classes: names by label; one that no font here can write is drawn as its number, `#label`.
        score: detections below this score are left out.
        zoom: the image is first enlarged this many times, so that labels on small images stay small.

    Returns:
        (zoom * H, zoom * W, 3) uint8, BGR.
    """
    kept = (detections.scores >= score).nonzero().flatten().tolist()
    boxes = detections.boxes.detach().float().cpu().numpy()[kept]
    labels = detections.labels.cpu().numpy()[kept]
    names = readable(classes)
    texts = [f"{names[label]} {detections.scores[index]:.2f}" for index, label in zip(kept, labels)]
    masks = None if detections.masks is None else detections.masks[kept].cpu().numpy()
    return _draw(image, boxes, labels, texts, masks, zoom)


def draw_target(image: np.ndarray, target: Target, classes: Sequence[str], *, zoom: int = 1) -> np.ndarray:
    """Draws the ground truth in the look of `draw_detections`, without scores.

    Args:
        image: (H, W, 3) uint8, BGR; left as it is.
        target: boxes xyxy in pixels of `image`, masks (N, at least H, at least W).
        classes: names by label.
        zoom: the image is first enlarged this many times.

    Returns:
        (zoom * H, zoom * W, 3) uint8, BGR.
    """
    labels = target.labels.cpu().numpy()
    masks = None if target.masks is None else target.masks[:, : image.shape[0], : image.shape[1]].cpu().numpy()
    boxes = target.boxes.detach().float().cpu().numpy()
    names = readable(classes)
    return _draw(image, boxes, labels, [names[label] for label in labels], masks, zoom)


def comparison(rows: list[list[np.ndarray]], titles: Sequence[str]) -> np.ndarray:
    """A grid on white: one row per image, one titled column per source.

    Args:
        rows: images (H, W, 3) uint8 BGR of any sizes, as many in each row as there are titles.
        titles: of the columns.

    Returns:
        (H', W', 3) uint8, BGR.

    Raises:
        ValueError: there is no row, or a row is not as long as `titles`.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(f"each of the {len(rows)} rows needs {len(titles)} images, one for each title")
    widths = [max(row[column].shape[1] for row in rows) for column in range(len(titles))]
    heights = [max(cell.shape[0] for cell in row) for row in rows]
    gap = max(4, max(widths) // 40)
    font = _fitting_font(titles, widths, round(max(widths) / 18))
    bar = 2 * _text_size("Ag", font)[1]
    page = Image.new(
        "RGB", (sum(widths) + gap * (len(widths) + 1), bar + sum(heights) + gap * (len(heights) + 1)), _PAPER
    )
    pen = ImageDraw.Draw(page)
    x = gap
    for column, (title, width) in enumerate(zip(titles, widths)):
        pen.text((x + width / 2, gap + bar / 2), title, _INK, font, anchor="mm")
        y = gap + bar
        for row, height in zip(rows, heights):
            cell = row[column]
            corner = (x + (width - cell.shape[1]) // 2, y + (height - cell.shape[0]) // 2)
            page.paste(Image.fromarray(cv2.cvtColor(cell, cv2.COLOR_BGR2RGB)), corner)
            y += height + gap
        x += width + gap
    return cv2.cvtColor(np.asarray(page), cv2.COLOR_RGB2BGR)


def curves(series: dict[str, list[tuple[float, float]]], *, title: str, x_label: str, y_label: str, out: Path) -> None:
    """Plots named lines and writes them to `out`, PNG or SVG by its ending.

    Args:
        series: name -> points (x, y) in the order of x; a y that is not finite leaves a gap.
    """
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 11, "text.color": _INK}):
        figure = Figure(figsize=(8, 4.5), layout="constrained", facecolor=_PAPER)
        axes = figure.add_subplot()
        for index, (name, points) in enumerate(series.items()):
            x, y = [point[0] for point in points], [point[1] for point in points]
            colour = _LINES[index % len(_LINES)]
            dash = "-" if index < len(_LINES) else "--"
            marker = "o" if len(points) <= 40 else ""
            axes.plot(x, y, dash, color=colour, label=name, linewidth=2, marker=marker, markersize=4)
        axes.set_title(title, loc="left", fontsize=14, fontweight="bold", pad=12)
        axes.set_xlabel(x_label, color=_INK)
        axes.set_ylabel(y_label, color=_INK)
        axes.tick_params(colors=_INK, length=0)
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_INK)
        if all(x == round(x) for points in series.values() for x, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if series:
            axes.legend(frameon=True, facecolor=_PAPER, edgecolor="none", framealpha=0.85)
        figure.savefig(out, dpi=160)


def _draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    texts: list[str],
    masks: np.ndarray | None,
    zoom: int,
) -> np.ndarray:
    """Masks first, then boxes (the best on top), then labels (the best choose their places first)."""
    height, width = image.shape[0] * zoom, image.shape[1] * zoom
    canvas = image.copy() if zoom == 1 else cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    line = max(1, round(min(height, width) / 240))
    colours = [_colour(int(label)) for label in labels]
    for index in range(len(boxes) if masks is not None else 0):
        assert masks is not None
        _blend_mask(canvas, masks[index], colours[index], line)
    corners = [_pixels(box * zoom, height, width) for box in boxes]
    for halo in (True, False):  # a dark rim makes boxes visible on any background
        for (x0, y0, x1, y1), colour in reversed(list(zip(corners, colours))):
            cv2.rectangle(canvas, (x0, y0), (x1, y1), (20, 20, 20) if halo else colour, line + 2 if halo else line)
    return _write_labels(canvas, corners, texts, colours, line)


def _pixels(box: np.ndarray, height: int, width: int) -> _Box:
    """A box xyxy as the corner pixels of its frame, inside the image."""
    x0, y0, x1, y1 = np.rint(np.nan_to_num(box)).clip(0, (width, height, width, height)).astype(int).tolist()
    return min(x0, width - 1), min(y0, height - 1), max(x1 - 1, 0), max(y1 - 1, 0)


def _blend_mask(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
    """Tints the canvas (H, W, 3) where the mask is set, half transparent, and outlines it."""
    grown = cv2.resize(mask.astype(np.uint8) * 255, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    inside = grown >= 128
    canvas[inside] = (0.55 * canvas[inside] + 0.45 * np.array(colour)).astype(np.uint8)
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, colour, line, cv2.LINE_AA)


def _write_labels(
    canvas: np.ndarray, boxes: list[_Box], texts: list[str], colours: list[tuple[int, int, int]], line: int
) -> np.ndarray:
    """Writes each text on a plate of its colour beside its box, inside the image, off other plates if possible."""
    height, width = canvas.shape[:2]
    page = Image.fromarray(cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB))
    pen = ImageDraw.Draw(page)
    size = max(9, round(min(height, width) / 30))
    plates: list[_Box] = []
    for box, text, colour in zip(boxes, texts, colours):
        font = _fitting_font([text], [width], size)
        plate = _plate(box, _text_size(text, font), line, (height, width), plates)
        plates.append(plate)
        b, g, r = colour
        ink = "black" if 0.299 * r + 0.587 * g + 0.114 * b > 140 else "white"
        pen.rectangle(plate, fill=(r, g, b))
        pen.text(((plate[0] + plate[2] + 1) / 2, (plate[1] + plate[3] + 1) / 2), text, ink, font, anchor="mm")
    return cv2.cvtColor(np.asarray(page), cv2.COLOR_RGB2BGR)


def _plate(box: _Box, text: tuple[int, int], line: int, size: tuple[int, int], taken: list[_Box]) -> _Box:
    """Where a label goes: above the box, below it, inside at its top or bottom; the first that is free."""
    (x0, y0, x1, y1), (text_width, text_height), (height, width) = box, text, size
    rim = line // 2 + 1
    first: _Box | None = None
    for left in (x0 - rim, x1 + rim - text_width):
        for top in (y0 - rim - text_height, y1 + rim, y0, y1 - text_height):
            if not 0 <= top <= height - text_height:
                continue
            x = min(max(left, 0), max(width - text_width, 0))
            plate = (x, top, x + text_width - 1, top + text_height - 1)
            first = first or plate
            if not any(_overlap(plate, other) for other in taken):
                return plate
    return first or (0, 0, text_width - 1, text_height - 1)


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _colour(label: int) -> tuple[int, int, int]:
    """The BGR colour of a class: the golden ratio spreads the hues, every other class is paler."""
    rgb = colorsys.hsv_to_rgb((0.02 + label * 0.61803) % 1, 0.85 if label % 2 else 0.65, 1.0)
    return round(255 * rgb[2]), round(255 * rgb[1]), round(255 * rgb[0])


def _fitting_font(texts: Sequence[str], widths: Sequence[int], size: int) -> ImageFont.FreeTypeFont:
    """The largest font of at most `size` in which each text is no wider than its width; 6 at least."""
    size, letters = max(size, 6), "".join(texts)
    while size > 6 and any(_text_size(t, font_for(letters, size))[0] > width for t, width in zip(texts, widths)):
        size -= 1
    return font_for(letters, size)


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height in pixels of a text with a little room around it."""
    ascent, descent = font.getmetrics()
    return round(font.getlength(text) + 0.5 * font.size), ascent + descent
