"""A backbone whose blocks are computed twice: the same numbers, and far fewer tensors kept."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mgdet.layers.backbone import build_backbone
from mgdet.layers.inference import fold_batch_norms
from mgdet.layers.recompute import recompute_blocks

LISTED = Path(__file__).with_name("timm_backbones.txt").read_text().splitlines()
WORKING = [line.split()[1] for line in LISTED if line.startswith("works")]
SMALL = ("test_resnet", "resnet18", "mobilenetv3_small_050", "regnetx_002", "densenet121", "hrnet_w18_small")


def step(network: nn.Module, amp: bool = False):
    """Loss, gradients and buffers of a step, and how many numbers were kept for its backward pass."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    torch.manual_seed(3)
    images = torch.randn(2, 3, 64, 96)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            maps = network(images)
        loss = torch.stack([level.float().square().mean() for level in maps]).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return loss, gradients, dict(network.named_buffers()), kept


def assert_same_step(plain: nn.Module, amp: bool = False, least: float = 1.5) -> int:
    plain.train()
    twice = copy.deepcopy(plain)
    number = recompute_blocks(twice)
    assert list(plain.state_dict()) == list(twice.state_dict())
    for _ in range(2):
        (loss, gradients, buffers, kept), (loss2, gradients2, buffers2, kept2) = step(plain, amp), step(twice, amp)
        assert torch.equal(loss, loss2)
        assert gradients.keys() == gradients2.keys() and gradients
        assert [name for name in gradients if not torch.equal(gradients[name], gradients2[name])] == []
        assert [name for name in buffers if not torch.equal(buffers[name], buffers2[name])] == []
        assert kept > least * kept2 or not number
    return number


@pytest.mark.parametrize("name", SMALL)
def test_the_same_step_to_the_bit(name):
    """Also the statistics of norms, which a batch enters once; some networks hand on lists, which they change."""
    assert assert_same_step(build_backbone(name, frozen_stages=0)) >= 4


@pytest.mark.long
@pytest.mark.parametrize("name", WORKING)
def test_every_family_of_timm(name):
    assert (assert_same_step(build_backbone(name, frozen_stages=0)) > 0) == (name != "vgg11")


def test_in_mixed_precision_and_with_frozen_stages():
    assert_same_step(build_backbone("resnet18", frozen_stages=0), amp=True)
    assert_same_step(build_backbone("resnet18", frozen_stages=3))
    frozen = build_backbone("resnet18", frozen_stages=1).train()
    for module in frozen.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert_same_step(frozen)


def test_deformable_convolutions():
    assert assert_same_step(build_backbone("resnet26", frozen_stages=1, deformable=True)) == 8


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(8, 64), nn.Linear(64, 8), nn.Dropout(0.5)

    def forward(self, x, *, factor):
        return self.second(self.drop(self.first(x))) * factor + torch.rand(())


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Dropping() for _ in range(3)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x, factor=0.5)
        return [x]


def test_random_draws_are_repeated_and_options_passed_on():
    plain, results = Network(), []
    for network in (plain, copy.deepcopy(plain)):
        if network is not plain:
            assert recompute_blocks(network) == 3
        torch.manual_seed(0)
        network(torch.ones(4, 8))[0].sum().backward()
        results.append([p.grad for p in network.parameters()] + [torch.rand(3)])  # and later draws are the same
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_without_gradients_a_block_runs_as_ever(monkeypatch):
    """And in eval mode batch norms still fold into the convolutions of a copy."""
    import mgdet.layers.recompute as recompute

    network = build_backbone("test_resnet", frozen_stages=0)
    recompute_blocks(network)
    monkeypatch.setattr(recompute, "checkpoint", None)
    with torch.no_grad():
        network.train()(torch.randn(1, 3, 64, 64))
    network.eval()(torch.randn(1, 3, 64, 64))
    plain = build_backbone("test_resnet", frozen_stages=0).eval()
    assert fold_batch_norms(copy.deepcopy(network)) == fold_batch_norms(plain) > 5


def test_a_copy_computes_with_its_own_weights():
    network = build_backbone("test_resnet", frozen_stages=0).train()
    recompute_blocks(network)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    a, b = step(network)[0], step(other)[0]
    assert not torch.equal(a, b)
    assert all(p.grad is not None for p in other.parameters())
