"""`mgdet test` on data sets that are not like COCO's."""

import json
import shutil

import pytest
import torch

from mgdet.distributed import World
from mgdet.errors import UserError
from mgdet.models import load_detector
from mgdet.report.measure import test_checkpoint as measure

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
    assert "val.json' has no list 'annotations': nothing is measured" in said
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
