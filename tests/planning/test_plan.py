"""A teacher, a data set and a student's name become a run: what is decided, what is not, and what is said."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import formats
from mgdet.config import Config
from mgdet.detectors.build import DETECTORS
from mgdet.errors import UserError
from mgdet.models import build_models
from mgdet.planning import decide
from mgdet.planning.plan import FAMILIES, plan
from mgdet.planning.rules import SHARE
from mgdet.recipes import RECIPES
from refusals import refusal
from tiny import CLASSES, write_detector

SMALL = {"student.weights": "random"}


def decided(tiny, *, student="test_resnet", **options):
    return plan(str(tiny.teacher), str(tiny.root), student=student, **options)


def line(result, what):
    """The text of a line by its title."""
    return next(each[9:] for each in result.lines if each.startswith(what))


def test_a_teacher_of_this_package_and_its_own_data(tiny):
    result = decided(tiny, student="")
    config = result.config
    assert (config.student.detector, config.student.backbone) == ("retinanet", "resnet18")
    assert (config.student.weights, config.student.channels) == ("timm:resnet18.tv_in1k", 32)
    assert config.teacher.weights == str(tiny.teacher)
    assert config.inherit and config.methods == ("mgd",)
    assert (config.data.long_edge, config.data.short_edge) == (96, (64, 64))
    assert config.data.train_annotations == "annotations/train.json"
    assert (config.optimizer.name, config.optimizer.lr, config.train.batch) == ("sgd", 0.01, 2)
    assert (config.schedule.epochs, config.schedule.drops) == (300, (200, 275))
    assert (config.schedule.warmup_steps, config.train.eval_every) == (225, 12)
    assert config.train.metrics == ("bbox",)
    assert result.folder == "runs/data-retinanet-resnet18"
    titles = ["teacher", "data", "student", "recipe", "images", "method", "inherits", "batch", "schedule", "rate"]
    assert [each.split()[0] for each in result.lines] == titles
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_it_can_be_built(tiny):
    config = decided(tiny, settings=SMALL).config
    assert build_models(config, CLASSES, fresh=True, say=lambda text: None).teacher is not None


def test_what_is_given_is_not_decided(tiny):
    settings = SMALL | {
        "schedule.epochs": 3,
        "train.batch": 3,
        "data.short_edge": [32, 64],
        "inherit": False,
        "mgd.weight": 1e-3,
        "train.eval_every": 1,
        "student.norm_eval": True,
        "optimizer.lr": 0.5e-3,
    }
    result = decided(tiny, settings=settings)
    config = result.config
    for name, value in settings.items():
        section, _, field = name.rpartition(".")
        found = getattr(getattr(config, section) if section else config, field)
        assert found == (tuple(value) if isinstance(value, list) else value), name
    assert config.mgd.share == 0 and config.student.frozen_stages == 0
    assert config.data.long_edge == 96
    assert "as given" in line(result, "schedule") and "as given" in line(result, "inherits")
    assert "schedule.epochs 3, train.batch 3" in line(result, "given")


def test_one_edge_alone_bounds_the_other(tiny):
    assert decided(tiny, settings={"data.long_edge": 48}).config.data.short_edge == (48, 48)
    assert decided(tiny, settings={"data.short_edge": (128, 128)}).config.data.long_edge == 128
    square = decided(tiny, settings={"data.square": 320})
    assert square.config.data.square == 320 and line(square, "images") == "squares of 320 pixels, as given"


def test_a_square_of_0_that_is_given_keeps_the_ratio(tiny, tmp_path):
    content = torch.load(tiny.teacher, weights_only=True)
    content["meta"]["mgdet"]["data"]["square"] = 64
    torch.save(content, tmp_path / "square.pth")
    for given, square in (({}, 64), ({"data.square": 0}, 0)):
        result = plan(str(tmp_path / "square.pth"), str(tiny.root), student="test_resnet", settings=given)
        assert result.config.data.square == square


def test_drops_and_warmup_follow_the_epochs_that_are_given(tiny):
    schedule = decided(tiny, student="resnet10t", settings={"schedule.epochs": 24}).config.schedule
    assert (schedule.drops, schedule.warmup_steps) == ((16, 22), 18)


class TestShapeOfTheSchedule:
    """The student on test_resnet has a recipe with a cosine, that on resnet10t one with drops."""

    def rate(self, result):
        return line(result, "rate").partition("), ")[2]

    def test_given_drops_take_the_place_of_a_cosine(self, tiny):
        result = decided(tiny, settings={"schedule.drops": (100, 200)})
        assert (result.config.schedule.shape, result.config.schedule.drops) == ("steps", (100, 200))
        assert self.rate(result) == "divided by 10 after epochs 100 and 200"

    def test_a_cosine_has_no_drops(self, tiny):
        result = decided(tiny, student="resnet10t", settings={"schedule.shape": "cosine"})
        assert result.config.schedule.drops == () and self.rate(result) == "falling as a cosine"

    def test_steps_in_place_of_a_cosine_have_the_published_drops(self, tiny):
        result = decided(tiny, settings={"schedule.shape": "steps", "schedule.epochs": 24})
        assert result.config.schedule.drops == (16, 22)
        constant = decided(tiny, settings={"schedule.shape": "steps", "schedule.drops": ()})
        assert constant.config.schedule.drops == () and self.rate(constant) == "constant"

    @pytest.mark.parametrize(
        ("student", "settings", "words"),
        [
            (
                "test_resnet",
                {"schedule.shape": "cosine", "schedule.drops": (8, 11)},
                "schedule.drops is 8 11, but schedule.shape is cosine, which has no drops; give --schedule.shape steps",
            ),
            ("resnet10t", {"schedule.cosine_floor": 0.1}, "schedule.cosine_floor is 0.1, but schedule.shape is steps"),
            ("test_resnet", {"schedule.cosine_floor": 0.1, "schedule.drops": (8,)}, "which has no floor; give --sched"),
            (
                "test_resnet",
                {"schedule.epochs": 4, "schedule.drops": (2, 4)},
                "schedule.drops is 2 4, but schedule.epochs is 4, so the rate would not fall after 4",
            ),
        ],
    )
    def test_what_would_be_ignored_is_refused(self, tiny, student, settings, words):
        assert words in refusal(decided, tiny, student=student, settings=settings)


def test_another_method_takes_mgds_place(tiny):
    assert decided(tiny, settings={"pkd.weight": 10.0}).config.methods == ("pkd",)
    both = decided(tiny, settings={"pkd.weight": 10.0, "mgd.share": 0.1}).config
    assert both.methods == ("mgd", "pkd") and both.mgd.share == 0.1


def test_an_optimizer_brings_its_own_rate(tiny):
    assert decided(tiny, student="resnet10t", settings={"optimizer.name": "adamw"}).config.optimizer.lr == 2e-4
    config = decided(tiny, settings=SMALL | {"optimizer.name": "sgd"}).config
    assert config.optimizer.lr == 0.01


def test_random_weights_and_other_backbones_train_with_adamw(tiny):
    random = decided(tiny, student="resnet10t", settings=SMALL).config
    assert (random.optimizer.name, random.optimizer.backbone_share, random.schedule.shape) == ("adamw", 1.0, "cosine")
    convnext = decided(tiny, student="convnext_atto").config
    assert (convnext.optimizer.name, convnext.optimizer.backbone_share) == ("adamw", 0.5)
    assert decided(tiny, student="mobilenetv3_large_100").config.optimizer.name == "sgd"


def test_a_solo_inherits_from_one_with_its_grids_alone(tiny, tmp_path):
    write_detector(tmp_path / "solo.pth", seed=1, detector="solo", grids=(9, 8, 6, 5, 3))

    def inherits(settings):
        result = plan(str(tmp_path / "solo.pth"), str(tiny.root), student="test_resnet", settings=SMALL | settings)
        return line(result, "inherits"), build_models(result.config, CLASSES, fresh=True, say=str)

    words, models = inherits({})
    assert words == "the teacher's neck and head"
    assert models.student.student.grids == (9, 8, 6, 5, 3)
    words, models = inherits({"student.grids": [40, 36, 24, 16, 12]})
    assert words == "nothing: the grids differ"
    assert models.student.student.grids == (40, 36, 24, 16, 12)


class TestTeachersOfOtherClasses:
    @pytest.fixture
    def other(self, tmp_path):
        write_detector(tmp_path / "other.pth", seed=1, classes=("cat", "dog"))
        return str(tmp_path / "other.pth")

    def test_nothing_is_inherited(self, tiny, other):
        result = plan(other, str(tiny.root), student="test_resnet")
        assert not result.config.inherit
        assert line(result, "inherits") == "nothing: the teacher knows other classes"

    def test_images_are_not_enlarged(self, tiny, tmp_path):
        write_detector(tmp_path / "large.pth", seed=1, classes=("cat", "dog"))
        content = torch.load(tmp_path / "large.pth", weights_only=True)
        content["meta"]["mgdet"]["data"] |= {"long_edge": 1333, "short_edge": [800, 800]}
        torch.save(content, tmp_path / "large.pth")
        result = plan(str(tmp_path / "large.pth"), str(tiny.root), student="test_resnet")
        assert (result.config.data.long_edge, result.config.data.short_edge) == (96, (64, 64))
        assert "nine in ten images are no larger" in line(result, "images")


class TestMethod:
    def test_the_published_weight_where_the_images_are_as_published(self, tiny, tmp_path):
        write_wide(tmp_path / "wide.pth")
        large = {"data.long_edge": 1333, "data.short_edge": (800, 800), "train.batch": 2}
        config = plan(str(tmp_path / "wide.pth"), str(tiny.root), student="test_resnet", settings=large).config
        assert (config.mgd.weight, config.mgd.share) == (2e-5, 0.0)

    def test_a_share_where_they_are_smaller(self, tiny, tmp_path):
        write_wide(tmp_path / "wide.pth")
        result = plan(str(tmp_path / "wide.pth"), str(tiny.root), student="test_resnet")
        assert (result.config.mgd.weight, result.config.mgd.share) == (0.0, SHARE)
        assert "the published weight is for images of 1333 x 800 pixels" in line(result, "method")

    def test_a_share_where_the_neck_is_narrower(self, tiny):
        result = decided(tiny)
        assert (result.config.mgd.weight, result.config.mgd.share) == (0.0, SHARE)
        assert "the published weight is for necks of 256 channels" in line(result, "method")

    def test_a_share_of_0_that_is_given_leaves_the_published_weight(self, tiny):
        result = decided(tiny, settings={"mgd.share": 0.0})
        assert (result.config.mgd.weight, result.config.mgd.share) == (2e-5, 0.0)
        assert line(result, "method") == "mgd, mask ratio 0.65, weight 2e-05"
        assert decided(tiny, settings={"mgd.share": 0.0, "pkd.weight": 10.0}).config.methods == ("pkd",)


def write_wide(path):
    """A teacher with the published width of the neck."""
    from mgdet.interop.weights import save_checkpoint
    from mgdet.models import detector_from
    from tiny import alone

    config = alone()
    config.student.channels = 256
    detector = detector_from(config.student, len(CLASSES))
    save_checkpoint(path, detector.state_dict(), classes=CLASSES, config=config.to_dict())


class TestOtherLibraries:
    def test_a_teacher_of_torchvision(self, tiny):
        result = plan("torchvision:fasterrcnn_resnet50_fpn", str(tiny.root), settings={"train.batch": 2})
        config = result.config
        assert (config.student.detector, config.student.backbone) == ("faster_rcnn", "resnet18")
        assert config.teacher.weights == "pretrained" and not config.inherit
        assert (config.optimizer.name, config.schedule.shape) == ("adamw", "cosine")
        assert line(result, "recipe") == "pair, for detectors of any library"

    def test_a_student_of_one_size(self, tiny):
        result = decided(tiny, student="torchvision:ssdlite320_mobilenet_v3_large")
        assert result.config.data.square == 320
        assert line(result, "images") == "squares of 320 pixels, the only size that the student takes"


class TestMasks:
    @pytest.fixture
    def boxes(self, tiny, tmp_path):
        root = tmp_path / "boxes"
        shutil.copytree(tiny.root, root)
        for file in (root / "annotations").iterdir():
            content = json.loads(file.read_text())
            for annotation in content["annotations"]:
                del annotation["segmentation"]
            file.write_text(json.dumps(content))
        return root

    def test_they_are_measured_where_the_data_has_them(self, tiny):
        assert decided(tiny, student="mask_rcnn:test_resnet", settings=SMALL).config.train.metrics == ("bbox", "segm")
        assert decided(tiny, student="solo:test_resnet", settings=SMALL).config.train.metrics == ("segm", "bbox")

    def test_a_student_that_needs_them_is_refused(self, tiny, boxes):
        with pytest.raises(UserError, match="the student 'solo' learns masks, and the data has none for it"):
            plan(str(tiny.teacher), str(boxes), student="solo")

    def test_a_teacher_with_masks_gets_a_student_without(self, boxes):
        result = plan("torchvision:maskrcnn_resnet50_fpn", str(boxes), settings={"train.batch": 2})
        assert result.config.student.detector == "faster_rcnn"


class TestMemory:
    def test_the_batch_is_what_fits(self, tiny, monkeypatch):
        monkeypatch.setattr(decide, "memory_for_training", lambda device, processes: 1)
        result = decided(tiny)
        assert result.config.train.batch == 1
        assert "which may be too little" in line(result, "batch")

    def test_on_a_gpu_it_is_what_the_rate_is_meant_for(self, tiny, monkeypatch):
        monkeypatch.setattr(decide, "memory_for_training", lambda device, processes: 1 << 40)
        config = decided(tiny, device=torch.device("cuda"), settings={"train.accumulate": 2}).config
        assert config.train.batch == 2  # twelve images are too few for more

    def test_processes_share_a_step(self, tiny):
        result = decided(tiny, processes=2)
        assert line(result, "batch").startswith("4 images per step (2 x 2 processes)")
        assert "300 epochs of 4 steps" in line(result, "schedule")


@pytest.mark.parametrize("layout", ["yolo", "voc"])
def test_other_formats(tiny, tmp_path, layout):
    getattr(formats, layout)(tmp_path / layout)
    result = plan(str(tiny.teacher), str(tmp_path / layout), student="test_resnet")
    assert result.config.data.train_annotations
    assert layout in line(result, "data").lower()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"schedule.epoch": 3}, "schedule has no setting 'epoch'; did you mean 'epochs'?"),
        ({"shedule.epochs": 3}, "there is no setting 'shedule.epochs'; did you mean 'schedule'?"),
        ({"epochs": 3}, "config has no setting 'epochs'"),
        ({"schedule.epochs": "three"}, "schedule.epochs is 'three', not int"),
        ({"schedule.epochs": 0}, "schedule.epochs is 0; give 1 or more"),
        ({"data.short_edge": 64}, "data.short_edge is 64, not"),
        ({"mgd.weight": 0.0, "inherit": False}, "there is a teacher, but nothing is learned from it"),
        ({"student.channels": 33}, "channels is 33; give a multiple of 32"),
    ],
)
def test_what_cannot_be_is_refused(tiny, settings, words):
    with pytest.raises(UserError) as error:
        decided(tiny, settings=settings)
    assert words in str(error.value)


def test_a_missing_teacher_or_data_set_is_named(tiny, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        plan("nowhere.pth", str(tiny.root))
    with pytest.raises(UserError, match="nodata"):
        plan(str(tiny.teacher), str(tmp_path / "nodata"))


def test_every_detector_has_a_recipe():
    assert FAMILIES.keys() == DETECTORS.keys()
    assert all(recipe in RECIPES for recipe, _ in FAMILIES.values())
