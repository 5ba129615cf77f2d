"""What a file holds: from its config, from its names and shapes alone, and what is named that this package lacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

import forged
import mmdet_files as files
from mgdet.config import Config
from mgdet.data.coco_names import COCO_CLASSES
from mgdet.detectors.build import DETECTORS
from mgdet.errors import UserError
from mgdet.interop.weights import read_checkpoint, save_checkpoint
from mgdet.models import build_models, detector_from, load_detector, recognise, recognise_checkpoint
from mgdet.models.agree import CAFFE_PIXELS
from mgdet.structures import IMAGENET, Pixels
from tiny import CLASSES, alone, write_detector

BACKBONES = {
    "resnet18": files.backbone(18, "pytorch"),
    "resnet34": files.backbone(34, "pytorch"),
    "resnet50": files.backbone(50, "pytorch"),
    "resnet101": files.backbone(101, "pytorch"),
    "resnet152": files.backbone(152, "pytorch"),
    "resnext50_32x4d": files.backbone(50, "pytorch", 32, 4),
    "resnext101_32x4d": files.backbone(101, "pytorch", 32, 4),
    "resnext101_64x4d": files.backbone(101, "pytorch", 64, 4),
    "resnext101_32x8d": files.backbone(101, "pytorch", 32, 8),
}


def pixels_of(model) -> Pixels:
    return Pixels(model.mean, model.std, model.bgr)


class TestWithConfig:
    @pytest.mark.parametrize("version", files.VERSIONS)
    @pytest.mark.parametrize("detector", DETECTORS)
    def test_each_detector_in_caffe_style_and_bgr(self, detector, version, states):
        described = files.model(detector, files.backbone(50, "caffe"))
        checkpoint = files.in_memory(states[detector], **files.texts(version, described, files.BGR, (1333, 640)))
        found = recognise_checkpoint(checkpoint, "here.pth")
        assert found.model == replace(
            files.ours(detector), frozen_stages=1, weights="here.pth", style="caffe", **CAFFE_PIXELS._asdict()
        )
        assert (found.num_classes, found.classes) == (80, COCO_CLASSES)
        assert (found.long_edge, found.short_edge, found.square) == (1333, 640, 0)
        assert found.lines == (
            f"a.pth: {detector} with resnet50 in caffe style, mean 103.53 116.28 123.675, deviation 1 1 1, BGR, "
            "80 classes (named by its config), images of 1333 x 640",
        )

    @pytest.mark.parametrize("version", files.VERSIONS)
    @pytest.mark.parametrize("name", BACKBONES)
    def test_each_backbone(self, name, version):
        detector = "cascade_mask_rcnn" if "32x4d" in name else "retinanet"
        deformable = name == "resnext101_32x4d"
        body = BACKBONES[name] | (files.backbone(101, "pytorch", 32, 4, deformable=True) if deformable else {})
        state = files.weights(files.ours(detector, name, deformable=deformable), 3)
        found = recognise_checkpoint(files.in_memory(state, **files.texts(version, files.model(detector, body, 3))))
        model = found.model
        assert (model.detector, model.backbone, model.deformable, model.style) == (
            detector,
            name,
            deformable,
            "pytorch",
        )
        assert (pixels_of(model), found.num_classes, found.classes) == (IMAGENET, 3, None)
        assert found.lines == (
            f"a.pth: {detector} with {name}{', deformable' * deformable}, 3 classes (not named), images of 1333 x 800",
        )

    def test_style_makes_no_difference_to_a_resnet_without_bottlenecks(self):
        state = files.weights(files.ours("retinanet", "resnet18"))
        described = files.model("retinanet", files.backbone(18, "caffe"))
        found = recognise_checkpoint(files.in_memory(state, **files.texts("2.x", described, files.BGR)))
        assert (found.model.style, pixels_of(found.model)) == ("pytorch", CAFFE_PIXELS)

    @pytest.mark.parametrize(
        ("body", "style", "sure"),
        [
            ("dict(style='caffe')", "caffe", True),
            ("dict(type='ResNet', depth=50)", "pytorch", True),
            ("dict(type='ResNet', depth=50, style=STYLE)", "pytorch", False),
            ("dict(type='MyResNet', style='caffe')", "pytorch", False),
        ],
    )
    def test_style_in_a_config_that_is_not_whole(self, body, style, sure, states):
        config = f"model = dict(backbone={body})\nimg_norm_cfg = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True)"
        found = recognise_checkpoint(files.in_memory(states["retinanet"], config=config))
        assert (found.model.style, len(found.lines) == 1) == (style, sure)
        assert pixels_of(found.model) == Pixels((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))

    def test_pytorch_style_may_have_any_normalisation(self, states):
        pixels = {"mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395], "rgb": False}
        described = files.model("faster_rcnn", files.backbone(50, "pytorch"))
        for version in files.VERSIONS:
            found = recognise_checkpoint(
                files.in_memory(states["faster_rcnn"], **files.texts(version, described, pixels))
            )
            assert found.model.style == "pytorch"
            assert pixels_of(found.model) == Pixels((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), bgr=True)

    def test_a_preprocessor_without_a_mean_normalises_nothing(self, states):
        settings = files.settings_3(files.model("retinanet", BACKBONES["resnet50"]), files.RGB)
        settings["model"]["data_preprocessor"] = {"type": "DetDataPreprocessor", "pad_size_divisor": 32}
        found = recognise_checkpoint(files.in_memory(states["retinanet"], cfg=files.text_3(settings)))
        assert pixels_of(found.model) == Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr=True)

    def test_images_that_are_loaded_in_another_order(self, states):
        for version in files.VERSIONS:
            settings = files.VERSIONS[version][1](files.model("retinanet", BACKBONES["resnet50"]), files.RGB)
            steps = [settings[name] for name in ("test_pipeline",)]
            steps += [settings["data"]["test"]["pipeline"]] if version == "2.x" else []
            steps += [settings["test_dataloader"]["dataset"]["pipeline"]] if version == "3.x" else []
            for pipeline in steps:
                pipeline[0]["channel_order"] = "rgb"
            key, _, write = files.VERSIONS[version]
            found = recognise_checkpoint(files.in_memory(states["retinanet"], **{key: write(settings)}))
            assert pixels_of(found.model) == IMAGENET._replace(bgr=True)

    def test_settings_of_training(self, states):
        body = BACKBONES["resnet50"] | {"frozen_stages": -1}
        described = files.model("faster_rcnn", body)
        described["train_cfg"]["rcnn"]["sampler"]["num"] = 256
        found = recognise_checkpoint(files.in_memory(states["faster_rcnn"], **files.texts("2.x", described)))
        assert (found.model.frozen_stages, found.model.rois_per_image) == (0, 256)

    def test_squares_and_other_squashed_images(self, states):
        settings = files.settings_3(files.model("retinanet", BACKBONES["resnet50"]), files.RGB, (640, 640))
        resize = settings["test_dataloader"]["dataset"]["pipeline"][1]
        resize["keep_ratio"] = False
        found = recognise_checkpoint(files.in_memory(states["retinanet"], cfg=files.text_3(settings)))
        assert (found.square, found.data().square) == (640, 640)
        resize["scale"] = (640, 480)
        found = recognise_checkpoint(files.in_memory(states["retinanet"], cfg=files.text_3(settings)))
        assert (found.square, found.long_edge, found.short_edge) == (0, 640, 480)
        assert found.lines[1] == (
            "its config squashes images to 640 x 480, which is not done here: they keep their ratio"
        )

    def test_other_settings_of_testing_are_said(self, states):
        described = files.model("faster_rcnn", BACKBONES["resnet50"])
        described["test_cfg"]["rcnn"] = {
            "score_thr": 0.001,
            "nms": {"type": "soft_nms", "iou_threshold": 0.5},
            "max_per_img": 300,
        }
        described["roi_head"]["bbox_roi_extractor"]["roi_layer"]["sampling_ratio"] = 2
        found = recognise_checkpoint(files.in_memory(states["faster_rcnn"], **files.texts("2.x", described)))
        assert found.lines[1] == (
            "its config tests with other settings than mgdet: score_thr 0.001 (here 0.05), max_per_img 300 (here 100), "
            "nms.type soft_nms (here nms), 2 points per cell of a region (here as many as it covers)"
        )

    def test_types_with_their_modules_as_newer_configs_write_them(self, states):
        described = files.model("retinanet", files.backbone(50, "caffe"))
        described["backbone"]["type"] = "mmdet.models.backbones.ResNet"
        described["bbox_head"]["anchor_generator"]["type"] = "mmdet.models.task_modules.AnchorGenerator"
        described["bbox_head"]["bbox_coder"]["type"] = "mmdet.models.task_modules.DeltaXYWHBBoxCoder"
        settings = files.settings_3(described, files.BGR)
        for step in settings["test_dataloader"]["dataset"]["pipeline"]:
            step["type"] = f"mmdet.datasets.transforms.{step['type']}"
        found = recognise_checkpoint(files.in_memory(states["retinanet"], cfg=files.text_3(settings)))
        assert (found.model.style, found.long_edge, len(found.lines)) == ("caffe", 1333, 1)

    def test_the_first_files_of_the_zoo(self, states):
        found = recognise_checkpoint(files.in_memory(states["retinanet"], config=files.OLD_TEXT))
        assert (found.model.style, pixels_of(found.model)) == ("caffe", CAFFE_PIXELS)
        assert (found.classes, found.long_edge, len(found.lines)) == (COCO_CLASSES, 1333, 1)

    @pytest.mark.parametrize(
        "around",
        [
            lambda model: {"model": {"type": "SoftTeacher", "detector": model}},
            lambda model: {"model": {"type": "mmrazor.FpnTeacherDistill", "architecture": model}},
            lambda model: {"algorithm": {"type": "GeneralDistill", "architecture": {"type": "A", "model": model}}},
        ],
    )
    def test_the_model_inside_of_a_distiller(self, around, states):
        settings = files.settings_2(files.model("retinanet", files.backbone(50, "caffe")), files.BGR)
        model = settings.pop("model")
        found = recognise_checkpoint(
            files.in_memory(states["retinanet"], config=files.text_2(settings | around(model)))
        )
        assert (found.model.style, len(found.lines)) == ("caffe", 1)

    def test_the_file_names_its_classes_before_the_config_does(self, tmp_path):
        state = files.weights(files.ours("retinanet"), 3)
        settings = files.settings_3(files.model("retinanet", BACKBONES["resnet50"], 3), files.RGB)
        settings["metainfo"] = {"classes": ("a", "b", "c")}
        meta = {"cfg": files.text_3(settings)}
        assert recognise(str(files.checkpoint(state, meta, tmp_path))).classes == ("a", "b", "c")
        named = files.checkpoint(state, meta | {"dataset_meta": {"classes": CLASSES}}, tmp_path)
        assert recognise(str(named)).classes == CLASSES
        wrong = files.checkpoint(state, meta | {"CLASSES": ("a", "b")}, tmp_path)
        with pytest.raises(UserError, match="names 2 classes, but its head predicts 3; give a file"):
            recognise(str(wrong))


class TestWithoutConfig:
    @pytest.mark.parametrize("detector", DETECTORS)
    def test_doubts_are_said(self, detector, states):
        found = recognise_checkpoint(files.in_memory(states[detector]))
        assert (found.model.style, pixels_of(found.model)) == ("pytorch", IMAGENET)
        assert (found.num_classes, found.classes, found.long_edge, found.short_edge) == (80, None, None, None)
        assert found.lines == (
            f"a.pth: {detector} with resnet50, 80 classes (not named)",
            "weights do not show its style and normalisation, and it holds no config; taken as is usual: pytorch "
            "style, mean 123.675 116.28 103.53, deviation 58.395 57.12 57.375, RGB",
        )

    @pytest.mark.parametrize("name", ["resnet18", "resnet152", "resnext50_32x4d", "wide_resnet50_2"])
    def test_backbones(self, name):
        state = files.weights(files.ours("mask_rcnn", name, channels=128), 1)
        found = recognise_checkpoint(files.in_memory(state))
        assert (found.model.backbone, found.model.channels) == (name, 128)
        assert found.lines[0] == f"a.pth: mask_rcnn with {name}, 128 channels, 1 class (not named)"
        assert ("style" in found.lines[1]) == (name != "resnet18")

    @pytest.mark.parametrize("name", ["retinanet_r50_caffe_fpn_1x_coco.pth", "faster-rcnn_r50-caffe_fpn_1x_coco.pth"])
    def test_a_name_that_says_caffe_is_believed_and_said(self, name, states):
        found = recognise_checkpoint(files.in_memory(states["retinanet"], name))
        assert (found.model.style, pixels_of(found.model)) == ("caffe", CAFFE_PIXELS)
        assert f"taken as the name '{name}' says: caffe style, mean 103.53" in found.lines[1]

    def test_so_is_the_student_that_a_distiller_names(self, states):
        found = recognise_checkpoint(files.in_memory(states["retinanet"], config=files.DISTILLER_TEXT))
        assert found.model.style == "caffe"
        assert "the name 'retinanet_r50_caffe_fpn_2x_coco.py' says" in found.lines[1]

    @pytest.mark.parametrize("name", ["decaffeinated.pth", "retinanet_r50_fpn.pth"])
    def test_other_names_say_nothing(self, name, states):
        assert recognise_checkpoint(files.in_memory(states["retinanet"], name)).model.style == "pytorch"

    @pytest.mark.parametrize(
        ("broken", "words"),
        [
            (
                "model = dict(\n    type='RetinaNet',",
                "its config cannot be read (it is no Python: '(' was never closed)",
            ),
            ("a = 1\n" * (1 << 18), "its config cannot be read (it has 1,572,864 letters, more than any config)"),
            ("a = " + "[" * 100_000, "its config cannot be read (it is no Python: too many nested parentheses)"),
            ("model = dict(type=f(), backbone=g)", "its config does not say it"),
            ("import os\nos.system('false')\n", "its config does not say it"),
            ("", "its config does not say it"),
        ],
    )
    def test_a_broken_config_leaves_the_weights(self, broken, words, states):
        found = recognise_checkpoint(files.in_memory(states["retinanet"], config=broken))
        assert (found.model.detector, found.model.style) == ("retinanet", "pytorch")
        assert f"normalisation, and {words}; taken as is usual" in found.lines[1]

    def test_a_config_of_another_backbone_is_not_believed(self, states):
        described = files.model("retinanet", files.backbone(101, "caffe"))
        found = recognise_checkpoint(files.in_memory(states["retinanet"], **files.texts("2.x", described, files.BGR)))
        assert (found.model.style, found.long_edge) == ("pytorch", None)
        assert "and its config is of a backbone of depth 101, and its weights are not; taken" in found.lines[1]

    @pytest.mark.parametrize(
        "odd",
        [
            {"model": 3},
            {"model": {"backbone": 3, "neck": [], "bbox_head": None}},
            {"model": {"backbone": {"type": 3, "depth": "x", "style": [], "frozen_stages": 9}}},
            {"img_norm_cfg": {"mean": "x", "std": None, "to_rgb": 3}},
            {"img_norm_cfg": {"mean": [1, 2], "std": [0, 0, 0]}},
            {"test_pipeline": [3, None, [[{"type": "Resize", "img_scale": (1, "x")}]]]},
            {"test_pipeline": {"type": "Resize"}},
            {"data": {"test": {"pipeline": [{"type": "Resize", "img_scale": [(0, -3)]}]}}},
            {"data_preprocessor": {"data_preprocessor": {"data_preprocessor": {"mean": 3}}}},
            {"data": [], "test_dataloader": 3, "test_cfg": "x", "train_cfg": {"rcnn": [3]}, "metainfo": {"classes": 3}},
        ],
    )
    def test_odd_configs_end_in_doubt(self, odd, states):
        found = recognise_checkpoint(files.in_memory(states["retinanet"], config=files.text_2(odd)))
        assert (found.model.style, pixels_of(found.model), found.long_edge) == ("pytorch", IMAGENET, None)
        assert len(found.lines) == 2

    @pytest.mark.slow
    def test_a_timm_backbone_is_found_by_its_shapes_where_they_are_its_own(self, monkeypatch):
        monkeypatch.setattr(timm, "list_modules", lambda: ["resnet", "convnext", "swin_transformer_v2"])
        state = files.weights(files.ours("retinanet", "convnext_tiny"))
        found = recognise_checkpoint(files.in_memory(state))
        assert (found.model.backbone, found.model.style) == ("convnext_tiny", "pytorch")
        assert "do not show its normalisation, and" in found.lines[1]
        state = files.weights(files.ours("retinanet", "swinv2_tiny_window8_256"))
        message = files.refusal(state)
        assert "may be any of swinv2_tiny_window8_256, swinv2_tiny_window16_256, which have the same" in message

    def test_the_grids_of_solo_are_in_its_weights(self, states):
        described = files.ours("solo", grids=(20, 18, 12, 8, 6))
        found = recognise_checkpoint(files.in_memory(files.weights(described)))
        assert found.model.grids == described.grids
        assert found.lines[0].startswith("a.pth: solo with resnet50, grids of 20 18 12 8 6 cells, 80 classes")
        assert recognise_checkpoint(files.in_memory(states["solo"])).model.grids == ()


class TestPrefixes:
    def wrapped(self, state: dict) -> dict[str, dict]:
        return {
            "ddp": {f"module.{name}": value for name, value in state.items()},
            "compiled": {f"_orig_mod.module.{name}": value for name, value in state.items()},
            "mmrazor": {f"architecture.{name}": value for name, value in state.items()}
            | {f"teacher.{name}": value for name, value in state.items()},
            "distiller": forged.mgd_training(state, {name: value for name, value in state.items()}),
            "ema": state | {f"ema_{name.replace('.', '_')}": value for name, value in state.items()},
        }

    @pytest.mark.parametrize("kind", ["ddp", "compiled", "mmrazor", "distiller", "ema"])
    def test_the_detector_inside(self, kind, states, tmp_path):
        described = files.model("solo", files.backbone(50, "caffe"))
        meta = files.META_2 | files.texts("2.x", described, files.BGR)
        path = files.checkpoint(self.wrapped(states["solo"])[kind], meta, tmp_path)
        found = recognise(str(path))
        assert (found.model.detector, found.model.style, found.model.weights) == ("solo", "caffe", str(path))
        assert found.classes == COCO_CLASSES


class TestOurs:
    def test_a_run_and_its_checkpoint(self, tiny, tmp_path):
        config = alone()
        config.data.square = 64
        config.student = replace(files.ours("retinanet", channels=32), style="caffe", **CAFFE_PIXELS._asdict())
        state = files.weights(config.student, 3)
        save_checkpoint(tmp_path / "student_best.pth", state, classes=CLASSES, config=config.to_dict())
        for source in (str(tmp_path), str(tmp_path / "student_best.pth")):
            found = recognise(source)
            assert found.model == replace(config.student, weights=source)
            assert (found.classes, found.num_classes) == (CLASSES, 3)
            assert (found.long_edge, found.short_edge, found.square) == (96, 64, 64)
            assert found.lines == (
                f"{tmp_path / 'student_best.pth'}: a checkpoint of mgdet, retinanet with resnet50 in caffe style, "
                "32 channels, mean 103.53 116.28 123.675, deviation 1 1 1, BGR, 3 classes",
            )

    def test_a_config_from_before_style_and_normalisation(self, tmp_path):
        config = alone().to_dict()
        for name in ("style", "mean", "std", "bgr"):
            del config["student"][name]
        write_detector(tmp_path / "a.pth", seed=1)
        content = torch.load(tmp_path / "a.pth", weights_only=True)
        torch.save(content | {"meta": {"CLASSES": CLASSES, "mgdet": config}}, tmp_path / "a.pth")
        found = recognise(str(tmp_path / "a.pth"))
        assert (found.model.style, pixels_of(found.model)) == ("pytorch", IMAGENET)

    def test_a_config_that_cannot_be_read(self, tmp_path):
        write_detector(tmp_path / "a.pth", seed=1)
        content = torch.load(tmp_path / "a.pth", weights_only=True)
        content["meta"]["mgdet"]["student"]["colour"] = "red"
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(
            UserError, match=r"the config in .*a\.pth cannot be read: config\.student has no field 'colour"
        ):
            recognise(str(tmp_path / "a.pth"))

    def test_what_was_recognised_teaches_and_is_tested(self, tiny, tmp_path):
        """A stand-in of MMDetection, from its file to the taps of a teacher and to a detector."""
        state = detector_from(files.ours("faster_rcnn", channels=32), 3).state_dict()
        described = files.model("faster_rcnn", files.backbone(50, "caffe"), 3)
        path = files.checkpoint(state, {"CLASSES": CLASSES} | files.texts("3.x", described, files.BGR), tmp_path)
        found = recognise(str(path))
        config: Config = tiny.config(distil=True)
        config.teacher, config.inherit = found.model, False
        models = build_models(config, CLASSES, fresh=True, say=lambda line: None)
        teacher = models.teacher.detector
        assert (teacher.pixels, teacher.backbone.layer2[0].conv1.stride) == (CAFFE_PIXELS, (2, 2))
        detector, line = load_detector(found.model, read_checkpoint(path), CLASSES)
        assert (detector.pixels, detector.backbone.layer2[0].conv1.stride) == (CAFFE_PIXELS, (2, 2))
        assert "0 missing, 0 unexpected, 0 of another shape" in line


class TestOtherLibraries:
    def test_torchvision(self):
        found = recognise("torchvision:maskrcnn_resnet50_fpn")
        assert (found.model.detector, found.model.weights) == ("torchvision:maskrcnn_resnet50_fpn", "pretrained")
        assert (found.num_classes, len(found.classes), found.classes[0]) == (80, 80, "person")
        assert found.lines == ("torchvision:maskrcnn_resnet50_fpn, as published, 80 classes",)

    def test_libreyolo(self):
        pytest.importorskip("libreyolo")
        assert recognise("libreyolo:yolox-s").num_classes == 80

    def test_backbones_and_the_hub_are_not_asked_for_classes(self):
        assert recognise("timm:convnext_tiny.fb_in22k").num_classes is None
        assert recognise("hf:PekingU/rtdetr_v2_r50vd").classes is None

    def test_a_folder_of_hugging_face_names_its_classes(self, tmp_path):
        labels = '{"1": "cat", "0": "N/A", "10": "dog"}'
        (tmp_path / "config.json").write_text(f'{{"model_type": "detr", "id2label": {labels}}}')
        found = recognise(f"hf:{tmp_path}")
        assert (found.classes, found.num_classes) == (("cat", "dog"), 2)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("torchvision:fasterrcnn", "torchvision has no detector 'fasterrcnn'"),
            ("libreyolo:yolo", "LibreYOLO has no model 'yolo'"),
            ("timm:resnet5O", "timm has no backbone 'resnet5O'"),
            ("keras:x", "there is no source 'keras'"),
            ("nowhere.pth", "the checkpoint nowhere.pth does not exist"),
        ],
    )
    def test_names_that_are_none(self, source, words):
        with pytest.raises(UserError, match=words):
            recognise(source)


def test_a_drive_of_windows_is_no_library():
    with pytest.raises(UserError, match=r"the checkpoint C:\\models\\teacher\.pth does not exist"):
        recognise(r"C:\models\teacher.pth")
