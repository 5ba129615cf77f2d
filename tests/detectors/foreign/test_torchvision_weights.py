"""Weights, classes and files of torchvision's detectors: names, caches, heads, and what torchvision reads back."""

from __future__ import annotations

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
from tv_models import CLASSES, MASK, MOBILE, RETINA, SSDLITE, detector_of, reference, silent, small_images

from mgdet.data.coco_names import COCO_CLASSES
from mgdet.detectors.foreign.torchvision import BACKBONES, FROZEN_NORMS_EPS, MODELS, build, rebuild
from mgdet.detectors.foreign.torchvision_detector import TorchvisionDetector
from mgdet.errors import UserError
from mgdet.interop.weights import save_checkpoint
from tiny import assert_same_tensors

EACH_FILE = [pytest.param(name, marks=[] if name == SSDLITE else pytest.mark.long) for name in MODELS]


def sensitive(detector: TorchvisionDetector) -> TorchvisionDetector:
    """In eval mode; random scores pass, and a dense head's best class does not crowd out the others."""
    for module in (*detector.modules(), *detector._whole):
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0
        if hasattr(module, "topk_candidates"):
            module.detections_per_img = 10**6
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
    """Weights of 91 outputs that all find something: no score stands far above the others."""
    torch.manual_seed(4)
    model = get_model_builder(name)(weights=None, weights_backbone=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    for entry, value in model.named_parameters():
        if "cls_score." in entry or "classification_head.module_list." in entry:
            value.detach().mul_(0.01)
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
    classes = ("tvmonitor", *COCO_CLASSES[:40])
    ours = build(name, classes=classes, weights="COCO_V1", say=lines.append)
    theirs = get_model_builder(name)(weights="COCO_V1")
    assert_same_model(ours, theirs)
    frozen = [module.eps for module in ours.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert set(frozen) == ({FROZEN_NORMS_EPS[name]} if name in FROZEN_NORMS_EPS else set())
    assert (ours.columns[:3], ours.outputs, ours.num_classes) == ((72, 1, 2), 91, 41)
    assert str(path) in lines[0] and "not the file that torchvision publishes" in lines[0]
    assert lines[1:] == [f"torchvision:{name} knows all 41 classes of the data and keeps its head of 91 outputs"]
    assert ours.notes == lines[1:]

    every = build(name, classes=None, weights="COCO_V1", say=silent)
    assert (every.outputs, every.num_classes) == (91, 90)
    canvas, sizes = small_images(ours)
    with torch.no_grad():
        found, wanted = (sensitive(detector).find(canvas, sizes) for detector in (ours, every))
    assert 0 < sum(len(own.boxes) for own in found) < sum(len(other.boxes) for other in wanted)
    for own, other in zip(found, wanted):
        kept = torch.isin(other.labels + 1, torch.tensor(ours.columns))
        assert torch.equal(own.boxes, other.boxes[kept])
        assert own.labels.tolist() == [ours.columns.index(label + 1) for label in other.labels[kept].tolist()]

    again = rebuild(json.loads(json.dumps(ours.description())), classes)
    again.load_state_dict(ours.state_dict())
    assert_same_model(again, ours)


@pytest.mark.parametrize("name", [SSDLITE, pytest.param(MASK, marks=pytest.mark.long)])
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
    if hasattr(module, "topk_candidates"):
        module.detections_per_img = 10**6
assert "mgdet" not in sys.modules
images = torch.load(inputs)
model.transform = torchvision.models.detection.transform.GeneralizedRCNNTransform(
    1, 10000, [0.0] * 3, [1.0] * 3, size_divisible=1, fixed_size=tuple(images.shape[:1:-1]))
with torch.no_grad():
    torch.save(model.eval()(list(images)), outputs)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "start"),
    [*((name, "random") for name in MODELS), *((name, "COCO_V1") for name in (RETINA, MASK, SSDLITE))],
)
def test_torchvision_alone_reads_what_was_exported(hub, tmp_path, name, start):
    if start != "random":
        lay_coco(hub, name)
    torch.manual_seed(2)
    classes = ("person", "dog") if start == "random" else COCO_CLASSES
    ours = build(name, classes=classes, weights=start, say=silent)
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


@pytest.mark.parametrize("name", [SSDLITE, pytest.param(RETINA, marks=pytest.mark.long)])
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


def test_a_run_keeps_what_its_weights_do_not_show(tmp_path):
    """Its norms were frozen with an eps of its own, and its second and third output are its classes."""
    plain = build(MOBILE, classes=("cat", "dog", "b"), weights="random", say=silent).description()
    run = rebuild(
        plain | {"frozen_norms_eps": 2e-3, "columns": (2, 3), "frozen": ["rpn.head.conv.0.0.bias"]}, ("b", "c")
    )
    file = tmp_path / "student_best.pth"
    save_checkpoint(file, run.weights(), classes=("b", "c"), config=None, description=run.description())
    lines = []
    for classes in (("b", "c"), None):
        again = build(MOBILE, classes=classes, weights=str(file), say=lines.append)
        assert_same_model(again, run)
    assert again.output_names == ("N/A", "N/A", "b", "c")
    assert build(MOBILE, classes=("c",), weights=str(file), say=silent).columns == (3,)
    assert not any("does not give the eps" in line for line in lines)
    with pytest.raises(UserError, match=f"holds a torchvision:{MOBILE}, not a torchvision:{RETINA}"):
        build(RETINA, classes=("b", "c"), weights=str(file), say=silent)


@pytest.mark.long
def test_a_plain_file_with_frozen_norms(hub, tmp_path):
    lay_coco(hub, MOBILE)
    lines = []
    coco = get_model_builder(MOBILE)(weights="COCO_V1")
    torch.save(coco.state_dict(), tmp_path / "frozen.pth")
    ours = build(MOBILE, classes=("person",), weights=str(tmp_path / "frozen.pth"), say=lines.append)
    assert ours.columns == (1,) and ours.outputs == 91
    assert "does not give the eps of its frozen norms: it is 1e-05" in lines[0]
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
        (SSDLITE, "no such.pth", "which is not a file here"),
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
