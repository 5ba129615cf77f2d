"""The average of a student's weights: its formula, what is evaluated and saved, and that a resume does not show."""

import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn

import mgdet.engine.loop as loop
from mgdet.cli import main
from mgdet.config import ModelConfig
from mgdet.distributed import World
from mgdet.engine.ema import Average, decay_of
from mgdet.engine.step import Step
from mgdet.errors import UserError
from mgdet.interop.weights import read_checkpoint
from mgdet.models import detector_from, foreign_from
from tiny import ALONE, CLASSES, STEPS, assert_same_run, assert_same_tensors, model, state_of

DECAY = 0.9
counting = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "waits.py"))["counting"]


def train(config, folder, resume=False):
    return loop.train(config, folder, resume=resume, world=ALONE)


class Net(nn.Module):
    """Tied weights, a frozen one, statistics and a counter."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("unsaved", torch.zeros(3), persistent=False)


def test_the_decay_rises_to_what_was_asked_for():
    assert decay_of(1, 0.9998) == pytest.approx(0.9998 * (1 - math.exp(-1 / 2000)))
    assert decay_of(2000, 0.9998) == pytest.approx(0.632, abs=1e-3)
    assert decay_of(100_000, 0.9998) == pytest.approx(0.9998)


def test_the_formula():
    net, expected = Net(), {}
    average = Average(net, DECAY)
    for name, value in net.state_dict().items():
        expected[name] = value.double()
    for update in range(1, 2001):
        with torch.no_grad():
            for value in net.state_dict().values():
                value.add_(torch.rand(value.shape) if value.is_floating_point() else 3)
            net.frozen.load_state_dict(average.detector.frozen.state_dict())
        net.unsaved = torch.zeros(update % 5)  # of other shapes as it goes
        average.update()
        decay = DECAY * (1 - math.exp(-update / 2000))
        for name, value in net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    found = average.detector.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if name == "norm.num_batches_tracked":
            assert value == net.norm.num_batches_tracked == 6000
        else:
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert average.updates == 2000
    assert average.detector.first.weight is average.detector.second.weight
    assert not any(parameter.requires_grad for parameter in average.detector.parameters())


def test_an_update_does_not_wait_for_the_device():
    average = Average(detector_from(model(), 3), DECAY)
    with counting() as work:
        average.update()
    assert not work.waits


FOREIGN = ("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", "libreyolo:yolox-n", "libreyolo:yolov9-t", "hf")


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_detectors_of_other_libraries(name, tmp_path):
    if name.startswith("libreyolo"):
        pytest.importorskip("libreyolo")
    if name == "hf":
        from test_any_pair import save_tiny

        name = f"hf:{save_tiny('deformable_detr', tmp_path / 'hf')}"
    detector = foreign_from(ModelConfig(detector=name, weights="random"), CLASSES, lambda _: None, role="student")
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    average = Average(detector, DECAY)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(1)
    average.update()
    weight = 1 - decay_of(1, DECAY)
    trained = {key for key, value in detector.named_parameters(remove_duplicate=False) if value.requires_grad}
    for key, value in average.detector.state_dict().items():
        torch.testing.assert_close(value, before[key] + (weight if key in trained else 0), msg=key)


@pytest.fixture(scope="module")
def averaged(tiny, tmp_path_factory):
    """A whole run with an average, the weights after each of its steps, and what it evaluated."""
    folder, seen = tmp_path_factory.mktemp("averaged") / "run", {"weights": [], "evaluated": []}

    class Watched(loop.Run):
        def to_the_end(self, loader):
            seen["start"] = self.snapshot()
            super().to_the_end(loader)

        def snapshot(self):
            return {key: value.clone() for key, value in self.student.student.state_dict().items()}

        def _take_step(self, loader):
            result = super()._take_step(loader)
            seen["weights"].append(self.snapshot())
            return result

    def look(detector, *arguments, **options):
        seen["evaluated"].append({key: value.clone() for key, value in detector.state_dict().items()})
        return run_detector(detector, *arguments, **options)

    run_detector = loop.run_detector
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Run", Watched)
        patch.setattr(loop, "run_detector", look)
        assert train(with_average(tiny), folder) == 0
    return folder, seen


def with_average(tiny):
    config = tiny.config()
    config.train.ema = DECAY
    return config


def test_the_average_is_what_is_evaluated_and_saved(averaged, whole):
    folder, seen = averaged
    assert len(seen["weights"]) == STEPS
    expected = {key: value.double() for key, value in seen["start"].items()}
    for update, weights in enumerate(seen["weights"], start=1):
        decay = decay_of(update, DECAY)
        for key, value in weights.items():
            expected[key] = decay * expected[key] + (1 - decay) * value.double()
    last = read_checkpoint(folder / "student_last.pth").state_dict
    assert last.keys() == expected.keys()
    for key, value in last.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
    assert len(seen["evaluated"]) == 2
    assert_same_tensors(seen["evaluated"][-1], last)
    # The state holds both, and training itself is that of a run without an average.
    state = state_of(folder)
    assert_same_tensors(state.ema["model"], last)
    assert state.ema["updates"] == STEPS
    assert_same_tensors(state.model, state_of(whole[0]).model)
    moved = [key for key in last if not torch.equal(last[key], state.model[f"student.{key}"])]
    assert len(moved) > 100


@pytest.mark.parametrize("stop_after", [1, 3, 6, 7, 11])
def test_a_resumed_average_is_an_uninterrupted_one(averaged, tiny, tmp_path, stop_after):
    config = with_average(tiny)
    config.train.stop_after = stop_after
    assert train(config, tmp_path / "run") == 0
    assert train(with_average(tiny), tmp_path / "run", resume=True) == 0
    assert_same_run(tmp_path / "run", averaged[0])


def test_an_average_cannot_begin_or_end_in_the_middle(averaged, whole, tiny):
    with pytest.raises(UserError, match=r"holds a run with train.ema 0.9, which --resume cannot change to 0.0"):
        train(tiny.config(), averaged[0], resume=True)
    with pytest.raises(UserError, match=r"holds a run with train.ema 0.0, which --resume cannot change to 0.9"):
        train(with_average(tiny), whole[0], resume=True)


def test_a_step_that_changes_nothing_is_none_for_the_average(tiny, tmp_path, monkeypatch):
    """As where the gradient of an fp16 step overflows."""
    take, taken = Step.take, []

    def overflows(step, *arguments, **options):
        taken.append(take(step, *arguments, **options))
        return taken[-1]._replace(grad_norm=math.inf) if len(taken) in (2, 5) else taken[-1]

    monkeypatch.setattr(Step, "take", overflows)
    config = with_average(tiny)
    config.train.stop_after = 6
    assert train(config, tmp_path / "run") == 0
    assert state_of(tmp_path / "run").ema["updates"] == 4


def test_our_own_files_and_ema(averaged, tiny, tmp_path, capsys):
    """A student's file is the average alone; the state of a run holds both."""
    folder, _ = averaged
    assert main(["transfer", str(folder / "state.pth"), str(tmp_path / "average.pth"), "--ema"]) == 0
    assert "taken: the EMA copy under 'ema'" in capsys.readouterr().out
    last = read_checkpoint(folder / "student_last.pth").state_dict
    assert_same_tensors(read_checkpoint(tmp_path / "average.pth").state_dict, last)
    plain = read_checkpoint(folder / "state.pth").state_dict
    trained = {name.removeprefix("student."): value for name, value in state_of(folder).model.items()}
    assert_same_tensors(plain, {name: trained[name] for name in plain})
    with pytest.raises(UserError, match=r"they are the average already, which train.ema made; leave --ema out"):
        read_checkpoint(folder, ema=True)


@pytest.mark.slow
def test_two_processes_hold_one_average(tiny, tmp_path):
    """Their batch norms see other images, but what is saved and gone on with is the first one's, in both."""
    torch.multiprocessing.spawn(_one_of_two, (tmp_path, tiny), nprocs=2)
    assert_same_tensors(*(torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)))
    assert_same_tensors(torch.load(tmp_path / "0.pth"), state_of(tmp_path / "run").ema["model"])


def _one_of_two(rank, folder, tiny):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    config = with_average(tiny)
    config.train = replace(config.train, batch=1, eval_every=0, stop_after=5)

    class Watched(loop.Run):
        def to_the_end(self, loader):
            super().to_the_end(loader)
            torch.save(self.average.detector.state_dict(), folder / f"{rank}.pth")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Run", Watched)
        assert loop.train(config, folder / "run", resume=False, world=world) == 0
    torch.distributed.destroy_process_group()
