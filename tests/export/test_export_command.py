"""`mgdet export`, and what takes the file: as a user types it, and in Python."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

import mgdet
from mgdet.cli import main
from mgdet.detectors.exported import Exported
from mgdet.errors import UserError
from mgdet.structures import Detections
from tiny import CLASSES, liven, write_detector, write_graph


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file of a detector that finds much. Its run names no data set."""
    path = tmp_path_factory.mktemp("trained") / "trained.pth"
    write_detector(path, seed=7)
    liven(path)
    return path


@pytest.fixture(scope="module")
def graph(trained, tiny, tmp_path_factory):
    """What the command makes of it for images of any size."""
    out = tmp_path_factory.mktemp("graph") / "student.onnx"
    assert main(["export", str(trained), str(out), "--images", str(tiny.root / "val")]) == 0
    return out


class TestExport:
    @pytest.mark.slow
    def test_one_size_and_what_is_said(self, trained, tiny, folder, capsys):
        images = ["--images", str(tiny.root / "val")]
        assert main(["export", str(trained), "student.onnx", "--size", "61", "90", *images]) == 0
        text = capsys.readouterr().out
        assert "image: 1 x 61 x 90 x 3, uint8, RGB; resize to as large as fits into 61 x 90 (height x width)" in text
        assert "the same as torch on 5 pictures of" in text and "labels equal, boxes within" in text
        assert "one image of 61 x 90: ONNX Runtime" in text and "wrote student.onnx: " in text
        notes = {entry.key: json.loads(entry.value) for entry in onnx.load("student.onnx").metadata_props}
        assert notes["classes"] == list(CLASSES)
        assert (notes["preprocessing"]["rule"], notes["preprocessing"]["height"]) == ("letterbox", 61)
        assert notes["mgdet"]["detector"] == "retinanet with test_resnet"
        assert (notes["mgdet"]["precision"], len(notes["mgdet"]["checkpoint_sha256"])) == ("fp32", 64)

    @pytest.mark.slow
    def test_python_does_the_same(self, trained, tiny, graph, folder):
        said: list[str] = []
        model = mgdet.load(trained, device="cpu")
        out = model.export("student.onnx", images=tiny.root / "val", say=said.append)
        assert out.read_bytes() == graph.read_bytes()
        assert said[-1].startswith("wrote student.onnx")

    @pytest.mark.slow
    def test_a_graph_that_differs_is_not_written(self, trained, tiny, refused, monkeypatch):
        run = Exported.run

        def moved(self: Exported, image: np.ndarray) -> Detections:
            found = run(self, image)
            return found._replace(boxes=found.boxes + 0.06)

        monkeypatch.setattr(Exported, "run", moved)
        text = refused("export", trained, "student.onnx", "--size", "64", "96", "--images", tiny.root / "val")
        assert "the graph does not find what torch finds on 5 pictures" in text
        assert "detections differ (only torch finds class" in text and "nothing is written" in text

    @pytest.mark.slow
    def test_a_detector_that_finds_nothing_cannot_be_compared(self, tiny, refused):
        arguments = ("export", tiny.teacher, "student.onnx", "--size", "64", "96", "--images", tiny.root / "val")
        assert "the detector finds nothing, so there is nothing to compare the graph by" in refused(*arguments)

    def test_refusals(self, trained, tiny, folder, refused, monkeypatch):
        write_graph(folder / "graph.onnx")
        assert "none.pth" in refused("export", "none.pth", "out.onnx")
        assert "out.pt ends in '.pt'; give the name of a file that ends in .onnx" in refused(
            "export", trained, "out.pt"
        )
        assert "exists already; give the name of a new file" in refused("export", trained, "graph.onnx")
        assert "the folder nowhere of out.onnx does not exist" in refused("export", trained, "nowhere/out.onnx")
        assert "--size and --dynamic exclude each other" in refused(
            "export", trained, "out.onnx", "--size", "64", "64", "--dynamic"
        )
        assert "--size is 0 64" in refused("export", trained, "out.onnx", "--size", "0", "64")
        assert "--half and --int8 exclude each other" in refused(
            "export", trained, "out.onnx", "--half", "--int8", tiny.root
        )
        assert "is an exported graph already; give the checkpoint" in refused("export", "graph.onnx", "out.onnx")
        assert "holds no image" in refused("export", trained, "out.onnx", "--images", tiny.root / "annotations")
        assert "there is no image or folder 'none'" in refused("export", trained, "out.onnx", "--int8", "none")
        assert "mgdet export needs OUT.onnx" in refused("export", trained)
        monkeypatch.setattr("mgdet.export.run.PACKAGES", ("onnx", "no_such_package"))
        text = refused("export", trained, "out.onnx")
        assert "mgdet export needs no_such_package: pip install 'mgdet[export]'" in text


@pytest.mark.slow
class TestExported:
    def test_ap_is_that_of_the_checkpoint(self, trained, graph, tiny, folder, capsys):
        def tables(source) -> str:
            assert main(["test", str(source), "--data.root", str(tiny.root), "--data.workers", "0"]) == 0
            return capsys.readouterr().out.partition("bbox, in percent")[2]

        assert tables(graph) == tables(trained)

    def test_a_recipe_may_be_named(self, graph, tiny, folder, capsys):
        assert main(["test", "tiny:alone", str(graph), "--data.root", str(tiny.root)]) == 0
        assert "student.onnx: retinanet with test_resnet in fp32, 3 classes, run by ONNX Runtime on" in (
            capsys.readouterr().out
        )

    def test_predict_finds_what_the_checkpoint_finds(self, trained, graph, tiny, folder):
        for source, out in ((trained, "torch"), (graph, "onnx")):
            assert main(["predict", str(source), str(tiny.root / "val"), "--out", out, "--score", "0.3"]) == 0
        one, other = (json.loads((folder / out / "detections.json").read_text()) for out in ("torch", "onnx"))
        assert sum(len(entry["objects"]) for entry in one) > 0
        for mine, theirs in zip(one, other, strict=True):
            assert [found["class"] for found in mine["objects"]] == [found["class"] for found in theirs["objects"]]
            boxes = [np.array([found["box"] for found in entry["objects"]]) for entry in (mine, theirs)]
            assert np.abs(boxes[0] - boxes[1]).max(initial=0) < 0.05

    def test_in_python(self, trained, graph, tiny):
        mine, theirs = (mgdet.load(source, device="cpu").predict(tiny.root / "val") for source in (trained, graph))
        assert [found.names for found in mine] == [found.names for found in theirs]

    def test_refusals(self, graph, tiny, folder, refused):
        data = ("--data.root", tiny.root)
        shutil.copy(graph, "student.onnx")
        assert "there is no file 'none.onnx'" in refused("test", "none.onnx", *data)
        assert "there is no file 'none.onnx'" in refused("predict", "none.onnx", tiny.root / "val")
        assert "student.onnx finds only boxes; choose bbox" in refused("test", "student.onnx", *data, "--eval", "segm")
        assert "--ema means nothing" in refused("test", "student.onnx", *data, "--ema")
        assert "--train.amp means nothing" in refused("test", "student.onnx", *data, "--train.amp", "bf16")
        assert "--student.channels means nothing" in refused("test", "student.onnx", *data, "--student.channels=64")
        assert "--recipe means nothing" in refused(
            "predict", "student.onnx", tiny.root / "val", "--recipe", "retinanet_r50"
        )
        with pytest.raises(UserError, match="is an exported graph already"):
            mgdet.load("student.onnx").export("again.onnx")
