"""Classes of Hugging Face detectors: a known head is kept, any other is new, and all that depends on it with it."""

from __future__ import annotations

import pytest
import torch
from hf_tiny import TINY, shake, tiny_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForObjectDetection

from mgdet.detectors.foreign.hf_families import FAMILIES
from mgdet.detectors.foreign.huggingface import MODELS, build, class_entries, config_from
from mgdet.errors import UserError
from mgdet.interop.weights import save_checkpoint

HEADS = {
    "rt_detr": {"model.decoder.class_embed", "model.enc_score_head", "model.denoising_class_embed"},
    "rt_detr_v2": {"class_embed", "model.decoder.class_embed", "model.enc_score_head", "model.denoising_class_embed"},
    "d_fine": {"class_embed", "model.decoder.class_embed", "model.enc_score_head", "model.denoising_class_embed"},
    "deimv2": {"class_embed", "model.decoder.class_embed", "model.enc_score_head", "model.denoising_class_embed"},
    "deformable_detr": {"class_embed"},
    "lw_detr": {"class_embed", "model.enc_out_class_embed"},
    "rf_detr": {"class_embed", "model.enc_out_class_embed"},
    "detr": {"class_labels_classifier"},
    "conditional_detr": {"class_labels_classifier"},
    "dab-detr": {"class_embed"},
    "yolos": {"class_labels_classifier.layers"},
}


def saved(tmp_path, kind, names):
    library = AutoModelForObjectDetection.from_config(tiny_config(kind, names))
    shake(library)
    library.save_pretrained(tmp_path / "saved")
    return library.state_dict(), str(tmp_path / "saved")


def test_every_detector_has_an_example():
    assert list(TINY) == list(FAMILIES)
    assert len(MODELS) == len(FAMILIES)


@pytest.mark.parametrize("kind", sorted(TINY))
def test_a_new_head_takes_all_else_from_the_weights(tmp_path, kind):
    state, folder = saved(tmp_path, kind, ("cat", "dog"))
    said = []
    detector = build(folder, classes=["nut", "bolt"], weights="pretrained", say=said.append)
    entries = class_entries(detector.config)
    stems = {name.removesuffix(".weight").removesuffix(".bias").rstrip("0123456789").rstrip(".") for name in entries}
    assert stems == HEADS[kind]
    fresh = detector.weights()
    assert {name for name, value in state.items() if not torch.equal(value, fresh[name])} >= {
        name for name in entries if name.endswith("weight") and "denoising" not in name
    }
    assert all(torch.equal(value, fresh[name]) for name, value in state.items() if name not in entries)
    assert said == [f"hf:{folder}: new head with 2 outputs: the weights know 2 other classes, not nut, bolt"]
    assert detector.columns == (0, 1)


def test_known_classes_keep_a_larger_head(tmp_path):
    state, folder = saved(tmp_path, "detr", ("N/A", "person", "N/A", "tv", "couch"))
    said = []
    detector = build(folder, classes=["Sofa", "TVmonitor"], weights="pretrained", say=said.append)
    assert detector.columns == (4, 3)
    assert detector.config.id2label == {0: "N/A", 1: "person", 2: "N/A", 3: "TVmonitor", 4: "Sofa"}
    assert all(torch.equal(value, state[name]) for name, value in detector.weights().items())
    assert said == [f"hf:{folder}: keeps its head with 5 outputs; 2 of them are the data's classes"]


def test_a_teacher_keeps_its_own_classes(tmp_path):
    _, folder = saved(tmp_path, "detr", ("a", "b", "c"))
    detector = build(folder, classes=None, weights="pretrained", say=[].append)
    assert (detector.num_classes, detector.columns) == (3, (0, 1, 2))


def test_a_folder_of_weights_for_a_model_type(tmp_path):
    _, folder = saved(tmp_path, "rt_detr_v2", ("cat", "dog"))
    detector = build("rt_detr_v2", classes=["dog"], weights=folder, say=[].append)
    assert detector.columns == (1,)
    with pytest.raises(UserError, match="holds a rt_detr_v2, and hf:d_fine is a d_fine"):
        build("d_fine", classes=["dog"], weights=folder, say=[].append)


@pytest.mark.parametrize("kind", sorted(TINY))
def test_a_file_that_the_library_wrote_is_as_good_as_its_folder(tmp_path, kind):
    """Its names are not always those of the library's own state dict."""
    state, folder = saved(tmp_path, kind, ("cat", "dog"))
    file = f"{folder}/model.safetensors"
    said = []
    detector = build(folder, classes=None, weights=file, say=said.append)
    assert all(torch.equal(value, state[name]) for name, value in detector.weights().items())
    assert f"{len(state)} tensors loaded, 0 missing, 0 unexpected, 0 of another shape" in said[0]
    content = load_file(file)
    first = next(name for name in sorted(content) if "class" not in name and "bbox" not in name)  # heads may be tied
    lost, strange = dict(content), content | {"strange.weight": content[first].clone()}
    del lost[first]
    for changed, part in ((lost, "1 missing"), (strange, r"1 unexpected \((model\.)?strange\.weight\)")):
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(UserError, match=f"does not fit this detector: .*{part}"):
            build(folder, classes=None, weights=str(tmp_path / "changed.safetensors"), say=[].append)


def test_a_file_of_other_classes_brings_its_head(tmp_path):
    _, three = saved(tmp_path / "a", "rt_detr", ("x", "y", "z"))
    state, two = saved(tmp_path / "b", "rt_detr", ("cat", "dog"))
    detector = build(three, classes=None, weights=f"{two}/model.safetensors", say=[].append)
    assert detector.num_classes == 2
    assert all(torch.equal(value, state[name]) for name, value in detector.weights().items())


@pytest.mark.parametrize(
    ("classes", "columns", "file"), [(["dog", "cat"], (1, 0), "student_last.pth"), (["nut"], (0,), "")]
)
def test_a_checkpoint_of_ours_starts_a_run(tmp_path, classes, columns, file):
    _, folder = saved(tmp_path, "rt_detr_v2", ("x", "y", "z"))
    start = build(folder, classes=["cat", "dog"], weights="random", say=[].append)
    shake(start)
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "student_last.pth", start.weights(), classes=["cat", "dog"], config=None)
    said = []
    again = build(folder, classes=classes, weights=str(tmp_path / "run" / file), say=said.append)
    assert again.columns == columns
    assert again.num_classes == len(classes)
    kept = "model.encoder.lateral_convs.0.conv.weight"
    assert torch.equal(again.weights()[kept], start.weights()[kept])
    assert torch.equal(again.weights()["class_embed.0.weight"], start.weights()["class_embed.0.weight"]) == (
        "cat" in classes
    )
    assert "tensors loaded" in said[0]


def test_a_backbone_that_is_only_named_is_not_looked_for(monkeypatch):
    import transformers.backbone_utils

    monkeypatch.setattr(transformers.backbone_utils, "hf_api", lambda: pytest.fail("asked the hub"))
    old = {
        "model_type": "detr",
        "backbone": "resnet18",
        "backbone_config": None,
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "backbone_kwargs": {"in_chans": 3, "out_indices": [1, 2, 3, 4]},
    }
    config = config_from(old)
    assert (config.backbone_config.model_type, config.backbone_config.backbone) == ("timm_backbone", "resnet18")
    assert config.backbone_config.out_indices == [1, 2, 3, 4]
    with pytest.raises(UserError, match="write it out as backbone_config"):
        config_from(old | {"backbone": "microsoft/resnet-18", "use_timm_backbone": False})


def test_settings_that_the_library_refuses():
    with pytest.raises(UserError, match="transformers refuses these settings of a deformable_detr"):
        config_from({"model_type": "deformable_detr", "two_stage": True, "with_box_refine": False})


def test_settings_without_a_level():
    with pytest.raises(UserError, match=r"have no level \(projector_scale_factors is empty"):
        build("lw_detr", classes=["cat"], weights="random", say=[].append)
