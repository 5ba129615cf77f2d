"""Crop, mosaic and colour: what they do to pixels, boxes and masks, and that they depend on the view alone."""

import colorsys
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import mgdet.data.mosaic as mosaics
from mgdet.config import AugmentConfig, Config
from mgdet.data.augment import Window, augmented, crop, draw_window, jitter, random_crop
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.data.loader import train_loader
from mgdet.data.sampler import TrainSampler
from mgdet.data.transforms import Picture, View
from mgdet.errors import UserError
from tiny import alone

SEEDS = range(40)
SIZE = (60, 100)


def rng(seed=0):
    return np.random.default_rng(seed)


def painted(objects, size=SIZE, masks=True):
    """A black picture with rectangles of one grey value each; boxes as x, y, x, y."""
    image = np.zeros((*size, 3), np.uint8)
    stencils = []
    for number, (x0, y0, x1, y1) in enumerate(objects, start=1):
        image[y0:y1, x0:x1] = 40 * number
        stencils.append(np.zeros(size, np.uint8, order="F"))
        stencils[-1][y0:y1, x0:x1] = 1
    boxes = np.array(objects, np.float32).reshape(-1, 4)
    return Picture(image, "a.png", 7, boxes, np.arange(1, len(objects) + 1), stencils if masks else None)


OBJECTS = [(0, 0, 20, 20), (30, 10, 60, 50), (90, 50, 100, 60)]  # apart from each other


class TestCrop:
    @pytest.mark.parametrize(
        ("rule", "size", "heights", "widths"),
        [
            ("absolute", (32, 48), {32}, {48}),
            ("absolute", (500, 48), {60}, {48}),
            ("relative", (0.5, 0.33), {30}, {33}),
            ("relative", (0.501, 0.299), {30}, {30}),
            ("relative", (1.0, 1.0), {60}, {100}),
            ("relative", (0.001, 0.001), {1}, {1}),
            ("relative_range", (0.9, 0.97), set(range(54, 61)), set(range(97, 101))),
            ("absolute_range", (56, 64), set(range(56, 61)), set(range(56, 65))),
            ("absolute_range", (98, 200), {60}, {98, 99, 100}),
            ("absolute_range", (300, 400), {60}, {100}),
        ],
    )
    def test_sizes_and_places_by_rule(self, rule, size, heights, widths):
        augment = AugmentConfig(crop=1, crop_rule=rule, crop_size=tuple(map(float, size)))
        windows = [draw_window(SIZE, augment, rng(seed)) for seed in range(400)]
        assert {w.height for w in windows} == heights
        assert {w.width for w in windows} == widths
        for top, left, height, width in windows:
            assert 0 <= top <= 60 - height and 0 <= left <= 100 - width
        lowest = min(windows, key=lambda w: (w.height, w.width))
        same = [w for w in windows if w[2:] == lowest[2:]]
        if len(same) == len(windows):  # every place, the first and the last
            assert {w.left for w in windows} >= {0, 100 - lowest.width}
            assert {w.top for w in windows} >= {0, 60 - lowest.height}

    @pytest.mark.parametrize("masks", [False, True])
    def test_objects_go_with_the_pixels(self, masks):
        """Every object is painted, so the cropped picture itself says what is left of each."""
        draw = rng()
        for _ in range(300):
            top, left = int(draw.integers(55)), int(draw.integers(95))
            window = Window(top, left, int(draw.integers(1, 61 - top)), int(draw.integers(1, 101 - left)))
            before = painted(OBJECTS, masks=masks)
            found = crop(before, window)
            assert found.image.shape == (*window[2:], 3)
            left_over = {}
            for label in (1, 2, 3):
                ys, xs = np.nonzero(found.image[..., 0] == 40 * label)
                if len(ys):
                    left_over[label] = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert found.labels.tolist() == list(left_over)
            np.testing.assert_array_equal(found.boxes.reshape(-1, 4), np.array([*left_over.values()]).reshape(-1, 4))
            assert (found.masks is not None) == masks
            for label, mask in zip(found.labels, found.masks or []):
                np.testing.assert_array_equal(mask, found.image[..., 0] == 40 * label)
            np.testing.assert_array_equal(before.boxes, painted(OBJECTS).boxes)  # it is read again in every epoch

    def test_less_than_a_pixel_is_no_object(self):
        picture = Picture(
            np.zeros((*SIZE, 3), np.uint8),
            "a",
            1,
            np.array([[0, 0, 20.5, 20], [0, 0, 21, 20]], np.float32),
            np.arange(2),
        )
        assert crop(picture, Window(0, 20, 30, 30)).labels.tolist() == [1]

    def test_a_box_whose_mask_is_elsewhere_is_no_object(self):
        picture = painted([(0, 0, 40, 40)])
        picture.masks[0][:, 20:] = 0
        assert crop(picture, Window(0, 20, 40, 20)).labels.tolist() == []
        assert crop(picture._replace(masks=None), Window(0, 20, 40, 20)).labels.tolist() == [1]

    def test_a_crop_without_an_object_is_drawn_again_unless_it_may_be_empty(self):
        picture = painted([(0, 0, 10, 10)])
        strict = AugmentConfig(crop=1, crop_rule="relative", crop_size=(0.5, 0.5))
        counts = {True: Counter(), False: Counter()}
        for empty, count in counts.items():
            for seed in range(100):
                found = random_crop(picture, replace(strict, crop_empty=empty), rng(seed))
                count[(found.size, len(found.labels))] += 1
        assert counts[True].keys() == {((30, 50), 0), ((30, 50), 1)}
        assert counts[False].keys() == {((30, 50), 1), (SIZE, 1)}
        assert counts[False][(SIZE, 1)] < 70 < counts[True][((30, 50), 0)]

    def test_masks_decoded_one_by_one_stay_column_by_column(self):
        found = crop(painted(OBJECTS), Window(5, 5, 40, 40))
        assert all(mask.flags.f_contiguous and mask.base is None for mask in found.masks)


class TestColour:
    @staticmethod
    def image():
        return rng(5).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    @staticmethod
    def draws(seed, strength):
        """What `jitter` draws: which changes, and by how much."""
        draw = rng(seed)
        which = draw.random(5) < 0.5
        return which, np.where(which[:4], draw.uniform(-strength, strength, 4), 0)

    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.parametrize("strength", [0.3, 1.0])
    def test_it_is_what_the_formula_says(self, seed, strength):
        """In floating point, pixel by pixel; eight bits of hue and saturation are worth a few levels."""
        which, (brightness, contrast, saturation, hue) = self.draws(seed, strength)
        image = self.image()
        expected = image.astype(np.float64) + 32 * brightness
        if which[4]:
            expected *= 1 + contrast / 2
        expected = expected.clip(0, 255)
        if which[2] or which[3]:
            for pixel in expected.reshape(-1, 3):
                h, s, v = colorsys.rgb_to_hsv(*(pixel[::-1] / 255))
                pixel[::-1] = np.multiply(
                    colorsys.hsv_to_rgb((h + hue / 20) % 1, min(1, s * (1 + saturation / 2)), v), 255
                )
        if not which[4]:
            expected *= 1 + contrast / 2
        error = np.abs(jitter(image, strength, rng(seed)) - expected.clip(0, 255))
        assert error.mean() < 1.5 and error.max() < 16

    def test_each_change_comes_in_half_of_all_images(self):
        flags = np.array([self.draws(seed, 1.0)[0] for seed in range(1000)])
        assert (np.abs(flags.mean(axis=0) - 0.5) < 0.06).all()

    def test_nothing_drawn_changes_nothing(self):
        image = self.image()
        untouched = [seed for seed in range(200) if not self.draws(seed, 1.0)[0][:4].any()]
        assert len(untouched) > 3
        for seed in untouched:
            np.testing.assert_array_equal(jitter(image, 1.0, rng(seed)), image)
        np.testing.assert_array_equal(image, self.image())


class TestMosaic:
    @staticmethod
    def pictures(masks=True):
        """Each has one object in its middle, of its own grey value on a background of its own."""
        made = []
        for number, size in enumerate(((60, 100), (100, 60), (60, 100), (80, 80)), start=1):
            height, width = size
            box = (width // 3, height // 3, 2 * width // 3, 2 * height // 3)
            picture = painted([box], size, masks)
            picture.image[picture.image == 0] = 9 * number
            picture.image[picture.image == 40] = 150 + 20 * number
            made.append(picture._replace(labels=np.array([number]), file=f"{number}.png"))
        return made

    @pytest.mark.parametrize("masks", [False, True])
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("seed", SEEDS)
    def test_four_corners_with_their_objects(self, seed, flip, masks, monkeypatch):
        """Resized to the nearest pixel, as masks are, so that a grey value still says whose it is."""
        monkeypatch.setattr(mosaics, "resize", lambda image, size: cv2.resize(image, size[::-1], interpolation=0))
        example = mosaics.make_mosaic(self.pictures(masks), View(0, 200, 120, flip), rng(seed))
        assert example.image.shape == (120, 200, 3) and example.target.size == (120, 200)
        assert (example.file, example.image_id, example.original, example.scale) == ("1.png", 7, (60, 100), (2.0, 2.0))
        assert example.target.padded == (128, 224)
        grey = example.image[..., 0]
        y, x = (round(edge * share) for edge, share in zip((120, 200), rng(seed).uniform(0.25, 0.75, 2)))
        shown = grey[:, ::-1] if flip else grey
        for number, corner in enumerate((shown[:y, :x], shown[:y, x:], shown[y:, :x], shown[y:, x:]), start=1):
            assert {9 * number} <= set(np.unique(corner)) <= {9 * number, 150 + 20 * number, 114}
        shown_of = [label for label in (1, 2, 3, 4) if (grey == 150 + 20 * label).any()]
        labels, boxes = example.target.labels.tolist(), example.target.boxes.tolist()
        whole = [n for n in shown_of if min(np.ptp(axis) for axis in np.nonzero(grey == 150 + 20 * n)) >= 1]
        assert set(whole) <= set(labels) <= set(shown_of)  # a row of pixels may be less than one of the box
        for i, (label, (x0, y0, x1, y1)) in enumerate(zip(labels, boxes)):
            ys, xs = np.nonzero(grey == 150 + 20 * label)
            found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert np.abs(np.subtract(found, (x0, y0, x1, y1))).max() <= 1
            if masks:
                mask = example.target.masks[i].numpy()
                np.testing.assert_array_equal(mask[:120, :200], grey == 150 + 20 * label)
                assert mask.shape == (128, 224) and not mask[120:].any() and not mask[:, 200:].any()
        assert (example.target.masks is None) == (not masks)

    def test_sizes_and_meeting_points_vary(self):
        view = View(0, 200, 120, False)
        widths = []
        for seed in range(200):
            target = mosaics.make_mosaic(self.pictures(), view, rng(seed)).target
            whole = (target.boxes[:, 2] - target.boxes[:, 0])[target.labels == 1]
            widths += whole.tolist()
        assert max(widths) == pytest.approx(200 / 3, rel=0.03)  # as large as alone
        assert np.quantile(widths, 0.1) < 40  # or half of it, or cut off

    def test_all_squashed_to_a_square(self):
        example = mosaics.make_mosaic(self.pictures(), View(0, 0, 0, False, 96), rng())
        assert example.image.shape == (96, 96, 3)

    def test_without_an_object_there_is_no_mosaic(self):
        pictures = [painted([], size=SIZE)] * 4
        assert mosaics.make_mosaic(pictures, View(0, 200, 120, False), rng()) is None
        example = augmented(lambda _: pictures[0], 4, View(0, 200, 120, False, seed=1), AugmentConfig(mosaic=1))
        assert not example.image.any()  # it is seen alone

    def test_objects_that_a_corner_cuts_off_go(self):
        corner = painted([(0, 0, 4, 4)])  # of the upper left picture, it is the farthest from where the four meet
        far = [mosaics.make_mosaic([corner, *[painted([])] * 3], View(0, 100, 60, False), rng(seed)) for seed in SEEDS]
        assert 0 < sum(example is None for example in far) < len(far)


@pytest.fixture(scope="module")
def records(tiny):
    return read_coco(tiny.root / "annotations" / "train.json", tiny.root / "train", masks=True)


ALL = AugmentConfig(crop=0.5, color_jitter=0.8, mosaic=0.5)


def dataset(records, augment=ALL):
    return DetectionDataset(records, training=True, masks=True, augment=augment)


def sampler(data, augment=ALL, **changes):
    settings = {"batch": 2, "accumulate": 1, "rank": 0, "world_size": 1, "seed": 0, "short_edge": (56, 64)}
    settings |= {"long_edge": 96, "short_edge_step": 1, "flip": 0.5, "seeds": augment.on}
    return TrainSampler(data.portrait, **(settings | changes))


def batches(data, number, workers=0, **changes):
    loader = train_loader(data, sampler(data, **changes), workers=workers, pin=False)
    taken = [next(loader).to("cpu") for _ in range(number)]  # where masks are unpacked
    loader.close()
    return taken


def contents(batch):
    """All that training reads of a batch; pixels beside an image are undefined."""
    pixels = [p[: t.size[0], : t.size[1]] for p, t in zip(batch.pixels, batch.targets)]
    return batch.files, [t.size for t in batch.targets], pixels, [(t.boxes, t.labels, t.masks) for t in batch.targets]


def assert_same(mine, theirs):
    assert len(mine) == len(theirs)
    for a, b in zip(map(contents, mine), map(contents, theirs)):
        assert a[:2] == b[:2]
        assert all(torch.equal(x, y) for x, y in zip(a[2], b[2]))
        assert all(torch.equal(x, y) for mine, theirs in zip(a[3], b[3]) for x, y in zip(mine, theirs))


def test_a_view_is_the_same_in_every_process_and_after_every_start(records):
    data = dataset(records)
    whole = batches(data, 16)
    assert_same(batches(data, 16, workers=2), whole)
    assert_same(batches(data, 9, start_step=7), whole[7:])
    parts = [batches(data, 16, rank=rank, world_size=2, batch=1) for rank in (0, 1)]
    for k, batch in enumerate(whole):
        together = [part[k].files[0] for part in parts]
        assert together == batch.files
        boxes = [part[k].targets[0].boxes for part in parts]
        assert all(torch.equal(a, target.boxes) for a, target in zip(boxes, batch.targets))


def test_epochs_and_seeds_draw_anew(records):
    data = dataset(records, replace(ALL, mosaic=0, color_jitter=0, crop=1))
    steps = sampler(data).steps_per_epoch
    sizes = {}
    for name, changes in (("first", {}), ("second", {"start_step": steps}), ("other", {"seed": 1})):
        seen = batches(data, steps, **changes)
        sizes[name] = {file: t.size for batch in seen for file, t in zip(batch.files, batch.targets)}
        assert len(set(sizes[name].values())) > 6
    assert sizes["first"] != sizes["second"] != sizes["other"] != sizes["first"]


def test_off_is_what_it_was(records):
    """To the bit, and the images, sizes and flips of a run that changes colours are those of one that does not."""
    plain = DetectionDataset(records, training=True, masks=True)
    off = AugmentConfig()
    assert_same(batches(dataset(records, off), 8, augment=off), batches(plain, 8, augment=off))
    views = [replace(view, seed=None) for batch, _ in zip(sampler(plain), range(20)) for view in batch]
    assert views == [view for batch, _ in zip(sampler(plain, off), range(20)) for view in batch]
    assert all(view.seed is None for view in views)
    assert_same([batches(dataset(records), 1, augment=off)[0]], [batches(plain, 1, augment=off)[0]])
    coloured = batches(dataset(records, AugmentConfig(color_jitter=1)), 8)
    for a, b in zip(coloured, batches(plain, 8, augment=off)):
        assert a.files == b.files and [t.size for t in a.targets] == [t.size for t in b.targets]
        assert all(torch.equal(x.boxes, y.boxes) for x, y in zip(a.targets, b.targets))


def test_how_often(records):
    """The probabilities hold, and each change is drawn apart from the others."""
    data = dataset(records)
    picture = data.picture(0)
    number = 600
    seen = Counter()
    for seed in range(number):
        reads = []
        view = View(0, 96, 64, False, seed=seed)
        example = augmented(lambda i, reads=reads: reads.append(i) or data.picture(i), len(data), view, ALL)
        kind = "mosaic" if len(reads) == 4 else "crop" if example.original != picture.size else "alone"
        seen[kind] += 1
    assert seen["mosaic"] / number == pytest.approx(0.5, abs=0.06)
    assert seen["crop"] / number == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": 1.5}, "augment.crop is 1.5; give a probability from 0 to 1"),
        ({"mosaic": -0.1}, "augment.mosaic is -0.1; give a probability from 0 to 1"),
        ({"color_jitter": 2.0}, "augment.color_jitter is 2.0; give a strength from 0 to 1"),
        ({"crop_size": (0.0, 0.5)}, "augment.crop_size is 0 0.5; give two positive numbers"),
        ({"crop_size": (2.0, 0.5)}, "augment.crop_size is 2 0.5, but augment.crop_rule relative_range takes shares"),
        (
            {"crop_rule": "absolute_range"},
            "augment.crop_size is 0.5 0.5, but augment.crop_rule absolute_range takes whole",
        ),
        ({"crop_rule": "absolute", "crop_size": (99.5, 100.0)}, "takes whole pixels, e.g. 512 512"),
        ({"crop_rule": "absolute_range", "crop_size": (9.0, 4.0)}, "9 4; give the lowest edge and then the highest"),
        ({"crop_rule": "absolut"}, "augment.crop_rule is 'absolut'; did you mean 'absolute'?"),
    ],
)
def test_settings_that_mean_nothing(changes, words):
    with pytest.raises(UserError) as caught:
        AugmentConfig(**changes)
    assert words in str(caught.value)


def test_a_run_from_before_changed_nothing():
    values = alone().to_dict()
    del values["augment"]
    assert not Config.from_dict(values).augment.on
