"""The functions of the package, and the command `distill` over them."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest
import torch

import mgdet
from mgdet import api
from mgdet.cli import main
from mgdet.cli.distill import DistillArguments, parse_distill, settings_of
from mgdet.config import Config, ModelConfig
from mgdet.engine.checkpoint import CONFIG_FILE, STATE_FILE, write_config
from mgdet.errors import UserError
from mgdet.files import make_folder
from mgdet.planning.resume import planned_before
from refusals import refusal
from tiny import assert_same_state, start, wait_for

QUICK = {"student.weights": "random", "schedule.epochs": 2, "train.log_every": 4, "data.workers": 0}
TYPED = ("--student.weights", "random", "--schedule.epochs", "2", "--train.log-every", "4", "--data.workers", "0")
STEPS = 12


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def distill(tiny, *, settings=QUICK, said=None, **options):
    said = [] if said is None else said
    options = {"student": "test_resnet", "check": False, "settings": settings, "say": said.append} | options
    return mgdet.distill(tiny.teacher, tiny.root, **options)


def step_of(run):
    return torch.load(run / STATE_FILE, weights_only=True)["step"]


class TestDistill:
    def test_it_says_what_it_decides_and_does_it(self, tiny, folder):
        said = []
        trained = distill(tiny, said=said)
        assert trained.code == 0 and str(trained.folder) == "runs/data-retinanet-test_resnet"
        assert [line.split()[0] for line in said][:4] == ["teacher", "data", "student", "recipe"]
        config = Config.from_dict(json.loads((trained.folder / CONFIG_FILE).read_text()))
        assert (config.schedule.epochs, config.mgd.share, config.inherit) == (2, 3.0, True)
        assert step_of(trained.folder) == STEPS
        assert trained.checkpoint.name == "student_best.pth"
        assert mgdet.load(trained.folder).classes == ("square", "tall", "wide")

    def test_the_check_runs_first_and_can_refuse(self, tiny, monkeypatch):
        looked = []

        def before(folder, *, say):
            def look(prepared):
                looked.append(folder)
                raise UserError("the run does not start")

            return look

        monkeypatch.setattr(api, "before_training", before)
        with pytest.raises(UserError, match="does not start"):
            distill(tiny, run_dir="run", check=True)
        assert [str(path) for path in looked] == ["run"]

    def test_its_config_repeats_it_to_the_bit(self, tiny):
        first = distill(tiny, run_dir="first")
        assert main(["train", "--config", "first/config.json", "--run-dir", "second", "--no-check"]) == 0
        assert_same_state(first.folder, first.folder.parent / "second")

    def test_a_run_in_the_folder_is_refused_before_anything_is_decided(self, tiny):
        distill(tiny, run_dir="run")
        said = []
        with pytest.raises(UserError, match="run already holds a run; add --resume"):
            distill(tiny, run_dir="run", said=said)
        assert said == []

    def test_it_goes_on_with_what_was_decided(self, tiny, monkeypatch):
        distill(tiny, run_dir="run", settings=QUICK | {"train.stop_after": 5})
        assert step_of(api.Path("run")) == 5
        monkeypatch.setattr(api, "plan", None)  # nothing is decided again
        trained = distill(tiny, run_dir="run", resume=True, settings={"train.stop_after": 0})
        assert step_of(trained.folder) == STEPS
        whole = mgdet.train(config_of("run"), "whole", check=False)
        assert_same_state(trained.folder, whole.folder)

    def test_resuming_refuses_what_makes_another_run(self, tiny):
        distill(tiny, run_dir="run", settings=QUICK | {"train.stop_after": 5})
        again = {"run_dir": "run", "resume": True}
        with pytest.raises(UserError, match=r"holds a run with schedule\.epochs 2, which --resume cannot change to 3"):
            distill(tiny, settings={"schedule.epochs": 3}, **again)
        with pytest.raises(UserError, match="a run of the student retinanet:test_resnet, not of retinanet:resnet18"):
            distill(tiny, student="resnet18", **again)
        with pytest.raises(UserError, match="holds a distillation with no baseline; go on without --baseline"):
            distill(tiny, baseline=True, **again)

    def test_resuming_refuses_another_teacher(self, tiny, folder):
        """Whichever of the two is a file; one that has moved is taken, and known by its hash."""
        distill(tiny, run_dir="run", settings=QUICK | {"train.stop_after": 5})
        options = {"resume": True, "settings": {}, "student": "", "data": str(tiny.root)}
        name, other = "torchvision:fasterrcnn_resnet50_fpn_v2", "torchvision:retinanet_resnet50_fpn"
        own = refusal(planned_before, api.Path("run"), teacher=name, **options)
        assert own == f"run holds a run of the teacher {tiny.teacher}, not of {name}; choose another --run-dir"
        assert planned_before(api.Path("run"), teacher="moved.pth", **options).teacher.weights == "moved.pth"
        config = config_of("run")
        config.teacher = ModelConfig(detector=name, weights="pretrained")
        make_folder(folder / "foreign")
        write_config(folder / "foreign", config)
        place = api.Path("foreign")
        for given in (other, "some.pth"):
            text = refusal(planned_before, place, teacher=given, **options)
            assert text == f"foreign holds a run of the teacher {name}, not of {given}; choose another --run-dir"
        assert planned_before(place, teacher=name, **options) == config
        config.teacher.weights = "a run's.pth"
        write_config(folder / "foreign", config)
        for given, weights in ((name, "a run's.pth"), ("moved.pth", "moved.pth")):
            assert planned_before(place, teacher=given, **options).teacher.weights == weights
        assert f"of the teacher a run's.pth, not of {other}" in refusal(planned_before, place, teacher=other, **options)

    def test_resuming_takes_a_backbone_whose_detector_followed_from_the_data(self, tiny, folder):
        config, teacher = config_of(distill(tiny, run_dir="run").folder), "torchvision:maskrcnn_resnet50_fpn"
        config.teacher = ModelConfig(detector=teacher, weights="pretrained")
        config.student = replace(config.student, detector="faster_rcnn")  # the data had no masks
        make_folder(folder / "boxes")
        write_config(folder / "boxes", config)
        options = {"teacher": teacher, "resume": True, "settings": {}, "data": str(tiny.root)}
        place = api.Path("boxes")
        for student in ("test_resnet", "faster_rcnn:test_resnet"):
            assert planned_before(place, student=student, **options) == config
        text = refusal(planned_before, place, student="mask_rcnn:test_resnet", **options)
        assert "boxes holds a run of the student faster_rcnn:test_resnet, not of mask_rcnn:test_resnet" in text

    def test_resuming_what_never_began_begins(self, tiny):
        assert step_of(distill(tiny, run_dir="run", resume=True).folder) == STEPS


class TestBaseline:
    def test_the_same_student_alone_and_a_comparison(self, tiny, monkeypatch):
        compared = []
        monkeypatch.setattr(api, "compare", lambda sources, **options: compared.append((sources, options)))
        trained = distill(tiny, run_dir="run", baseline=True)
        assert (str(trained.folder), str(trained.alone)) == ("run/distilled", "run/alone")
        assert step_of(trained.folder) == step_of(trained.alone) == STEPS
        with_teacher, alone = config_of("run/distilled"), config_of("run/alone")
        assert alone.teacher is None and not alone.methods and not alone.inherit
        for name in ("student", "data", "optimizer", "schedule", "train"):
            assert getattr(with_teacher, name) == getattr(alone, name)
        ((sources, options),) = compared
        assert sources == ["alone=run/alone", "distilled=run/distilled"]
        assert str(options["out"]) == "run/report" and options["data"] == with_teacher.data

    def test_it_is_resumed_as_a_whole(self, tiny, monkeypatch):
        compared, trained = [], []
        monkeypatch.setattr(api, "compare", lambda sources, **options: compared.append(sources))
        run_training = api.run_training

        def stopped(config, folder, **options):
            trained.append(folder.name)
            if len(trained) == 2:
                config.train.stop_after = 5
            code = run_training(config, folder, **options)
            return 143 if len(trained) == 2 else code

        monkeypatch.setattr(api, "run_training", stopped)
        assert distill(tiny, run_dir="run", baseline=True).code == 143
        assert compared == []
        again = distill(tiny, run_dir="run", baseline=True, resume=True, settings={"train.stop_after": 0})
        assert again.code == 0 and trained == ["distilled", "alone", "distilled", "alone"]
        assert step_of(again.alone) == STEPS and len(compared) == 1

    def test_it_needs_its_baseline_to_go_on(self, tiny, monkeypatch):
        monkeypatch.setattr(api, "compare", lambda sources, **options: None)
        distill(tiny, run_dir="run", baseline=True)
        with pytest.raises(UserError, match="holds a distillation with a baseline; go on with --baseline"):
            distill(tiny, run_dir="run", resume=True)


def config_of(run):
    return Config.from_dict(json.loads((api.Path(run) / CONFIG_FILE).read_text()))


class TestCommand:
    def test_names_of_settings_are_those_that_were_typed(self):
        typed = ["T", "D", "--student", "resnet50", "--train.batch=4", "--no-inherit", "--student.no-norm-eval"]
        typed += [
            "--data.short-edge",
            "320",
            "640",
            "--optimizer.name",
            "adamw",
            "--seed",
            "3",
            "--mgd.mask_ratio",
            "0.5",
        ]
        parsed = parse_distill(typed, DistillArguments, "distill")
        assert (parsed.teacher, parsed.data, parsed.student, parsed.seed) == ("T", "D", "resnet50", 3)
        assert settings_of(parsed, typed) == {
            "train.batch": 4,
            "inherit": False,
            "student.norm_eval": False,
            "data.short_edge": (320, 640),
            "optimizer.name": "adamw",
            "mgd.mask_ratio": 0.5,
            "train.seed": 3,
        }

    def test_one_edge_alone_can_be_typed(self):
        for typed in (["--data.long-edge", "320"], ["--data.short-edge", "2000", "2000"]):
            arguments = ["T", "D", *typed]
            assert len(settings_of(parse_distill(arguments, DistillArguments, "distill"), arguments)) == 1

    def test_it_runs(self, tiny, capsys):
        arguments = ["distill", str(tiny.teacher), str(tiny.root), "--student", "test_resnet", "--seed", "7", *TYPED]
        assert main([*arguments, "--no-check", "--run-dir", "run"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("teacher  ") and "given    student.weights random" in out
        assert config_of("run").train.seed == 7

    def test_check_takes_a_teacher_and_its_data_too(self, tiny, capsys, folder):
        arguments = ["check", str(tiny.teacher), str(tiny.root), "--student", "test_resnet", *TYPED]
        assert main([*arguments, "--seconds", "5"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("teacher  ") and "\nok " in out
        assert main([*arguments, "--seconds", "5", "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["stops"] == []
        assert not list(folder.iterdir())

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["nowhere.pth", "{data}"], "nowhere.pth"),
            (["{teacher}", "nodata"], "the data set's folder 'nodata' does not exist"),
            (["{teacher}", "{data}", "--student", "resent18"], "did you mean 'resnet18'?"),
            (["{teacher}", "{data}", "--train.batch", "auto"], "--train.batch auto is for mgdet train"),
            (["{teacher}", "{data}", "--train.bacth", "3"], "did you mean --train.batch?"),
            (["{teacher}"], "mgdet distill needs DATA"),
            (["{teacher}", "{data}", "--devices", "0"], "--devices is 0"),
        ],
    )
    def test_what_cannot_be_is_one_sentence(self, tiny, capsys, folder, arguments, words):
        places = {"teacher": tiny.teacher, "data": tiny.root}
        assert main(["distill", *(argument.format(**places) for argument in arguments)]) == 2
        captured = capsys.readouterr()
        assert words in captured.err and captured.err.count("\n") == 1 and not list(folder.iterdir())


@pytest.mark.slow
class TestProcesses:
    def test_a_signal_stops_it_and_resume_goes_on(self, tiny, folder):
        longer = ["--schedule.epochs", "40", "--train.eval-every", "0"]
        arguments = ["distill", str(tiny.teacher), str(tiny.root), "--student", "test_resnet", *TYPED, *longer]
        arguments += ["--no-check", "--run-dir", "run", "--baseline"]
        process = start(arguments)
        wait_for((folder / "run/distilled/metrics.jsonl").exists, process)
        wait_for(lambda: (folder / "run/distilled/metrics.jsonl").read_text().count("\n") > 2, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143, err
        assert "--resume goes on from here" in out and not (folder / "run/alone").exists()
        stopped = step_of(folder / "run/distilled")
        assert 0 < stopped < 240
        process = start([*arguments, "--resume", "--train.stop-after", str(stopped + 5)])
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "teacher  " not in out and f"resumed after step {stopped}" in out
        assert step_of(folder / "run/distilled") == step_of(folder / "run/alone") == stopped + 5

    def test_two_processes_take_the_plan_of_the_first(self, tiny, folder):
        arguments = ["distill", str(tiny.teacher), str(tiny.root), "--student", "test_resnet", *TYPED]
        process = start([*arguments, "--no-check", "--run-dir", "run", "--devices", "2"])
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.count("teacher  ") == 1 and "2 processes on cpu" in out
        assert "4 images per step (2 x 2 processes)" in out
        assert step_of(folder / "run") == 8
