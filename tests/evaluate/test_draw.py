import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest
import torch

from mgdet.evaluate.draw import _colour, _overlap, _plate, comparison, curves, draw_detections, draw_target
from mgdet.structures import Detections, Target

CLASSES = ("disc", "a rather long class name", "ring")


def grey(height: int = 120, width: int = 160, level: int = 90) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def found(*rows: tuple[float, ...], masks: torch.Tensor | None = None) -> Detections:
    """Rows (x0, y0, x1, y1, score, label)."""
    table = torch.tensor(rows).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long(), masks)


def has(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (image == colour).all(axis=2)


def test_box_is_drawn_on_its_edges_in_the_colour_of_its_class():
    image = grey()
    drawn = draw_detections(image, found((40, 50, 100, 90, 0.9, 2)), CLASSES)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 90).all()
    line = has(drawn, _colour(2))
    assert line[50, 60:99].all()
    assert line[89, 41:99].all()
    assert line[52:88, 40].all()
    assert line[52:88, 99].all()
    assert not line[55:85, 45:95].any()
    assert (drawn[95:] == 90).all()  # nothing away from box and label


def test_score_threshold_is_inclusive_and_leaves_the_rest_out():
    boxes = (10.0, 40.0, 50.0, 80.0), (90.0, 40.0, 140.0, 80.0)
    drawn = draw_detections(grey(), found((*boxes[0], 0.5, 0), (*boxes[1], 0.49, 2)), CLASSES, score=0.5)
    assert has(drawn, _colour(0)).any()
    assert not has(drawn, _colour(2)).any()
    assert np.array_equal(drawn, draw_detections(grey(), found((*boxes[0], 0.5, 0)), CLASSES, score=0.0))


def test_no_detections_leave_the_image_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    drawn = draw_detections(image, found(), CLASSES)
    assert np.array_equal(drawn, image)
    assert drawn is not image
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 64, 64), size=(50, 60))
    assert np.array_equal(draw_target(image, empty, CLASSES), image)


def test_zoom_enlarges_the_image_and_keeps_boxes_in_place():
    drawn = draw_detections(grey(), found((40, 50, 100, 90, 0.9, 2)), CLASSES, zoom=3)
    assert drawn.shape == (360, 480, 3)
    line = has(drawn, _colour(2))
    assert line[150, 130:290].all()
    assert line[160:260, 299].all()


@pytest.mark.parametrize("zoom", [1, 2])
def test_mask_is_half_transparent_and_only_where_it_is_set(zoom):
    masks = torch.zeros(1, 120, 160, dtype=torch.bool)
    masks[0, 60:80, 50:90] = True
    drawn = draw_detections(grey(), found((40, 50, 100, 90, 0.9, 2), masks=masks), CLASSES, zoom=zoom)
    inside, outside = drawn[70 * zoom, 70 * zoom], drawn[70 * zoom, 95 * zoom]
    assert np.allclose(inside, 0.55 * 90 + 0.45 * np.array(_colour(2)), atol=1.5)
    assert (outside == 90).all()
    target = Target(torch.tensor([[40.0, 50, 100, 90]]), torch.tensor([2]), masks.to(torch.uint8), size=(100, 150))
    drawn = draw_target(grey(100, 150), target, CLASSES, zoom=zoom)  # masks may be larger than the image
    assert np.array_equal(drawn[70 * zoom, 70 * zoom], inside)


def test_masks_follow_the_kept_detections():
    masks = torch.zeros(2, 120, 160, dtype=torch.bool)
    masks[0, 10:30, 10:30] = True
    masks[1, 80:100, 100:140] = True
    two = found((8, 8, 32, 32, 0.1, 0), (98, 78, 142, 102, 0.9, 2), masks=masks)
    drawn = draw_detections(grey(), two, CLASSES)
    assert (drawn[20, 20] == 90).all()
    assert (drawn[90, 120] != 90).any()


def test_target_is_the_same_picture_without_scores():
    box = torch.tensor([[40.0, 50, 100, 90]])
    with_score = draw_detections(grey(), found((40, 50, 100, 90, 0.9, 0)), CLASSES)
    without = draw_target(grey(), Target(box, torch.tensor([0]), size=(120, 160)), CLASSES)
    assert np.array_equal(with_score[52:], without[52:])
    assert has(with_score, _colour(0))[:50].sum() > 1.3 * has(without, _colour(0))[:50].sum()  # a wider plate


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 160, 120),
        (150, 110, 160, 120),
        (0, 0, 4, 4),
        (155, 0, 160, 5),
        (-30, -30, 400, 400),
        (200, 200, 300, 300),
        (-50, 20, -10, 40),
        (30, 30, 30, 30),
        (float("nan"), 0, float("inf"), 20),
    ],
)
def test_any_box_gets_a_whole_label_inside_the_image(box):
    drawn = draw_detections(grey(), found((*box, 0.9, 1)), CLASSES)
    assert drawn.shape == (120, 160, 3)
    plate = has(drawn, _colour(1))
    assert plate.any(axis=1).sum() >= 10  # as high as the label is
    assert plate.any(axis=0).sum() >= 80  # as wide as its text is


def test_tiny_image_and_long_name():
    drawn = draw_detections(grey(8, 12), found((1, 1, 9, 7, 0.9, 1)), CLASSES)
    assert drawn.shape == (8, 12, 3)


def test_labels_of_neighbours_do_not_cover_each_other():
    plates: list[tuple[int, int, int, int]] = []
    for _ in range(4):  # four equal boxes: above, below, inside at the top, inside at the bottom
        plate = _plate((50, 40, 110, 90), (40, 12), 1, (120, 160), plates)
        assert not any(_overlap(plate, other) for other in plates)
        assert plate[0] >= 0
        assert plate[1] >= 0
        assert plate[2] < 160
        assert plate[3] < 120
        plates.append(plate)
    assert plates[0][3] < 40  # the first one sits above the box


def test_colours_of_classes_are_stable_and_apart():
    colours = np.array([_colour(label) for label in range(8)])
    assert colours.tolist() == [list(_colour(label)) for label in range(8)]
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 1000 * np.eye(8)
    assert apart.min() > 60


def test_comparison_places_every_cell_under_its_title():
    cells = [[grey(30, 40, 10), grey(30, 40, 60)], [grey(50, 20, 110), grey(50, 20, 160)]]
    page = comparison(cells, ["truth", "ours"])
    assert page.dtype == np.uint8
    corners = {}
    for level in (10, 60, 110, 160):
        rows, columns = np.nonzero(has(page, (level, level, level)))
        corners[level] = (rows.min(), columns.min(), rows.max(), columns.max())
    top = corners[10][0]
    assert corners[60][0] == top
    assert corners[60][1] > corners[10][3]
    assert corners[110][0] > corners[10][2]
    assert corners[110][1] == corners[10][1] + 10  # the narrow cell is centred in its column
    bar = page[:top]
    assert (bar < 128).any(axis=2)[:, : page.shape[1] // 2].any()
    assert (bar < 128).any(axis=2)[:, page.shape[1] // 2 :].any()
    assert (page[-1] == 255).all()


def test_comparison_keeps_colours_and_refuses_uneven_rows():
    blue = np.zeros((20, 20, 3), np.uint8)
    blue[..., 0] = 255
    assert has(comparison([[blue]], ["x"]), (255, 0, 0)).sum() == 400
    with pytest.raises(ValueError, match="needs 2 images"):
        comparison([[blue, blue], [blue]], ["a", "b"])
    with pytest.raises(ValueError, match="0 rows"):
        comparison([], ["a"])


def test_curves_as_png(tmp_path):
    series = {"teacher": [(1.0, 0.1), (2.0, 0.4)], "student": [(1.0, 0.05), (2.0, 0.3)]}
    curves(series, title="AP", x_label="epoch", y_label="AP", out=tmp_path / "a.png")
    image = cv2.imread(str(tmp_path / "a.png"))
    assert min(image.shape[:2]) >= 600
    for red, green, blue in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert has(image, (blue, green, red)).sum() > 200
    curves({"teacher": series["teacher"]}, title="AP", x_label="epoch", y_label="AP", out=tmp_path / "b.png")
    assert not has(cv2.imread(str(tmp_path / "b.png")), (0x00, 0x5E, 0xD5)).any()


def test_curves_as_svg_with_gaps_and_without_series(tmp_path):
    series = {"loss": [(float(step), float("nan") if step == 5 else 1 / (step + 1)) for step in range(60)]}
    curves(series, title="t", x_label="step", y_label="loss", out=tmp_path / "a.svg")
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    curves({}, title="nothing", x_label="x", y_label="y", out=tmp_path / "b.svg")
    assert (tmp_path / "b.svg").stat().st_size > 0
