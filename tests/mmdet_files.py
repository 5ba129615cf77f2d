"""Files as MMDetection leaves them: its names of weights, and its config as the text that 2.x, 3.x and 2.0 write.

The tensors take no room: each repeats one number. `fill` gives a state dict numbers of its own.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import refusals
from mgdet.config import ModelConfig
from mgdet.data.coco_names import COCO_CLASSES
from mgdet.interop.weights import Checkpoint
from mgdet.models import detector_from, recognise_checkpoint

RGB = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "rgb": True}
BGR = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "rgb": False}
UNIT = [0.0, 0.0, 0.0, 0.0]
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
GROUP_NORM = {"type": "GN", "num_groups": 32, "requires_grad": True}
DENSE_TEST = {
    "nms_pre": 1000,
    "min_bbox_size": 0,
    "score_thr": 0.05,
    "nms": {"type": "nms", "iou_threshold": 0.5},
    "max_per_img": 100,
}
RPN_TEST = {"nms_pre": 1000, "max_per_img": 1000, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}


def coder(std: list[float]) -> dict[str, Any]:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": UNIT, "target_stds": std}


def cross_entropy(**options: bool) -> dict[str, Any]:
    return {"type": "CrossEntropyLoss", **options, "loss_weight": 1.0}


def box_head(std: list[float], classes: int, *, agnostic: bool = False) -> dict[str, Any]:
    return {
        "type": "Shared2FCBBoxHead",
        "in_channels": 256,
        "fc_out_channels": 1024,
        "roi_feat_size": 7,
        "num_classes": classes,
        "bbox_coder": coder(std),
        "reg_class_agnostic": agnostic,
        "loss_cls": cross_entropy(use_sigmoid=False),
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def extractor(size: int) -> dict[str, Any]:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0},
        "out_channels": 256,
        "featmap_strides": [4, 8, 16, 32],
    }


def mask_head(classes: int) -> dict[str, Any]:
    return {
        "type": "FCNMaskHead",
        "num_convs": 4,
        "in_channels": 256,
        "conv_out_channels": 256,
        "num_classes": classes,
        "loss_mask": cross_entropy(use_mask=True),
    }


def backbone(depth: int, style: str, groups: int = 1, base_width: int = 4, *, deformable: bool = False) -> dict:
    kind: dict[str, Any] = {"type": "ResNet", "depth": depth}
    if groups > 1:
        kind = {"type": "ResNeXt", "depth": depth, "groups": groups, "base_width": base_width}
    dcn: dict[str, Any] = {"dcn": {"type": "DCN", "deform_groups": 1, "fallback_on_stride": False}}
    dcn["stage_with_dcn"] = (False, True, True, True)
    return {
        **kind,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "frozen_stages": 1,
        "norm_cfg": {"type": "BN", "requires_grad": style == "pytorch"},
        "norm_eval": True,
        "style": style,
        "init_cfg": {"type": "Pretrained", "checkpoint": "torchvision://resnet50"},
    } | (dcn if deformable else {})


def neck(detector: str) -> dict[str, Any]:
    widths = {"type": "FPN", "in_channels": [256, 512, 1024, 2048], "out_channels": 256}
    if detector in ("retinanet", "reppoints"):
        widths |= {"start_level": 1, "add_extra_convs": "on_input"}
    return widths | {"num_outs": 5} | ({"norm_cfg": GROUP_NORM} if detector == "reppoints" else {})


def model(detector: str, body: dict[str, Any], classes: int = 80) -> dict[str, Any]:
    """The config of one of the six detectors as MMDetection publishes it."""
    common = {"backbone": body, "neck": neck(detector)}
    if detector == "retinanet":
        grid = {"type": "AnchorGenerator", "octave_base_scale": 4, "scales_per_octave": 3}
        head = {
            "type": "RetinaHead",
            "num_classes": classes,
            "in_channels": 256,
            "stacked_convs": 4,
            "feat_channels": 256,
            "anchor_generator": {**grid, "ratios": [0.5, 1.0, 2.0], "strides": [8, 16, 32, 64, 128]},
            "bbox_coder": coder([1.0, 1.0, 1.0, 1.0]),
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        }
        return {"type": "RetinaNet", **common, "bbox_head": head, "test_cfg": DENSE_TEST}
    if detector == "reppoints":
        head = {
            "type": "RepPointsHead",
            "num_classes": classes,
            "in_channels": 256,
            "feat_channels": 256,
            "point_feat_channels": 256,
            "stacked_convs": 3,
            "num_points": 9,
            "gradient_mul": 0.1,
            "point_strides": [8, 16, 32, 64, 128],
            "point_base_scale": 4,
            "loss_cls": FOCAL,
            "transform_method": "moment",
            "norm_cfg": GROUP_NORM,
        }
        return {"type": "RepPointsDetector", **common, "bbox_head": head, "test_cfg": DENSE_TEST}
    if detector == "solo":
        head = {
            "type": "SOLOHead",
            "num_classes": classes,
            "in_channels": 256,
            "stacked_convs": 7,
            "feat_channels": 256,
            "strides": [8, 8, 16, 32, 32],
            "scale_ranges": ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)),
            "pos_scale": 0.2,
            "num_grids": [40, 36, 24, 16, 12],
            "cls_down_index": 0,
            "loss_cls": FOCAL,
            "norm_cfg": GROUP_NORM,
        }
        test = {"nms_pre": 500, "score_thr": 0.1, "mask_thr": 0.5, "filter_thr": 0.05, "kernel": "gaussian"}
        return {"type": "SOLO", **common, "mask_head": head, "test_cfg": test | {"sigma": 2.0, "max_per_img": 100}}
    rpn_head = {
        "type": "RPNHead",
        "in_channels": 256,
        "feat_channels": 256,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [8],
            "ratios": [0.5, 1.0, 2.0],
            "strides": [4, 8, 16, 32, 64],
        },
        "bbox_coder": coder([1.0, 1.0, 1.0, 1.0]),
        "loss_cls": cross_entropy(use_sigmoid=True),
    }
    rois: dict[str, Any] = {"type": "StandardRoIHead", "bbox_roi_extractor": extractor(7)}
    rois["bbox_head"] = box_head([0.1, 0.1, 0.2, 0.2], classes)
    if detector == "cascade_mask_rcnn":
        rois |= {"type": "CascadeRoIHead", "num_stages": 3, "stage_loss_weights": [1, 0.5, 0.25]}
        stages = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        rois["bbox_head"] = [box_head(std, classes, agnostic=True) for std in stages]
    if detector != "faster_rcnn":
        rois |= {"mask_roi_extractor": extractor(14), "mask_head": mask_head(classes)}
    sampler = {"type": "RandomSampler", "num": 512, "pos_fraction": 0.25, "neg_pos_ub": -1}
    rcnn: Any = {"sampler": sampler, "pos_weight": -1, "debug": False}
    test = {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}
    return {
        "type": {"faster_rcnn": "FasterRCNN", "mask_rcnn": "MaskRCNN"}.get(detector, "CascadeRCNN"),
        **common,
        "rpn_head": rpn_head,
        "roi_head": rois,
        "train_cfg": {"rcnn": [rcnn] * 3 if detector == "cascade_mask_rcnn" else rcnn},
        "test_cfg": {"rpn": RPN_TEST, "rcnn": test},
    }


def settings_2(described: dict[str, Any], pixels: dict[str, Any], scale: tuple[int, int] = (1333, 800)) -> dict:
    """A whole config of MMDetection 2.x."""
    norm = {"mean": pixels["mean"], "std": pixels["std"], "to_rgb": pixels["rgb"]}
    inner = [
        {"type": "Resize", "keep_ratio": True},
        {"type": "RandomFlip"},
        {"type": "Normalize", **norm},
        {"type": "Pad", "size_divisor": 32},
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"]},
    ]
    test = [
        {"type": "LoadImageFromFile"},
        {"type": "MultiScaleFlipAug", "img_scale": scale, "flip": False, "transforms": inner},
    ]
    dataset = {"type": "CocoDataset", "ann_file": "data/coco/annotations/instances_val2017.json", "pipeline": test}
    return {
        "dataset_type": "CocoDataset",
        "data_root": "data/coco/",
        "img_norm_cfg": norm,
        "test_pipeline": test,
        "data": {"samples_per_gpu": 2, "workers_per_gpu": 2, "val": dataset, "test": dataset},
        "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0001},
        "lr_config": {"policy": "step", "warmup": "linear", "warmup_ratio": 0.001, "step": [8, 11]},
        "load_from": None,
        "workflow": [("train", 1)],
        "model": described,
        "gpu_ids": [0],
    }


def settings_3(described: dict[str, Any], pixels: dict[str, Any], scale: tuple[int, int] = (1333, 800)) -> dict:
    """A whole config of MMDetection 3.x."""
    described = copy.deepcopy(described)
    described["data_preprocessor"] = {
        "type": "DetDataPreprocessor",
        "mean": pixels["mean"],
        "std": pixels["std"],
        "bgr_to_rgb": pixels["rgb"],
        "pad_size_divisor": 32,
    }
    test = [
        {"type": "LoadImageFromFile", "backend_args": None},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
    loader = {
        "batch_size": 1,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {"type": "CocoDataset", "data_root": "data/coco/", "pipeline": test, "test_mode": True},
    }
    return {
        "auto_scale_lr": {"base_batch_size": 16, "enable": False},
        "backend_args": None,
        "default_scope": "mmdet",
        "model": described,
        "test_cfg": {"type": "TestLoop"},
        "test_dataloader": loader,
        "test_pipeline": test,
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01}},
    }


def text_2(settings: dict[str, Any]) -> str:
    """As mmcv writes a config: in the order of its files."""
    return "".join(f"{name} = {_call(value)}\n" for name, value in settings.items())


def text_3(settings: dict[str, Any]) -> str:
    """As MMEngine writes a config: sorted, and each item of a list on a line of its own."""
    return "".join(f"{name} = {_call(value, ordered=True)}\n" for name, value in sorted(settings.items()))


def _call(value: Any, indent: str = "", *, ordered: bool = False) -> str:
    more = f"{indent}    "
    if isinstance(value, dict):
        names = sorted(value) if ordered else list(value)
        inside = [f"{name}={_call(value[name], more, ordered=ordered)}" for name in names]
        return f"dict(\n{more}" + f",\n{more}".join(inside) + ")"
    if isinstance(value, list | tuple) and (ordered or any(isinstance(item, dict) for item in value)):
        inside = [f"\n{more}{_call(item, more, ordered=ordered)}," for item in value]
        left, right = "[]" if isinstance(value, list) else "()"
        return f"{left}{''.join(inside)}\n{indent}{right}"
    return repr(value)


VERSIONS = {"2.x": ("config", settings_2, text_2), "3.x": ("cfg", settings_3, text_3)}
"""The key in `meta`, the whole config, and how it is written."""


def texts(version: str, described: dict, pixels: dict = RGB, scale: tuple[int, int] = (1333, 800)) -> dict[str, str]:
    """The part of `meta` that holds the config."""
    key, settings, write = VERSIONS[version]
    return {key: write(settings(described, pixels, scale))}


OLD_TEXT = """\
/home/user/mmdetection/configs/_base_/models/retinanet_r50_fpn.py
# model settings
model = dict(
    type='RetinaNet',
    pretrained='torchvision://resnet50',
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        style='pytorch'),
    neck=dict(
        type='FPN',
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        start_level=1,
        add_extra_convs=True,
        num_outs=5),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        octave_base_scale=4,
        scales_per_octave=3,
        anchor_ratios=[0.5, 1.0, 2.0],
        anchor_strides=[8, 16, 32, 64, 128],
        target_means=[.0, .0, .0, .0],
        target_stds=[1.0, 1.0, 1.0, 1.0],
        loss_cls=dict(
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=1.0),
        loss_bbox=dict(type='SmoothL1Loss', beta=0.11, loss_weight=1.0)))
# training and testing settings
test_cfg = dict(
    nms_pre=1000,
    min_bbox_size=0,
    score_thr=0.05,
    nms=dict(type='nms', iou_thr=0.5),
    max_per_img=100)

/home/user/mmdetection/configs/_base_/datasets/coco_detection.py
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
img_norm_cfg = dict(
    mean=[0.485 * 255, 0.456 * 255, 0.406 * 255], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(1333, 800),
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
        ])
]
data = dict(
    imgs_per_gpu=2,
    test=dict(
        type=dataset_type,
        ann_file=data_root + 'annotations/instances_val2017.json',
        pipeline=test_pipeline))

/home/user/mmdetection/configs/retinanet/retinanet_r50_caffe_fpn_1x_coco.py
_base_ = [
    '../_base_/models/retinanet_r50_fpn.py', '../_base_/datasets/coco_detection.py'
]
model = dict(
    pretrained='open-mmlab://detectron2/resnet50_caffe',
    backbone=dict(norm_cfg=dict(requires_grad=False), style='caffe'))
# use caffe img_norm
img_norm_cfg = dict(
    mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(1333, 800),
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
        ])
]
data = dict(test=dict(pipeline=test_pipeline))
"""
"""A caffe RetinaNet as the first files of the zoo hold it: three files, one after the other."""

DISTILLER_TEXT = """\
find_unused_parameters = True
temp = 0.5
alpha_mgd = 2e-05
distiller = dict(
    type='DetectionDistiller',
    teacher_pretrained='retinanet_x101_64x4d_fpn_mstrain_3x_coco.pth',
    init_student=True,
    distill_cfg=[dict(student_module='neck.fpn_convs.4.conv', teacher_module='neck.fpn_convs.4.conv')])
student_cfg = 'configs/retinanet/retinanet_r50_caffe_fpn_2x_coco.py'
teacher_cfg = 'configs/retinanet/retinanet_x101_64x4d_fpn_mstrain_640-800_3x_coco.py'
"""
"""What a distiller of the original has in place of a model."""


def weights(described: ModelConfig, num_classes: int = 80) -> dict[str, Tensor]:
    """The names and shapes of a detector, each tensor one number over and over."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in detector_from(described, num_classes).state_dict().items()}
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def ours(detector: str, name: str = "resnet50", **options: Any) -> ModelConfig:
    """The section that builds a detector, without frozen stages, as that costs a forward."""
    return ModelConfig(detector=detector, backbone=name, frozen_stages=0, **options)


def checkpoint(state: dict[str, Tensor], meta: dict[str, Any], folder: Path, name: str = "a.pth") -> Path:
    torch.save({"meta": meta, "state_dict": state}, folder / name)
    return folder / name


def in_memory(state: dict[str, Tensor], name: str = "a.pth", **texts: str) -> Checkpoint:
    """What `read_checkpoint` gives for a file of MMDetection."""
    return Checkpoint(Path(name), "", state, None, None, "mmdetection", len(state), texts=texts)


META_2 = {"mmdet_version": "2.19.0", "CLASSES": COCO_CLASSES, "epoch": 24, "iter": 175896}


def refusal(state: dict[str, Tensor], name: str = "a.pth", **texts: str) -> str:
    """The sentence with which a file is not recognised."""
    return refusals.refusal(recognise_checkpoint, in_memory(state, name, **texts))
