"""Which file is what, which of its tensors are taken, and what is written."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

import forged
from mgdet.errors import UserError
from mgdet.interop.loading import load_checkpoint
from mgdet.interop.weights import read_checkpoint, save_checkpoint
from refusals import refusal

CONFIG = {"recipe": "mine", "student": {"detector": "retinanet", "backbone": "resnet50"}, "data": {"edges": [1, 2]}}
META_2 = {"CLASSES": forged.CLASSES, "mmdet_version": "2.19.0", "config": "model = dict()", "epoch": 24}
META_3 = {"dataset_meta": {"classes": forged.CLASSES, "palette": [(1, 2, 3)]}, "mmengine_version": "0.7.4"}
both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


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
        "bbox_head.retina_cls.weight",
    ]
    torch.save({"meta": {}, "state_dict": {name: torch.zeros(1) for name in names}}, tmp_path / "dcn.pth")
    assert list(read_checkpoint(tmp_path / "dcn.pth").state_dict) == [
        "backbone.layer2.0.conv2.weight",
        "backbone.layer2.0.conv2.conv_offset.weight",
        "backbone.layer2.0.conv2.conv_offset.bias",
        "bbox_head.retina_cls.weight",
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


WRAPPERS = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "model.",
    "net.module.",
    "student.",
    "module.student.model.",
    "architecture.",
    "module.architecture._orig_mod.",
    "some_trainer.detector.",
]


@pytest.mark.parametrize("companion", ["", "teacher."])
@pytest.mark.parametrize("prefix", WRAPPERS)
def test_prefixes_in_any_nesting(prefix, companion, tmp_path):
    weights = {f"{prefix}{name}": value for name, value in forged.state(1).items()}
    distills = any(part in prefix for part in ("student.", "architecture."))
    if companion and distills:
        outer = prefix.partition("student.")[0].partition("architecture.")[0]
        weights |= {f"{outer}{companion}{name}": value for name, value in forged.state(2).items()}
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert forged.same(checkpoint.state_dict, forged.state(1))
    assert checkpoint.left_out == ({"teacher": len(forged.state())} if companion and distills else {})
    assert load_checkpoint(forged.TinyDetector(), checkpoint).missing == []


@pytest.mark.parametrize(
    ("content", "left_out"),
    [
        (lambda w: {"model_state_dict": w, "loss": 0.3}, {"loss": 0}),
        (lambda w: {"net": w, "acc": 1, "epoch": 2}, {"acc": 0, "epoch": 0}),
        (lambda w: {"weights": w}, {}),
        (lambda w: {"model": {"state_dict": w, "step": 3}}, {"step": 0}),
        (lambda w: {"state_dict": w, "best_acc1": torch.tensor(3.0)}, {"best_acc1": 0}),
        (lambda w: {"ema": {"module": w, "updates": 7}, "date": 1}, {"date": 0}),
        (lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()} | {"loss.weight": w["neck.lateral.bias"]}},
         {"other": 1}),
        (lambda w: {"state_dict": w | {"data_preprocessor.mean": torch.zeros(3)}}, {"data preprocessor": 1}),
        (lambda w: {"state_dict": w | {"teacher_model.neck.a": torch.zeros(3)}}, {"teacher": 1}),
    ],
)  # fmt: skip
def test_weights_under_other_keys_and_beside_other_things(content, left_out, tmp_path):
    torch.save(content(forged.state(1)), tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert forged.same(checkpoint.state_dict, forged.state(1))
    assert checkpoint.left_out == left_out


EMA_FILES = {
    "mmdetection 2": lambda w, e: {
        "meta": META_2,
        "state_dict": w | {f"ema_{name.replace('.', '_')}": value for name, value in e.items()},
    },
    "mmdetection 3": lambda w, e: {
        "meta": META_3,
        "state_dict": w,
        "ema_state_dict": {"steps": torch.tensor(3)} | {f"module.{name}": value for name, value in e.items()},
    },
    "timm": lambda w, e: {"state_dict": w, "state_dict_ema": e},
    "rt-detr": lambda w, e: {"model": w, "ema": {"module": e, "updates": 5}},
    "lightning": lambda w, e: {
        "state_dict": {f"model.{name}": v for name, v in w.items()} | {f"ema_model.{name}": v for name, v in e.items()}
    },
    "parameters": lambda w, e: {"model": w, "model_ema": {k: v for k, v in e.items() if "running" not in k}},
}  # fmt: skip


@pytest.mark.parametrize("name", EMA_FILES)
def test_the_ema_copy_is_taken_where_asked_and_the_line_says_which(name, tmp_path):
    plain, average = forged.state(1), forged.state(2)
    torch.save(EMA_FILES[name](plain, average), tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert forged.same(checkpoint.state_dict, plain)
    assert checkpoint.left_out["EMA copy"] in (len(average), len(average) - 2)
    line = load_checkpoint(forged.TinyDetector(), checkpoint).line()
    assert "; taken: the weights under their own names" in line
    assert ("where MMDetection usually saves the average" in line) == name.startswith("mmdetection")
    checkpoint = read_checkpoint(tmp_path / "a.pth", ema=True)
    assert forged.same(checkpoint.state_dict, average)
    line = load_checkpoint(forged.TinyDetector(), checkpoint).line()
    assert "; taken: the EMA copy under " in line
    assert ("weights before averaging" in line) == name.startswith("mmdetection")


def test_old_names_of_offsets_have_an_ema_copy_too(tmp_path):
    names = ["backbone.layer2.0.conv2_offset.weight", "bbox_head.retina_cls.weight"]
    weights = {name: torch.zeros(1) for name in names} | {f"ema_{n.replace('.', '_')}": torch.ones(1) for n in names}
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    for ema in (False, True):
        taken = read_checkpoint(tmp_path / "a.pth", ema=ema).state_dict
        assert list(taken) == ["backbone.layer2.0.conv2.conv_offset.weight", "bbox_head.retina_cls.weight"]
        assert all(value == ema for value in taken.values())


def test_an_ema_copy_that_is_not_there_is_said(tmp_path):
    torch.save({"state_dict": forged.state()}, tmp_path / "a.pth")
    assert "holds no EMA copy of its weights; leave --ema out" in refusal(read_checkpoint, tmp_path / "a.pth", ema=True)


def test_a_pickled_model_is_said_to_be_one(tmp_path):
    forged.save_foreign(tmp_path / "a.pth", {"model": forged.MessageHub(), "epoch": 3}, zipped=True)
    assert "'model' is a MessageHub; save its state_dict() instead" in refusal(read_checkpoint, tmp_path / "a.pth")


@pytest.mark.parametrize("classifier", [{}, {"head.fc.weight": (10, 4), "head.fc.bias": (10,)}])
def test_a_backbone_with_its_prefix_is_a_backbone(classifier, tmp_path):
    backbone = {name: value for name, value in forged.state(5).items() if name.startswith("backbone.")}
    beside = {name: torch.zeros(shape) for name, shape in classifier.items()}
    torch.save({"meta": {"mmcls_version": "0.25"}, "state_dict": backbone | beside}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").kind == "backbone"
    detector = forged.TinyDetector(seed=0)
    assert "only a backbone" in refusal(load_checkpoint, detector, tmp_path / "a.pth")
    report = load_checkpoint(detector, tmp_path / "a.pth", partial=("neck.", "bbox_head."))
    assert (report.matched, report.unexpected) == (len(backbone), list(classifier))
    assert torch.equal(detector.backbone.conv1.weight, backbone["backbone.conv1.weight"])


@pytest.mark.parametrize("names", [{0: "circle", 1: "square", 2: "star"}, list(forged.CLASSES)])
def test_class_names_in_other_forms(names, tmp_path):
    torch.save({"meta": {"classes": names}, "state_dict": forged.state()}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").classes == forged.CLASSES


def test_class_names_of_others_in_safetensors(tmp_path):
    for text, classes in [("circle,square", None), ('["circle", "square"]', ("circle", "square")), ("[" * 9999, None)]:
        safetensors.torch.save_file(forged.state(), tmp_path / "a.safetensors", {"CLASSES": text})
        assert read_checkpoint(tmp_path / "a.safetensors").classes == classes


def test_names_of_a_file_stay_on_one_line(tmp_path):
    torch.save({"state_dict": forged.state() | {"neck.a\nb" + "c" * 999: torch.zeros(1)}}, tmp_path / "a.pth")
    text = refusal(load_checkpoint, forged.TinyDetector(), tmp_path / "a.pth")
    assert "1 unexpected (neck.a?bccc" in text
    assert len(text) < 600


def test_tensors_that_repeat_one_number_too_often(tmp_path):
    torch.save({"backbone.a": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "a.pth")
    assert "claims tensors of 4096 GiB" in refusal(read_checkpoint, tmp_path / "a.pth")


LIBRARY = {
    "model.backbone.conv1.weight": torch.zeros(4, 3, 3, 3),
    "model.encoder.layers.0.weight": torch.zeros(4),
    "model.decoder.class_embed.weight": torch.zeros(3, 4),
}
"""Names as transformers gives them, where `model.` is a part of the detector."""


class Library(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, value in LIBRARY.items():
            self.get_submodule_or_make(name.split(".")[:-1]).register_buffer("weight", torch.ones_like(value))

    def get_submodule_or_make(self, parts: list[str]) -> torch.nn.Module:
        module: torch.nn.Module = self
        for part in parts:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        return module


@pytest.mark.parametrize("wrapped", [False, True])
def test_another_librarys_names_stay(wrapped, tmp_path):
    prefix = "module." if wrapped else ""
    torch.save({f"{prefix}{name}": value for name, value in LIBRARY.items()}, tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert forged.same(checkpoint.state_dict, LIBRARY)
    report = load_checkpoint(Library(), checkpoint)
    assert (report.matched, report.missing, report.unexpected) == (3, [], [])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_described_detector_keeps_its_names(suffix, tmp_path):
    weights = {f"library.{name.removeprefix('model.')}": value for name, value in LIBRARY.items()}
    save_checkpoint(tmp_path / f"a{suffix}", weights, classes=("a",), config=None, description={"name": "x"})
    checkpoint = read_checkpoint(tmp_path / f"a{suffix}")
    assert forged.same(checkpoint.state_dict, weights)
    assert checkpoint.description == {"name": "x"}


def test_our_own_state_gives_its_student_under_its_own_names(tmp_path):
    student = {f"student.library.{name}": value for name, value in forged.state(1).items()}
    torch.save({"model": student | {"distill_losses.a": torch.zeros(1)}, "teacher_sha256": ""}, tmp_path / "state.pth")
    checkpoint = read_checkpoint(tmp_path / "state.pth")
    assert forged.same(checkpoint.state_dict, {f"library.{name}": value for name, value in forged.state(1).items()})
    assert checkpoint.left_out == {"generator": 1, "teacher_sha256": 0}


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_what_git_lfs_did_not_bring_is_said_so(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="Git LFS has put a note in its place; git lfs pull brings the file"):
        read_checkpoint(path)
