"""`mgdet test` on data sets that are not like COCO's."""

import json
import shutil

import pytest
import torch

from mgdet.config import DataConfig
from mgdet.distributed import World
from mgdet.errors import UserError
from mgdet.evaluate import coco
from mgdet.models import load_detector
from mgdet.report.measure import LINES, _tables
from mgdet.report.measure import test_checkpoint as measure
from tiny import NUM_VAL

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def changed(tiny, tmp_path):
    """The config of a data set whose evaluation file was changed."""

    def change(edit):
        shutil.copytree(tiny.root, tmp_path / "data")
        path = tmp_path / "data" / "annotations" / "val.json"
        data = json.loads(path.read_text())
        edit(data)
        path.write_text(json.dumps(data))
        config = tiny.config(distil=False)
        config.data.root = str(tmp_path / "data")
        return config

    return change


def run(config, tiny, out):
    said = []
    scores = measure(config, str(tiny.teacher), metrics=["bbox"], out=out, world=ALONE, say=said.append)
    return scores, "\n".join(said)


def test_without_annotations_detections_are_written_and_nothing_is_measured(tiny, changed, tmp_path):
    config = changed(lambda data: data.pop("annotations"))
    scores, said = run(config, tiny, tmp_path / "results.json")
    assert scores == {}
    assert "val.json' has no annotations: nothing is measured" in said
    assert "detections written to" in said
    assert isinstance(json.loads((tmp_path / "results.json").read_text()), list)


def test_without_annotations_and_without_an_output_there_is_nothing_to_do(tiny, changed):
    with pytest.raises(UserError, match=r"has no list 'annotations', so nothing can be measured on it"):
        run(changed(lambda data: data.pop("annotations")), tiny, None)


def test_results_keep_the_ids_of_the_file(tiny, changed, tmp_path, monkeypatch):
    def edit(data):
        for record in data["images"]:
            record["id"] += 2**100
        for record in data["annotations"]:
            record["image_id"] += 2**100

    def find_everything(*arguments):
        detector, line = load_detector(*arguments)
        detector.score_threshold = 0.0
        return detector, line

    monkeypatch.setattr("mgdet.report.measure.load_detector", find_everything)
    config = changed(edit)
    scores, _ = run(config, tiny, tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results
    assert {result["image_id"] for result in results} == {2**100 + 100 + i for i in range(5)}
    assert {result["category_id"] for result in results} <= {2, 5, 9}
    assert scores["bbox"].stats["AR100"] >= 0


def test_detections_of_a_file_score_what_the_checkpoint_scores(tiny, tmp_path, monkeypatch):
    def find_everything(*arguments):
        detector, line = load_detector(*arguments)
        detector.score_threshold = 0.0
        return detector, line

    monkeypatch.setattr("mgdet.report.measure.load_detector", find_everything)
    config = tiny.config(distil=False)
    scores, said = run(config, tiny, tmp_path / "results.json")
    again = []
    results = str(tmp_path / "results.json")
    same = measure(config, results, metrics=["bbox"], out=None, world=ALONE, say=again.append)
    assert same == scores
    assert again[0] == f"{results}: {len(json.loads((tmp_path / 'results.json').read_text()))} detections"
    assert said.splitlines()[-3] in "\n".join(again)  # the same tables


def test_detections_need_no_image_files_and_no_detector(tiny, changed, tmp_path):
    """A Faster R-CNN finds no masks, but somebody else's detections have some."""
    config = changed(lambda data: None)
    shutil.rmtree(tmp_path / "data" / "val")
    truth = json.loads((tmp_path / "data" / "annotations" / "val.json").read_text())
    (tmp_path / "theirs.json").write_text(json.dumps([own | {"score": 0.5} for own in truth["annotations"]]))
    scores = measure(
        config, str(tmp_path / "theirs.json"), metrics=["bbox"], out=None, world=ALONE, say=lambda line: None
    )
    assert scores["bbox"].stats["AP"] == 1
    config = changed_back(config, tiny)
    masks = measure(
        config, str(tmp_path / "theirs.json"), metrics=["segm"], out=None, world=ALONE, say=lambda line: None
    )
    assert masks["segm"].stats["AP"] > 0.99


def changed_back(config, tiny):
    config.data.root = str(tiny.root)
    return config


def test_detections_are_not_written_again(tiny, tmp_path):
    (tmp_path / "theirs.json").write_text("[]")
    with pytest.raises(UserError, match=r"theirs.json already holds some; leave --out out"):
        measure(
            tiny.config(distil=False),
            str(tmp_path / "theirs.json"),
            metrics=["bbox"],
            out=tmp_path / "again.json",
            world=ALONE,
            say=lambda line: None,
        )


@pytest.mark.parametrize("layout", ["yolo", "voc"])
def test_detections_of_other_formats_are_written_without_labels_too(tiny, tmp_path, layout):
    root = tmp_path / "data"
    for split in ("train", "val"):
        shutil.copytree(tiny.root / split, root / "images" / split)
    if layout == "yolo":
        (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [square, tall, wide]\n")
        (root / "labels" / "train").mkdir(parents=True)
        (root / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 0.3 0.3\n")
    else:
        shutil.move(root / "images", root / "JPEGImages")
        (root / "Annotations").mkdir()
        (root / "ImageSets" / "Main").mkdir(parents=True)
        names = "".join(f"<object><name>{name}</name></object>" for name in ("square", "tall", "wide"))
        (root / "Annotations" / "first.xml").write_text(f"<annotation>{names}</annotation>")
        shutil.copy(root / "JPEGImages" / "train" / "0.jpg", root / "JPEGImages" / "first.jpg")
        for name in ("0", "1"):
            shutil.copy(root / "JPEGImages" / "val" / f"{name}.jpg", root / "JPEGImages" / f"v{name}.jpg")
        (root / "ImageSets" / "Main" / "train.txt").write_text("first\n")
        (root / "ImageSets" / "Main" / "val.txt").write_text("v0\nv1\n")
    config = tiny.config(distil=False)
    config.data = DataConfig(root=str(root), long_edge=96, short_edge=(64, 64), workers=0)
    scores, said = run(config, tiny, tmp_path / "results.json")
    assert scores == {}
    assert "has no annotations: nothing is measured" in said
    assert isinstance(json.loads((tmp_path / "results.json").read_text()), list)
    with pytest.raises(UserError, match=r"has a label file|without an XML file"):
        run(config, tiny, None)


def test_so_many_images_pass_at_once_as_are_asked_for(tiny, tmp_path, monkeypatch):
    sizes, detect = [], coco.detect
    monkeypatch.setattr(
        coco, "detect", lambda detector, batch, amp: sizes.append(len(batch.files)) or detect(detector, batch, amp)
    )
    config, found = tiny.config(distil=False), []
    for batch in (1, 3):
        sizes.clear()
        out = tmp_path / f"{batch}.json"
        measure(config, str(tiny.teacher), metrics=["bbox"], out=out, world=ALONE, say=lambda line: None, batch=batch)
        assert max(sizes) == batch and sum(sizes) == NUM_VAL
        found.append(torch.tensor(sorted(one["score"] for one in json.loads(out.read_text()))))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="--batch is 0; give 1 or more"):
        measure(config, str(tiny.teacher), metrics=["bbox"], out=None, world=ALONE, say=lambda line: None, batch=0)


HARD = ("car [/old]", "[bold]van", ":bus:", "cab\\", "[link=x]y")


def test_names_of_classes_are_shown_as_they_are():
    scores = coco.CocoScores(dict.fromkeys(LINES, 0.5), {name: {"AP": 0.5} for name in HARD})
    lines = _tables("bbox", scores).splitlines()
    assert [line.split("  ")[0] for line in lines[-len(HARD) :]] == list(HARD)


def test_what_was_found_is_written_before_it_is_measured(tiny, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr("mgdet.report.measure.evaluate", fail)
    with pytest.raises(RuntimeError):
        run(tiny.config(distil=False), tiny, tmp_path / "results.json")
    assert isinstance(json.loads((tmp_path / "results.json").read_text()), list)
