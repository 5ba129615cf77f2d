"""A method's share of the gradient: what is measured, and the weight that follows."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import mgdet.methods.balance as balance
from mgdet import MGD, DistilledStudent
from mgdet.detectors.face import Learned
from mgdet.errors import UserError
from mgdet.methods.balance import UNREACHED, Balance, gradient_norms
from mgdet.methods.base import HeadMethod
from mgdet.methods.pairing import Pair
from mgdet.methods.student import LevelMethod
from mgdet.structures import Seen, Target

TARGETS = [Target(torch.tensor([[4.0, 4.0, 30.0, 30.0]]), torch.tensor([0]), size=(32, 32))]


class Toy(nn.Module):
    """Two taps of a linear map; the losses are multiples of their sums, so all gradients are known."""

    def __init__(self, pulls=(3.0, 0.25)):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 5.0]))
        self.pulls = pulls

    def learn(self, images, targets, *, outputs=False):
        taps = [self.scale[i] * torch.ones(1, 4, 2 + i, 2) for i in range(2)]
        losses = {f"loss_{i}": pull * tap.sum() for i, (pull, tap) in enumerate(zip(self.pulls, taps)) if pull}
        return Learned(losses, Seen(taps, taps))


class Pulls(nn.Module):
    """A method whose gradient is the same in each cell."""

    name, reads, needs_truth, fits_sizes = "pull", "taps", False, True

    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def forward(self, student, teacher):
        return self.strength * student.sum()


def measured(student):
    teacher = [torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 3, 2)]
    losses, norms = student(torch.zeros(1), TARGETS, teacher, measure=True)
    return losses, {name: norm.item() for name, norm in norms.items()}


def test_norms_are_those_of_the_gradients_and_nothing_is_left_behind():
    torch.manual_seed(0)
    student = DistilledStudent(Toy(), [MGD(4, 4, weight=0.5, mask_ratio=0.5) for _ in range(2)])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    losses, norms = measured(student)
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    taps = [tap.detach().requires_grad_() for tap in student.student.learn(None, None).seen.taps]
    expected = {"detector_0": 3.0 * math.sqrt(16), "detector_1": 0.25 * math.sqrt(24)}
    for i, method in enumerate(student.distill_losses.values()):
        (gradient,) = torch.autograd.grad(method(taps[i], torch.zeros_like(taps[i])), taps[i])
        expected[f"loss_mgd_fpn_{i}"] = gradient.norm().item()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert norms == pytest.approx(expected, rel=1e-5)
    assert all(parameter.grad is None for parameter in student.parameters())
    torch.set_rng_state(state)
    plain = student(torch.zeros(1), TARGETS, [torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 3, 2)])
    assert {name: loss.item() for name, loss in losses.items()} == {name: loss.item() for name, loss in plain.items()}
    torch.stack(list(losses.values())).sum().backward()
    assert student.student.scale.grad is not None


def test_a_tap_that_no_loss_reaches_is_said_to_be_that():
    student = DistilledStudent(Toy(pulls=(3.0, 0.0)), [Pulls(1.0), Pulls(1.0)])
    _, norms = measured(student)
    assert (norms["detector_1"], norms["loss_pull_fpn_1"]) == (UNREACHED, pytest.approx(math.sqrt(24)))
    shares = student.balance.found(norms)
    assert shares == pytest.approx({"pull": math.sqrt(16 + 24) / 12, "pull_fpn_0": 4 / 12, "pull_fpn_1": 24**0.5 / 12})
    frozen = [torch.ones(1, 4, 2, 2)]
    loss = torch.ones((), requires_grad=True)
    assert gradient_norms({"a": loss}, {"m": loss}, {"m": 0}, frozen) == {"detector_0": UNREACHED, "m": UNREACHED}


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e7])
def test_float16_loses_no_gradient(size):
    """Gradients around 1e-8 and 1e6 have no float16 of their own; the measured loss always lies in between."""
    tap = torch.ones(1, 4, 2, 2, dtype=torch.float16, requires_grad=True)
    norms = gradient_norms({"own": tap.float().sum() * size}, {"m": tap.float().sum() * size}, {"m": 0}, [tap])
    for norm in norms.values():
        assert norm.dtype == torch.float32
        assert norm.item() == pytest.approx(4 * size, rel=2e-3)


class TestBalance:
    def of(self, share=0.5, levels=2):
        names = [f"loss_pull_fpn_{i}" for i in range(levels)]
        return Balance({name: i for i, name in enumerate(names)}, dict.fromkeys(names, share))

    def norms(self, own=(4.0, 0.5), methods=(16.0, 0.25)):
        return {f"detector_{i}": value for i, value in enumerate(own)} | {
            f"loss_pull_fpn_{i}": value for i, value in enumerate(methods)
        }

    def test_a_share_is_of_the_detectors_gradient_level_by_level(self, monkeypatch):
        monkeypatch.setattr(balance, "MEASURED_STEPS", 1)
        weights = self.of()
        assert list(weights.weights.values()) == [0.0, 0.0]
        weights.take(self.norms())
        assert list(weights.weights.values()) == [0.5 * 4 / 16, 0.5 * 0.5 / 0.25]
        own = math.hypot(4, 0.5)
        assert weights.found(self.norms()) == pytest.approx(
            {"pull": 0.5, "pull_fpn_0": 0.5 * 4 / own, "pull_fpn_1": 0.5 * 0.5 / own}
        )

    def test_the_first_steps_decide_and_the_others_change_nothing(self, monkeypatch):
        monkeypatch.setattr(balance, "MEASURED_STEPS", 3)
        monkeypatch.setattr(balance, "REMEMBERED", 1e9)
        weights = self.of()
        for own in ((1.0, 1.0), (2.0, 1.0), (6.0, 1.0)):
            assert weights.measuring and weights.lines() == []
            weights.take(self.norms(own=own))
        decided = dict(weights.weights)
        assert list(decided.values()) == pytest.approx([0.5 * 3 / 16, 0.5 * 1 / 0.25])
        assert not weights.measuring
        weights.take(self.norms(own=(1e9, 1e9)))
        assert weights.weights == decided
        assert weights.lines() == ["pull.share is met by these weights, measured in 3 steps: fpn_0 0.0938, fpn_1 2"]

    def test_the_weights_grow_while_they_are_measured(self, monkeypatch):
        monkeypatch.setattr(balance, "MEASURED_STEPS", 4)
        weights, found = self.of(levels=1), []
        for _ in range(5):
            weights.take({"detector_0": 4.0, "loss_pull_fpn_0": 16.0})
            found += weights.weights.values()
        assert found == pytest.approx([0.5 * 4 / 16 * done for done in (0.25, 0.5, 0.75, 1.0, 1.0)])

    def test_what_was_long_ago_counts_less(self, monkeypatch):
        monkeypatch.setattr(balance, "MEASURED_STEPS", 8)  # so a step counts half as much as the next
        weights = self.of()
        for own in (8.0, 4.0, 2.0):
            weights.take(self.norms(own=(own, 1.0)))
        mean = (8 / 4 + 4 / 2 + 2) / (1 / 4 + 1 / 2 + 1)
        assert list(weights.weights.values()) == pytest.approx([3 / 8 * 0.5 * mean / 16, 3 / 8 * 0.5 * 1 / 0.25])

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_does_not_count(self, bad):
        weights = self.of()
        weights.take(self.norms())
        before = weights.state()
        weights.take(self.norms(own=(bad, 1.0)))
        weights.take(self.norms(methods=(1.0, bad)))
        assert weights.state() == before

    def test_without_a_gradient_there_is_no_weight(self, monkeypatch):
        monkeypatch.setattr(balance, "MEASURED_STEPS", 1)
        weights = self.of()
        weights.take(self.norms(own=(0.0, 1.0), methods=(1.0, 0.0)))
        assert list(weights.weights.values()) == [0.0, 0.0]
        assert "fpn_0 0, as one of the two has no gradient there" in weights.lines()[0]
        assert weights.found(self.norms(own=(0.0, 0.0))) == {}

    def test_what_cannot_be_measured_is_refused(self):
        for norms in (self.norms(own=(1.0, UNREACHED)), self.norms(methods=(1.0, UNREACHED))):
            with pytest.raises(UserError, match=r"pull\.share cannot be measured at fpn_1"):
                self.of().take(norms)

    def test_its_state_is_plain_and_goes_on_exactly(self):
        weights, other = self.of(), self.of()
        weights.take(self.norms())
        other.restore(json.loads(json.dumps(weights.state())))
        for each in (weights, other):
            each.take(self.norms(own=(1.0, 2.0)))
        assert weights.state() == other.state()
        assert Balance({"loss_pull_fpn_0": 0}, {}).state() == {}


def test_a_method_of_the_heads_alone_needs_no_pair_of_levels():
    """And the teacher may have another number of taps."""

    class Outputs(HeadMethod):
        name = "outputs"

        def forward(self, student, teacher, truth):
            return 7.0 * student.taps[0].sum() + sum(tap.sum() for tap in teacher.taps)

    student = DistilledStudent(Toy(), heads=[Outputs()])
    assert student.reads_outputs
    losses = student(torch.zeros(1), TARGETS, [torch.ones(1, 4, 2, 2)] * 3)
    assert losses["loss_outputs"].item() == 7 * 2.0 * 16 + 3 * 16


def test_only_modules_with_a_share_are_multiplied(monkeypatch):
    monkeypatch.setattr(balance, "MEASURED_STEPS", 1)
    levels = [LevelMethod(Pulls(2.0), Pair(0, 0)), LevelMethod(Pulls(4.0), Pair(1, 1), share=0.5)]
    student = DistilledStudent(Toy(), levels)
    losses, norms = measured(student)
    assert (losses["loss_pull_fpn_0"].item(), losses["loss_pull_fpn_1"].item()) == (2.0 * 2 * 16, 0.0)
    student.balance.take(norms)
    losses, norms = measured(student)
    shares = student.balance.found(norms)
    own = math.hypot(3 * 4, 0.25 * 24**0.5)
    assert shares["pull_fpn_0"] == pytest.approx(2 * 4 / own)
    assert shares["pull_fpn_1"] == pytest.approx(0.5 * 0.25 * 24**0.5 / own)
    assert losses["loss_pull_fpn_1"].item() == pytest.approx(0.5 * 0.25 / 4.0 * 4.0 * 5 * 24)
