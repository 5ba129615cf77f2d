"""Heads, necks and backbones that this package does not have are named, with what is nearest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import get_model_builder

import mmdet_files as files
import refusals
from mgdet.data.coco_names import COCO_CLASSES
from mgdet.errors import UserError
from mgdet.interop.backbones import shapes_of
from mgdet.interop.weights import read_checkpoint
from mgdet.models import check_agrees, recognise, recognise_checkpoint, shown
from mgdet.models.strangers import strangers
from mgdet.transfer import transfer
from test_any_pair import save_tiny


def renamed(state: dict, changes: dict[str, str]) -> dict:
    result = {}
    for name, value in state.items():
        new = name
        for old, other in changes.items():
            new = new.replace(old, other)
        result[new] = value
    return result


STRANGERS = {
    "FCOS": ({"bbox_head.retina_cls": "bbox_head.conv_cls", "bbox_head.retina_reg": "bbox_head.conv_centerness"}, {},
             "an FCOS head, which mgdet does not have; the nearest is torchvision:fcos_resnet50_fpn"),
    "ATSS": ({"retina_": "atss_"}, {}, "an ATSS head, which mgdet does not have; the nearest is a retinanet"),
    "GFL with PAFPN": ({"retina_": "gfl_"}, {"neck.pafpn_convs.0.conv.weight": (256, 256, 3, 3)},
                       "a PAFPN and a GFL head, which mgdet does not have; the nearest is a detector with a plain FPN"),
    "BiFPN": ({}, {"neck.bifpn_layers.0.weight": (3,)}, "a BiFPN"),
    "Dynamic Head": ({"neck.": "neck.0."}, {"neck.1.dyhead_blocks.0.weight": (3,)}, "a Dynamic Head"),
    "V1d": ({"backbone.conv1.": "backbone.stem.0."}, {}, "a ResNet with a deep stem"),
    "group norm": ({"backbone.bn1": "backbone.gn1"}, {}, "a ResNet with group norm"),
    "Swin": ({"backbone.layer1.0.": "backbone.stages.0.blocks.0.attn.w_msa."}, {}, "MMDetection's Swin Transformer"),
    "separate norms": ({"cls_convs.0.": "cls_convs.0.0."}, {}, "norms of its own for each level"),
    "YOLOX": ({"bbox_head.retina_cls": "bbox_head.multi_level_conv_cls"}, {}, "a YOLOX head, .*libreyolo:yolox-s"),
    "DETR": ({"bbox_head.": "bbox_head.transformer."}, {}, "a head of the DETR family, .* hf:PekingU/rtdetr_v2_r50vd"),
    "an unknown head": ({"retina_": "novel_"}, {}, "a head with bbox_head.cls_convs.0.conv.weight, .*, which mgdet"),
    "an unknown neck": ({"neck.": "neck.novel_"}, {}, "a neck with neck.novel_lateral_convs.0.conv.weight"),
    "no neck": ({"neck.": "extra."}, {}, "no neck"),
    "something more": ({}, {"bbox_head.scales.0.scale": ()},
                       r"nearly a retinanet with resnet50: it also has bbox_head\.scales\.0\.scale; the nearest"),
    "a norm in the head": ({}, {"bbox_head.cls_convs.0.gn.weight": (256,)}, "it also has bbox_head.cls_convs.0.gn"),
    "four anchors": ({}, {"bbox_head.retina_reg.weight": (16, 256, 3, 3)}, "4 anchors per cell in place of 9"),
    "extra levels of the neck's own": ({}, {"neck.fpn_convs.3.conv.weight": (256, 256, 3, 3)}, r"\(add_extra_convs\)"),
    "DCNv2": ({}, {"backbone.layer2.0.conv2.conv_offset.weight": (27, 128, 3, 3)}, "27 offsets .version 2"),
}  # fmt: skip
TWO_STAGE = {
    "Cascade R-CNN": ("cascade_mask_rcnn", {"roi_head.mask_head": None}, {}, "a Cascade R-CNN without masks"),
    "HTC": ("cascade_mask_rcnn", {}, {"roi_head.mask_head.1.conv_res.conv.weight": (1,)}, "a Hybrid Task Cascade"),
    "Mask Scoring": ("mask_rcnn", {}, {"roi_head.mask_iou_head.fc.weight": (1,)}, "a Mask Scoring R-CNN"),
    "PointRend": ("mask_rcnn", {}, {"roi_head.point_head.fc.weight": (1,)}, "a PointRend head"),
    "1.x": ("faster_rcnn", {"roi_head.bbox_head": "bbox_head"}, {}, "a detector of MMDetection 1.x, .*upgrade_model"),
    "C4": ("faster_rcnn", {}, {"roi_head.shared_head.layer4.0.conv1.weight": (1,)}, r"\(C4\)"),
    "4conv1fc": ("faster_rcnn", {"shared_fcs.0": "shared_convs.0"}, {}, "another box head"),
    "one box for all": ("faster_rcnn", {}, {"roi_head.bbox_head.fc_reg.weight": (4, 1024)}, r"fc_reg.weight of \(4, "),
    "SOLOv2": ("solo", {"conv_mask_list": "kernel_convs"}, {}, "a SOLOv2 head"),
    "decoupled SOLO": ("solo", {"conv_mask_list": "conv_mask_list_x"}, {}, "a decoupled SOLO head"),
    "no square": ("solo", {}, {"mask_head.conv_mask_list.0.weight": (10, 256, 1, 1)}, "nearly a solo with resnet50"),
    "no group norm": ("reppoints", {".gn.": None}, {}, "nearly a reppoints with resnet50: it lacks"),
}


class TestStrangers:
    def changed(self, state: dict, names: dict, more: dict) -> dict:
        dropped = tuple(name for name, new in names.items() if new is None)
        kept = {name: value for name, value in state.items() if not any(part in name for part in dropped)}
        kept = renamed(kept, {old: new for old, new in names.items() if new is not None})
        return kept | {name: torch.zeros(()).expand(shape) for name, shape in more.items()}

    def matches(self, state: dict, words: str) -> None:
        message = files.refusal(state)
        assert message.startswith("a.pth holds ") and "the nearest is " in message
        with pytest.raises(UserError, match=words):
            raise UserError(message)

    @pytest.mark.parametrize("name", STRANGERS)
    def test_one_stage(self, name, states):
        names, more, words = STRANGERS[name]
        self.matches(self.changed(states["retinanet"], names, more), words)

    @pytest.mark.parametrize("name", TWO_STAGE)
    def test_others(self, name, states):
        detector, names, more, words = TWO_STAGE[name]
        self.matches(self.changed(states[detector], names, more), words)

    @pytest.mark.parametrize("lacking", ["layer1.0.conv1", "layer3.2.conv1", "layer1.0.conv3", "layer4.0.conv2"])
    def test_a_resnet_that_lacks_a_tensor_is_one_still(self, lacking, states, monkeypatch):
        monkeypatch.setattr(shown, "timm_names", None)  # which builds hundreds of networks
        state = self.changed(states["retinanet"], {f"backbone.{lacking}.weight": None}, {})
        whole = "retinanet with resnet50"
        assert files.refusal(state) == (
            f"a.pth holds nearly a {whole}: it lacks backbone.{lacking}.weight; the nearest is a whole {whole}"
        )

    def test_a_resnext_that_timm_does_not_have(self):
        state = files.weights(files.ours("retinanet", "resnext101_32x4d"))
        state["backbone.layer1.0.conv2.weight"] = torch.zeros(()).expand(96, 4, 3, 3)
        assert "a resnext101_24x4d as its backbone" in files.refusal(state)

    def test_files_that_hold_no_detector(self, states, tmp_path):
        assert "holds no detector under MMDetection's names, only a, b" in files.refusal(
            {"a": torch.ones(1), "b": torch.ones(1)}
        )
        backbone = {n.removeprefix("backbone."): v for n, v in states["retinanet"].items() if n.startswith("backbone.")}
        path = files.checkpoint(backbone, {}, tmp_path)
        with pytest.raises(UserError, match="holds a backbone, not a detector"):
            recognise(str(path))
        theirs = {"backbone.body.conv1.weight": torch.ones(1), "roi_heads.box_head.fc6.weight": torch.ones(1)}
        assert "a detector of torchvision's" in files.refusal(theirs)


@pytest.mark.slow
def test_timm_backbones_under_our_names_are_no_strangers():
    for line in (Path(__file__).parents[1] / "layers/timm_backbones.txt").read_text().splitlines():
        state, _, name = line.partition(" ")
        if state == "works":
            names = [f"backbone.{key}" for key in shapes_of(name.strip())]
            assert not strangers(names), name


class TestMMDetectionBefore2:
    """Its detectors of one stage have the names and the shapes of 2.x."""

    WORDS = "of MMDetection 1.x, with other anchors and boxes, which mgdet does not have; the nearest is one of "

    @pytest.mark.parametrize("detector", ["retinanet", "reppoints"])
    def test_a_config_that_counts_the_background(self, detector, states):
        described = files.model(detector, files.backbone(50, "pytorch"), 81)
        message = files.refusal(states[detector], **files.texts("2.x", described))
        assert f"a.pth holds a {detector} {self.WORDS}" in message
        named = replace(files.in_memory(states[detector], **files.texts("2.x", described)), classes=COCO_CLASSES)
        assert self.WORDS in refusals.refusal(check_agrees, files.ours(detector), named, role="teacher")

    @pytest.mark.parametrize(
        ("detector", "version", "said"),
        [
            ("retinanet", "1.2.0+a3a4d2b", True),
            ("reppoints", "1.0rc1+5f9f470", True),
            ("faster_rcnn", "1.2.0+a3a4d2b", False),  # whose 1.x has other shapes
            ("retinanet", "2.19.0", False),
        ],
    )
    def test_a_version_without_a_config_is_a_doubt(self, detector, version, said, states):
        """Versions on the way to 2.0, and so files of its zoo, begin with 1, too."""
        found = recognise_checkpoint(replace(files.in_memory(states[detector]), version=version))
        assert found.model.detector == detector
        assert any(f"MMDetection {version} wrote it: if that was a release" in line for line in found.lines) == said

    def test_files_from_the_way_to_2_are_taken(self, states):
        checkpoint = files.in_memory(states["retinanet"], config=files.OLD_TEXT)
        found = recognise_checkpoint(replace(checkpoint, version="1.0rc1+5f9f470"))
        assert found.num_classes == 80
        assert not any("wrote it" in line for line in found.lines)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_transfer_keeps_the_version(self, suffix, states, tmp_path):
        state = {"backbone.conv1.weight": torch.ones(1), "bbox_head.retina_cls.weight": torch.ones(1)}
        path = files.checkpoint(state, {"mmdet_version": "1.2.0"}, tmp_path)
        transfer(path, tmp_path / f"b{suffix}")
        assert read_checkpoint(tmp_path / f"b{suffix}").version == "1.2.0"


class TestOtherTools:
    """Their detectors have no head of MMDetection's, and are no backbones for that."""

    @pytest.mark.parametrize("kind", ["detr", "rt_detr", "rt_detr_v2", "d_fine", "yolos", "rf_detr"])
    def test_hugging_face(self, kind, tmp_path):
        folder = save_tiny(kind, tmp_path / "hf")
        message = refusals.refusal(recognise, str(folder / "model.safetensors"))
        assert "holds a detector of Hugging Face's, which" in message
        assert message.endswith(f"; the nearest is its folder, as hf:{folder}")
        torch.save(load_file(folder / "model.safetensors"), tmp_path / "alone.pth")
        assert refusals.refusal(recognise, str(tmp_path / "alone.pth")).endswith("as hf:FOLDER")
        assert "of Hugging Face's" in refusals.refusal(transfer, tmp_path / "alone.pth", tmp_path / "b.pth")

    @pytest.mark.parametrize("prefix", ["", "model.", "model.model."])
    def test_a_yolo(self, prefix, tmp_path):
        names = ("0.conv.weight", "1.conv.weight", "2.cv1.conv.weight", "2.m.0.cv1.conv.weight", "22.dfl.conv.weight")
        path = files.checkpoint({prefix + name: torch.zeros(4, 4, 1, 1) for name in names}, {}, tmp_path)
        assert "holds a YOLO, which mgdet does not have; the nearest is libreyolo:" in refusals.refusal(
            recognise, str(path)
        )

    @pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
    @pytest.mark.parametrize("beside", [{}, {"metric.count": torch.zeros(1)}])
    def test_torchvision_in_lightning(self, name, beside, tmp_path):
        with torch.device("meta"):
            state = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=3).state_dict()
        state = {f"model.{entry}": torch.zeros(()).expand(value.shape) for entry, value in state.items()}
        path = files.checkpoint(state | beside, {}, tmp_path)
        assert recognise(str(path)).model.detector == f"torchvision:{name}"
        assert read_checkpoint(path).left_out.get("other", 0) == len(beside)
