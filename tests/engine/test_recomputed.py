"""`train.checkpoint_backbone` in whole runs: nothing of what they leave is different."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

import mgdet.engine.loop as loop
import mgdet.layers.recompute as recompute
from mgdet.config import ModelConfig, TrainConfig
from mgdet.distributed import World
from mgdet.engine.recomputed import recompute_backbone
from mgdet.errors import UserError
from mgdet.models import detector_from, foreign_from
from mgdet.structures import Target
from tiny import ALONE, CLASSES, assert_same_run, assert_same_state, model

counting = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "waits.py"))["counting"]


def train(config, folder, resume=False, world=ALONE):
    return loop.train(config, folder, resume=resume, world=world)


def with_less_memory(tiny, **changes):
    config = tiny.config()
    config.train = replace(config.train, checkpoint_backbone=True, **changes)
    return config


def test_a_run_is_the_same_to_the_bit_and_may_turn_it_on_and_off(whole, tiny, tmp_path, monkeypatch):
    """Its batch norms learn their statistics, and it is distilled."""
    calls = []
    run = recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *a, **o: calls.append(a) or run(*a, **o))
    assert train(with_less_memory(tiny, stop_after=3), tmp_path / "run") == 0
    assert len(calls) == 3 * 4
    assert "the 4 blocks of the student's backbone are computed a second time" in (tmp_path / "run/log.txt").read_text()
    config = tiny.config()
    config.train.stop_after = 7
    assert train(config, tmp_path / "run", resume=True) == 0
    assert len(calls) == 3 * 4
    assert train(with_less_memory(tiny), tmp_path / "run", resume=True) == 0
    assert_same_run(tmp_path / "run", whole[0])


def test_it_asks_the_device_for_nothing_more():
    found = []
    for twice in (False, True):
        detector = detector_from(model(), 3).train()
        if twice:
            recompute_backbone(detector)
        target = Target(torch.tensor([[4.0, 4, 40, 40]]), torch.tensor([1]), size=(64, 64))
        with counting() as work:
            torch.stack([*detector.learn(torch.randn(1, 3, 64, 64), [target]).losses.values()]).sum().backward()
        found.append(work)
    assert found[0].waits == found[1].waits
    assert found[1].kernels > found[0].kernels


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
        "torchvision:retinanet_resnet50_fpn",
        "hf",
        "libreyolo:yolox-n",
    ],
)
def test_students_of_other_libraries(name, tmp_path):
    if name.startswith("libreyolo"):
        pytest.importorskip("libreyolo")
    if name == "hf":
        from test_any_pair import save_tiny

        name = f"hf:{save_tiny('rt_detr_v2', tmp_path / 'hf')}"
    results = []
    for twice in (False, True):
        torch.manual_seed(0)
        config = ModelConfig(detector=name, weights="random")
        detector = foreign_from(config, CLASSES, lambda _: None, role="student").train()
        if twice:
            assert "blocks of the student's backbone" in recompute_backbone(detector)
        target = Target(torch.tensor([[40.0, 40, 160, 160]]), torch.tensor([1]), size=(256, 256))
        torch.manual_seed(1)
        losses = detector.learn(torch.randn(2, 3, 256, 256), [target, target]).losses
        torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
        results.append({key: p.grad for key, p in detector.named_parameters()} | dict(detector.named_buffers()))
    a, b = results
    assert [key for key in a if a[key] is not None and not torch.equal(a[key], b[key])] == []


def test_what_does_not_go_together():
    with pytest.raises(UserError, match=r"train.checkpoint_backbone and train.compile are both on"):
        TrainConfig(checkpoint_backbone=True, compile=True)


def test_a_backbone_without_blocks_is_said(tiny, tmp_path):
    config = with_less_memory(tiny)
    config.student = model("vgg11")
    config.inherit = False
    with pytest.raises(UserError, match=r"train.checkpoint_backbone finds no blocks in the student's backbone"):
        train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes(tiny, tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (tmp_path, tiny), nprocs=2)
    assert_same_state(tmp_path / "twice", tmp_path / "once")


def _one_of_two(rank, folder, tiny):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    for name, twice in (("once", False), ("twice", True)):
        config = tiny.config()
        config.train = replace(config.train, batch=1, stop_after=4, eval_every=0, accumulate=2)
        config.train.checkpoint_backbone = twice
        assert train(config, folder / name, world=world) == 0
    torch.distributed.destroy_process_group()
