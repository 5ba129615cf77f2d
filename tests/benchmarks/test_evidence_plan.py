"""Which runs the evidence consists of, and what they are: everything that is decided before anything trains."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest

from evidence import choose, commands, data, pairs, runs
from evidence.arms import (
    ALONE,
    INHERITS,
    LABELS,
    SWEPT,
    arm_config,
    arms_of,
    student_config,
    sweep_arms,
    teacher_config,
)
from mgdet.config import TrainConfig
from mgdet.engine.checkpoint import flatten
from mgdet.errors import UserError
from mgdet.models import detector_from

pytestmark = pytest.mark.usefixtures("plain")


def names(pair: pairs.Pair) -> list[str]:
    return [arm.name for arm in arms_of(pair)]


@pytest.mark.parametrize("name", pairs.PAIRS)
def test_what_an_arm_has_to_beat_starts_as_it_does(name):
    pair = pairs.PAIRS[name]
    more = (
        ["alone.teacher-images", "inherits.teacher-images", "mgd-inherits.teacher-images"]
        if pair.teacher_num_train and pair.on_teacher_images
        else []
    )
    own = ["alone", "alone.twice", "inherits", "mgd", "mgd-inherits", "pkd-inherits", "fgd-inherits"]
    assert names(pair) == own + more
    bases = [ALONE, ALONE, INHERITS, ALONE, INHERITS, INHERITS, INHERITS, ALONE, INHERITS, INHERITS]
    assert [arm.base for arm in arms_of(pair)] == bases[: len(own + more)]


@pytest.mark.parametrize("name", pairs.PAIRS)
def test_every_arm_is_a_run_that_differs_in_what_it_is_about_alone(tmp_path, name):
    pair = pairs.PAIRS[name]
    assert pair.amp == "off" or min(pair.images.size) > pairs.BF16_EDGE
    sizes = {len(values) for values in pair.strengths.values()}
    assert len(pair.rates) == len(pair.decays) and sizes in ({len(pair.rates)}, {1}), "no method is searched more"
    assert pairs.DECAY in pair.decays, "rates are searched at a decay that is searched, too"
    common = {"teacher": tmp_path, "epochs": 4, "rate": 0.002, "seed": 1}
    alone = flatten(arm_config(pair, tmp_path, ALONE, strength=0.0, **common).to_dict())
    for arm in (*arms_of(pair), *sweep_arms(pair, 1e-5)):
        config = arm_config(pair, tmp_path, arm, strength=3.0, **common)
        config.check_together()
        detector_from(config.student, 6)
        assert config.methods == ((arm.method,) if arm.method else ())
        own = flatten(config.to_dict())
        changed = {key for key in own.keys() | alone.keys() if own.get(key) != alone.get(key)}
        about = ("teacher", "inherit", f"{arm.method}.{pair.strength}", *dict(arm.settings))
        about += ("schedule.epochs", "train.eval_every") if arm.length > 1 or arm.teacher_images else ()
        about += ("data.root",) if arm.teacher_images else ()
        assert all(key.startswith(about) for key in changed), changed
        assert not any(str(data.test_root(tmp_path, pair.images)) in str(value) for value in own.values())


def test_a_teacher_may_have_seen_more_than_its_students(tmp_path):
    pair = pairs.PAIRS["faster_rcnn"]
    student = student_config(pair, tmp_path, epochs=4, rate=0.002, seed=1)
    teacher = teacher_config(pair, tmp_path, epochs=4, seed=1)
    assert (student.data.root, teacher.data.root) == (
        str(tmp_path / "data/shapes-128x160-200/choose"),
        str(tmp_path / "data/shapes-128x160-1000/choose"),
    )
    labels = {"teacher": None, "strength": 0.0, "epochs": 64, "rate": 0.002, "seed": 1}
    control = arm_config(pair, tmp_path, LABELS, **labels)
    assert (control.data.root, control.schedule.epochs) == (teacher.data.root, 13), "13 x 1,000 are 64 x 200"
    images = replace(pair.images, num_train=2, num_val=2, num_test=2)
    for own in (images, replace(pair, images=images, teacher_num_train=3).teacher_images):
        data.make(tmp_path, own, None)
    fewer, more = (tmp_path / f"data/shapes-128x160-{number}" for number in (2, 3))
    names = sorted(path.relative_to(fewer) for path in fewer.rglob("*.jpg"))
    assert {str(name.parent) for name in names} == {"choose/train", "choose/val", "test/train", "test/val"}
    assert all((fewer / name).read_bytes() == (more / name).read_bytes() for name in names)


def test_sweeps_leave_out_the_arm_itself():
    pair = pairs.PAIRS["retinanet"]
    arms = sweep_arms(pair, 2e-5)
    assert [arm.settings for arm in arms if "mask" in arm.name] == [
        (("mgd.mask_ratio", ratio),) for ratio in (0.0, 0.25, 0.45, 0.85)
    ]
    weights = [dict(arm.settings)["mgd.weight"] for arm in arms if "weight" in arm.name]
    assert weights == pytest.approx([1.25e-6, 5e-6, 8e-5, 3.2e-4])
    assert {arm.name.partition(".")[0] for arm in arms} == {SWEPT.name}


def test_choices_from_before_a_setting_was_there_are_read(tmp_path):
    (tmp_path / "retinanet").mkdir()
    known = json.loads(json.dumps(asdict(pairs.PAIRS["retinanet"])))
    choose.write_choices(tmp_path, "retinanet", {"protocol": choose.PROTOCOL, "pair": known | {"teacher_decay": 0.4}})
    with pytest.raises(UserError, match="made with another teacher_decay"):
        choose.read_choices(tmp_path, "retinanet")
    for newer in choose.NEWER:
        del known[newer]
    known["seeds"] = 99  # which no choice depends on
    choose.write_choices(tmp_path, "retinanet", {"protocol": choose.PROTOCOL, "pair": known})
    assert choose.read_choices(tmp_path, "retinanet") is not None


class Answers:
    """Finished runs, forged from a function of their configs."""

    def __init__(self, monkeypatch, root, pair, ap):
        self.root, self.pair, self.ap, self.asked = root, pair, ap, []
        self.known: dict = {}
        monkeypatch.setattr(choose, "finished_of", lambda run: self.known.get(run.folder))

    def choose(self) -> dict:
        for _ in range(50):
            try:
                return choose.choose(self.pair, self.root, "forged")
            except choose.Missing as missing:
                for run in missing.runs:
                    self.known[run.folder] = runs.Finished({"bbox": {"AP": self.ap(run.config)}})
                    self.asked.append(run)
        raise AssertionError("no end of runs")


def test_choices_follow_the_rules(monkeypatch, tmp_path):
    pair = pairs.PAIRS["retinanet"]

    def ap(config) -> float:
        epochs = config.schedule.epochs
        if config.student.backbone == pair.teacher_backbone:
            return {16: 0.50, 32: 0.53, 64: 0.525}[epochs]
        length = {16: 0.20, 32: 0.25, 64: 0.27, 128: 0.274}[epochs]
        rate = -abs(config.optimizer.lr - (0.002 if config.inherit else 0.004))
        method = -abs(config.mgd.weight - 2e-5) if config.mgd.weight else 0.0
        return length + rate + method + 1e-4 * config.optimizer.weight_decay

    answers = Answers(monkeypatch, tmp_path, pair, ap)
    choices = answers.choose()
    assert choices["teacher"]["epochs"] == 32, "64 gain nothing, and 32 are better"
    assert choices["teacher"]["plateau"]
    assert choices["length"]["epochs"] == 64, "from 64 to 128 the student gains 0.4"
    assert choices["arms"]["alone"]["rate"] == 0.004
    assert choices["arms"]["inherits"]["rate"] == 0.002
    assert {name: choices["arms"]["mgd"][name] for name in ("rate", "decay", "strength")} == {
        "rate": 0.004, "decay": 0.1, "strength": 2e-5
    }  # fmt: skip
    assert choices["arms"]["mgd-inherits"]["rate"] == 0.002, "as the arm that it has to beat"
    for arm in arms_of(pair)[2:]:
        own = choices["arms"][arm.name]
        assert [len(search["tried"]) for search in own["searches"]] == [3, 3] + [3] * bool(arm.method), "of equal size"
        assert own["searches"][:2] == choices["arms"][arm.base.name]["searches"], "but for the method they are alike"
    assert choices["arms"]["fgd-inherits"]["searches"][2]["at_edge"], "all are equal, and the first is at the edge"
    assert choices["arms"]["alone"]["decay"] == 0.1
    lengths = [run for run in answers.asked if run.config.schedule.epochs in (64, 128) and "alone" in run.folder.name]
    assert [run.config.optimizer.weight_decay for run in lengths] == [0.1, 0.1], "lengths are tried as they will be run"
    searched = [run for run in answers.asked if run.config.inherit or run.config.methods]
    assert {run.config.schedule.epochs for run in searched} == {pair.epochs}, "the search is at 1x"
    assert {run.config.train.seed for run in answers.asked} == {choose.SEED}
    assert max(pair.seeds for pair in pairs.PAIRS.values()) <= choose.SEED, "it is not reported"
    folders = [run.folder for run in answers.asked]
    assert len(folders) == len(set(folders)), "nothing is trained twice"
    (tmp_path / "retinanet").mkdir(exist_ok=True)
    choose.write_choices(tmp_path, "retinanet", choices)
    assert choose.read_choices(tmp_path, "retinanet") == json.loads(json.dumps(choices))
    monkeypatch.setitem(pairs.PAIRS, "retinanet", replace(pair, channels=32))
    with pytest.raises(UserError, match="another channels than retinanet has now"):
        choose.read_choices(tmp_path, "retinanet")
    choose.write_choices(tmp_path, "retinanet", choices | {"protocol": 1})
    with pytest.raises(UserError, match="was made by other rules than those of now"):
        choose.read_choices(tmp_path, "retinanet")


def test_a_schedule_that_never_stops_gaining_is_said_to(monkeypatch, tmp_path):
    pair = pairs.PAIRS["faster_rcnn"]
    answers = Answers(monkeypatch, tmp_path, pair, lambda config: config.schedule.epochs / 100)
    choices = answers.choose()
    assert choices["length"]["epochs"] == pair.longest * pair.epochs
    assert choices["teacher"]["epochs"] == pair.teacher_longest * pair.teacher_epochs
    assert not choices["length"]["plateau"]
    assert not choices["teacher"]["plateau"]


def test_a_pair_may_take_all_choices_of_another(monkeypatch, tmp_path):
    pair = pairs.PAIRS["mask_rcnn"]
    owner = pairs.PAIRS[pair.choices_of]
    answers = Answers(monkeypatch, tmp_path, pair, lambda config: 0.5 + config.optimizer.lr)
    choices = answers.choose()
    assert {run.folder.relative_to(tmp_path).parts[0] for run in answers.asked} == {pair.choices_of}
    assert choices["arms"] == choose.choose(owner, tmp_path, pair.choices_of)["arms"]
    choose.write_choices(tmp_path, "mask_rcnn", choices)
    assert choose.read_choices(tmp_path, "mask_rcnn")["pair"]["choices_of"] == pair.choices_of
    run = commands.planned(pair, tmp_path, "mask_rcnn", ALONE, choices, 0)
    assert run.config.optimizer.lr == choices["arms"]["alone"]["rate"] == max(owner.rates)


def test_a_pair_that_takes_the_choices_of_another_has_its_teacher_and_images(tmp_path):
    for pair in pairs.PAIRS.values():
        if pair.choices_of:
            owner = pairs.PAIRS[pair.choices_of]
            own, other = (
                replace(teacher_config(each, tmp_path, epochs=8, seed=0), train=TrainConfig()) for each in (pair, owner)
            )
            assert own == other, "they differ in what is measured alone"
            assert (pair.images, pair.mask_ratio, pair.fgd) == (owner.images, owner.mask_ratio, owner.fgd)
            assert {*names(pair)} <= {*names(owner)}


def test_a_run_that_broke_off_is_never_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(choose, "finished_of", lambda run: found[run.folder])
    folders = [tmp_path / str(i) for i in range(2)]
    found = {folders[0]: runs.Finished({}, error="nan"), folders[1]: runs.Finished({"bbox": {"AP": 0.0}})}
    config = student_config(pairs.PAIRS["retinanet"], tmp_path, epochs=1, rate=0.001, seed=0)
    tried = [(value, runs.Planned(folder, config)) for value, folder in zip((0.1, 0.2), folders)]
    assert choose._best(tmp_path, tried)["value"] == 0.2


def test_splits_of_shapes_share_no_picture(tmp_path):
    images = pairs.Shapes(size=(64, 64), num_train=3, num_val=3, num_test=3)
    data.make(tmp_path, images, None)
    folders = (data.choose_root(tmp_path, images) / "train", data.choose_root(tmp_path, images) / "val")
    folders += (data.test_root(tmp_path, images) / "val",)
    pictures = [path.read_bytes() for folder in folders for path in folder.iterdir()]
    assert len(pictures) == len(set(pictures)) == 9


class Photographs:
    """Six training and two evaluation images of 96 x 128, one box each, in COCO's format."""

    def __init__(self, folder):
        (folder / "annotations").mkdir(parents=True)
        for split, number in (("train", 6), ("val", 2)):
            (folder / split).mkdir()
            content: dict = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cell"}]}
            for i in range(number):
                name = f"{split}{i}.jpg"
                cv2.imwrite(str(folder / split / name), np.full((96, 128, 3), 20 * i, np.uint8))
                content["images"].append({"id": i, "file_name": name, "height": 96, "width": 128})
                content["annotations"].append(
                    {"id": i, "image_id": i, "category_id": 7, "bbox": [8, 4, 40, 20], "area": 800, "iscrowd": 0}
                )
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def test_photographs_are_resized_once_and_split_by_a_rule(tmp_path):
    Photographs(tmp_path / "photographs")
    images = pairs.Bccd(size=(48, 64), num_train=4, num_val=2)
    for root in (tmp_path / "a", tmp_path / "b"):
        data.make(root, images, tmp_path / "photographs")
        data.make(root, images, None)  # they are there

    def read(root, where, split) -> dict:
        return json.loads((where(root, images) / f"annotations/{split}.json").read_text())

    train, val = (read(tmp_path / "a", data.choose_root, split) for split in ("train", "val"))
    names = [[image["file_name"] for image in split["images"]] for split in (train, val)]
    assert (len(names[0]), len(names[1])) == (4, 2)
    assert sorted(names[0] + names[1]) == [f"train{i}.png" for i in range(6)]
    assert val == read(tmp_path / "b", data.choose_root, "val"), "the same images each time"
    test = read(tmp_path / "a", data.test_root, "val")
    assert [image["file_name"] for image in test["images"]] == ["val0.png", "val1.png"], "BCCD's own evaluation images"
    (annotation, *_) = test["annotations"]
    assert annotation["bbox"] == [4, 2, 20, 10]
    assert annotation["area"] == 200
    picture = cv2.imread(str(data.test_root(tmp_path / "a", images) / "val/val0.png"))
    assert picture.shape == (48, 64, 3)
    fewer = replace(images, num_train=3)
    data.make(tmp_path / "a", fewer, tmp_path / "photographs")
    few, same = (data.choose_root(tmp_path / "a", fewer) / f"annotations/{split}.json" for split in ("train", "val"))
    assert {image["file_name"] for image in json.loads(few.read_text())["images"]} < set(names[0]), "a part of them"
    assert json.loads(same.read_text()) == val
    with pytest.raises(UserError, match="has 6 training images; 7 are needed"):
        data.make(tmp_path / "a", replace(images, num_train=5), tmp_path / "photographs")
    with pytest.raises(UserError, match="other splits than are wanted now"):
        data.make(tmp_path / "a", replace(images, num_val=1), tmp_path / "photographs")


def test_photographs_must_be_given(tmp_path):
    with pytest.raises(UserError, match="--bccd"):
        data.make(tmp_path, pairs.Bccd(), None)


def test_a_longer_run_that_broke_off_shows_no_plateau(tmp_path, monkeypatch):
    pair = pairs.PAIRS["retinanet"]
    ends = {32: runs.Finished({"bbox": {"AP": 0.4}}), 64: runs.Finished({}, error="loss_cls is nan")}
    monkeypatch.setattr(choose, "_results", lambda wanted: [ends[run.config.schedule.epochs] for run in wanted])

    def run(epochs: int) -> runs.Planned:
        return runs.Planned(tmp_path / str(epochs), student_config(pair, tmp_path, epochs=epochs, rate=0.002, seed=0))

    tried, plateau = choose._lengthen(tmp_path, 32, 16, run)
    assert [own["AP"] for own in tried] == [0.4, -1.0]
    assert not plateau
