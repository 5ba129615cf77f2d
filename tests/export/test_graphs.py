"""The graph of every detector finds what the detector finds: one size with padding, and images of any size."""

from __future__ import annotations

import pytest
import torch
from lively import OURS, assert_graph_is, graph_of, ours, picture

from mgdet.detectors.exported import IMAGE
from mgdet.layers.inference import inference_form

pytestmark = pytest.mark.slow

ONE_SIZE = (100, 150)
"""No multiple of anything: it is padded inside."""


@pytest.mark.parametrize("name", OURS)
def test_a_graph_of_one_size(name):
    detector = ours(name)
    graph = graph_of(detector, ONE_SIZE)
    (given,) = graph.session.get_inputs()
    assert (given.name, given.type, given.shape) == (IMAGE, "tensor(uint8)", [1, *ONE_SIZE, 3])
    assert_graph_is(detector, graph, picture(*ONE_SIZE))


@pytest.mark.parametrize("name", OURS)
def test_a_graph_of_any_size(name):
    detector = ours(name)
    graph = graph_of(detector)
    assert graph.session.get_inputs()[0].shape == [1, "height", "width", 3]
    assert graph.canvas is None
    for seed, size in enumerate([(100, 150), (220, 130)]):
        assert_graph_is(detector, graph, picture(*size, seed), rounding=2)


def test_deformable_convolutions():
    detector = ours("retinanet", "resnet50", deformable=True)
    assert_graph_is(detector, graph_of(detector, (64, 96)), picture(64, 96))


def test_channels_in_the_order_that_the_detector_takes():
    detector = ours("retinanet")
    detector.pixels = detector.pixels._replace(mean=(10.0, 100.0, 200.0), std=(1.0, 50.0, 70.0), bgr=True)
    graph = graph_of(detector, ONE_SIZE)
    assert_graph_is(detector, graph, picture(*ONE_SIZE))
    assert graph.preprocessing.mean == (200.0, 100.0, 10.0)
    assert graph.preprocessing.fill == (200, 100, 10)


def test_nothing_found_is_an_empty_result():
    detector = ours("mask_rcnn")
    detector.score_threshold = 1.0
    found = graph_of(detector, ONE_SIZE).run(picture(*ONE_SIZE))
    assert found.boxes.shape == (0, 4)
    assert found.masks is not None and found.masks.shape == (0, *ONE_SIZE)


def test_the_detector_stays_as_it_was():
    detector = inference_form(ours("retinanet"))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    graph_of(detector, (64, 64))
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
