"""Which file is what, what it fits, and that every tensor is accounted for."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import forged
import pytest
import torch

import recorded
from mgdet import build_detector
from mgdet.errors import UserError
from mgdet.interop.weights import load_checkpoint, read_checkpoint, save_checkpoint

CONFIG = {"recipe": "mine", "student": {"detector": "retinanet", "backbone": "resnet50"}, "data": {"edges": [1, 2]}}
META_2 = {"CLASSES": forged.CLASSES, "mmdet_version": "2.19.0", "config": "model = dict()", "epoch": 24}
META_3 = {"dataset_meta": {"classes": forged.CLASSES, "palette": [(1, 2, 3)]}, "mmengine_version": "0.7.4"}
both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def refusal(call, *args, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@both_formats
def test_mmdetection_2(tmp_path, zipped):
    path = tmp_path / "old.pth"
    content = {
        "meta": META_2,
        "state_dict": OrderedDict(forged.state()),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert checkpoint.kind == "mmdetection"
    assert checkpoint.classes == forged.CLASSES
    assert checkpoint.config is None
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.left_out == {"optimizer": 0}
    assert forged.same(checkpoint.state_dict, forged.state())


@both_formats
def test_mmdetection_3_with_its_loggers(tmp_path, zipped):
    path = tmp_path / "new.pth"
    content = {
        "meta": META_3,
        "state_dict": forged.state(),
        "message_hub": {"log_scalars": {"loss": forged.HistoryBuffer()}, "runtime_info": {"hub": forged.MessageHub()}},
    }
    forged.save_foreign(path, content, zipped=zipped)
    checkpoint = read_checkpoint(path)
    assert checkpoint.kind == "mmdetection"
    assert checkpoint.classes == forged.CLASSES
    assert checkpoint.left_out == {"message_hub": 0}
    assert forged.same(checkpoint.state_dict, forged.state())


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": "circle"},
        {"dataset_meta": {"CLASSES": ["circle"]}},
        {"CLASSES": None, "dataset_meta": {"classes": ("circle",)}},
    ],
)
def test_spellings_of_class_names(tmp_path, meta):
    torch.save({"meta": meta, "state_dict": forged.state()}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").classes == ("circle",)


def test_mgd_training_checkpoint_gives_its_student(tmp_path):
    path = tmp_path / "epoch_24.pth"
    weights = forged.mgd_training(forged.state(seed=1), forged.state(seed=2))
    torch.save({"meta": META_2, "state_dict": weights, "optimizer": {}}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.kind == "mgd training"
    assert forged.same(checkpoint.state_dict, forged.state(seed=1))
    count = len(forged.state())
    assert checkpoint.entries == 2 * count + 30
    assert checkpoint.left_out == {"teacher": count, "generator": 20, "stored feature map": 10, "optimizer": 0}


def test_bare_state_dict_and_ddp_prefix(tmp_path):
    torch.save({f"module.{name}": value for name, value in forged.state().items()}, tmp_path / "ddp.pth")
    checkpoint = read_checkpoint(tmp_path / "ddp.pth")
    assert checkpoint.kind == "state_dict"
    assert checkpoint.classes is None
    assert forged.same(checkpoint.state_dict, forged.state())


def test_old_name_of_deformable_offsets(tmp_path):
    names = [
        "backbone.layer2.0.conv2.weight",
        "backbone.layer2.0.conv2_offset.weight",
        "backbone.layer2.0.conv2_offset.bias",
    ]
    torch.save({"meta": {}, "state_dict": {name: torch.zeros(1) for name in names}}, tmp_path / "dcn.pth")
    assert list(read_checkpoint(tmp_path / "dcn.pth").state_dict) == [
        "backbone.layer2.0.conv2.weight",
        "backbone.layer2.0.conv2.conv_offset.weight",
        "backbone.layer2.0.conv2.conv_offset.bias",
    ]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"epoch": 3, "lr": 0.1}, "no state_dict, only epoch, lr"),
        ({"state_dict": {}}, "no weights"),
        ({"state_dict": {"a": 3}}, "int named a"),
        ({"state_dict": {"a": torch.zeros(3, device="meta")}}, "sparse, quantized or empty"),
    ],
)
def test_files_without_weights(tmp_path, content, part):
    torch.save(content, tmp_path / "odd.pth")
    assert part in refusal(read_checkpoint, tmp_path / "odd.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_what_is_saved_comes_back(tmp_path, suffix):
    path = tmp_path / f"ours{suffix}"
    weights = forged.state()
    weights["bbox_head.extra"] = torch.arange(12.0).reshape(3, 4).t()[1:]
    save_checkpoint(path, weights, classes=forged.CLASSES, config=CONFIG)
    checkpoint = read_checkpoint(path)
    assert checkpoint.kind == "mgdet"
    assert checkpoint.classes == forged.CLASSES
    assert checkpoint.config == CONFIG
    assert forged.same(checkpoint.state_dict, weights)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_saved_file_is_what_mmdetection_reads(tmp_path):
    path = tmp_path / "ours.pth"
    save_checkpoint(path, forged.state(), classes=forged.CLASSES, config=None)
    content = torch.load(path, weights_only=True)
    assert content["meta"] == {"CLASSES": forged.CLASSES}
    assert forged.same(content["state_dict"], forged.state())


def test_saving_a_view_does_not_save_what_it_views(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"w": torch.zeros(1_000_000)[:2]}, classes=None, config=None)
    assert (tmp_path / "a.pth").stat().st_size < 10_000


def test_unknown_file_type_is_refused(tmp_path):
    text = refusal(save_checkpoint, tmp_path / "a.safetensor", {}, classes=None, config=None)
    assert "'.safetensors'" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{broken", b"\xff\xd8\xff\xe0 jpg"])
def test_damaged_safetensors(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert "safetensors" in refusal(read_checkpoint, path)


def test_strict_load_and_its_line(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, forged.state(seed=5), classes=forged.CLASSES, config=None)
    detector = forged.TinyDetector()
    report = load_checkpoint(detector, path)
    assert forged.same(detector.state_dict(), forged.state(seed=5))
    count = len(forged.state())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.matched == count
    assert report.line() == (
        f"{path}: {count} tensors loaded, 0 missing, 0 unexpected, 0 of another shape; SHA-256 {sha256}"
    )


def test_every_difference_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "a.pth"
    for change, part in [
        (lambda w: w.pop("neck.lateral.bias"), "1 missing (neck.lateral.bias)"),
        (lambda w: w.update({"neck.more": torch.zeros(1)}), "1 unexpected (neck.more)"),
        (
            lambda w: w.update({"neck.lateral.bias": torch.zeros(8)}),
            "1 of another shape (neck.lateral.bias: file (8,), model (4,))",
        ),
    ]:
        weights = forged.state(seed=5)
        change(weights)
        save_checkpoint(path, weights, classes=None, config=None)
        detector = forged.TinyDetector(seed=0)
        text = refusal(load_checkpoint, detector, path)
        assert part in text
        assert "another architecture" in text
        assert forged.same(detector.state_dict(), forged.state(seed=0))


@pytest.mark.parametrize("classes", [None, tuple("abcde")])
def test_other_number_of_classes_names_both(tmp_path, classes):
    path = tmp_path / "a.pth"
    save_checkpoint(path, forged.state(num_classes=5), classes=classes, config=None)
    text = refusal(load_checkpoint, forged.TinyDetector(3), path)
    assert "trained for 5 classes, this detector has 3" in text


def test_own_file_of_another_architecture_says_what_it_is(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, forged.state() | {"backbone.layer9.weight": torch.zeros(1)}, classes=None, config=CONFIG)
    assert "it holds a retinanet with the backbone resnet50" in refusal(load_checkpoint, forged.TinyDetector(), path)


def test_partial_load_names_what_it_skips(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, forged.state(5, num_classes=5), classes=None, config=None)
    detector = forged.TinyDetector(3, seed=0)
    report = load_checkpoint(detector, path, partial=("bbox_head.retina_cls.",))
    start, loaded = forged.state(0), forged.state(5, num_classes=5)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, start[name] if "retina_cls" in name else loaded[name]), name
    assert "2 of another shape (bbox_head.retina_cls.weight: file (45, 4, 3, 3), model (27, 4, 3, 3)" in report.line()


def test_backbone_file_fills_the_backbone(tmp_path):
    path = tmp_path / "resnet.pth"
    weights = {n.removeprefix("backbone."): v for n, v in forged.state(5).items() if n.startswith("backbone.")}
    del weights["bn1.num_batches_tracked"]
    torch.save(weights | {"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}, path)
    assert read_checkpoint(path).kind == "backbone"
    detector = forged.TinyDetector(seed=0)
    assert "only a backbone" in refusal(load_checkpoint, detector, path)
    report = load_checkpoint(detector, path, partial=("neck.", "bbox_head."))
    assert report.matched == len(weights)
    assert report.unexpected == ["fc.weight", "fc.bias"]
    assert torch.equal(detector.backbone.conv1.weight, weights["conv1.weight"])
    assert torch.equal(detector.neck.lateral.bias, forged.state(0)["neck.lateral.bias"])


def test_read_checkpoint_may_be_given(tmp_path):
    torch.save(forged.state(5), tmp_path / "a.pth")
    detector = forged.TinyDetector()
    load_checkpoint(detector, read_checkpoint(tmp_path / "a.pth"))
    assert forged.same(detector.state_dict(), forged.state(5))


def recorded_file(path, name: str) -> None:
    """A file with the names and shapes of the original's detector; every number of a tensor is the same one."""
    shapes = recorded.record(name)["state_dict"]
    weights = {key: torch.zeros(1).expand(shape) if shape else torch.tensor(0) for key, shape in shapes.items()}
    torch.save({"meta": {"CLASSES": tuple(f"class {i}" for i in range(80))}, "state_dict": weights}, path)


def test_original_checkpoint_fits_our_retinanet(tmp_path):
    recorded_file(tmp_path / "r50.pth", "retinanet_r50")
    detector = build_detector("retinanet", backbone="resnet50", num_classes=80)
    report = load_checkpoint(detector, tmp_path / "r50.pth")
    assert (report.matched, report.missing, report.unexpected, report.mismatched) == (354, [], [], [])
    assert all(parameter.abs().max() == 0 for parameter in detector.parameters())


def test_checkpoint_of_the_teacher_does_not_fit_the_student(tmp_path):
    recorded_file(tmp_path / "x101.pth", "retinanet_x101_64x4d")
    detector = build_detector("retinanet", backbone="resnet50", num_classes=80)
    text = refusal(load_checkpoint, detector, tmp_path / "x101.pth")
    assert "306 unexpected (backbone.layer3.10." in text
    assert "another architecture" in text
