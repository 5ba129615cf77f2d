"""Operations are counted without data as they are counted with it, and hours follow by the formula."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import hours
from mgdet.config import Config
from mgdet.methods.student import DistilledStudent
from mgdet.methods.teacher import Teacher
from mgdet.models import detector_from, with_methods
from mgdet.recipes import load_recipe

SIZE = (64, 96)


def small(name: str) -> Config:
    config = load_recipe(name)
    for model in filter(None, (config.student, config.teacher)):
        model.backbone, model.channels = "resnet26", 32
    return config


def counted_with_data(config: Config, images: int) -> float:
    """The operations of backbone, neck, first head, teacher and method, with random numbers."""
    student = detector_from(config.student, 80)
    model, batch = DistilledStudent(student), torch.randn(images, 3, *SIZE)
    teacher = None
    if config.teacher is not None:
        frozen = detector_from(config.teacher, 80)
        model, teacher = with_methods(config, student, frozen, lambda line: None), Teacher(frozen)
    with FlopCounterMode(display=False) as counter:
        shown = teacher(batch) if teacher is not None else []
        maps, taps = student.pyramid(batch)
        outputs = [*hours.tree_leaves(student.head(maps))]
        outputs += [method(*own) for method, *own in zip(model.distill_losses.values(), taps, shown)]
        torch.stack([own.sum() for own in outputs]).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["retinanet_r50", "retinanet_x101_to_r50", "solo_r101_to_r50"])
def test_operations_are_those_of_a_step_with_data(name):
    config = small(name)
    without = sum(own.flops for own in hours.count(config, images=2, size=SIZE))
    assert without == pytest.approx(counted_with_data(config, 2), rel=1e-6)


def test_deformable_convolutions_are_counted_as_convolutions():
    plain, deformed = small("faster_rcnn_r50"), small("faster_rcnn_r50")
    deformed.student.deformable = True
    more = [sum(own.flops for own in hours.count(own, images=1, size=SIZE)) for own in (plain, deformed)]
    assert 1.0 < more[1] / more[0] < 1.5, "the offsets' convolutions come on top, and nothing is lost"


def test_the_second_stage_and_masks_come_on_top():
    names = ("faster_rcnn_r50", "mask_rcnn_r50")
    faster, mask = (sum(own.flops for own in hours.count(small(name), images=1, size=SIZE)) for name in names)
    config = small("faster_rcnn_r50")
    config.student.rois_per_image = 256
    fewer = sum(own.flops for own in hours.count(config, images=1, size=SIZE))
    assert fewer < faster < mask


def test_a_step_takes_the_longest_of_computing_moving_and_launching():
    gpu = hours.Gpu(fp32=10.0, half=100.0, memory=100.0, fp32_utilisation=0.5)
    computing, moving, nothing = hours.Work(1e12, 0.0), hours.Work(0.0, 7e9), hours.Work(0.0, 0.0)
    assert hours.seconds([computing], gpu, half=False) == pytest.approx(0.2)
    assert hours.seconds([computing], gpu, half=True) == pytest.approx(1 / (100 * hours.UTILISATION))
    assert hours.seconds([moving], gpu, half=False) == pytest.approx(0.1)
    assert hours.seconds([moving], gpu, half=True) == pytest.approx(0.05)
    assert hours.seconds([nothing] * 3, gpu, half=True) == pytest.approx(3 * hours.LAUNCH)
    assert hours.hours(0.2, 12, 8) == pytest.approx(0.2 * 12 * 117_266 / 16 / 3600)
