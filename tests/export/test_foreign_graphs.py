"""The graphs of other libraries' detectors find what the detectors find."""

from __future__ import annotations

import pytest
from lively import assert_graph_is, graph_of, picture, settled

from detectors.foreign import tv_models
from detectors.foreign.hf_tiny import OF_56, TINY
from mgdet.config import DataConfig
from mgdet.detectors.face import Face
from mgdet.errors import UserError
from mgdet.export.graph import canvas_of
from mgdet.export.run import export
from mgdet.export.verify import as_batch
from mgdet.layers.inference import inference_form
from mgdet.models.opened import Opened
from test_any_pair import save_tiny

pytestmark = pytest.mark.slow

SIZE = (100, 150)
TORCHVISION = (
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
)
ANY_SIZE = ("detr", "conditional_detr", "dab-detr", "yolos")
"""Of Hugging Face's: the others write the size that they see into the graph."""


def torchvision(name: str, columns: tuple[int, ...] = (1, 2, 3)) -> Face:
    return tv_models.detector_of(tv_models.reference(name), name, columns)


def huggingface(kind: str, folder, **settings) -> Face:
    from mgdet.detectors.foreign import library

    save_tiny(kind, folder, **settings)
    detector = library("hf").build(
        str(folder), classes=("cat", "dog", "cell"), weights="pretrained", say=lambda line: None
    )
    return inference_form(detector.eval())


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    detector = inference_form(settled(torchvision(name)))
    assert_graph_is(detector, graph_of(detector, SIZE), picture(*SIZE))


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_torchvision_of_any_size_and_of_some_classes(name):
    detector = inference_form(settled(torchvision(name, (2, 3))))
    graph = graph_of(detector)
    for seed, size in enumerate([SIZE, (250, 130)]):
        assert_graph_is(detector, graph, picture(*size, seed))


@pytest.mark.parametrize("name", ["ssd300_vgg16", "ssdlite320_mobilenet_v3_large"])
def test_torchvision_with_a_size_of_its_own(name):
    detector = torchvision(name).eval()
    if "ssdlite" in name:
        detector = settled(detector, mirrored=True)  # else every cell says the same
    detector = inference_form(detector)
    assert detector.native_size is not None
    assert_graph_is(detector, graph_of(detector, detector.native_size), picture(*detector.native_size), rounding=20)


@pytest.mark.parametrize("kind", TINY)
def test_hugging_face(kind, tmp_path):
    detector = huggingface(kind, tmp_path)
    assert_graph_is(detector, graph_of(detector, SIZE), picture(*SIZE), rounding=12)


@pytest.mark.parametrize("size", [(168, 168), (160, 168), (100, 112)])
def test_multiples_that_do_not_divide_32_are_kept(size, tmp_path):
    """RF-DETR's 56: an image of 168 x 168 is one of its own sizes, and stays so in torch and in the graph."""
    detector = huggingface("rf_detr", tmp_path, backbone_config=OF_56)
    whole = tuple(-(-edge // 56) * 56 for edge in size)
    assert detector.multiple == 56
    assert as_batch(picture(*size)).fitted(56).pixels.shape[1:3] == canvas_of(detector, size).padded == whole
    assert_graph_is(detector, graph_of(detector, size), picture(*size), rounding=12)


@pytest.mark.parametrize("kind", ANY_SIZE)
def test_hugging_face_of_any_size(kind, tmp_path):
    detector = huggingface(kind, tmp_path)
    graph = graph_of(detector)
    for seed, size in enumerate([SIZE, (220, 130)]):
        assert_graph_is(detector, graph, picture(*size, seed), rounding=12)


def test_what_works_for_one_size_alone_says_so(tmp_path):
    detector = huggingface("d_fine", tmp_path)
    opened = Opened("d_fine", detector, ("cat", "dog", "cell"), DataConfig(long_edge=96, short_edge=(64, 64)), (), "")
    with pytest.raises(UserError, match=r"takes images of one size only; give it, e\.g\. --size 640 640"):
        export(opened, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("name", ["yolox-n", "yolov9-t"])
def test_libreyolo(name):
    pytest.importorskip("libreyolo")
    from detectors.foreign import yolo_models

    detector = inference_form(yolo_models.detector_of(name).eval())
    if name == "yolov9-t":  # many of its random scores tie, and rounding decides who of a chain suppresses whom
        detector.nms_thresh = 1.0
    graph = graph_of(detector)
    for seed, size in enumerate([SIZE, (250, 130)]):
        assert_graph_is(detector, graph, picture(*size, seed), rounding=20)
