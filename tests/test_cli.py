"""The commands as a user meets them: what each does, and what each says when it cannot."""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sys

import cv2
import pytest
import torch

import formats
import mgdet.engine.loop as loop
import mgdet.report.measure as measure
from mgdet import __version__
from mgdet.cli import COMMANDS, main
from mgdet.interop.weights import read_checkpoint
from mgdet.recipes import RECIPES
from tiny import CLASSES, NUM_VAL, assert_same_tensors, write_detector


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys, folder):
    """Runs a command that must be refused: one line, exit code 2, and every file as it was."""

    def run(*arguments):
        before = contents(folder)
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 2
        assert err.startswith("mgdet: ") and err.count("\n") == 1 and err.endswith("\n")
        assert "Traceback" not in out
        assert contents(folder) == before
        return err.removeprefix("mgdet: ").rstrip("\n")

    return run


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def data(tiny, folder):
    """A copy of the data set, to spoil."""
    return Data(tiny.root, folder / "data")


class Data:
    def __init__(self, source, root):
        self.root = root
        shutil.copytree(source, root)

    def edit(self, split, change):
        path = self.root / "annotations" / f"{split}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def spoil_file(tiny, folder, kind):
    """A file that is no teacher for `tiny:distilled`."""
    path = folder / f"{kind}.pth"
    content = tiny.teacher.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "architecture":
        write_detector(path, seed=1, backbone="resnet18")
    elif kind == "classes":
        write_detector(path, seed=1, classes=CLASSES[:2])
    elif kind == "names":
        write_detector(path, seed=1, classes=("square", "high", "wide"))
    elif kind == "hostile":
        torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Hostile()}, path)
    elif kind == "hostile pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    return path


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("broken into",)


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
        lines = ["import tiny", "def short():", "    config = tiny.alone()", "    config.schedule.epochs = 1"]
        (folder / "own_recipes.py").write_text("\n".join([*lines, "    return config", ""]))
        assert main(["train", "own_recipes:short", "--data.root", str(tiny.root)]) == 0
        config = json.loads((folder / "runs" / "own_recipes.short" / "config.json").read_text())
        assert config["schedule"]["epochs"] == 1

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


class TestTrain:
    def test_missing_root_shows_the_layout(self, tiny, refused):
        text = refused(*tiny.arguments("train"), "--data.root", "nowhere")
        assert (
            "'nowhere/annotations/train.json'; expected are" in text and "images in the folder 'nowhere/train'" in text
        )

    @pytest.mark.parametrize("text", ["[]", "{", "", '{"images": []}'])
    def test_not_a_coco_file(self, tiny, data, refused, text):
        (data.root / "annotations" / "train.json").write_text(text)
        assert "is not a COCO annotation file" in refused(*tiny.arguments("train"), "--data.root", data.root)

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_undeclared_categories(self, tiny, data, refused, split):
        data.edit(split, lambda content: content["annotations"][0].update(category_id=77))
        text = refused(*tiny.arguments("train"), "--data.root", data.root)
        assert f"{split}.json' use category ids that no category declares: 77; declared are 2, 5, 9" in text

    def test_train_and_val_declare_other_classes(self, tiny, data, refused):
        data.edit("val", lambda content: content["categories"].append({"id": 10, "name": "round"}))
        assert "val.json' has 'round'" in refused(*tiny.arguments("train"), "--data.root", data.root)

    def test_degenerate_boxes_are_counted_and_said_once(self, tiny, data, capsys):
        data.edit("train", lambda content: content["annotations"][0].update(bbox=[0, 0, 0, 5]))
        data.edit("train", lambda content: content["annotations"][1].update(bbox=[500, 500, 9, 9]))
        assert main([*tiny.arguments("train"), "--data.root", str(data.root), "--run-dir", "run"]) == 0
        out = capsys.readouterr().out
        assert out.count("left out 1 box without width or height (first: annotation 1 of image '0.jpg'") == 1
        assert (
            out.count(
                "left out of training: 1 box under a pixel or outside its image (first: object 1 of image '0.jpg')"
            )
            == 1
        )

    @pytest.mark.parametrize("workers", ["0", "1"])
    def test_a_truncated_picture_is_named(self, tiny, data, capsys, workers):
        """It is met in the middle of a run, whose folder then is there; the run can go on from it."""
        picture = data.root / "train" / "7.jpg"
        whole = picture.read_bytes()
        os.truncate(picture, 400)
        arguments = [*tiny.arguments("train"), "--data.root", str(data.root), "--run-dir", "run"]
        assert main([*arguments, "--data.workers", workers]) == 2
        assert capsys.readouterr().err == f"mgdet: image '{picture}' is truncated; copy it again\n"
        picture.write_bytes(whole)
        assert main([*arguments, "--resume"]) == 0

    @pytest.mark.parametrize(
        "kind, words",
        [
            ("missing", "missing.pth"),
            ("truncated", "truncated.pth is truncated or damaged"),
            ("empty", "empty.pth is empty"),
            ("text", "text.pth is not a checkpoint"),
            ("architecture", "does not fit this detector: 41 tensors match, 28 missing (backbone.conv1.0.weight"),
            ("classes", "classes.pth knows 2 classes, the data has 3"),
            ("names", "names.pth knows class 1 as 'high', in the data it is 'tall'"),
            ("hostile", "hostile.pth is refused as hostile"),
            ("hostile pickle", "hostile pickle.pth is refused as hostile"),
        ],
    )
    def test_a_teacher_that_is_none(self, tiny, folder, refused, kind, words):
        path = spoil_file(tiny, folder, kind)
        assert words in refused(*tiny.arguments("train"), "--teacher.weights", path, "--run-dir", "run")
        assert not (folder / "run").exists() and not (folder / "broken into").exists()

    def test_a_teacher_without_weights(self, tiny, refused):
        text = refused(*tiny.arguments("train"), "--teacher.weights", "random", "--run-dir", "run")
        assert text == "teacher.weights is 'random'; a teacher needs the checkpoint of a trained detector"

    def test_a_folder_that_holds_another_run(self, tiny, refused, capsys):
        one_step = [*tiny.arguments("train"), "--run-dir", "run", "--train.stop_after", "1"]
        assert main(one_step) == 0
        capsys.readouterr()
        assert "run already holds a run; add --resume" in refused(*one_step)
        text = refused(*one_step, "--resume", "--mgd.weight", "1")
        assert text.startswith("run holds a run with mgd.weight 0.002, which --resume cannot change to 1.0")
        assert "holds a run with student.backbone" in refused(*one_step, "--resume", "--student.backbone", "resnet18")
        text = refused(*tiny.arguments("train", distil=False), "--run-dir", "run", "--resume")
        assert "holds a run with inherit True" in text

    def test_a_run_folder_that_cannot_be_made(self, tiny, folder, refused):
        (folder / "file").write_text("precious")
        for run_dir in ("file", "file/inside"):
            assert "cannot be made" in refused(*tiny.arguments("train"), "--run-dir", run_dir)


@contextlib.contextmanager
def disk_of(size):
    """No file may grow beyond so many bytes: what a full disk looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    def test_a_checkpoint_does_not_fit(self, tiny, folder, capsys):
        arguments = [*tiny.arguments("train"), "--run-dir", "run", "--train.save_every", "2"]
        assert main([*arguments, "--train.stop_after", "2"]) == 0
        kept = {path: content for path, content in contents(folder).items() if path.suffix == ".pth"}
        with disk_of(1_000_000):
            assert main([*arguments, "--resume"]) == 2
        err = capsys.readouterr().err
        assert err == "mgdet: no space is left to write run/student_last.pth; what was there is untouched\n"
        assert kept == {path: content for path, content in contents(folder).items() if path.suffix == ".pth"}
        assert not list(folder.rglob("*.tmp"))
        assert main([*arguments, "--resume"]) == 0

    def test_the_log_does_not_fit(self, tiny, capsys):
        with disk_of(100):
            assert main([*tiny.arguments("train"), "--run-dir", "run"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("mgdet: no space is left") and err.count("\n") == 1

    def test_results_and_pictures_do_not_fit(self, tiny, folder, capsys):
        checkpoint, images = str(tiny.teacher), str(tiny.root / "val")
        with disk_of(100):
            assert main(["predict", checkpoint, images, "--out", "out"]) == 2
            assert main(["transfer", checkpoint, "out.pth"]) == 2
        err = capsys.readouterr().err
        assert err.count("mgdet: no space is left to write") == err.count("\n") == 2
        assert not contents(folder)


class TestTest:
    @pytest.fixture
    def arguments(self, tiny):
        return ["test", "tiny:alone", str(tiny.teacher), "--data.root", str(tiny.root)]

    def test_twelve_numbers_a_table_and_the_results(self, tiny, arguments, folder, capsys):
        assert main([*arguments, "--out", "results.json"]) == 0
        out = capsys.readouterr().out
        assert "126 tensors loaded, 0 missing" in out
        names = [line.split()[0] for line in out.splitlines() if line.strip()]
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", *CLASSES):
            assert names.count(name) == 1
        assert json.loads((folder / "results.json").read_text()) == []
        assert "0 detections written to results.json" in out

    def test_in_the_precision_of_training(self, arguments, monkeypatch, capsys):
        """Float32 unless it is asked for, whatever the recipe trains in."""
        asked = []
        run = measure.run_detector
        monkeypatch.setattr(
            measure, "run_detector", lambda *a, amp, **rest: asked.append(amp) or run(*a, amp=amp, **rest)
        )
        for more in ([], ["--train.amp", "bf16"]):
            assert main([*arguments, "--data.workers", "0", *more]) == 0
            out = capsys.readouterr().out
            assert ("measured with backbone and neck in bf16" in out) == bool(more)
        assert asked == ["off", "bf16"]

    @pytest.mark.parametrize(
        "more, words",
        [
            (["--eval", "bbox", "mask"], "--eval has 'mask'; the choices are bbox and segm"),
            (["--eval", "segm"], "--eval has segm, but a retinanet finds only boxes; choose bbox"),
            (["--eval"], "--eval is empty; give bbox, segm or both"),
            (["--out", "old.json"], "old.json exists already"),
            (["--out", "no/folder.json"], "the folder no of folder.json does not exist"),
            (["--data.root", "nowhere"], "there is no file 'nowhere/annotations/val.json'"),
            (["--devices", "0"], "--devices is 0"),
        ],
    )
    def test_refusals(self, arguments, folder, refused, more, words):
        (folder / "old.json").write_text("precious")
        assert words in refused(*arguments, *more)

    @pytest.mark.parametrize("more", [["--ema"], ["--train.amp", "bf16"], ["--batch", "2"]])
    def test_detections_that_are_made_already_take_no_options_of_making_them(self, tiny, folder, refused, more):
        (folder / "found.json").write_text("[]")
        text = refused("test", "found.json", "--data.root", tiny.root, *more)
        assert (
            text
            == f"found.json holds detections that are made already, for which {more[0]} means nothing; leave it out"
        )

    def test_needs_a_checkpoint(self, refused):
        assert "mgdet test tiny:alone needs CHECKPOINT|RESULTS.json (" in refused("test", "tiny:alone")

    @pytest.mark.parametrize("kind", ["missing", "truncated", "architecture", "classes", "names", "hostile"])
    def test_a_checkpoint_that_does_not_fit(self, tiny, arguments, folder, refused, kind):
        path = spoil_file(tiny, folder, kind)
        assert path.name in refused("test", "tiny:alone", path, *arguments[3:], "--out", "out.json")

    def test_a_truncated_picture(self, tiny, data, arguments, refused):
        os.truncate(data.root / "val" / "3.jpg", 400)
        text = refused(*arguments, "--data.root", data.root, "--out", "out.json")
        assert text == f"image '{data.root}/val/3.jpg' is truncated; copy it again"


class TestTransfer:
    def test_to_pth_and_safetensors(self, tiny, folder, capsys):
        for out in ("out.pth", "out.safetensors"):
            assert main(["transfer", str(tiny.teacher), out]) == 0
            assert f"wrote {out}: 126 tensors, 3 class names" in capsys.readouterr().out
            left, right = read_checkpoint(tiny.teacher), read_checkpoint(folder / out)
            assert_same_tensors(left.state_dict, right.state_dict)
            assert dataclasses.replace(right, path=left.path, sha256=left.sha256, state_dict=left.state_dict) == left

    def test_refusals(self, tiny, folder, refused):
        (folder / "old.pth").write_text("precious")
        assert "old.pth exists already" in refused("transfer", tiny.teacher, "old.pth")
        assert "ends in '.txt'; the choices are" in refused("transfer", tiny.teacher, "new.txt")
        assert "mgdet transfer needs OUT" in refused("transfer", tiny.teacher)
        for kind in ("missing", "truncated", "hostile"):
            assert f"{kind}.pth" in refused("transfer", spoil_file(tiny, folder, kind), "out.pth")


class TestEma:
    """`--ema` of the three commands that read a finished checkpoint."""

    @pytest.fixture
    def both(self, tiny, folder):
        content = torch.load(tiny.teacher, weights_only=True)
        average = {f"ema_{name.replace('.', '_')}": value * 2 for name, value in content["state_dict"].items()}
        torch.save(content | {"state_dict": content["state_dict"] | average}, folder / "both.pth")
        return folder / "both.pth"

    @pytest.mark.parametrize("ema", [False, True])
    def test_one_copy_is_taken_and_said(self, ema, both, tiny, folder, capsys):
        option = ["--ema"] if ema else []
        said = "taken: the EMA copy under the ema names" if ema else "taken: the weights under their own names"
        assert main(["test", "tiny:alone", str(both), "--data.root", str(tiny.root), *option]) == 0
        assert said in capsys.readouterr().out
        assert main(["predict", str(both), str(tiny.root / "val"), "--out", "pictures", *option]) == 0
        assert said in capsys.readouterr().out
        assert main(["transfer", str(both), "out.pth", *option]) == 0
        assert said in capsys.readouterr().out
        plain, written = read_checkpoint(tiny.teacher), read_checkpoint(folder / "out.pth")
        assert_same_tensors(written.state_dict, {n: v * 2 if ema else v for n, v in plain.state_dict.items()})

    def test_a_copy_that_is_not_there_is_refused(self, tiny, folder, refused):
        for arguments in (
            ["test", "tiny:alone", tiny.teacher, "--data.root", tiny.root],
            ["predict", tiny.teacher, tiny.root / "val"],
            ["transfer", tiny.teacher, "out.pth"],
        ):
            assert "holds no EMA copy of its weights; leave --ema out" in refused(*arguments, "--ema")


class TestPredict:
    def test_pictures_and_one_json(self, tiny, folder, capsys):
        images = [str(tiny.root / "val"), str(tiny.root / "train" / "0.jpg")]
        assert main(["predict", str(tiny.teacher), *images, "--out", "out", "--score", "0"]) == 0
        assert f"objects in {NUM_VAL + 1} images; pictures and detections.json are in out" in capsys.readouterr().out
        report = json.loads((folder / "out" / "detections.json").read_text())
        assert [entry["picture"] for entry in report] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "0_2.jpg"]
        assert {path.name for path in (folder / "out").iterdir()} == {
            "detections.json",
            *(entry["picture"] for entry in report),
        }
        for entry in report:
            height, width = cv2.imread(str(folder / "out" / entry["picture"])).shape[:2]
            assert (entry["width"], entry["height"]) == cv2.imread(entry["file"]).shape[1::-1] == (width, height)

    def test_a_checkpoint_from_elsewhere_may_be_given_its_recipe(self, tiny, folder, refused):
        checkpoint = torch.load(tiny.teacher, weights_only=True)
        del checkpoint["meta"]["mgdet"]
        torch.save(checkpoint, folder / "plain.pth")
        arguments = ["predict", folder / "plain.pth", tiny.root / "val", "--out", "out"]
        assert "there is no recipe 'retinanet_r5'; did" in refused(*arguments, "--recipe", "retinanet_r5")
        assert "does not fit this detector" in refused(*arguments, "--recipe", "retinanet_r50")
        assert main([*map(str, arguments), "--recipe", "tiny:alone"]) == 0

    def test_refusals(self, tiny, data, folder, refused):
        images = data.root / "val"
        assert "--score is 2.0; give a score from 0 to 1" in refused("predict", tiny.teacher, images, "--score", "2")
        assert "--score is nan" in refused("predict", tiny.teacher, images, "--score", "nan")
        assert "no image is given" in refused("predict", tiny.teacher)
        assert "there is no image or folder 'none.jpg'" in refused("predict", tiny.teacher, "none.jpg")
        text = refused("predict", tiny.teacher, data.root / "annotations")
        assert "annotations holds no image (.jpg, " in text and text.endswith(", only 2 .json")
        assert "--batch is 0; give 1 or more" in refused("predict", tiny.teacher, images, "--batch", "0")
        assert "cannot be decoded" in refused("predict", tiny.teacher, tiny.teacher)
        assert "mgdet predict needs CHECKPOINT" in refused("predict")
        for kind in ("missing", "truncated", "hostile"):
            path = spoil_file(tiny, folder, kind)
            assert path.name in refused("predict", path, images)

    def test_pictures_are_never_written_over(self, tiny, data, refused):
        images = data.root / "val"
        assert "already holds 0.jpg, which would be written over" in refused(
            "predict", tiny.teacher, images, "--out", images
        )

    def test_a_picture_that_cannot_be_read_leaves_nothing(self, tiny, data, refused):
        os.truncate(data.root / "val" / "3.jpg", 400)
        assert "3.jpg' is truncated" in refused("predict", tiny.teacher, data.root / "val", "--out", "out")


def test_a_run_from_the_first_command_to_the_last(tiny, folder, capsys):
    """train, train --resume, test, transfer and predict, each with the folder of the run as its source."""
    arguments = [*tiny.arguments("train"), "--run-dir", "run"]
    assert main([*arguments, "--train.stop_after", "3"]) == 0
    assert main([*arguments, "--resume"]) == 0
    assert main(["test", "tiny:distilled", "run", "--data.root", str(tiny.root)]) == 0
    assert main(["transfer", "run", "student.safetensors"]) == 0
    assert main(["predict", "student.safetensors", str(tiny.root / "val")]) == 0
    out = capsys.readouterr().out
    assert "done; the student is run/student_last.pth" in out
    assert out.count("run/student_best.pth: 126 tensors loaded") == 1
    assert (folder / "predictions" / "detections.json").exists()


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
