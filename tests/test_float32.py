"""What float32 means on a GPU, that a CPU does not notice, and where a CPU is faster with it than with fewer bits."""

from __future__ import annotations

import pytest
import torch

from mgdet.cli import main
from mgdet.precision import set_float32, slow_types


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(("exact", "precision", "said"), [(True, "highest", "true float32"), (False, "high", "TF32")])
def test_products_on_a_gpu(exact, precision, said):
    set_float32(torch.device("cuda"), exact=not exact)
    assert said in set_float32(torch.device("cuda"), exact=exact)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 is not exact


def test_nothing_changes_on_a_cpu():
    set_float32(torch.device("cuda"), exact=False)
    assert set_float32(torch.device("cpu"), exact=True) == ""
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32


def test_training_may_round_and_measuring_and_predicting_may_not(tiny, tmp_path, monkeypatch, capsys):
    asked = []
    for module in ("engine.prepare", "report.measure", "evaluate.predict"):
        monkeypatch.setattr(
            f"mgdet.{module}.set_float32", lambda device, exact, module=module: asked.append((module, exact)) or module
        )
    run, picture = tmp_path / "run", tiny.root / "val" / "0.jpg"
    assert main([*tiny.arguments("train"), "--run-dir", str(run), "--train.stop-after", "1"]) == 0
    assert "  engine.prepare\n" in (run / "log.txt").read_text()
    assert main([*tiny.arguments("test", distil=False), str(tiny.teacher)]) == 0
    assert main(["predict", str(tiny.teacher), str(picture), "--out", str(tmp_path / "out")]) == 0
    assert asked == [("engine.prepare", False), ("report.measure", True), ("evaluate.predict", True)]


def test_a_cpu_says_which_types_it_has_no_instructions_for(tiny, monkeypatch):
    monkeypatch.setattr("mgdet.precision.cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr("mgdet.precision.cpu_has_float16", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    config = tiny.config()
    for amp, notes in (
        ("off", []),
        ("bf16", []),
        (
            "fp16",
            ["train.amp is fp16, but this CPU has no instructions for it and float32 is faster; give --train.amp off"],
        ),
    ):
        config.train.amp = amp
        assert slow_types(config, torch.device("cpu")) == notes
        assert slow_types(config, torch.device("cuda")) == []
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert slow_types(config, torch.device("cpu")) == []


def test_a_run_says_that_its_type_is_slow(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("mgdet.precision.cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    run = tmp_path / "run"
    assert (
        main(
            [*tiny.arguments("train"), "--teacher.precision", "bf16", "--train.stop-after", "1", "--run-dir", str(run)]
        )
        == 0
    )
    assert "teacher.precision is bf16, but this CPU has no instructions for it" in (run / "log.txt").read_text()
