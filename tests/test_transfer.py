"""From any file to one clean checkpoint, with a sentence that accounts for all of it."""

from __future__ import annotations

import hashlib

import pytest
import torch

import forged
import recorded
from mgdet.detectors.foreign import library
from mgdet.errors import UserError
from mgdet.interop.weights import read_checkpoint, save_checkpoint
from mgdet.transfer import transfer

CONFIG = {"recipe": "mine", "student": {"detector": "retinanet", "backbone": "resnet50"}}


def zeros(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1).expand(shape) if shape else torch.tensor(0) for name, shape in shapes.items()}


@pytest.mark.parametrize("optimizer", [True, False], ids=["with optimizer", "without"])
def test_published_mgd_checkpoint_of_retinanet(tmp_path, optimizer):
    """All 1,044 names and shapes of the original's file give the 354 of its student."""
    student = recorded.record("retinanet_r50")["state_dict"]
    distill = recorded.record("distill_retina")
    generators = {name: [2] for name in distill["optimizer_names"] if name.startswith("distill_losses.")}
    weights = zeros(
        {f"student.{name}": shape for name, shape in student.items()}
        | {f"teacher.{name}": s for name, s in recorded.record("retinanet_x101_64x4d")["state_dict"].items()}
        | generators
        | distill["distiller_state_dict_extra_keys"]
    )
    assert len(weights) == distill["distiller_state_dict_n"] == 1044
    source, out = tmp_path / "published.pth", tmp_path / "student.pth"
    content = {"meta": {"CLASSES": tuple(str(i) for i in range(80))}, "state_dict": weights}
    torch.save(content | ({"optimizer": {"state": {}}} if optimizer else {}), source)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    rest = "660 teacher tensors, 20 generator tensors, 10 stored feature map tensors" + ", optimizer" * optimizer
    read, what, doubt, wrote = transfer(source, out).splitlines()
    assert read == f"read {source}: an MGD training checkpoint, 1044 tensors, SHA-256 {sha256}"
    assert what == f"{source}: retinanet with resnet50, 80 classes"
    assert doubt.startswith(
        "weights do not show its style and normalisation, and it holds no config; taken as is usual"
    )
    assert wrote == f"wrote {out}: 354 tensors, 80 class names; left out {rest}"
    written = torch.load(out, weights_only=True)
    assert written["meta"] == content["meta"]
    assert {name: list(value.shape) for name, value in written["state_dict"].items()} == student


def test_run_folder_gives_its_best_student(tmp_path):
    save_checkpoint(tmp_path / "student_last.pth", forged.state(1), classes=forged.CLASSES, config=CONFIG)
    save_checkpoint(tmp_path / "student_best.pth", forged.state(2), classes=forged.CLASSES, config=CONFIG)
    out = tmp_path / "out.pth"
    assert "a checkpoint of mgdet" in transfer(tmp_path, out)
    checkpoint = read_checkpoint(out)
    assert forged.same(checkpoint.state_dict, forged.state(2))
    assert checkpoint.config == CONFIG


def test_names_and_config_survive_safetensors(tmp_path):
    save_checkpoint(tmp_path / "a.pth", forged.state(), classes=forged.CLASSES, config=CONFIG)
    transfer(tmp_path / "a.pth", tmp_path / "b.safetensors")
    transfer(tmp_path / "b.safetensors", tmp_path / "c.pth")
    first, last = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pth", "c.pth"))
    assert first["meta"] == last["meta"] == {"CLASSES": forged.CLASSES, "mgdet": CONFIG}
    assert forged.same(first["state_dict"], last["state_dict"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_mmdetection_3_file_becomes_plain(tmp_path, zipped):
    content = {
        "meta": {"dataset_meta": {"classes": list(forged.CLASSES)}},
        "state_dict": forged.state(),
        "message_hub": forged.MessageHub(),
    }
    forged.save_foreign(tmp_path / "a.pth", content, zipped=zipped)
    text = transfer(tmp_path / "a.pth", tmp_path / "b.pth")
    assert "an MMDetection checkpoint" in text
    assert "left out message_hub" in text
    assert torch.load(tmp_path / "b.pth", weights_only=True)["meta"] == {"CLASSES": forged.CLASSES}


def test_old_offsets_are_written_under_their_new_name(tmp_path):
    head = {"bbox_head.retina_cls.bias": torch.zeros(9)}
    old = {"backbone.layer2.0.conv2_offset.weight": torch.ones(27, 4, 3, 3)} | head
    torch.save({"meta": {"CLASSES": ("a",)}, "state_dict": old}, tmp_path / "a.pth")
    transfer(tmp_path / "a.pth", tmp_path / "b.pth")
    written = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    assert list(written) == ["backbone.layer2.0.conv2.conv_offset.weight", *head]


def test_missing_class_names_are_said(tmp_path):
    torch.save(forged.state(), tmp_path / "a.pth")
    assert "no class names, the file has none" in transfer(tmp_path / "a.pth", tmp_path / "b.pth")
    assert torch.load(tmp_path / "b.pth", weights_only=True)["meta"] == {}


@pytest.mark.parametrize(
    ("out", "part"),
    [
        ("old.pth", "exists already"),
        ("no/new.pth", "does not exist"),
        ("new.bin", "'.bin'"),
        ("a.pth", "exists already"),
    ],
)
def test_nothing_is_written_over(tmp_path, out, part):
    torch.save(forged.state(), tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "old.pth").write_bytes(b"old")
    with pytest.raises(UserError, match=part):
        transfer(tmp_path / "a.pth", tmp_path / out)
    assert (tmp_path / "old.pth").read_bytes() == b"old"
    assert (tmp_path / "a.pth").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "old.pth"]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    state = forged.state()
    next(iter(state.values())).view(-1)[0] = float("nan")
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=f"a.pth holds numbers that are not finite, in {next(iter(state))}: its training"
    ):
        transfer(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


def test_bad_source_leaves_no_file(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"text")
    with pytest.raises(UserError, match="not a checkpoint"):
        transfer(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ({"conv1.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.zeros(5, 4)}, "holds a backbone"),
        ({"backbone.conv1.weight": torch.zeros(4, 3, 3, 3), "head.fc.weight": torch.zeros(5, 4)}, "holds a backbone"),
        ({"a": torch.zeros(3), "b.c": torch.zeros(2)}, "holds no detector under MMDetection's names, only a, b.c"),
        ({name: v for name, v in forged.state().items() if "bbox_head" not in name}, "holds no detector"),
        ({name: v for name, v in forged.state().items() if "backbone" not in name}, "holds no detector"),
    ],
)
def test_what_is_no_detector_is_refused(weights, part, tmp_path):
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=part):
        transfer(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("ema", [False, True])
def test_one_of_two_copies_is_written(ema, tmp_path):
    plain, average = forged.state(1), forged.state(2)
    both = plain | {f"ema_{name.replace('.', '_')}": value for name, value in average.items()}
    torch.save({"state_dict": both}, tmp_path / "a.pth")
    text = transfer(tmp_path / "a.pth", tmp_path / "b.pth", ema=ema)
    assert f"left out {len(plain)} {'plain' if ema else 'EMA'} copy tensors" in text
    assert forged.same(read_checkpoint(tmp_path / "b.pth").state_dict, average if ema else plain)


def test_a_distiller_of_mmrazor_gives_its_student(tmp_path):
    sides = {f"architecture.{name}": value for name, value in forged.state(1).items()}
    sides |= {f"teacher.{name}": value for name, value in forged.state(2).items()}
    torch.save({"state_dict": sides}, tmp_path / "a.pth")
    text = transfer(tmp_path / "a.pth", tmp_path / "b.pth")
    assert "an MMRazor training checkpoint" in text
    assert f"left out {len(forged.state())} teacher tensors" in text
    assert forged.same(read_checkpoint(tmp_path / "b.pth").state_dict, forged.state(1))


def test_a_detector_of_another_library_is_written_as_that_library_reads_it(tmp_path):
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    name = "ssdlite320_mobilenet_v3_large"
    detector = library("torchvision").build(name, classes=("a",), weights="random", say=lambda line: None)
    config = CONFIG | {"student": {"detector": f"torchvision:{name}"}}
    description = detector.description()
    save_checkpoint(tmp_path / "a.pth", detector.weights(), classes=("a",), config=config, description=description)
    assert "torchvision's ssdlite320_mobilenet_v3_large" in transfer(tmp_path / "a.pth", tmp_path / "b.pth")
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    model.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True))
    assert forged.same(dict(model.state_dict()), dict(detector.weights()))


def test_a_description_without_its_detector_is_refused(tmp_path):
    save_checkpoint(
        tmp_path / "a.pth", {"library.a": torch.zeros(2)}, classes=("a",), config=None, description={"name": "b"}
    )
    with pytest.raises(UserError, match="does not say which detector of which library it holds"):
        transfer(tmp_path / "a.pth", tmp_path / "b.pth")
