"""What a run says, where, and what of it survives a kill."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

from mgdet.engine.display import Status, block, clock
from mgdet.engine.logging import RunLog

LOSSES = {"loss": 1.25, "loss_cls": 0.5, "loss_bbox": 0.25, "loss_mgd_fpn_0": 0.4, "loss_mgd_fpn_1": 0.1}
STATS = {"AP": 0.371, "AP50": 0.55, "AP75": 0.4, "APs": -1.0, "APm": 0.41, "APl": 0.5, "AR1": 0.3}
POINT = {
    "lr": 0.01,
    "grad_norm": 12.5,
    "images_per_second": 31.5,
    "data_seconds": 0.003,
    "memory_gib": 10.25,
}
TIMES = ("seconds", "data_seconds", "images_per_second", "memory_gib")


def open_log(folder, start_step=0, **options):
    return RunLog(folder, title="a run [in brackets]", total_steps=10, start_step=start_step, **options)


def train(log, first, last, **changes):
    """Steps `first` to `last` as the loop logs them: a point every second step, an evaluation every fourth."""
    for step in range(first, last + 1):
        log.tick(step)
        if step % 2 == 0:
            log.step(step, epoch=step / 5, losses={**LOSSES, "loss_cls": step / 3}, **{**POINT, **changes})
        if step % 4 == 0:
            log.evaluation(step, "bbox", STATS)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_hold_one_object_a_line(tmp_path):
    with open_log(tmp_path) as log:
        train(log, 1, 4)
    first, second, evaluation = records(tmp_path)
    expected = {"step": 2, "kind": "train", "epoch": 0.4, **LOSSES, "loss_cls": 2 / 3, **POINT}
    assert first.pop("seconds") >= 0
    assert first == expected
    assert list(first)[3:8] == list(LOSSES)
    assert (second["step"], second["kind"]) == (4, "train")
    assert evaluation == {"step": 4, "kind": "eval", "metric": "bbox", **STATS}


def test_lines_are_on_the_disk_at_once(tmp_path):
    log = open_log(tmp_path)
    train(log, 1, 4)
    assert len(records(tmp_path)) == 3
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 4
    log.close()
    log.close()


def test_what_is_not_finite_is_null(tmp_path):
    with open_log(tmp_path) as log:
        train(log, 1, 2, grad_norm=float("inf"))
    assert records(tmp_path)[0]["grad_norm"] is None
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("saved", [1, 4, 5, 10])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path, saved):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    with open_log(tmp_path / "whole") as log:
        train(log, 1, 10)
    log = open_log(tmp_path / "killed")
    train(log, 1, saved)
    train(log, saved + 1, min(saved + 3, 10))  # done but not in the checkpoint
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "kind": "train", "lo')  # kill -9 in the middle of a write
    with open_log(tmp_path / "killed", start_step=saved) as log:
        assert all(record["step"] <= saved for record in records(tmp_path / "killed"))
        train(log, saved + 1, 10)
    whole, resumed = (
        [{k: v for k, v in record.items() if k not in TIMES} for record in records(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert resumed == whole
    assert (tmp_path / "killed" / "log.txt").read_text().count("a run [in brackets]") == 2


def test_a_fresh_start_keeps_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    open_log(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with open_log(tmp_path) as log:
        log.message("teacher [x] loaded " + "and accounted for " * 20)
        train(log, 1, 4)
        log.activity("evaluating", 1, 2)
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out and "\r" not in out
    title, message, first, second, evaluation = out.splitlines()
    assert title == "a run [in brackets]"
    assert message.startswith("teacher [x] loaded and") and len(message) > 300
    assert first.startswith("step 2/10  |  epoch 0.40  |  loss 1.2500  |  loss_cls 0.6667 loss_bbox 0.2500  |  MGD: ")
    assert "MGD: fpn_0 0.4000 fpn_1 0.1000  |" in first
    assert second.startswith("step 4/10")
    assert evaluation == "step 4  bbox  AP 0.371 AP50 0.550 AP75 0.400 APs - APm 0.410 APl 0.500"
    log_lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in log_lines] == out.splitlines()


def test_a_run_without_distillation_has_no_mgd_part(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.step(1, epoch=0.1, losses={"loss": 1.0, "loss_cls": 1.0}, **POINT)
    assert "MGD" not in capsys.readouterr().out


def test_the_losses_of_each_method_are_apart(tmp_path, capsys):
    """On the lines and in the live display, also where MGD is off."""
    losses = {"loss": 2.0, "loss_cls": 1.0, "loss_pkd_fpn_0": 0.25, "loss_pkd_fpn_1": 0.5, "loss_fgd_fpn_0": 0.25}
    with open_log(tmp_path) as log:
        log.step(1, epoch=0.1, losses=losses, **POINT)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "|  loss_cls 1.0000  |  PKD: fpn_0 0.2500 fpn_1 0.5000  |  FGD: fpn_0 0.2500  |" in line
    status = Status("a run", total_steps=10, step=1, losses=losses)
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(block(status))
    assert re.search(r"detector +1\.0000 +PKD +0\.7500 +FGD +0\.2500 +speed", captured.get())
    assert re.search(r"all losses +2\.0000", captured.get())


def test_other_ranks_are_silent(tmp_path, capfd):
    with open_log(tmp_path, enabled=False, trackers=lambda: pytest.fail("asked for")) as log:
        log.message("hello")
        train(log, 1, 4)
        log.activity("evaluating", 1, 2)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


LIVE = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_logging import open_log, train
with open_log(Path({folder!r})) as log:
    log.message("hello from the run")
    train(log, 1, 4)
    log.activity("evaluating", 3, 72)
    time.sleep(0.6)
    log.activity("evaluating", 4, 72)
    train(log, 5, 10)
    print("a library's warning", file=sys.stderr)
{end}
"""


def run_on_terminal(folder, end="", columns="100"):
    """The output of a small run on a pseudo-terminal, and its exit status."""
    script = LIVE.format(tests=os.path.dirname(__file__), folder=str(folder), end=end)
    main, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": columns, "LINES": "40"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=child, stderr=child, env=environment)
    os.close(child)
    out = b""
    while select.select([main], [], [], 60)[0]:
        try:
            out += os.read(main, 65536)
        except OSError:  # Linux: the other end is closed
            break
    os.close(main)
    return out.decode(), process.wait()


@pytest.mark.slow
def test_a_terminal_gets_a_live_display(tmp_path):
    out, status = run_on_terminal(tmp_path)
    assert status == 0
    assert "\x1b[?25l" in out and out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l")  # cursor hidden, then back
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out).replace("\r", "")
    assert text.count("hello from the run\n") == 1
    assert text.count("a library's warning\n") == 1
    assert "evaluating 4 / 72" in text
    last = text[text.rindex("a run [in brackets]") :]
    assert re.search(r"━ +step 10 / 10\n", last)
    assert re.search(r"epoch 2\.00 .* gone, 0:00:00 left\n", last)
    assert re.search(r"detector +3\.5833 +MGD +0\.5000 +speed", last)
    assert re.search(r"loss_cls +3\.3333 +fpn_0 +0\.4000 +images/s +31\.5", last)
    assert re.search(r"loss_bbox +0\.2500 +fpn_1 +0\.1000", last)
    assert re.search(r"all losses +1\.2500", last)
    assert re.search(r"bbox +8 +0\.371 +0\.550 +0\.400 +- ", last)
    assert "step 8  bbox  AP 0.371" in text
    assert "step 10/10  |" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_the_cursor_comes_back_after_an_error(tmp_path):
    out, status = run_on_terminal(tmp_path, end="    raise KeyError('broken')")
    assert status == 1
    assert "broken" in out[out.rindex("\x1b[?25h") :]


class Faulty:
    """A tracker whose server is away after its first value."""

    name = "Faulty"

    def __init__(self):
        self.values = []

    def log(self, step, values):
        if self.values:
            raise ConnectionError("the server\nis away")
        self.values.append(step)

    def close(self):
        raise ConnectionError("it still is")


def test_a_tracker_that_fails_is_said_once_and_ends_no_run(tmp_path, capsys):
    """The others go on, and every number is in the run's own files."""
    faulty, other = Faulty(), Faulty()
    other.log = lambda step, values: other.values.append(step)
    with open_log(tmp_path, trackers=lambda: [faulty, other]) as log:
        train(log, 1, 8)
    assert faulty.values == [2] and other.values == [2, 4, 4, 6, 8, 8]
    assert len(records(tmp_path)) == 6
    said = "Faulty takes no more numbers, and the run goes on without it: the server\n"
    assert capsys.readouterr().out.count(said) == 1
    assert (tmp_path / "log.txt").read_text().count(said) == 1


def test_time_left_follows_the_mean_speed_of_this_process():
    status = Status("title", total_steps=100, step=40)
    assert status.seconds_left is None
    status.started = time.monotonic() - 60
    status.step = 60
    assert status.seconds_left == pytest.approx(120, abs=1)


@pytest.mark.parametrize(("seconds", "text"), [(None, "-:--:--"), (0, "0:00:00"), (3723.9, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text
