"""A run whose methods were given shares: its weights, what it says, and how it resumes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mgdet.engine.loop as loop
import mgdet.methods.balance as balance
from mgdet.config import Config, FGDConfig, MGDConfig, PKDConfig
from mgdet.errors import UserError
from tiny import ALONE, assert_same_run, assert_same_state, assert_same_tensors, records, state_of, tensors_in


def config_of(tiny, **shares) -> Config:
    config = tiny.config()
    config.mgd, config.train.log_every = MGDConfig(mask_ratio=0.65), 1
    for name, share in (shares or {"mgd": 0.3}).items():
        getattr(config, name).share = share
    return config


def train(config, folder, resume=False):
    return loop.train(config, folder, resume=resume, world=ALONE)


@pytest.fixture(scope="module")
def shared(tiny, tmp_path_factory):
    """A run with a share, whose weights are decided after five of its twelve steps."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "MEASURED_STEPS", 5)
        assert train(config_of(tiny), folder) == 0
    return folder


def test_a_run_finds_its_weights_says_them_and_logs_the_shares(shared):
    text = (shared / "log.txt").read_text()
    assert text.count("mgd.share is met by these weights, measured in 5 steps: fpn_0 ") == 1
    lines = [line for line in records(shared) if line["kind"] == "train"]
    assert all(lines[0][name] == 0.0 for name in ("share_mgd", *(f"share_mgd_fpn_{level}" for level in range(5))))
    shares = [line["share_mgd"] for line in lines]
    assert sum(shares[5:]) / len(shares[5:]) == pytest.approx(0.3, rel=0.3)
    for line in lines:
        parts = [line[f"share_mgd_fpn_{level}"] ** 2 for level in range(5)]
        assert line["share_mgd"] == pytest.approx(sum(parts) ** 0.5)
    assert "gradient share: mgd 0 fpn_0 0 fpn_1 0 " in text
    state = state_of(shared)
    assert state.balance["steps"] == 5 and all(weight > 0 for weight in state.balance["weights"].values())
    assert len(set(state.balance["weights"].values())) == 5
    assert all(name.startswith(("student.", "distill_losses.")) for name in state.model)


@pytest.mark.parametrize("stop_after", [1, 3, 5, 8])
def test_a_run_resumes_to_the_bit_before_in_and_after_its_measuring(shared, tiny, tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr(balance, "MEASURED_STEPS", 5)
    config = config_of(tiny)
    config.train.stop_after = stop_after
    assert train(config, tmp_path / "run") == 0
    assert train(config_of(tiny), tmp_path / "run", resume=True) == 0
    assert_same_run(tmp_path / "run", shared)
    assert state_of(tmp_path / "run").balance == state_of(shared).balance


def test_measuring_changes_no_number(tiny, tmp_path, whole):
    """The run of `whole` measures at steps 4, 8 and 12; this one in each."""
    config = tiny.config()
    config.train.log_every = 1
    assert train(config, tmp_path / "run") == 0
    state, other = state_of(tmp_path / "run"), state_of(whole[0])
    assert state.balance == other.balance == {}
    assert_same_tensors(state.model, other.model)
    assert_same_tensors(state.optimizer["state"], other.optimizer["state"])
    every = [line for line in records(tmp_path / "run") if line["kind"] == "train"]
    some = [line for line in records(whole[0]) if line["kind"] == "train"]
    for line in some:
        shares = {name: value for name, value in line.items() if name.startswith("share_")}
        assert len(shares) == 6
        assert shares.items() <= every[line["step"] - 1].items()


@pytest.mark.parametrize("changes", [{"accumulate": 2, "batch": 1}, {"amp": "bf16"}, {"amp": "fp16"}])
def test_shares_are_met_whatever_the_step_is_made_of(tiny, tmp_path, monkeypatch, changes):
    """On pictures so large that every level has two cells: oneDNN's bfloat16 gradients of single ones are wrong."""
    monkeypatch.setattr(balance, "MEASURED_STEPS", 4)
    config = config_of(tiny, mgd=0.3, pkd=0.2, fgd=0.1)
    config.data.long_edge, config.data.short_edge = 256, (192, 192)
    config.train = replace(config.train, **changes, stop_after=5, eval_every=0)
    assert train(config, tmp_path / "run") == 0
    last = [line for line in records(tmp_path / "run") if line["kind"] == "train"][-1]
    for method, share in (("mgd", 0.3), ("pkd", 0.2), ("fgd", 0.1)):
        assert share / 2 < last[f"share_{method}"] < share * 2, method
    text = (tmp_path / "run" / "log.txt").read_text()
    assert all(f"{method}.share is met by these weights" in text for method in ("mgd", "pkd", "fgd"))


def test_a_weight_and_a_share_are_refused_together(tiny):
    config = config_of(tiny)
    config.mgd.weight = 2e-5
    with pytest.raises(UserError, match=r"mgd\.share is 0\.3, .*, but mgd\.weight is 2e-05; .*--mgd\.weight 0"):
        config.check_together()
    for section in (PKDConfig, FGDConfig):
        with pytest.raises(UserError, match="set one of them to 0"):
            section(weight=1.0, share=0.5)
    with pytest.raises(UserError, match=r"fgd\.share is -1\.0; give 0 or more"):
        FGDConfig(share=-1.0)


def test_an_earlier_state_is_read(shared, tiny, tmp_path, whole):
    content = torch.load(whole[0] / "state.pth", weights_only=True)
    assert content.pop("balance") == {}
    torch.save(content, tmp_path / "state.pth")
    assert_same_state(tmp_path, whole[0])
    assert dict(tensors_in(state_of(shared).model)).keys() == dict(tensors_in(content["model"])).keys()
