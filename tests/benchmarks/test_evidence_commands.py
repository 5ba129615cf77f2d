"""The command line of the evidence: which runs a selection means, what is refused, and where it works."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from evidence import commands, pairs, runs
from evidence.arms import arms_of, sweep_arms

pytestmark = pytest.mark.usefixtures("plain")


def forged_choices(pair: pairs.Pair) -> dict:
    own = {"rate": 0.002, "decay": 0.01, "strength": 1e-5}
    arms = {arm.searched_as: own for arm in arms_of(pair)}
    return {"teacher": {"folder": "retinanet/teacher/8-epochs"}, "length": {"epochs": 8}, "arms": arms}


def options(tmp_path, **changes) -> argparse.Namespace:
    return argparse.Namespace(**{"root": tmp_path, "only": ["retinanet"], "seeds": None, "sweeps": False} | changes)


def test_all_arms_have_a_seed_before_any_has_the_next(tmp_path):
    choices = forged_choices(pairs.PAIRS["retinanet"])
    planned = commands.reported(options(tmp_path), "retinanet", choices)
    assert [run.config.train.seed for _, run in planned] == [seed for seed in range(5) for _ in range(7)]
    assert str(planned[9][1].folder) == str(tmp_path / "retinanet/inherits/seed-1")
    teacher = planned[9][1].config.teacher
    assert teacher is not None
    assert teacher.weights == str(tmp_path / "retinanet/teacher/8-epochs/student_last.pth")


def test_work_is_split_by_arm_and_seed(tmp_path):
    choices = forged_choices(pairs.PAIRS["retinanet"])
    own = options(tmp_path, only=["retinanet/mgd*"], seeds=[0], sweeps=True)
    planned = [arm.name for arm, _ in commands.reported(own, "retinanet", choices)]
    assert planned[:2] == ["mgd", "mgd-inherits"]
    assert len(planned) == 2 + len(sweep_arms(pairs.PAIRS["retinanet"], 1e-5))
    own.seeds = [4, 5]
    assert [run.folder.name for _, run in commands.reported(own, "retinanet", choices)] == ["seed-4"] * 2


@pytest.mark.parametrize(
    "more",
    [
        ["--only", "retinanet", "--seeds", "7"],
        ["--only", "retinanet/mgd-inherits.mask-0.25"],
        ["--only", "retinanet/mgd", "--seeds", "1000", "--sweeps"],
    ],
)
def test_a_run_without_anything_to_run_is_refused(tmp_path, capsys, monkeypatch, more):
    choices = forged_choices(pairs.PAIRS["retinanet"])
    choices["teacher"]["AP"] = choices["length"]["AP"] = 0.5
    monkeypatch.setattr(commands, "read_choices", lambda root, name: choices)
    monkeypatch.setattr(commands, "_prepare", lambda options, pair: None)
    assert commands.main(["run", "--root", str(tmp_path), "--anyway", *more]) == 2
    said = capsys.readouterr().err
    assert "--only and --seeds leave no run" in said
    assert ("; --sweeps adds more arms" in said) != ("--sweeps" in more)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--threads", "0"], "argument --threads: '0' is too few; give 1 or more"),
        (["--hours", "-1"], "argument --hours: '-1' is no time; give 0 or more"),
        (["--hours", "nan"], "argument --hours: 'nan' is no time; give 0 or more"),
        (["--roo", "elsewhere"], "unrecognized arguments: --roo elsewhere"),
    ],
)
def test_options_that_cannot_be_are_refused(capsys, given, sentence):
    with pytest.raises(SystemExit, match="2"):
        commands.main(["tune", *given])
    assert sentence in capsys.readouterr().err


def test_a_page_shows_no_folder_of_the_machine(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["evidence", "run", "--root=/home/me/runs", "--bccd", "/data/bccd", "--only", "solo"]
    )
    assert runs.command() == "python benchmarks/evidence run --root=ROOT --bccd BCCD --only solo"


def test_a_sweep_may_have_fewer_seeds_than_the_arms(tmp_path, monkeypatch):
    monkeypatch.setitem(pairs.PAIRS, "retinanet", replace(pairs.PAIRS["retinanet"], seeds=2, sweep_seeds=1))
    own = options(tmp_path, only=["retinanet/mgd-inherits*"], sweeps=True)
    planned = commands.reported(own, "retinanet", forged_choices(pairs.PAIRS["retinanet"]))
    assert [run.config.train.seed for arm, run in planned if not arm.settings] == [0, 1]
    assert {run.config.train.seed for arm, run in planned if arm.settings} == {0}


def test_pairs_take_turns():
    assert commands._in_turns([[1, 2, 3], [4]]) == [1, 4, 2, 3]


def test_a_page_has_a_folder_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "page.md").touch()
    given = ["table", "--root", str(tmp_path / "root"), "--only", "retinanet"]
    assert commands.main([*given, "--out", str(tmp_path / "page.md")]) == 2
    assert "page.md is not a folder" in capsys.readouterr().err
    assert commands.main([*given, "--out", str(tmp_path / "new" / "pages")]) == 2
    assert "no choices have been made for retinanet" in capsys.readouterr().err
    assert (tmp_path / "new" / "pages").is_dir()


@pytest.mark.parametrize("only", ["retina", "retinanet/mdg"])
def test_what_only_names_must_be_there(only, capsys, tmp_path):
    assert commands.main(["plan", "--root", str(tmp_path), "--only", only]) == 2
    assert "did you mean 'retinanet" in capsys.readouterr().err or only == "retinanet/mdg"


def test_nothing_is_reported_before_choices_are_made(capsys, tmp_path):
    assert commands.main(["run", "--root", str(tmp_path), "--only", "solo"]) == 2
    assert "run tune first" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "tune"])
def test_a_root_that_is_a_file_is_a_sentence(capsys, tmp_path, command):
    (tmp_path / "file").touch()
    assert commands.main([command, "--root", str(tmp_path / "file"), "--only", "solo"]) == 2
    assert "file is not a folder" in capsys.readouterr().err


def test_a_root_that_is_not_there_is_not_the_folder_one_is_in(capsys, tmp_path, monkeypatch):
    (tmp_path / "solo").mkdir()
    (tmp_path / "solo/choices.json").write_text('{"protocol": 2}')
    monkeypatch.chdir(tmp_path)
    assert commands.main(["plan", "--root", "elsewhere", "--only", "solo"]) == 0
    assert "solo: no choices yet" in capsys.readouterr().out
    assert commands.main(["plan", "--root", ".", "--only", "solo"]) == 2
    assert "was made with another teacher than solo has now" in capsys.readouterr().err


def test_damaged_choices_are_a_sentence(tmp_path, capsys):
    (tmp_path / "solo").mkdir()
    (tmp_path / "solo/choices.json").write_text('{"protocol')
    assert commands.main(["plan", "--root", str(tmp_path), "--only", "solo"]) == 2
    assert "solo/choices.json is damaged; remove it" in capsys.readouterr().err
