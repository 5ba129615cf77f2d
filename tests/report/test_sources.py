"""What is given to compare: how it is found, named, and grouped by kind."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch

from mgdet.config import Config, DataConfig
from mgdet.engine.checkpoint import write_config
from mgdet.errors import UserError
from mgdet.report.sources import check_same_data, data_of, group_sources, open_source, open_teacher, trained_on
from refusals import refusal
from tiny import alone, write_detector, write_graph


@pytest.fixture
def make_run(tmp_path):
    """A run's folder without a training: a config and a student of random weights."""
    made = []

    def make(name, change=lambda config: None, *, student="student_last.pth"):
        config = alone()
        config.data.root = "data"
        change(config)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_config(folder, config)
        made.append(name)
        write_detector(folder / student, seed=len(made))
        return str(folder)

    return make


def opened(*texts):
    return [open_source(text, None) for text in texts]


def names(*texts):
    return {group.name: [source.given for source in group.sources] for group in group_sources(opened(*texts))}


def set_seed(seed):
    return lambda config: setattr(config.train, "seed", seed)


def test_runs_that_differ_in_their_seed_are_one_kind(make_run, runs):
    one, other = make_run("a", set_seed(1)), make_run("b", set_seed(2))
    faster = make_run("c", lambda config: setattr(config.optimizer, "lr", 0.04))
    assert names(one, faster, other) == {"alone, optimizer.lr 0.08": [one, other], "alone, optimizer.lr 0.04": [faster]}
    mgd = [str(runs["mgd-0"]), str(runs["mgd-1"])]
    assert names(one, *mgd) == {"alone": [one], "MGD": mgd}
    assert [source.seed for source in opened(one, other)] == [1, 2]


def test_settings_that_change_no_number_make_no_kind(make_run):
    def elsewhere(config):
        config.data.root, config.data.workers, config.train.log_every = "other", 7, 3

    assert len(names(make_run("a"), make_run("b", elsewhere))) == 1


def test_best_and_last_of_one_run_are_two_kinds(make_run):
    folder = make_run("a")
    make_run("a", student="student_best.pth")
    last = f"{folder}/student_last.pth"
    assert names(folder, last) == {"alone, best": [folder], "alone, last": [last]}
    assert [str(source.folder) for source in opened(folder, last)] == [folder, folder]


def test_names_are_the_users(make_run, tmp_path):
    (tmp_path / "theirs.json").write_text("[]")
    (tmp_path / "more.json").write_text("[ ]")
    theirs, more = str(tmp_path / "theirs.json"), str(tmp_path / "more.json")
    assert names(f"ours={make_run('a')}", theirs).keys() == {"ours", "theirs"}
    assert names(f"x={theirs}", f"x={more}") == {"x": [theirs, more]}


def test_a_path_with_an_equals_sign_is_a_path(make_run):
    folder = make_run("lr=0.1")
    assert opened(folder)[0].given == folder


def test_what_is_given_twice_is_refused(make_run, tmp_path):
    folder = make_run("a")
    shutil.copytree(folder, tmp_path / "b")
    with pytest.raises(UserError, match=r"b and .*a hold the same; give each thing to compare once"):
        group_sources(opened(folder, str(tmp_path / "b")))


def test_a_checkpoint_that_does_not_say_what_it_is_is_recognised_or_has_a_recipe(tmp_path, make_run):
    content = torch.load(f"{make_run('a')}/student_last.pth", weights_only=True)
    del content["meta"]["mgdet"]
    bare = tmp_path / "bare.pth"
    torch.save(content, bare)
    source = open_source(str(bare), None)
    own = alone().student
    assert (source.model.detector, source.model.backbone, source.config) == (own.detector, own.backbone, None)
    assert source.sizes.long_edge == 1333
    assert any("bare.pth: retinanet with test_resnet" in note for note in source.notes)

    source = open_source(str(bare), alone())
    assert (source.model, source.config, source.sizes.long_edge, source.notes) == (own, None, 96, ())

    torch.save({"state_dict": {"some.weight": torch.zeros(3)}}, bare)
    with pytest.raises(UserError, match=r"bare\.pth"):
        open_source(str(bare), None)


def test_an_exported_graph_says_its_sizes(tmp_path):
    pytest.importorskip("onnx")
    file = tmp_path / "s.onnx"
    write_graph(file, (96, 128))
    source = open_source(f"small={file}", None)
    assert (source.name, source.model, source.config, source.sizes.canvas) == ("small", None, None, (96, 128))
    assert source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    write_graph(file)
    assert open_source(str(file), None).sizes.canvas is None
    with pytest.raises(UserError, match=r"there is no file 'none.onnx'"):
        open_source("none.onnx", None)
    with pytest.raises(UserError, match=r"^https://a.b/s.onnx is an address, .* download it first$"):
        open_source("https://a.b/s.onnx", None)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"the file .*none.json does not exist"):
        open_source(str(tmp_path / "none.json"), None)
    with pytest.raises(UserError, match=r"the checkpoint .*none.pth does not exist"):
        open_source(str(tmp_path / "none.pth"), None)


@pytest.mark.parametrize(
    ("name", "value"), [("val_annotations", "annotations/other.json"), ("val_share", 0.1), ("split_seed", 3)]
)
def test_runs_evaluated_on_other_images_are_refused(make_run, name, value):
    sources = opened(make_run("a"), make_run("b", lambda config: setattr(config.data, name, value)))
    with pytest.raises(UserError, match=rf"b was trained with data\.{name} .* cannot be compared"):
        check_same_data(sources, DataConfig())


def test_a_share_that_a_run_trained_on_is_not_measured(make_run):
    sources = opened(make_run("a", lambda config: setattr(config.data, "val_share", 0.2)))
    check_same_data(sources, DataConfig(val_share=0.2))
    with pytest.raises(
        UserError, match=r"trained with data.val_share 0.2, but here it is 0.1, .* give --data.val-share 0.2"
    ):
        check_same_data(sources, DataConfig(val_share=0.1))
    with pytest.raises(UserError, match=r"give --data.split-seed 0"):
        check_same_data(sources, DataConfig(val_share=0.2, split_seed=1))


def test_measuring_on_training_images_is_said(make_run):
    sources = opened(make_run("a"))
    data = sources[0].config.data
    assert trained_on(sources, data) == []
    swapped = replace(data, val_annotations=data.train_annotations, val_images=data.train_images)
    assert "a was trained on these very images" in trained_on(sources, swapped)[0]


def test_the_data_of_the_first_run_is_the_default(make_run, tmp_path):
    folder = make_run("a")
    assert (
        data_of(["theirs.json", f"x={folder}/student_last.pth"])
        == Config.from_dict(json.loads((tmp_path / "a" / "config.json").read_text())).data
    )
    assert data_of(["theirs.json"]) is None


def test_a_config_of_another_tool_beside_detections_is_not_looked_at(make_run, tmp_path):
    folder = make_run("a")
    config = data_of([folder])
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for content in ('{"model_type": "detr"}', "{", "[]"):
        (theirs / "config.json").write_text(content)
        assert data_of([f"{theirs}/results.json", f"{theirs}/weights.pth", folder]) == config
        for run in (str(theirs), f"{theirs}/student_last.pth"):
            refusal(data_of, [run, folder])


class TestTeacher:
    def test_it_is_the_one_that_the_run_names(self, runs, shown):
        teacher, notes = open_teacher(None, opened(str(runs["alone-0"]), str(runs["mgd-0"])), None)
        assert (teacher.file, teacher.name, notes) == (shown.teacher, "teacher", [])
        assert open_teacher(None, opened(str(runs["alone-0"])), None) == (None, [])

    def test_where_it_is_gone_a_note_says_so(self, runs, tmp_path):
        config = json.loads((runs["mgd-0"] / "config.json").read_text())
        config["teacher"]["weights"] = str(tmp_path / "gone.pth")
        shutil.copytree(runs["mgd-0"], tmp_path / "run")
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        teacher, notes = open_teacher(None, opened(str(tmp_path / "run")), None)
        assert teacher is None
        assert "the teacher was not measured: the checkpoint" in notes[0]

    def test_the_one_that_is_given_must_be_there(self, runs, tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            open_teacher(str(tmp_path / "gone.pth"), opened(str(runs["mgd-0"])), None)
