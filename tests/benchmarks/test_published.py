"""A forged run is held against the published row; the page on COCO says what recipes and recordings say."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import published
from mgdet.cli import test, train
from mgdet.cli.parsing import parse
from mgdet.config import Config
from mgdet.engine.checkpoint import write_config
from mgdet.engine.schedule import learning_rate
from mgdet.recipes import RECIPES, load_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "benchmarks/coco.md").read_text()
PAIRS = {
    "retina": "retinanet_x101_to_r50",
    "faster": "cascade_mask_rcnn_x101_dcn_to_faster_rcnn_r50",
    "mask": "cascade_mask_rcnn_x101_dcn_to_mask_rcnn_r50",
    "reppoints": "reppoints_x101_dcn_to_r50",
    "solo": "solo_r101_to_r50",
}


def finished(
    folder: Path, name: str, scores: dict[str, float], *, epochs: int | None = None, steps: int = 7330
) -> Config:
    """Forges what a whole run of a recipe leaves, as far as it is read."""
    config = load_recipe(name)
    config.data.root, config.data.val_annotations = "/disk/coco", "annotations/instances_val2017.json"
    config.data.train_annotations = "annotations/instances_train2017.json"
    config.train.batch, config.train.accumulate, config.train.amp = 4, 4, "bf16"
    folder.mkdir()
    write_config(folder, config)
    done = config.schedule.epochs if epochs is None else epochs
    last = steps * config.schedule.epochs * done // config.schedule.epochs
    lines = [{"step": last // 2, "kind": "eval", "metric": "bbox", "AP": 0.9}]
    lines += [{"step": last, "kind": "train", "epoch": float(done), "loss": 1.0}]
    lines += [{"step": last, "kind": "eval", "metric": metric, "AP": ap / 100} for metric, ap in scores.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return config


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["published.py", *map(str, arguments)])
    return published.main()


@pytest.mark.parametrize(
    ("ap", "code", "word"),
    [(41.0, 0, "within"), (40.66, 0, "within"), (41.34, 0, "within"), (40.5, 1, "below"), (41.6, 1, "above")],
)
def test_within_the_spread_or_not(tmp_path, monkeypatch, capsys, ap, code, word):
    finished(tmp_path / "run", PAIRS["retina"], {"bbox": ap})
    assert run(monkeypatch, tmp_path / "run") == code
    said = capsys.readouterr().out
    assert f"published 41.0 ({ap - 41 + 1e-9:+.1f}), {word} the spread of 0.3" in said
    assert "the teacher was" not in said


def test_every_published_metric_counts(tmp_path, monkeypatch, capsys):
    finished(tmp_path / "run", "mask_rcnn_r50", {"bbox": 39.2, "segm": 34.0})
    assert run(monkeypatch, tmp_path / "run") == 1
    said = capsys.readouterr().out
    assert "box AP 39.2" in said
    assert "mask AP 34.0, published 35.4 (-1.4), below" in said


def test_the_recipe_is_found_by_its_settings(tmp_path):
    for number, name in enumerate(name for name in RECIPES if published.published(name)):
        config = finished(tmp_path / str(number), name, {})
        found = published.recipe_of(config, "")
        assert published.published(found) == published.published(name)
        assert published.recipe_of(config, name) == name


def test_another_teacher_is_named(tmp_path, monkeypatch, capsys):
    config = finished(tmp_path / "run", PAIRS["solo"], {"segm": 36.1, "bbox": 30.0})
    assert config.teacher is not None
    config.teacher.weights = "runs/solo_r101"
    write_config(tmp_path / "run", config)
    assert run(monkeypatch, tmp_path / "run") == 0
    assert "the teacher was runs/solo_r101, the published one Solo_r101_3x.pth" in capsys.readouterr().out


class Broken:
    """Runs that cannot be compared, and a word of the sentence that says why."""

    @staticmethod
    def other_rate(folder: Path) -> str:
        config = finished(folder, PAIRS["retina"], {"bbox": 41.0})
        config.optimizer.lr = 0.02
        write_config(folder, config)
        return "optimizer.lr is 0.02, in retinanet_x101_to_r50 0.01"

    @staticmethod
    def halfway(folder: Path) -> str:
        finished(folder, PAIRS["retina"], {"bbox": 41.0}, epochs=12)
        return "12.00 of 24 epochs"

    @staticmethod
    def other_batch(folder: Path) -> str:
        finished(folder, PAIRS["retina"], {"bbox": 41.0}, steps=3665)
        return "3,665 steps per epoch, the published runs 7,330"

    @staticmethod
    def other_images(folder: Path) -> str:
        config = finished(folder, PAIRS["retina"], {"bbox": 41.0})
        config.data.val_annotations = "annotations/val.json"
        write_config(folder, config)
        return "evaluated on annotations/val.json"

    @staticmethod
    def other_metric(folder: Path) -> str:
        finished(folder, PAIRS["mask"], {"bbox": 41.0})
        return "was not evaluated for segm"

    @staticmethod
    def nothing(folder: Path) -> str:
        return "holds no run"


@pytest.mark.parametrize("kind", [name for name in vars(Broken) if not name.startswith("_")])
def test_what_cannot_be_compared_is_said(tmp_path, monkeypatch, capsys, kind):
    words = getattr(Broken, kind)(tmp_path / "run")
    assert run(monkeypatch, tmp_path / "run") == 2
    assert words in capsys.readouterr().err


def test_an_unpublished_recipe_is_refused(tmp_path, monkeypatch, capsys):
    finished(tmp_path / "run", PAIRS["retina"], {"bbox": 41.0})
    assert run(monkeypatch, tmp_path / "run", "--recipe", "pair") == 2
    assert "nothing is published" in capsys.readouterr().err


def test_the_pages_commands_are_those_of_their_recipes():
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith("    mgdet ")]
    trained = set()
    for line in lines:
        command, name, *rest = shlex.split(line, comments=True)[1:]
        config = load_recipe(name)
        if command == "test":
            default = test.TestArguments(checkpoint="", student=config.student, data=config.data, eval=("bbox",))
            parse(test.TestArguments, rest, command, default)
            continue
        assert command == "train"
        parsed = parse(train.TrainArguments, rest, command, train.TrainArguments(config=config))
        own = parsed.config.train
        assert parsed.devices * own.batch * own.accumulate == 16, "as published"
        published.recipe_of(parsed.config, name)
        trained.add(name)
    assert set(PAIRS.values()) <= trained


def test_the_pages_scores_are_those_of_the_recipes():
    for name in PAIRS.values():
        recipe = RECIPES[name]
        row = rf"^\| `{name}` \| .*\| {recipe.baseline} \| {recipe.distilled} \|$"
        assert re.search(row, PAGE, re.MULTILINE), name


@pytest.mark.parametrize("pair", PAIRS)
def test_the_pages_recorded_steps_are_the_recordings(pair):
    recording = json.loads((ROOT / f"tests/parity/distill_{pair}.json").read_text())
    for number, step in enumerate(recording["steps"], 1):
        log = step["log"]
        own = sum(value for name, value in log.items() if "mgd" not in name and name not in ("loss", "acc"))
        mgd = " ".join(f"{log[f'loss_mgd_fpn_{i}']:.3f}" for i in range(sum("mgd" in name for name in log)))
        row = f"| {number} | {log['loss']:.3f} | {own:.3f} | {mgd} | {step['grad_norm_before_clip']:.1f} |"
        assert row in PAGE, row


def test_the_pages_learning_rates_are_the_schedules():
    for name in PAIRS.values():
        config = load_recipe(name)
        lr = config.optimizer.lr
        rates = [
            learning_rate(step - 1, lr=lr, steps_per_epoch=7330, config=config.schedule) for step in (1, 50, 100, 501)
        ]
        assert f"| `{name}` | {' | '.join(f'{rate:.3g}' for rate in rates)} |" in PAGE
