"""A loss or a gradient that is not a number: where it is found, what is kept, and what is left alone."""

import copy
import math

import pytest
import torch

import mgdet.detectors.retinanet as retinanet
import mgdet.engine.loop as loop
from mgdet import DistilledStudent, Target
from mgdet.cli import main
from mgdet.config import OptimizerConfig
from mgdet.data.batch import Batch
from mgdet.engine.step import Step
from mgdet.methods.mgd import MGD
from mgdet.models import detector_from
from tiny import ALONE, alone, records

STEP = 4


@pytest.fixture
def fail(tiny, tmp_path, capsys, monkeypatch):
    """Trains with something broken from step `STEP` on; gives the sentence and the folder."""

    def run(break_it, *more):
        folder = tmp_path / "run"
        before = {}
        take_step = loop.Run._take_step

        def step(run, loader):
            if run.step == STEP - 1:
                run.save()
                before.update({path.name: path.read_bytes() for path in folder.glob("*.pth")})
                break_it(run)
            return take_step(run, loader)

        monkeypatch.setattr(loop.Run, "_take_step", step)
        code = main([*tiny.arguments("train"), "--run-dir", str(folder), "--data.workers", "0", *more])
        err = capsys.readouterr().err
        assert code == 1
        assert err.startswith("mgdet: ") and err.count("\n") == 1
        assert before.keys() == {"state.pth", "student_last.pth"}
        assert all((folder / name).read_bytes() == content for name, content in before.items())
        return err, folder

    return run


def poison(value):
    """`value` as it is, but not a number."""
    return value * math.nan


def check_file(folder, err, *, bad):
    """The file has the weights before the step, the pictures, and the losses; the sentence names both."""
    kept = torch.load(folder / f"nonfinite_step{STEP}_rank0.pth", weights_only=True)
    assert f"{folder}/nonfinite_step{STEP}_rank*.pth" in err
    assert {name for name, value in kept["losses"][0].items() if not math.isfinite(value)} == bad
    (batch,) = kept["batches"]
    assert len(batch["files"]) == len(batch["targets"]) == len(batch["pixels"]) == 2
    assert ", ".join(batch["files"]) in err
    state = torch.load(folder / "state.pth", weights_only=True)
    for name, value in state["model"].items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(value, kept["model"][name]), name


def test_a_level_of_mgd(fail):
    def break_it(run):
        level = run.student.distill_losses["loss_mgd_fpn_2"]
        level.forward = lambda *maps: poison(MGD.forward(level, *maps))

    err, folder = fail(break_it)
    assert f"step {STEP} is not finite" in err and "rank 0: loss, loss_mgd_fpn_2 on " in err
    check_file(folder, err, bad={"loss", "loss_mgd_fpn_2"})


def test_a_level_of_the_detector(fail, monkeypatch):
    def break_it(run):
        focal = retinanet.sigmoid_focal_sum
        calls = []

        def second_is_bad(*arguments):
            calls.append(1)
            return poison(focal(*arguments)) if len(calls) % 5 == 2 else focal(*arguments)

        monkeypatch.setattr(retinanet, "sigmoid_focal_sum", second_is_bad)

    err, folder = fail(break_it)
    assert "rank 0: loss, loss_cls (level 1) on " in err
    check_file(folder, err, bad={"loss", "loss_cls"})


def test_a_level_of_the_pyramid(fail):
    def break_it(run):
        convolution = run.student.student.neck.fpn_convs[4].conv
        convolution.forward = lambda maps: poison(type(convolution).forward(convolution, maps))

    err, folder = fail(break_it)
    assert "rank 0: loss, loss_cls (level 4), loss_mgd_fpn_4, pyramid level 4 already on " in err
    check_file(folder, err, bad={"loss", "loss_cls", "loss_mgd_fpn_4"})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient(fail, value):
    def break_it(run):
        run.student.student.bbox_head.retina_cls.bias.register_hook(lambda gradient: gradient * value)

    err, folder = fail(break_it)
    assert "rank 0: the gradient of student.bbox_head.retina_cls.bias, though every loss is finite, on " in err
    check_file(folder, err, bad=set())


def test_the_micro_batch_that_is_to_blame(fail):
    def break_it(run):
        level = run.student.distill_losses["loss_mgd_fpn_0"]
        calls = []

        def second_is_bad(*maps):
            calls.append(1)
            return MGD.forward(level, *maps) * (math.inf if len(calls) == 2 else 1)

        level.forward = second_is_bad

    err, folder = fail(break_it, "--train.batch", "1", "--train.accumulate", "2")
    kept = torch.load(folder / f"nonfinite_step{STEP}_rank0.pth", weights_only=True)
    first, second = kept["batches"]
    assert f"loss_mgd_fpn_0 on {second['files'][0]};" in err
    assert first["files"][0] not in err
    assert math.isfinite(kept["losses"][0]["loss"]) and kept["losses"][1]["loss"] == math.inf


def test_half_precision_lowers_its_scale_and_goes_on(tiny, tmp_path, monkeypatch):
    steps = []
    take_step = loop.Run._take_step

    def step(run, loader):
        weight = run.student.student.bbox_head.retina_cls.weight
        before = weight.detach().clone()
        hook = weight.register_hook(lambda gradient: gradient * (math.inf if run.step == 1 else 1))
        stop = take_step(run, loader)
        hook.remove()
        steps.append((run.stepper.scaler.get_scale(), not torch.equal(before, weight)))
        return stop

    monkeypatch.setattr(loop.Run, "_take_step", step)
    arguments = ["--train.amp", "fp16", "--run-dir", str(tmp_path / "run"), "--train.stop_after", "3"]
    assert main([*tiny.arguments("train"), *arguments, "--train.log-every", "3"]) == 0
    assert steps == [(65536, True), (32768, False), (32768, True)]
    (line,) = [line for line in records(tmp_path / "run") if line["kind"] == "train"]
    assert line["grad_norm"] > 0, "the mean of the two steps that have one"


def everything_of(step):
    """The weights and the optimizer's state, as copies."""
    return copy.deepcopy((dict(step.student.named_parameters()), step.optimizer.state_dict()["state"]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_no_weight_and_no_state(where, amp, optimizer):
    config = alone()
    config.train.amp, config.optimizer = amp, OptimizerConfig(name=optimizer, lr=1e-3)
    torch.manual_seed(0)
    student = detector_from(config.student, 80)
    step = Step(DistilledStudent(student, ()), None, config, ALONE)
    step.model.train()
    target = Target(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([3]), size=(96, 96))
    pixels = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8)
    batch = Batch(pixels, [target], ["x"], [0], [(96, 96)], [(1.0, 1.0)])
    fresh = everything_of(step)
    step.take([batch], number=0, lr=1e-3)
    before = everything_of(step)
    assert not torch.equal(*(weights["student.bbox_head.retina_cls.weight"] for weights, _ in (fresh, before)))
    if where == "loss":
        focal = retinanet.sigmoid_focal_sum
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retinanet, "sigmoid_focal_sum", lambda *arguments: poison(focal(*arguments)))
            outcome = step.take([batch], number=1, lr=1e-3)
    else:
        hook = student.bbox_head.retina_cls.weight.register_hook(poison)
        outcome = step.take([batch], number=1, lr=1e-3)
        hook.remove()
    assert outcome.finite == (where == "gradient" and amp == "fp16")
    torch.testing.assert_close(everything_of(step), before, rtol=0, atol=0)
    # It goes on as if the step had not been.
    assert step.take([batch], number=2, lr=1e-3).finite
    assert not torch.equal(student.bbox_head.retina_cls.weight, before[0]["student.bbox_head.retina_cls.weight"])
