"""The estimate of a step's memory, and how much there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mgdet.config import ModelConfig
from mgdet.engine.recomputed import recompute_backbone
from mgdet.planning import memory
from mgdet.planning.memory import measure_footprint, memory_for_training, probe_detectors
from mgdet.recipes import load_recipe
from tiny import CLASSES, alone, distilled

CPU = torch.device("cpu")


def footprint(config):
    return measure_footprint(config, *probe_detectors(config, CLASSES))


def test_what_the_backward_pass_needs_is_counted_once():
    x = torch.randn(1000, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(1000))
    with memory._kept() as kept:
        y = x * weight  # keeps x; the weight is there anyway
        z = torch.exp(y)  # keeps its result
        (z * z.view(10, 100).view(1000)).sum()  # keeps the same again, as two views
    assert kept.total() == 2 * 1000 * 4


def test_it_grows_with_the_area(monkeypatch):
    config = distilled()
    from_small = footprint(config)
    monkeypatch.setattr(memory, "PROBE_EDGES", (256, 512))
    from_large = footprint(config)
    size = (800, 1344)
    assert from_small.of(4, size) == pytest.approx(from_large.of(4, size), rel=0.05)
    assert from_small.of(8, size) - from_small.of(4, size) == pytest.approx(
        from_small.of(4, size) - from_small.fixed, rel=0.01
    )


def test_a_second_stage_has_regions_whatever_the_size():
    config = alone()
    config.student = replace(config.student, detector="faster_rcnn", rois_per_image=64)
    few = footprint(config)
    config.student.rois_per_image = 256
    many = footprint(config)
    assert many.per_image > 2 * few.per_image > 0
    assert many.per_pixel == pytest.approx(few.per_pixel, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, gib",
    [("retinanet_r50_1x", 3.8), ("faster_rcnn_r50_1x", 4.0), ("mask_rcnn_r50_1x", 4.4), ("reppoints_r50_1x", 3.9)],
)
def test_it_is_near_what_mmdetection_publishes_for_two_images(recipe, gib):
    config = load_recipe(recipe)
    own = measure_footprint(config, *probe_detectors(config, [str(i) for i in range(80)]))
    assert (own.of(2, (800, 1344)) - memory.CONTEXT) / 2**30 == pytest.approx(gib, rel=0.12)


def test_methods_and_a_teacher_take_their_part():
    config = distilled()
    config.inherit = False
    with_mgd, without = footprint(config), footprint(alone())
    assert with_mgd.per_pixel > 1.02 * without.per_pixel
    assert with_mgd.fixed > without.fixed


def test_the_optimizer_remembers():
    config = alone()
    sgd = footprint(config).fixed
    config.optimizer.name, config.optimizer.lr = "adamw", 1e-4
    trained = sum(p.numel() for p in probe_detectors(config, CLASSES)[0].parameters() if p.requires_grad)
    assert footprint(config).fixed - sgd == 4 * trained


def test_a_backbone_that_is_computed_again_keeps_its_inputs_and_one_block():
    config = alone()
    plain = footprint(config)
    student, _ = probe_detectors(config, CLASSES)
    recompute_backbone(student)
    inputs = measure_footprint(config, student, None)
    config.train = replace(config.train, checkpoint_backbone=True)
    again = footprint(config)
    assert again.fixed == plain.fixed
    assert inputs.per_pixel < again.per_pixel < plain.per_pixel
    student, _ = probe_detectors(config, CLASSES)
    block = student.train().backbone.layer1[0]
    with memory._kept() as kept:
        block(torch.randn(1, block.conv1.in_channels, 80, 80))
    assert again.per_pixel - inputs.per_pixel == pytest.approx(memory.GRADIENTS * kept.total() / 320**2, rel=0.1)


def test_the_average_of_the_weights_is_a_student_more():
    config = alone()
    without = footprint(config).fixed
    config.train.ema = 0.99
    student, _ = probe_detectors(config, CLASSES)
    assert footprint(config).fixed - without == sum(
        value.numel() * value.element_size() for value in (*student.parameters(), *student.buffers())
    )


def test_a_student_of_one_size_is_measured_at_it():
    config = alone()
    config.student = ModelConfig(detector="torchvision:ssdlite320_mobilenet_v3_large", weights="random")
    own = footprint(config)
    assert own.per_pixel == 0 and own.per_image > 0


def test_nothing_random_moves():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    footprint(distilled())
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_on_a_cpu_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000 / 2**30)
    assert memory_for_training(CPU, 1) == 500
    assert memory_for_training(CPU, 2) == 250
    monkeypatch.setattr(memory, "free_memory", lambda device: 0.0)
    assert memory_for_training(CPU, 1) is None


def test_each_gpu_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert memory_for_training(torch.device("cuda"), 8) == 800
