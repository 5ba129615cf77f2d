"""What goes wrong with detectors of other libraries, as a user meets it: one sentence, an exit code, no traceback."""

from __future__ import annotations

import math
import sys
import time

import pytest
import timm
import torch

from mgdet.cli import main
from mgdet.data.batch import Batch
from test_any_pair import TORCHVISION, save_tiny, stand_in

SSDLITE = "torchvision:ssdlite320_mobilenet_v3_large"


@pytest.fixture
def train(tiny, tmp_path, capsys):
    """Trains the recipe `pair` for one step; gives the exit code, the log and the sentence."""
    ours = ["retinanet", str(tiny.teacher)]

    def run(*more, teacher=(), student=()):
        options = []
        for side, chosen in (("teacher", teacher), ("student", student)):
            name, weights = chosen or (ours if side == "teacher" else ("retinanet", "random"))
            options += [f"--{side}.detector", name, f"--{side}.weights", weights]
            if name == "retinanet":
                options += [f"--{side}.backbone", "test_resnet", f"--{side}.channels", "32"]
        sizes = ["--data.long-edge", "128", "--data.short-edge", "96", "128", "--data.workers", "0"]
        length = ["--train.batch", "2", "--train.eval-every", "0", "--train.stop-after", "1"]
        where = ["--run-dir", str(tmp_path / "run"), "--data.root", str(tiny.root)]
        capsys.readouterr()  # what making a folder of weights has printed
        code = main(["train", "pair", *where, *sizes, *length, *options, *more])
        out, err = capsys.readouterr()
        if code:
            assert err.startswith("mgdet: ") and err.count("\n") == 1, err
        return code, out, err

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(TORCHVISION, marks=pytest.mark.slow), "hf:rt_detr_v2", "hf:rf_detr", "hf:detr"]
)
def test_images_that_are_no_numbers(name, train, tmp_path, monkeypatch):
    """The run stops before the step changes a weight, and says which losses and levels it was."""
    images = Batch.images
    monkeypatch.setattr(Batch, "images", lambda batch, *pixels: images(batch, *pixels) * math.nan)
    if name.startswith("hf:"):
        name = f"hf:{save_tiny(name[3:], tmp_path / 'hf')}"
    assert train(student=(name, "random"))[0] == 2  # the look at the run sees it too
    code, _, err = train("--no-check", student=(name, "random"))
    assert code == 1
    assert "step 1 is not finite and stopped the run before it changed any weight: rank 0: loss, loss_" in err
    assert "loss_mgd_fpn_0" in err and "pyramid level 0" in err and ".jpg" in err
    assert (tmp_path / "run" / "nonfinite_step1_rank0.pth").is_file()


def test_images_too_small_for_the_queries(train, tmp_path):
    folder = save_tiny("rt_detr_v2", tmp_path / "hf", num_queries=300)
    code, _, err = train("--data.square", "64", student=(f"hf:{folder}", "random"))
    assert code == 2
    assert "has 300 queries, more than images of 64 x 64 have cells; 128 x 128 is the smallest square" in err
    assert not (tmp_path / "run").exists(), "a second try would find a run there"


def test_images_that_grow_in_the_batch_have_cells_enough(train, tmp_path):
    """More queries than the synthetic image of 256 pixels has cells are no fault of a run with larger images."""
    settings = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 1400}
    folder = save_tiny("deformable_detr", tmp_path / "hf", **settings)
    code, _, _ = train("--data.square", "288", student=(f"hf:{folder}", "random"))
    assert code == 0


def test_one_image_alone_has_no_batch_statistics(train, tmp_path):
    code, _, err = train("--train.batch", "1", "--data.square", "320", student=(SSDLITE, "random"))
    assert code == 2
    assert (
        "one value per channel in 1 image of 320 x 320; choose larger images, or two or more for each process with"
        in err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "hiera_tiny_224"])
def test_teachers_made_for_one_size(name, train, tmp_path):
    code, out, _ = train(teacher=(f"timm:{name}", str(stand_in(f"timm:{name}", tmp_path))))
    assert code == 0
    assert "student level 0: stride 8, 32 channels <- teacher level 0: stride 8, " in out
    assert "the teacher is a backbone, which knows no classes; only its maps are used" in out


def test_a_teacher_of_one_size_takes_no_canvas(train, tmp_path):
    teacher = (SSDLITE, str(stand_in(SSDLITE, tmp_path)))
    code, _, err = train("--teacher.canvas", "96", "96", teacher=teacher)
    assert code == 2
    assert f"teacher.canvas does not apply to {SSDLITE}, which takes images of 320 x 320 pixels only; remove it" in err


def test_weights_of_another_backbone(train, tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    code, _, err = train(teacher=("timm:test_vit", str(path)))
    assert code == 2
    assert f"{path} does not fit timm:test_vit: Missing key(s) in state_dict: " in err


@pytest.mark.parametrize("blocked", ["transformers", "scipy"])
def test_a_missing_extra(blocked, train, monkeypatch):
    monkeypatch.setitem(sys.modules, blocked, None)
    for sides in ({"teacher": ("hf:someone/model", "pretrained")}, {"student": ("hf:rt_detr", "random")}):
        code, _, err = train(**sides)
        assert code == 2
        assert err == f"mgdet: hf: models need {blocked}: pip install 'mgdet[hf]'\n"


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """Empty caches, and nobody at the addresses of the hub and of torchvision."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


BRING = {
    "hf:someone/no-such-model": "bring config.json, preprocessor_config.json and model.safetensors",
    "timm:resnet10t.c3_in1k": "bring model.safetensors of",
    "torchvision:fasterrcnn_mobilenet_v3_large_fpn": "bring the file fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
}


@pytest.mark.parametrize("name", BRING)
def test_nobody_answers(name, train, nobody):
    started = time.monotonic()
    code, _, err = train(teacher=(name, "pretrained"))
    assert code == 2
    assert BRING[name] in err
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("source", ["hf", "timm", "torchvision"])
def test_a_name_that_is_missing(source, train):
    code, _, err = train(teacher=(f"{source}:", "pretrained"))
    assert code == 2
    assert f"teacher.detector is '{source}:', without a name; give one, e.g. {source}:" in err


def test_a_published_recipe_sends_to_the_one_for_any_pair(tiny, tmp_path, capsys):
    options = ["--run-dir", str(tmp_path / "run"), "--data.root", str(tiny.root), "--data.workers", "0"]
    weights = ["--student.weights", "random", "--teacher.weights", "pretrained"]
    assert main(["train", "retinanet_x101_to_r50", *options, *weights, "--teacher.detector", TORCHVISION]) == 2
    err = capsys.readouterr().err
    assert (
        f"teacher.backbone does not apply to {TORCHVISION}; where you gave it, remove it, and where the recipe " in err
    )
    assert "sets it, to resnext101_64x4d, take the recipe pair, which is for " in err


def test_the_student_of_a_pair_trains_alone(tiny, tmp_path, capsys):
    options = ["--run-dir", str(tmp_path / "run"), "--data.root", str(tiny.root), "--data.workers", "0"]
    sizes = ["--data.long-edge", "128", "--data.short-edge", "96", "128", "--train.batch", "2"]
    length = ["--train.eval-every", "0", "--train.stop-after", "1", "--train.log-every", "1"]
    student = ["--student.detector", f"hf:{save_tiny('detr', tmp_path / 'hf')}", "--student.weights", "random"]
    assert main(["train", "alone", *options, *sizes, *length, *student]) == 0
    out = capsys.readouterr().out
    assert "loss_giou" in out and "mgd" not in out and "teacher" not in out
