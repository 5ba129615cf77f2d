"""torchvision's detectors behind the outer face, held to torchvision itself."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
from torch import nn
from torchvision.models import get_model_builder, get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from mgdet.data.coco_names import COCO_CLASSES
from mgdet.detectors.foreign.torchvision import BACKBONES, FROZEN_NORMS_EPS, MODELS, build, rebuild
from mgdet.detectors.foreign.torchvision_detector import TorchvisionDetector
from mgdet.errors import UserError
from mgdet.structures import Target
from tiny import assert_same_tensors

MASK, RETINA, MOBILE = "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"
SSDLITE = "ssdlite320_mobilenet_v3_large"
FAST = (RETINA, MOBILE, SSDLITE)
EACH = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in MODELS]
EACH_FILE = [pytest.param(name, marks=[] if name == SSDLITE else pytest.mark.slow) for name in MODELS]
CLASSES = ("person", "cell", "tv")


def silent(line: str) -> None:
    """What is told to a user who does not listen."""


def reference(name: str, **settings) -> nn.Module:
    """torchvision's own, with scores that pass its thresholds; images of 96 pixels' shorter edge keep their size."""
    torch.manual_seed(3)
    if "rcnn" in name:
        settings |= {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 60, "rpn_post_nms_top_n_test": 40}
    if not name.startswith("ssd"):
        settings |= {"min_size": 96, "max_size": 1000, "_skip_resize": True}
    model = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=4, **settings)
    for entry, value in model.named_parameters():
        if "cls_logits.bias" in entry or entry.endswith("bbox_ctrness.bias"):
            nn.init.normal_(value, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def detector_of(model: nn.Module, name: str, columns=(1, 2, 3)) -> TorchvisionDetector:
    return TorchvisionDetector(
        copy.deepcopy(model), name=name, outputs=4, columns=columns, classes=CLASSES[: len(columns)]
    )


def batch(name: str) -> tuple[list, list, list[tuple[int, int]]]:
    """Two images of different sizes, the second without an object, as torchvision takes them."""
    generator = torch.Generator().manual_seed(5)
    sizes = {"ssd300_vgg16": [(300, 300)] * 2, SSDLITE: [(320, 320)] * 2}.get(name, [(96, 120), (96, 100)])
    images = [torch.rand(3, height, width, generator=generator) for height, width in sizes]
    masks = torch.zeros(2, *sizes[0], dtype=torch.uint8)
    masks[0, 12:60, 8:50] = 1
    masks[1, 30:90, 20:95] = 1
    boxes = torch.tensor([[8.0, 12, 50, 60], [20, 30, 95, 90]])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0]}
    return images, [{"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}, nothing], sizes


def our_targets(theirs: list[dict], sizes: list[tuple[int, int]]) -> list[Target]:
    return [Target(t["boxes"], t["labels"] - 1, t["masks"], size=size) for t, size in zip(theirs, sizes)]


def small_images(detector: TorchvisionDetector, number: int = 2) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    height, width = detector.native_size or (64, 96)
    generator = torch.Generator().manual_seed(9)
    return torch.randn(number, 3, height, width, generator=generator), [(height, width)] * number


@pytest.mark.parametrize("name", [*EACH, pytest.param("mask", id="maskrcnn_small")])
def test_losses_and_detections_are_torchvisions_own(name):
    # A Mask R-CNN whose heads see few regions is quick enough for every run.
    settings = {"box_detections_per_img": 8} if name == "mask" else {}
    name = MASK if name == "mask" else name
    model = reference(name, **settings)
    ours = detector_of(model, name)
    images, targets, sizes = batch(name)
    model.train()
    ours.train()
    normalised, _ = model.transform(images, targets)
    assert normalised.image_sizes == sizes
    torch.manual_seed(11)
    losses = model(images, targets)
    torch.manual_seed(11)
    learned = ours.learn(normalised.tensors, our_targets(targets, sizes))
    assert learned.losses.keys() == losses.keys()
    assert all(torch.equal(learned.losses[loss], losses[loss]) for loss in losses)
    assert all(value.isfinite() for value in losses.values())
    assert [level.stride for level in ours.levels] == pytest.approx(
        [normalised.tensors.shape[-1] / tap.shape[-1] for tap in learned.seen.taps], rel=0.5
    )

    model.eval()
    ours.eval()
    with torch.no_grad():
        theirs = model(images)
        found = ours.find(normalised.tensors, sizes)
    assert len(found[0].boxes) > 0
    for own, every in zip(found, theirs):
        # The sigmoid heads of RetinaNet and FCOS have an output for the background, which is no class of the data.
        other = {part: value[every["labels"] > 0] for part, value in every.items()}
        assert torch.equal(own.boxes, other["boxes"])
        assert torch.equal(own.scores, other["scores"])
        assert torch.equal(own.labels, other["labels"] - 1)
        assert torch.equal(own.scores, own.scores.sort(descending=True).values)
        assert (own.masks is not None) == ours.has_masks == ("masks" in other)
        if own.masks is not None:
            assert torch.equal(own.masks, other["masks"][:, 0] > 0.5)
            assert own.masks.any()


@pytest.mark.parametrize("name", EACH)
def test_pixels_are_what_torchvision_normalises_with(name):
    model = reference(name)
    ours = detector_of(model, name)
    images, _, sizes = batch(name)
    theirs = model.transform(images)[0].tensors
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ours.pixels)
    (height, width), image = sizes[0], images[0]
    assert torch.allclose((255 * image - mean) / std, theirs[0][:, :height, :width], atol=2e-5)
    assert ours.native_size == {"ssd300_vgg16": (300, 300), SSDLITE: (320, 320)}.get(name)


def test_only_norms_follow_the_training_flag_and_a_step_reaches_every_parameter():
    ours = detector_of(reference(MOBILE), MOBILE)
    _, targets, sizes = batch(MOBILE)
    inputs = ours._whole[0].transform
    assert not list(inputs.parameters())
    canvas = torch.randn(2, 3, 96, 128)
    truth = our_targets(targets, sizes)
    norm = next(module for module in ours.modules() if isinstance(module, nn.BatchNorm2d))
    ours.eval()
    before = norm.running_mean.clone()
    losses = ours.learn(canvas, truth).losses
    assert "loss_classifier" in losses and torch.equal(norm.running_mean, before)
    ours.train()
    ours.find(canvas, sizes)
    assert not torch.equal(norm.running_mean, before)
    assert all(module.training for module in ours.modules())
    sum(ours.learn(canvas, truth).losses.values()).backward()
    assert [name for name, p in ours.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_teacher_stops_at_the_tap_and_shows_what_a_student_would():
    ours = detector_of(reference(MOBILE), MOBILE).eval()
    _, targets, sizes = batch(MOBILE)
    canvas = torch.randn(2, 3, 96, 128)
    ran = []
    ours.rpn.register_forward_hook(lambda *args: ran.append(1))
    taps = ours.see(canvas, sizes).taps
    assert not ran
    learned = ours.learn(canvas, our_targets(targets, sizes)).seen.taps
    assert len(taps) == len(learned) == len(ours.levels) == 2
    assert all(torch.equal(a, b) for a, b in zip(taps, learned))
    assert [level.channels for level in ours.levels] == [256, 256]


def test_names_are_torchvisions_and_a_copy_is_a_detector_of_its_own():
    model = reference(MOBILE)
    ours = detector_of(model, MOBILE).eval()
    assert list(ours.state_dict()) == list(model.state_dict())
    other = copy.deepcopy(ours)
    nn.init.zeros_(other.roi_heads.box_predictor.cls_score.weight)
    canvas, sizes = small_images(ours)
    mine, its = ours.find(canvas, sizes)[0], other.find(canvas, sizes)[0]
    assert not torch.equal(mine.scores[:4], its.scores[:4])
    backbone = [name for name, _ in ours.named_parameters() if name.startswith(ours.backbone_prefixes)]
    assert backbone and all(name.startswith("backbone.body.") for name in backbone)


def test_in_bfloat16_boxes_and_losses_stay_float32():
    ours = detector_of(reference(MOBILE), MOBILE).eval()
    _, targets, sizes = batch(MOBILE)
    canvas = torch.randn(2, 3, 96, 128)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        learned = ours.learn(canvas, our_targets(targets, sizes))
        found = ours.find(canvas, sizes)
    assert all(value.dtype == torch.float32 for value in learned.losses.values())
    boxes = found[0].boxes
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


def test_scales_give_boxes_and_masks_of_the_file():
    model = reference(MASK, box_detections_per_img=4)
    ours = detector_of(model, MASK).eval()
    canvas, sizes = torch.randn(1, 3, 64, 96), [(60, 90)]
    with torch.no_grad():
        plain, scaled = ours.find(canvas, sizes)[0], ours.find(canvas, sizes, [(0.5, 0.75)])[0]
    assert torch.allclose(scaled.boxes, plain.boxes / torch.tensor([0.5, 0.75, 0.5, 0.75]))
    assert scaled.masks.shape == (len(scaled.boxes), 80, 180)
    assert plain.masks.shape == (len(plain.boxes), 60, 90)


def test_what_cannot_be_learned_is_a_sentence_or_works():
    mask = detector_of(reference(MASK), MASK)
    with pytest.raises(UserError, match="an image has 1 boxes without any"):
        target = Target(torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([0]), size=(64, 64))
        mask.learn(torch.randn(1, 3, 64, 64), [target])
    ssd = detector_of(reference(SSDLITE), SSDLITE).train()
    _, targets, sizes = batch(SSDLITE)
    with pytest.raises(UserError, match=r"cannot learn from 1 image alone.*--train\.batch"):
        ssd.learn(torch.randn(1, 3, 320, 320), our_targets(targets, sizes)[:1])
    with pytest.raises(UserError, match=r"320 x 320 pixels only, not of 320 x 352; set --data\.square 320"):
        ssd.learn(torch.randn(2, 3, 320, 352), our_targets(targets, sizes))
    assert all(module.training for module in ssd.modules())


@pytest.mark.parametrize("name", EACH)
def test_empty_boxes_and_numbers_that_are_not_finite(name):
    ours = detector_of(reference(name), name).train()
    _, targets, sizes = batch(name)
    truth = our_targets(targets, sizes)
    flat = copy.deepcopy(truth)
    flat[0].boxes = torch.cat([truth[0].boxes, torch.tensor([[30.0, 20, 30, 40]])])
    flat[0].labels = torch.tensor([0, 2, 1])
    flat[0].masks = torch.cat([truth[0].masks, truth[0].masks[:1]])
    canvas = torch.randn(2, 3, *(ours.native_size or (96, 128)))
    losses = []
    for target in (truth, flat):
        torch.manual_seed(0)
        losses.append(ours.learn(canvas, target).losses)
    assert all(torch.equal(losses[0][loss], losses[1][loss]) for loss in losses[0])
    nothing = ours.learn(canvas, [truth[1], truth[1]]).losses
    assert all(value.isfinite() for value in nothing.values())
    canvas[0, :, 5, 5] = float("nan")
    assert not sum(ours.learn(canvas, truth).losses.values()).isfinite()
    with torch.no_grad():
        assert len(ours.eval().find(canvas, sizes)) == 2


# ---- weights, classes, files ---------------------------------------------------------------------------------------


def sensitive(detector: TorchvisionDetector) -> TorchvisionDetector:
    """In eval mode, and random scores pass."""
    for module in (*detector.modules(), *detector._whole):
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0
    return detector.eval()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch's, and no network behind it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def lay(hub: Path, weights, state: dict) -> Path:
    """Puts a stand-in where torchvision's own code finds it, under the name of the published file."""
    path = hub / Path(urlparse(weights.url).path).name
    torch.save(state, path)
    return path


def lay_coco(hub: Path, name: str) -> Path:
    torch.manual_seed(4)
    model = get_model_builder(name)(weights=None, weights_backbone=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.01, 1.5)
    return lay(hub, get_model_weights(name).DEFAULT, model.state_dict())


def lay_backbone(hub: Path, name: str) -> None:
    part, weights = next((part, weights) for part, weights in BACKBONES.items() if part in name)
    torch.manual_seed(4)
    lay(hub, weights, get_model_builder(part)(weights=None).state_dict())


def assert_same_model(mine: nn.Module, theirs: nn.Module) -> None:
    """Equal to the bit: entries, kinds of norm with their eps, and what trains."""
    a, b = mine.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    assert [entry for entry in a if not torch.equal(a[entry], b[entry])] == []
    assert norms_of(mine) == norms_of(theirs)
    assert trains(mine) == trains(theirs)


def norms_of(model: nn.Module) -> dict[str, tuple]:
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)
    return {
        name: (type(m), m.eps, getattr(m, "momentum", 0)) for name, m in model.named_modules() if isinstance(m, kinds)
    }


def trains(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", EACH_FILE)
def test_pretrained_is_torchvisions_own_and_keeps_the_columns_that_the_data_know(hub, name):
    path = lay_coco(hub, name)
    lines = []
    ours = build(name, classes=("tvmonitor", "person"), weights="COCO_V1", say=lines.append)
    theirs = get_model_builder(name)(weights="COCO_V1")
    assert_same_model(ours, theirs)
    frozen = [module.eps for module in ours.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert set(frozen) == ({FROZEN_NORMS_EPS[name]} if name in FROZEN_NORMS_EPS else set())
    assert (ours.columns, ours.outputs, ours.num_classes) == ((72, 1), 91, 2)
    assert str(path) in lines[0] and "not the file that torchvision publishes" in lines[0]
    assert lines[1:] == [f"torchvision:{name} knows all 2 classes of the data and keeps its head of 91 outputs"]
    assert ours.notes == lines[1:]

    every = build(name, classes=None, weights="COCO_V1", say=silent)
    assert (every.outputs, every.num_classes) == (91, 90)
    canvas, sizes = small_images(ours)
    with torch.no_grad():
        found, wanted = (sensitive(detector).find(canvas, sizes) for detector in (ours, every))
    for own, other in zip(found, wanted):
        kept = (other.labels == 71) | (other.labels == 0)
        assert torch.equal(own.boxes, other.boxes[kept])
        assert torch.equal(own.labels, (other.labels[kept] == 0).long())

    again = rebuild(json.loads(json.dumps(ours.description())), ("tvmonitor", "person"))
    again.load_state_dict(ours.state_dict())
    assert_same_model(again, ours)


@pytest.mark.parametrize("name", [SSDLITE, pytest.param(MASK, marks=pytest.mark.slow)])
def test_unknown_classes_get_a_new_head_also_where_their_number_is_equal(hub, name):
    lay_coco(hub, name)
    torch.manual_seed(0)
    for number in (3, 90):
        lines = []
        classes = ("person", *(f"cell {i}" for i in range(number - 1)))
        ours = build(name, classes=classes, weights="pretrained", say=lines.append)
        assert ours.outputs == number + 1 and ours.columns == tuple(range(1, number + 1))
        assert "does not know 'cell 0', so its head starts at random" in lines[-1]
        coco = get_model_builder(name)(weights="COCO_V1").state_dict()
        mine = ours.state_dict()
        differing = {entry for entry in mine if not torch.equal(mine[entry], coco[entry])}
        predictors = ("cls_score", "bbox_pred", "mask_fcn_logits", "classification_head")
        assert differing and all(any(part in entry for part in predictors) for entry in differing)
    assert build(name, classes=COCO_CLASSES, weights="DEFAULT", say=silent).num_classes == 80


@pytest.mark.parametrize("name", EACH_FILE)
def test_a_backbones_weights_give_the_model_that_torchvision_builds_for_them(hub, name):
    lay_backbone(hub, name)
    torch.manual_seed(1)
    ours = build(name, classes=CLASSES, weights="backbone", say=silent)
    chosen = next(weights for part, weights in BACKBONES.items() if part in name)
    torch.manual_seed(1)
    theirs = get_model_builder(name)(weights=None, weights_backbone=chosen, num_classes=4)
    assert_same_model(ours, theirs)
    again = rebuild(json.loads(json.dumps(ours.description())), CLASSES)
    again.load_state_dict(ours.state_dict())
    assert_same_model(again, ours)
    by_name = build(name, classes=CLASSES, weights=chosen.name, say=silent)
    assert norms_of(by_name) == norms_of(ours)


ALONE = """
import sys, torch, torchvision
name, arguments, file, inputs, outputs = sys.argv[1:]
model = torchvision.models.get_model_builder(name)(**eval(arguments))
print(model.load_state_dict(torch.load(file, weights_only=True), strict=True))
for module in model.modules():
    if hasattr(module, "score_thresh"):
        module.score_thresh = 0.0
assert "mgdet" not in sys.modules
images = torch.load(inputs)
model.transform = torchvision.models.detection.transform.GeneralizedRCNNTransform(
    1, 10000, [0.0] * 3, [1.0] * 3, fixed_size=tuple(images.shape[:1:-1]))
with torch.no_grad():
    torch.save(model.eval()(list(images)), outputs)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start"),
    [*((name, "random") for name in MODELS), *((name, "COCO_V1") for name in (RETINA, MASK, SSDLITE))],
)
def test_torchvision_alone_reads_what_was_exported(hub, tmp_path, name, start):
    if start != "random":
        lay_coco(hub, name)
    torch.manual_seed(2)
    ours = build(name, classes=("person", "dog"), weights=start, say=silent)
    out, given, answered = (str(tmp_path / file) for file in ("out.pth", "in.pt", "found.pt"))
    ours.export(Path(out))
    canvas, sizes = small_images(ours)
    torch.save(canvas, given)
    arguments = (
        {"weights": None, "weights_backbone": None, "num_classes": 3} if start == "random" else {"weights": start}
    )
    command = [sys.executable, "-c", ALONE, name, str(arguments), out, given, answered]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "All keys matched" in answer.stdout, answer.stderr
    with torch.no_grad():
        found = sensitive(ours).find(canvas, sizes)
    assert sum(len(own.boxes) for own in found) > 0
    for own, other in zip(found, torch.load(answered)):
        kept = torch.isin(other["labels"], torch.tensor(ours.columns))
        assert torch.equal(own.boxes, other["boxes"][kept])
        assert torch.equal(own.scores, other["scores"][kept])
        if own.masks is not None:
            assert torch.equal(own.masks, other["masks"][kept, 0] > 0.5)


@pytest.mark.parametrize("name", [SSDLITE, pytest.param(RETINA, marks=pytest.mark.slow)])
def test_what_was_exported_comes_back_with_its_classes(hub, tmp_path, name):
    lay_coco(hub, name)
    ours = build(name, classes=("person", "dog"), weights="COCO_V1", say=silent)
    out = tmp_path / "out.pth"
    assert "num_classes=91)" in ours.export(out)
    with pytest.raises(UserError, match="exists already"):
        ours.export(out)
    lines = []
    again = build(name, classes=("dog", "person"), weights=str(out), say=lines.append)
    assert "0 missing, 0 unexpected, 0 of another shape" in lines[0] and "knows all 2 classes" in lines[1]
    assert again.columns == ours.columns[::-1] == (18, 1)
    assert_same_model(again, ours)
    assert build(name, classes=("cat", "dog"), weights=str(out), say=lines.append).outputs == 3
    assert "does not know 'cat'" in lines[-1]
    other = next(model for model in MODELS if model != name)
    with pytest.raises(UserError, match=f"holds a torchvision:{name}, not a torchvision:{other}"):
        build(other, classes=("dog",), weights=str(out), say=silent)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a.onnx", "ends in '.onnx', but torchvision reads .pth or .pt"),
        ("nowhere/a.pth", "nowhere of a.pth does not exist"),
    ],
)
def test_export_says_what_is_wrong_with_the_file(tmp_path, out, message):
    with pytest.raises(UserError, match=message):
        detector_of(reference(SSDLITE), SSDLITE).export(tmp_path / out)


@pytest.mark.slow
def test_a_plain_file_with_frozen_norms(hub, tmp_path):
    lay_coco(hub, MOBILE)
    lines = []
    coco = get_model_builder(MOBILE)(weights="COCO_V1")
    torch.save(coco.state_dict(), tmp_path / "frozen.pth")
    ours = build(MOBILE, classes=("person",), weights=str(tmp_path / "frozen.pth"), say=lines.append)
    assert ours.columns == (1,) and ours.outputs == 91
    assert "does not tell the eps of its frozen norms: it is 1e-05" in lines[0]
    assert norms_of(ours) == norms_of(coco)
    assert_same_tensors(ours.state_dict(), coco.state_dict())


def test_a_plain_file_that_names_no_classes(tmp_path):
    own = get_model_builder(SSDLITE)(weights=None, weights_backbone=None, num_classes=3)
    file = str(tmp_path / "own.pth")
    torch.save(own.state_dict(), file)
    two = build(SSDLITE, classes=("a", "b"), weights=file, say=silent)
    assert "names no classes, so its 2 are taken for the data's, in their order" in two.notes[0]
    assert_same_model(two, own)
    three = build(SSDLITE, classes=("a", "b", "c"), weights=file, say=silent)
    assert three.outputs == 4 and "trained for 2 classes, the data has 3" in three.notes[0]
    with pytest.raises(UserError, match="does not fit"):
        build(MOBILE, classes=("a",), weights=file, say=silent)


def test_a_file_with_the_tail_for_imagenet_weights(hub, tmp_path):
    lay_backbone(hub, SSDLITE)
    ours = build(SSDLITE, classes=("a", "b"), weights="backbone", say=silent)
    torch.save(dict(ours.state_dict()), tmp_path / "wide.pth")
    again = build(SSDLITE, classes=("a", "b"), weights=str(tmp_path / "wide.pth"), say=silent)
    assert_same_model(again, ours)
    assert "weights_backbone='DEFAULT'" in again.export(tmp_path / "out.pth")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("retinanet_resnet50_fpn_v3", "random", "did you mean 'retinanet_resnet50_fpn_v2'?"),
        ("keypointrcnn_resnet50_fpn", "random", "that learns boxes"),
        (SSDLITE, "COCO_V2", "did you mean 'COCO_V1'?"),
        (SSDLITE, "no such.pth", "no file that is here"),
    ],
)
def test_wrong_names_get_the_nearest(name, weights, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        build(name, classes=("a",), weights=weights, say=silent)


@pytest.mark.parametrize("weights", ["pretrained", "backbone"])
def test_without_a_network_one_sentence_names_the_file_to_bring(hub, weights):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be downloaded .*; bring the file \S+\.pth .* put it at ") as error:
        build(MOBILE, classes=("a",), weights=weights, say=silent)
    assert time.monotonic() - start < 10
    assert str(hub) in str(error.value)


class Bomb:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_file_in_the_cache_that_runs_code_is_refused(hub, capsys):
    lay(hub, get_model_weights(SSDLITE).DEFAULT, {"a": Bomb()})
    with pytest.raises(UserError, match="damaged or holds more than weights"):
        build(SSDLITE, classes=("a",), weights="pretrained", say=silent)
    assert "this must not run" not in capsys.readouterr().out
    lay(hub, get_model_weights(SSDLITE).DEFAULT, {"a": torch.zeros(1)})
    with pytest.raises(UserError, match="do not fit torchvision:ssdlite320"):
        build(SSDLITE, classes=("a",), weights="pretrained", say=silent)
