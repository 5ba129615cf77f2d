"""Compiled backbones and necks: the same losses, one graph for all sizes, and nothing else that changes."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from mgdet import Teacher
from mgdet.config import Config
from mgdet.data.batch import Batch
from mgdet.detectors.build import DETECTORS
from mgdet.detectors.face import Face
from mgdet.engine.compiled import compile_pyramids
from mgdet.engine.loop import train
from mgdet.engine.step import Outcome, Step
from mgdet.errors import UserError
from mgdet.layers.inference import inference_form
from mgdet.methods.student import DistilledStudent
from mgdet.models import detector_from, with_methods
from mgdet.structures import Target
from tiny import ALONE, alone, assert_same_tensors, distilled, model, records

SIZES = [(288, 416), (416, 288), (288, 640)]
"""So large that the coarsest level has several cells: compiled graphs tell one of them from many."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def config_of(name: str) -> Config:
    config = distilled()
    config.student = replace(model(), detector=name)
    config.teacher = replace(model("resnet10t"), detector=name, weights="no such file")
    return config


def parts_of(name: str) -> tuple[DistilledStudent, Teacher]:
    config = config_of(name)
    torch.manual_seed(0)
    teacher = Teacher(inference_form(detector_from(config.teacher, 3)))
    student = detector_from(config.student, 3)
    return with_methods(config, student, teacher.detector, lambda line: None), teacher


def batch_of(size: tuple[int, int], number: int = 2) -> Batch:
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0]])
    masks = torch.ones(1, *size, dtype=torch.uint8)
    pixels = torch.randint(0, 256, (number, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    targets = [Target(boxes, torch.tensor([1]), masks, size=size) for _ in range(number)]
    return Batch(pixels, targets, ["x"] * number, [0] * number, [size] * number, [(1.0, 1.0)] * number)


def steps(name: str, backend: object = None) -> list[Outcome]:
    student, teacher = parts_of(name)
    if backend is not None:
        assert len(list(compile_pyramids(student, teacher, backend=backend))) == 2
    step = Step(student, teacher, config_of(name), ALONE)
    step.model.train()
    return [step.take([batch_of(size)], number=i, lr=1e-4) for i, size in enumerate(SIZES)]


def assert_close(mine: list[Outcome], theirs: list[Outcome]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert one.finite and one.losses.keys() == other.losses.keys()
        assert list(one.losses.values()) == pytest.approx(list(other.losses.values()), rel=1e-3)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)


@pytest.mark.parametrize(
    "name", [n if n == "retinanet" else pytest.param(n, marks=pytest.mark.slow) for n in DETECTORS]
)
def test_one_graph_serves_all_sizes(name):
    counter = CompileCounter()
    compiled = steps(name, counter)
    assert counter.frame_count == 4, "a backbone and a neck on each side, whatever the size"
    assert_close(compiled, steps(name))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductor_gives_the_same_losses():
    """The student alone: compiling takes a minute for each side."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        student = DistilledStudent(detector_from(model(), 3))
        if compiled:
            list(compile_pyramids(student, None))
        step = Step(student, None, alone(), ALONE)
        step.model.train()
        found.append([step.take([batch_of(size)], number=i, lr=1e-4) for i, size in enumerate(SIZES[:2])])
    assert_close(*found)


def test_names_stay_and_copies_are_not_compiled():
    student, teacher = parts_of("retinanet")
    names = list(student.state_dict())
    counter = CompileCounter()
    list(compile_pyramids(student, teacher, backend=counter))
    assert list(student.state_dict()) == names
    images = torch.randn(1, 3, 64, 96)
    form = inference_form(student.student)
    with torch.no_grad():
        found = form.pyramid(images).maps
        assert counter.frame_count == 0
        expected = student.student.eval().pyramid(images).maps
        assert counter.frame_count == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_says_that_it_is_compiled_and_leaves_the_same_checkpoint(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("mgdet.engine.loop.compile_pyramids", lambda *parts: compile_pyramids(*parts, backend="eager"))
    plain = tiny.config()
    plain.train.stop_after = 2
    compiled = replace(plain, train=replace(plain.train, compile=True))
    for name, config in (("plain", plain), ("compiled", compiled)):
        assert train(config, tmp_path / name, resume=False, world=ALONE) == 0
    said = [(tmp_path / name / "log.txt").read_text() for name in ("plain", "compiled")]
    assert ["backbone and neck are compiled" in text for text in said] == [False, True]
    assert_same_tensors(*(torch.load(tmp_path / name / "student_last.pth") for name in ("plain", "compiled")))
    assert records(tmp_path / "plain") == records(tmp_path / "compiled")


def test_a_foreign_detector_is_left_alone_and_said():
    class Foreign(Face):
        see = learn = find = None

    (line,) = compile_pyramids(DistilledStudent(Foreign()), None, backend="eager")
    assert line == "train.compile leaves the student as it is: it is a detector of another library"


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        list(compile_pyramids(*parts_of("retinanet")))


@pytest.mark.parametrize("name", ["retinanet", "reppoints"])
def test_a_share_is_measured_where_the_taps_can_be_seen(name):
    """Norms in the neck are compiled with it, so no path leads from what the heads read to the taps."""
    student, teacher = parts_of(name)
    method = next(iter(student.distill_losses))
    student.balance.shares[method] = 0.3
    if name == "reppoints":
        with pytest.raises(UserError, match=r"mgd\.share cannot be measured with train\.compile"):
            list(compile_pyramids(student, teacher, backend="eager"))
        return
    images, targets = torch.randn(2, 3, 64, 96), batch_of((64, 96)).targets
    shown = teacher.see(images, [(64, 96)] * 2)
    found = []
    for compiled in (False, True):
        if compiled:
            list(compile_pyramids(student, teacher, backend="aot_eager"))
        torch.manual_seed(0)
        found.append({key: norm.item() for key, norm in student(images, targets, shown, measure=True).norms.items()})
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-7)
    assert found[0]["detector_0"] > 0
