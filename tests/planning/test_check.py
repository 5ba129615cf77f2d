"""The look at a run before it starts: what it finds, what it stops, and that it changes nothing."""

from __future__ import annotations

import json
import shutil

import colours
import pytest
import torch

import mgdet.engine.loop as loop
import mgdet.planning.check as checking
import mgdet.recipes
from mgdet.cli import main
from mgdet.config import MGDConfig
from mgdet.engine.prepare import prepare
from mgdet.engine.step import Step
from mgdet.interop.weights import read_checkpoint, save_checkpoint
from mgdet.planning.check import before_training, check, examine
from mgdet.planning.judge_teacher import judge_teacher
from mgdet.planning.report import Report
from mgdet.planning.rules import SHARE
from mgdet.planning.trial import first_batch, try_step, undone
from tiny import ALONE, assert_same_run, assert_same_tensors


def silent(line):
    """Nobody listens."""


def examined(config, folder, **changes):
    options = {"say": silent, "seconds": 60.0} | changes
    return examine(prepare(config, None, resume=False, world=ALONE), folder, **options)


def rows(report, what):
    return [row for row in report.rows if row.what == what]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    colours.write_colours(folder / "data")
    return folder, colours.train_teacher(folder / "data", folder / "run")


@pytest.mark.slow
class TestTheTeacher:
    """One that learned colours, and what can go wrong with it."""

    @pytest.fixture
    def judged(self, taught, tmp_path):
        """The rows on a teacher whose weights, or class names, were changed."""
        folder, path = taught

        def judge(change=None, classes=colours.CLASSES, published=None):
            checkpoint = read_checkpoint(path)
            state = dict(checkpoint.state_dict)
            if change is not None:
                change(state)
            save_checkpoint(tmp_path / "teacher.pth", state, classes=classes, config=checkpoint.config)
            config = colours.alone(folder / "data", 1)
            config.teacher = colours.model(weights=str(tmp_path / "teacher.pth"))
            config.mgd = MGDConfig(weight=1e-4)
            report = Report()
            judge_teacher(prepare(config, None, resume=False, world=ALONE), report, published=published, seconds=30.0)
            (row,) = rows(report, "teacher")
            return row, report

        return judge

    def test_a_good_one_is_ok(self, judged):
        row, report = judged()
        score = report.values["teacher"]
        assert row.status == "ok" and "on 24 validation images with 48 objects" in row.detail
        assert score["ap"] > 0.5 and 0 < score["error"] < 0.1
        assert score["swapped"] < 0.75 * score["straight"]
        assert score["right"] >= 0.9 * score["matched"] > 40 and not score["renamed"]

    def test_random_weights_find_nothing(self, judged):
        def shuffle(state):
            torch.manual_seed(0)
            state.update(
                {name: torch.randn_like(v) * 0.01 for name, v in state.items() if name.startswith("bbox_head")}
            )

        row, _ = judged(shuffle)
        assert row.status == "stop" and "it finds next to nothing" in row.detail

    def test_classes_in_another_order(self, judged):
        def shift(state):
            for name in ("bbox_head.retina_cls.weight", "bbox_head.retina_cls.bias"):
                value = state[name]
                state[name] = value.view(9, 3, *value.shape[1:]).roll(1, dims=1).reshape(value.shape)

        row, report = judged(shift)
        assert row.status == "stop" and "its classes are in another order than the data's" in row.detail
        assert report.values["teacher"]["renamed"] == {"green": "red", "blue": "green", "red": "blue"}
        row, report = judged(shift, classes=("blue", "red", "green"))
        assert row.status == "ok"
        assert "knows all classes of the data" in rows(report, "classes")[0].detail

    def test_red_and_blue_swapped(self, judged):
        def swap(state):
            first = next(name for name in state if name.startswith("backbone.conv1") and state[name].shape[1:2] == (3,))
            state[first] = state[first].flip(1)

        row, report = judged(swap)
        assert row.status == "warning" and "in the other order of channels" in row.detail
        assert report.values["teacher"]["swapped"] > 1.5 * report.values["teacher"]["straight"]

    def test_classes_that_the_data_lacks(self, judged):
        row, report = judged(classes=("red", "yellow", "blue"))
        score = report.values["teacher"]
        assert "2 of the data's 3 classes, not 'green'" in rows(report, "classes")[0].detail
        assert row.status == "ok" and score["ap"] > 0.5 and score["objects"] < 48
        report = Report()
        with pytest.raises(ValueError, match="not enough values"):
            judged(classes=("a", "b", "c"))

    def test_a_published_score_counts_on_coco_alone(self, judged, monkeypatch):
        row, _ = judged(published=0.9)
        assert row.status == "ok" and "published" not in row.detail

        def poor(state):
            state["bbox_head.retina_reg.bias"] = state["bbox_head.retina_reg.bias"] + 0.2

        monkeypatch.setattr("mgdet.planning.judge_teacher.COCO_CLASSES", colours.CLASSES)
        row, report = judged(published=0.8)
        assert row.status == "ok" and "(80.0 is published for all of val2017)" in row.detail
        row, report = judged(poor, published=0.9)
        assert row.status == "stop" and "far below the 90.0 that is published" in row.detail
        ap = report.values["teacher"]["ap"] + 2 * report.values["teacher"]["error"]
        row, _ = judged(poor, published=min(1.0, 1.3 * ap))
        assert row.status == "warning" and ", below the" in row.detail


def test_the_published_score_is_that_of_the_recipes_own_teacher():
    def published(name):
        return mgdet.recipes.published_ap(mgdet.recipes.load_recipe(name))

    assert published("retinanet_x101_to_r50") == pytest.approx(0.416)
    assert published("retinanet_x101_1x_to_r50") == pytest.approx(0.410)
    assert published("cascade_mask_rcnn_x101_dcn_to_mask_rcnn_r50") == pytest.approx(0.473)
    assert published("solo_r101_to_r50") == pytest.approx(0.371)  # of masks, which it measures first
    assert published("retinanet_r50") is None
    config = mgdet.recipes.load_recipe("retinanet_x101_to_r50")
    config.data.short_edge = (480, 480)
    assert mgdet.recipes.published_ap(config) is None
    config = mgdet.recipes.load_recipe("retinanet_x101_to_r50")
    config.teacher.weights = "mine.pth"
    assert mgdet.recipes.published_ap(config) is None


def test_a_run_after_a_look_is_the_same_to_the_bit(tiny, tmp_path):
    for name, look in (("with", before_training(tmp_path / "with", say=silent)), ("without", None)):
        assert loop.train(tiny.config(), tmp_path / name, resume=False, world=ALONE, check=look) == 0
    assert_same_run(tmp_path / "with", tmp_path / "without")


def test_a_look_leaves_everything_as_it_was(tiny, tmp_path):
    config = tiny.config()
    config.mgd = MGDConfig(share=0.3)
    prepared = prepare(config, None, resume=False, world=ALONE)
    student = prepared.models.student
    before = {name: value.clone() for name, value in student.state_dict().items()}
    balance, random = student.balance.state(), torch.get_rng_state()
    report = examine(prepared, tmp_path / "run", say=silent, seconds=60.0)
    assert not report.stops
    assert_same_tensors(student.state_dict(), before)
    assert student.balance.state() == balance and balance["steps"] == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in student.parameters())
    assert list(tmp_path.iterdir()) == []


def test_what_is_changed_inside_is_undone_also_after_an_error(tiny):
    prepared = prepare(tiny.config(), None, resume=False, world=ALONE)
    student = prepared.models.student.eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(KeyError), undone(student, ALONE.device):
        student.train()
        for parameter in student.parameters():
            parameter.data.add_(1.0)
        raise KeyError
    assert_same_tensors(student.state_dict(), before)
    assert not student.training


def test_rows_of_a_run_that_may_start(tiny, tmp_path):
    report = examined(tiny.config(), tmp_path / "run")
    assert report.stops == []
    assert [row.detail for row in rows(report, "levels")] == [
        f"student level {i}: stride {8 * 2**i}, 32 channels <- teacher level {i}: stride {8 * 2**i}, 32 channels"
        for i in range(5)
    ]
    assert any("0 missing, 0 unexpected" in row.detail for row in rows(report, "weights"))
    assert "the same 3 classes in the same order" in rows(report, "classes")[0].detail
    (teacher,) = rows(report, "teacher")
    assert teacher.status == "warning" and "on 3 validation images with 6 objects" in teacher.detail  # it is random
    assert "each of the 101 trained tensors has a gradient" in rows(report, "parameters")[0].detail
    assert {"losses", "grad_norm", "shares", "memory_gib", "seconds_per_step", "disk_bytes"} <= report.values.keys()
    assert json.loads(report.to_json())["rows"][0]["what"] == "data"
    table = report.table()
    assert all(what in table for what in ("step", "gradient", "memory", "time", "disk"))
    assert max(map(len, table.splitlines())) <= 100


def test_the_gradient_of_one_micro_batch_is_not_divided_by_those_of_a_step(tiny, monkeypatch):
    """And the rate is that of the run's first step, over all passes and processes."""
    found, rates = [], []
    take = Step.take
    batch, _ = first_batch(prepare(tiny.config(), None, resume=False, world=ALONE), 2)
    monkeypatch.setattr(Step, "take", lambda *a, lr, **o: rates.append(lr) or take(*a, lr=lr, **o))
    for accumulate in (1, 4):
        config = tiny.config()
        config.train.accumulate = accumulate
        prepared = prepare(config, None, resume=False, world=ALONE, processes=2)
        found.append(try_step(prepared, batch, 0.0).outcome.grad_norm)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    warmup = config.schedule.warmup_ratio
    assert rates[-1] == pytest.approx(0.08 * 2 * 4 * 2 / 16 * warmup)


def test_the_proposed_weight_gives_the_proposed_share(tiny, tmp_path):
    found = examined(tiny.config(), tmp_path / "run").values["shares"]["mgd"]
    config = tiny.config()
    config.mgd.weight *= SHARE / found["share"]
    again = examined(config, tmp_path / "run").values["shares"]["mgd"]
    assert again["share"] == pytest.approx(SHARE, rel=1e-3)
    assert again["weights"] == pytest.approx(found["weights"], rel=1e-3)
    config.mgd = MGDConfig(share=SHARE)
    shared = examined(config, tmp_path / "run")
    assert shared.values["shares"]["mgd"]["weights"] == pytest.approx(found["weights"], rel=1e-3)
    assert "mgd.share 3 means weights of about fpn_0" in rows(shared, "gradient")[0].detail


@pytest.mark.parametrize(
    ("weight", "words"), [(10.0, "which drowns them at fpn_0"), (1e-9, "hardly moves the student")]
)
def test_a_weight_that_is_far_off_is_a_warning(tiny, tmp_path, weight, words):
    config = tiny.config()
    config.mgd.weight = weight
    (row,) = rows(examined(config, tmp_path / "run"), "gradient")
    assert row.status == "warning" and words in row.detail


def test_losses_that_are_no_numbers_stop(tiny, tmp_path):
    config = tiny.config()
    prepared = prepare(config, None, resume=False, world=ALONE)
    prepared.models.student.distill_losses["loss_mgd_fpn_2"].generation[0].weight.data.fill_(float("nan"))
    report = examine(prepared, tmp_path / "run", say=silent, seconds=60.0)
    (stop,) = report.stops
    assert stop.startswith("the first step is not finite: loss, loss_mgd_fpn_2 on ") and stop.count(".jpg") == 2


def test_parameters_that_no_loss_reaches(tiny, tmp_path):
    prepared = prepare(tiny.config(), None, resume=False, world=ALONE)
    prepared.models.student.student.unused = torch.nn.Parameter(torch.zeros(3))
    report = examine(prepared, tmp_path / "run", say=silent, seconds=60.0)
    (row,) = rows(report, "parameters")
    assert (row.status, row.detail) == ("warning", "no loss reaches 1 of the 102 trained tensors: student.unused")
    prepared.processes = 2
    report = examine(prepared, tmp_path / "run", say=silent, seconds=60.0)
    assert report.stops == [row.detail]


def test_training_images_among_the_validation_images(tiny, tmp_path):
    shutil.copytree(tiny.root, tmp_path / "data")
    for i in (0, 2):
        shutil.copyfile(tmp_path / f"data/train/{i}.jpg", tmp_path / f"data/val/{i}.jpg")
    config = tiny.config()
    config.data.root = str(tmp_path / "data")
    report = examined(config, tmp_path / "run")
    (warning,) = [row for row in rows(report, "data") if row.status == "warning"]
    assert warning.detail.startswith("2 of 5 validation images that have the name of a training image are the same")


def test_a_student_alone_is_looked_at_too(tiny, tmp_path):
    config = tiny.config(distil=False)
    config.student.frozen_stages = 1
    report = examined(config, tmp_path / "run")
    assert not report.stops and not rows(report, "teacher") and not rows(report, "gradient")
    assert any("its first stages do not train" in text for text in report.warnings)


def test_a_warm_up_that_is_longer_than_the_run_is_a_warning(tiny, tmp_path):
    config = tiny.config(distil=False)
    config.schedule.warmup_steps = 500
    (row,) = rows(examined(config, tmp_path / "run"), "schedule")
    assert row.status == "warning" and "500, but the run has 12 steps, so the rate comes to 1% of" in row.detail


def test_a_full_disk_stops(tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert "where 0 MiB are free" in examined(tiny.config(), tmp_path / "a" / "b").stops[0]


def test_too_little_memory_stops(tiny, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total of 8 GiB")

    monkeypatch.setattr(Step, "take", fail)
    (stop,) = examined(tiny.config(), tmp_path / "run").stops
    assert stop.startswith("the GPU has no memory left for another 2.50 GiB; lower --train.batch")


def test_what_cannot_be_read_is_a_row(tiny, tmp_path):
    config = tiny.config()
    config.teacher.weights = "nowhere.pth"
    report = check(config, folder=tmp_path / "run", say=silent)
    assert [(row.status, row.what) for row in report.rows] == [("stop", "start")]
    assert "nowhere.pth" in report.stops[0]


class TestCommands:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_check_prints_a_table_and_writes_nothing(self, tiny, folder, capsys):
        assert main(tiny.arguments("check")) == 0
        out, err = capsys.readouterr()
        assert "levels" in out and err == ""
        assert list(folder.iterdir()) == []

    def test_json(self, tiny, folder, capsys):
        assert main([*tiny.arguments("check"), "--json", "-"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["stops"] == [] and printed["values"]["steps"] == 12
        assert main([*tiny.arguments("check"), "--json", "found.json", "--devices", "2"]) == 0
        assert json.loads((folder / "found.json").read_text())["values"]["steps"] == 8
        assert main([*tiny.arguments("check"), "--json", "found.json"]) == 2
        assert "found.json exists already" in capsys.readouterr().err
        assert main([*tiny.arguments("check"), "--json", "no/found.json"]) == 2

    def test_a_stop_is_exit_code_2(self, tiny, folder, capsys):
        arguments = [*tiny.arguments("check"), "--teacher.weights", "nowhere.pth"]
        assert main([*arguments, "--json", "-"]) == 2
        out, err = capsys.readouterr()
        assert json.loads(out)["rows"][0]["what"] == "start" and err == ""

    def test_train_looks_first_and_stops(self, tiny, folder, capsys, monkeypatch):
        def full(prepared, trial, folder, report):
            report.add("stop", "disk", "the disk is full")
            report.add("stop", "disk", "very full")

        monkeypatch.setattr(checking, "judge_disk", full)
        assert main([*tiny.arguments("train"), "--run-dir", "run"]) == 2
        out, err = capsys.readouterr()
        assert "STOP" in out and "student level" not in out
        assert err == (
            "mgdet: the run does not start: the disk is full, and 1 more of the rows above; --no-check starts it all "
            "the same\n"
        )
        assert not (folder / "run").exists()
        assert main([*tiny.arguments("train"), "--run-dir", "run", "--no-check", "--train.stop-after", "1"]) == 0
        assert main([*tiny.arguments("train"), "--run-dir", "run", "--resume"]) == 0  # not looked at again
        assert "STOP" not in capsys.readouterr().out

    def test_a_folder_that_holds_a_run(self, tiny, folder, capsys):
        (folder / "run").mkdir()
        (folder / "run" / "config.json").write_text("{}")
        assert main([*tiny.arguments("check"), "--run-dir", "run"]) == 0
        assert "already holds a run" in capsys.readouterr().out
