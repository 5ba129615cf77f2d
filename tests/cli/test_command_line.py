"""The command line as a user meets it: help, versions, mistakes, and what is said when memory is short."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys

import pytest
import torch

import formats
import mgdet.engine.loop as loop
from mgdet import __version__
from mgdet.cli import COMMANDS, main
from mgdet.recipes import RECIPES


class TestCommandLine:
    def test_usage_version_and_help(self, capsys):
        for arguments, code in (([], 2), (["--help"], 0)):
            assert main(arguments) == code
            usage = capsys.readouterr().out
            assert all(f"\n  {command}" in usage for command in COMMANDS)
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"mgdet {__version__}\n"

    def test_letters_that_the_terminal_lacks_are_written_as_numbers(self, monkeypatch, folder):
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", out)
        formats.beside(folder / "größe")
        assert main(["data", "größe"]) == 0
        out.flush()
        assert rb"gr\xf6\xdfe: COCO" in out.buffer.getvalue()

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_has_a_help(self, command, capsys):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert not stop.value.code
        assert f"usage: mgdet {command}" in capsys.readouterr().out

    def test_unknown_command(self, refused):
        assert refused("trian") == "there is no command 'trian'; did you mean 'train'?"

    def test_unknown_recipe(self, refused):
        for command in ("train", "test"):
            text = refused(command, "retinanet_x101_to_r5", "x.pth")
            assert text == "there is no recipe 'retinanet_x101_to_r5'; did you mean 'retinanet_x101_to_r50'?"
        assert "mgdet train needs a recipe first" in refused("train", "--devices", "2")

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--train.bacth", "3"], "--train.bacth, 3; did you mean --train.batch?"),
            (["--resum"], "--resum; did you mean --resume?"),
            (["--train.batch", "two"], "--train.batch is 'two', which is not a number"),
            (["--train.batch", "0"], "train.batch is 0; give 1 or more"),
            (["--train.batch"], "Missing value for argument '--train.batch'"),
            (
                ["--train.amp", "bf17"],
                "invalid choice 'bf17' for argument '--train.amp'. Expected one of ('off', 'bf16'",
            ),
            (["--student.channels", "33"], "student: channels is 33; give a multiple of 32"),
            (["--mgd.mask_ratio", "2"], "mgd.mask_ratio is 2.0; give a share from 0 to 1"),
            (["--schedule.warmup_ratio", "nan"], "schedule.warmup_ratio is nan; give a share from 0 to 1"),
            (["surplus"], "Unrecognized options: surplus"),
            (["--devices", "0"], "--devices is 0; give 1 or more"),
            (["--devices", "-3"], "--devices is -3; give 1 or more"),
            (["--devices", "two"], "--devices is 'two'; give a whole number or all"),
            (["--config", "x.json", "--train.batch", "3"], "there is no config 'x.json'"),
            (["--train.metrics", "segm"], "train.metrics has segm, but a retinanet finds only boxes; choose bbox"),
            (
                ["--optimizer.name", "adamw", "--optimizer.lr", "0.02"],
                "optimizer.lr is 0.02, a rate for sgd, but optimizer.name is adamw, which diverges at it; give "
                "optimizer.lr too, e.g. 0.0001",
            ),
            (["--student.detector", "retinanett"], "there is no detector 'retinanett'; did you mean 'retinanet'?"),
            (["--student.backbone", "resnt50"], "timm has no backbone 'resnt50'; did you mean resnet50"),
        ],
    )
    @pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
    def test_options(self, tiny, refused, capsys, arguments, words, encoding):
        """Also where the terminal knows no UTF-8, and the parser frames its messages otherwise."""
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with contextlib.redirect_stdout(out):
            assert words in refused(*tiny.arguments("train"), "--run-dir", "run", *arguments)

    @pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
    def test_what_is_missing_is_said_by_name(self, refused, encoding):
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding=encoding)):
            assert refused("transfer") == "mgdet transfer needs IN and OUT (mgdet transfer --help says what that is)"
            assert refused("distill", "x") == "mgdet distill needs DATA (mgdet distill --help says what that is)"

    def test_a_teacher_where_a_recipe_belongs(self, tiny, refused):
        for command in ("train", "check"):
            assert f"mgdet distill {tiny.teacher} DATA distills from a teacher" in refused(command, tiny.teacher)

    def test_a_broken_pipe_is_no_error(self, monkeypatch):
        def closed(arguments):
            raise BrokenPipeError

        monkeypatch.setitem(COMMANDS, "recipes", closed)
        assert main(["recipes"]) == 141


SHM = "unable to open shared memory object </torch_7> in read-write mode: No space left on device (28)"
KILLED = "DataLoader worker (pid 7) is killed by signal: Killed. "
BUS = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of"
CPU = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class TestShortages:
    """What runs out in the middle of a run leaves as one sentence that says what to change, with exit code 1."""

    @pytest.mark.parametrize(
        "error, words",
        [
            (
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total of 8 GiB"),
                "the GPU has no memory left for another 2.50 GiB; lower --train.batch and raise --train.accumulate as "
                "much, add --train.amp bf16, lower --data.short-edge",
            ),
            (RuntimeError("CUDA error: out of memory"), "the GPU has no memory left; lower --train.batch"),
            (RuntimeError(CPU), "this machine has no memory left; lower --train.batch"),
            (MemoryError(), "this machine has no memory left; lower --train.batch"),
            (OSError(12, "Cannot allocate memory"), "this machine has no memory left; lower --train.batch"),
            (RuntimeError(KILLED), "a process that reads images was ended by the signal Killed, as it happens where"),
            (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "reads images ended without a word"),
            (RuntimeError(SHM), "no shared memory is left for the images that other processes read; enlarge /dev/shm"),
            (RuntimeError(BUS), "no shared memory is left for the images that other processes read; enlarge /dev/shm"),
            (RuntimeError("received 0 items of ancdata: Too many open files"), "raise the limit with ulimit -n"),
        ],
    )
    def test_train(self, tiny, monkeypatch, capsys, error, words):
        def fail(*arguments, **options):
            raise error

        monkeypatch.setattr(loop.Run, "to_the_end", fail)
        assert main([*tiny.arguments("train"), "--run-dir", "run"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("mgdet: ") and words in err and err.count("\n") == 1

    def test_a_fault_of_ours_is_no_shortage(self, monkeypatch):
        def broken(arguments):
            raise RuntimeError("shapes (3, 4) and (5, 6) do not fit; shared memory and a kernel are not to blame")

        monkeypatch.setitem(COMMANDS, "recipes", broken)
        with pytest.raises(RuntimeError, match="do not fit"):
            main(["recipes"])

    def test_a_worker_that_is_killed(self, tiny, monkeypatch, capsys):
        """By whatever ends processes when memory is short; seen by torch's own handler."""

        def end_workers(run, step):
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)

        monkeypatch.setattr(loop.RunLog, "tick", end_workers)
        assert main([*tiny.arguments("train"), "--run-dir", "run", "--data.workers", "1"]) == 1
        err = capsys.readouterr().err
        assert (
            "a process that reads images" in err
            and "where memory is short; lower --train.batch" in err
            and err.count("\n") == 1
        )


class TestRecipes:
    def test_lists_all_with_what_is_published(self, capsys):
        assert main(["recipes"]) == 0
        out = capsys.readouterr().out
        for name, recipe in RECIPES.items():
            assert any(line.startswith(name) for line in out.splitlines())
            fields = (recipe.student, recipe.teacher, recipe.baseline, recipe.distilled, recipe.original)
            assert all(text in out for text in fields)

    def test_takes_nothing(self, refused):
        assert "Unrecognized options: retinanet" in refused("recipes", "retinanet")

    def test_a_recipe_of_the_users_own_in_the_working_folder(self, tiny, folder, monkeypatch):
        monkeypatch.setattr(sys, "path", sys.path.copy())
        lines = ["import tiny", "def short():", "    config = tiny.alone()", "    config.schedule.epochs = 3"]
        (folder / "own_recipes.py").write_text("\n".join([*lines, "    return config", ""]))
        assert main(["train", "own_recipes:short", "--data.root", str(tiny.root)]) == 0
        config = json.loads((folder / "runs" / "own_recipes.short" / "config.json").read_text())
        assert config["schedule"]["epochs"] == 3

    @pytest.mark.parametrize(
        "name, words",
        [
            ("no_module:recipe", "Python finds no module 'no_module'"),
            ("tiny:distil", "no function 'distil' there; did you mean 'distilled'?"),
            ("tiny:write_data", "takes arguments"),
            ("os:getcwd", "returned str, not mgdet.config.Config"),
            ("tiny:", "give MODULE:FUNCTION"),
            (":alone", "give MODULE:FUNCTION"),
        ],
    )
    def test_an_own_recipe_that_is_none(self, refused, name, words):
        assert words in refused("train", name)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}),
    ],
)
def test_memory_of_a_gpu_may_grow_unless_the_user_says_otherwise(before, after, monkeypatch):
    environment = dict(before)
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr("sys.platform", "linux")
    assert main(["--version"]) == 0
    assert environment == after
