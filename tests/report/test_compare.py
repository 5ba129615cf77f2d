"""`mgdet compare` as a whole: runs and detections in, numbers and a page out, and nothing where it is refused."""

import json
import os
import re
import shutil

import pytest
import torch

import mgdet
from mgdet.cli import main
from mgdet.config import DataConfig
from mgdet.data.coco import read_coco
from mgdet.detectors.exported import Exported
from mgdet.distributed import World
from mgdet.errors import UserError
from mgdet.evaluate.coco import evaluate
from mgdet.report.compare import compare
from mgdet.report.intervals import Bootstrap
from mgdet.report.measure import test_checkpoint as measure
from mgdet.report.numbers import STATS
from test_any_pair import save_tiny
from tiny import CLASSES, liven, write_detector, write_graph

FEW = Bootstrap(resamples=100)


@pytest.fixture
def data(shown):
    return DataConfig(root=str(shown.root), workers=0)


@pytest.fixture(scope="session")
def page(shown, runs, tmp_path_factory):
    """The whole comparison of four runs: what was said, the numbers, and the folder."""
    out = tmp_path_factory.mktemp("page") / "comparison"
    said = []
    sources = [str(runs[name]) for name in ("alone-0", "alone-1", "mgd-0", "mgd-1")]
    data = DataConfig(root=str(shown.root), workers=0)
    found = compare(sources, data=data, out=out, bootstrap=FEW, say=said.append)
    return "\n".join(said), found, out


def test_runs_are_put_together_by_kind_and_measured_as_test_measures_them(page, runs):
    _, found, _ = page
    assert [(kind.name, kind.role, len(kind.runs)) for kind in found.kinds] == [
        ("alone", "baseline", 2),
        ("MGD", "compared", 2),
        ("teacher", "teacher", 1),
    ]
    assert [run.seed for run in found.kinds[1].runs] == [0, 1]
    config = json.loads((runs["mgd-1"] / "config.json").read_text())
    from mgdet.config import Config

    config = Config.from_dict(config)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    alone = measure(config, str(runs["mgd-1"]), metrics=["bbox"], out=None, world=world, say=lambda line: None)
    assert found.kinds[1].runs[1].scores["bbox"] == alone["bbox"]


def test_detectors_are_counted_and_timed(page):
    _, found, _ = page
    student, distilled, teacher = found.kinds
    assert student.size == distilled.size == teacher.size  # three times the same detector
    assert student.size.parameters > 100_000 and student.size.gflops > 0
    assert min(kind.speed.median for kind in found.kinds) > 0
    assert "one image at a time" in found.machine


def test_what_is_said_and_written_is_the_same(page):
    said, found, out = page
    values = json.loads((out / "report.json").read_text())
    assert values == json.loads(json.dumps(found.to_dict()))
    html = (out / "report.html").read_text()
    for sentence in found.headlines:
        assert sentence in " ".join(said.split())
        assert sentence.split(", ")[0] in html
    for note in found.notes:
        assert " ".join(note.split()) in " ".join(said.replace("\n  ", " ").split())
    assert str(out / "report.html") in said
    assert any("cover both the choice of images and the seed" in note for note in found.notes)


def test_the_page_holds_curves_pictures_and_maps_and_loads_nothing(page):
    _, _, out = page
    html = (out / "report.html").read_text()
    assert html.count('<svg class="chart"') == 3  # AP, the detector's losses, MGD's loss
    assert html.count("data:image/png") >= 20 and "data:image/jpeg" in html
    assert "Share of the variance of the teacher" in html
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import|<script|https?://""", html)
    assert "default-src 'none'" in html


def test_better_detections_are_shown_to_be_better(data, detections, shown):
    worse, better = detections("worse", 5), detections("better", 1, seed=1)
    found = compare([str(worse), str(better)], data=data, bootstrap=FEW)
    difference = found.kinds[1].differences["bbox"]["AP"]
    records = read_coco(shown.root / "annotations" / "val.json", shown.root / "val", masks=False)
    ap = [evaluate(records, json.loads(path.read_text()))["bbox"].stats for path in (worse, better)]
    assert found.kinds[0].runs[0].scores["bbox"].stats == ap[0]
    assert difference.value == pytest.approx(ap[1]["AP"] - ap[0]["AP"], abs=1e-12)
    assert difference.shown
    assert found.headlines[0].startswith("better +")
    assert (found.kinds[0].size, found.kinds[0].speed, found.machine) == (None, None, "")
    errors = found.kinds[0].errors["bbox"]
    assert errors.keys() == {"Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"}
    assert errors["Loc"] > found.kinds[1].errors["bbox"]["Loc"]


def test_the_same_quality_is_no_difference_and_the_gap_is_closed_in_part(data, detections):
    one, same = detections("one", 4), detections("same", 4, seed=1)
    middle, teacher = detections("middle", 2.5, seed=2), detections("teacher", 0.5, seed=3)
    found = compare([str(one), str(same), str(middle)], teacher=str(teacher), data=data, bootstrap=FEW)
    assert found.headlines[0].startswith("No difference shown between same and one")
    ap = {kind.name: kind.mean("bbox", "AP") for kind in found.kinds}
    closed = (ap["middle"] - ap["one"]) / (ap["teacher"] - ap["one"])
    assert found.kinds[2].gap_closed == {"bbox": pytest.approx(closed)}
    assert 0 < closed < 1
    assert found.teacher.gap_closed == {} and found.baseline.gap_closed == {}


def test_there_is_no_gap_to_close_to_a_teacher_that_is_not_better(data, detections):
    one, other, teacher = detections("one", 2), detections("other", 1, seed=1), detections("teacher", 6, seed=2)
    found = compare([str(one), str(other)], teacher=str(teacher), data=data, bootstrap=FEW)
    assert found.kinds[1].gap_closed == {}


def test_detections_of_several_seeds_share_a_name(data, detections):
    files = [f"mine={detections(f'm{seed}', 3, seed=seed)}" for seed in range(3)]
    found = compare([*files, f"theirs={detections('t', 3, seed=9)}"], data=data, bootstrap=FEW)
    assert [(kind.name, len(kind.runs)) for kind in found.kinds] == [("mine", 3), ("theirs", 1)]
    assert found.kinds[1].differences["bbox"]["AP"].seeds
    assert found.kinds[0].deviation("bbox", "AP") > 0
    assert any(note.startswith("One run of theirs") for note in found.notes)


def test_one_source_alone_is_measured(data, detections, tmp_path):
    found = compare([str(detections("only", 2))], data=data, out=tmp_path / "out", bootstrap=FEW)
    assert found.headlines == [f"only: {100 * found.baseline.mean('bbox', 'AP'):.1f} AP, n = 30 images"]
    assert "only" in (tmp_path / "out" / "report.html").read_text()


def test_no_detections_at_all_are_compared_too(data, detections, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    found = compare(
        [str(detections("some", 2)), str(tmp_path / "none.json")], data=data, out=tmp_path / "out", bootstrap=FEW
    )
    assert found.kinds[1].mean("bbox", "AP") == 0
    assert found.kinds[1].differences["bbox"]["AP"].high < 0
    assert any("no detections for 30 of the 30 images" in note for note in found.notes)


def test_masks_are_compared_where_they_are_asked_for(data, truth, tmp_path):
    for name, shift in (("exact", 0), ("off", 5)):
        results = []
        for annotation in truth["annotations"]:
            x, y, w, h = annotation["bbox"]
            x += shift
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            own = {"image_id": annotation["image_id"], "category_id": annotation["category_id"], "score": 0.5}
            results.append(own | {"segmentation": [polygon]})
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    files = [str(tmp_path / f"{name}.json") for name in ("off", "exact")]
    found = compare(files, data=data, metrics=["segm", "bbox"], out=tmp_path / "out", bootstrap=FEW)
    assert found.metrics == ("segm", "bbox")
    assert found.kinds[1].mean("segm", "AP") > 0.99
    assert "mask AP over off" in found.headlines[0]
    html = (tmp_path / "out" / "report.html").read_text()
    assert "mask AP of each class" in html and ">AP of each class" in html


def test_names_of_classes_cannot_break_the_page(shown, detections, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(shown.root, root)
    path = root / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "<script>alert('x')</script> [bold]&"
    path.write_text(json.dumps(content))
    said = []
    files = [str(detections("a", 3)), str(detections("b", 2, seed=1))]
    data = DataConfig(root=str(root), val_annotations="annotations/val.json", val_images="val")
    compare(files, data=data, out=tmp_path / "out", bootstrap=FEW, say=said.append)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "[bold]&" in "\n".join(said)


class TestRefused:
    """Bad input is one sentence, before anything is measured, and nothing is written."""

    @pytest.fixture
    def refused(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("mgdet.report.compare._measure", lambda *arguments: pytest.fail("it was measured"))

        def run(*arguments):
            code = main(["compare", *map(str, arguments)])
            captured = capsys.readouterr()
            assert code == 2
            assert captured.err.startswith("mgdet: ") and captured.err.count("\n") == 1
            assert not (tmp_path / "comparison").exists()
            return captured.err.removeprefix("mgdet: ").rstrip("\n")

        return run

    def test_nothing_to_compare(self, refused):
        assert "there is nothing to compare" in refused("--data.root", "x")

    def test_other_classes(self, refused, shown, runs, tmp_path):
        write_detector(tmp_path / "other.pth", seed=1, classes=("a", "b", "c"))
        text = refused(runs["alone-0"], tmp_path / "other.pth", "--data.root", shown.root)
        assert text.endswith("other.pth knows class 0 as 'a', in the data it is 'square'")

    def test_results_on_other_images(self, refused, shown, detections, tmp_path):
        path = detections("a", 1)
        content = json.loads(path.read_text())
        content[0]["image_id"] = 7
        path.write_text(json.dumps(content))
        text = refused(path, "--data.root", shown.root, "--data.workers", "0")
        assert "a.json has detections for 1 images that" in text and "(ids 7;" in text

    def test_runs_on_other_images(self, refused, shown, runs, tmp_path):
        shutil.copytree(runs["mgd-0"], tmp_path / "run")
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        config["data"]["val_images"] = "elsewhere"
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        assert "cannot be compared" in refused(runs["alone-0"], tmp_path / "run", "--data.root", shown.root)

    def test_masks_of_a_detector_without(self, refused, shown, runs):
        text = refused(runs["alone-0"], "--data.root", shown.root, "--eval", "segm")
        assert text.endswith("which finds only boxes; give --eval bbox")

    def test_a_page_that_is_there(self, refused, shown, runs, tmp_path):
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "report.html").write_text("kept")
        text = refused(runs["alone-0"], "--data.root", shown.root, "--out", "here")
        assert text == "here already holds report.html; give another --out"
        assert (tmp_path / "here" / "report.html").read_text() == "kept"

    @pytest.mark.parametrize(
        ("out", "sentence"),
        [("file", "file is not a folder"), ("file/in", "file is not a folder, so file/in cannot be made")],
    )
    def test_a_page_that_could_not_be_written(self, refused, runs, tmp_path, out, sentence):
        (tmp_path / "file").write_text("kept")
        assert refused(runs["alone-0"], "--out", out) == sentence
        assert (tmp_path / "file").read_text() == "kept"

    def test_a_folder_that_may_not_be_written_into(self, refused, runs, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert refused(runs["alone-0"], "--out", tmp_path / "new/in") == (
            f"the folder {tmp_path} may not be written into"
        )

    def test_sizes_belong_to_the_sources(self, refused, runs):
        text = refused(runs["alone-0"], "--data.long-edge", "640")
        assert text.startswith("--data.long-edge does not apply here")

    def test_a_metric_that_there_is_not(self, refused, runs):
        assert "did you mean 'bbox'" in refused(runs["alone-0"], "--eval", "box")

    def test_a_teacher_that_does_not_fit(self, refused, runs, shown, tmp_path):
        write_detector(tmp_path / "t.pth", seed=1, classes=("a", "b"))
        assert "knows 2 classes, the data has 3" in refused(runs["mgd-0"], "--teacher", tmp_path / "t.pth")


def test_the_command_takes_the_data_of_the_first_run(runs, detections, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    theirs = detections("theirs", 2)
    assert main(["compare", f"x={runs['alone-0']}", str(theirs), "--resamples", "100", "--out", "out"]) == 0
    assert "theirs +" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.json"}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["kinds"][0]["name"] == "x"


@pytest.mark.parametrize("order", ["{options} {sources}", "--resamples 100 {sources} {options}"])
def test_sources_may_stand_behind_options(runs, shown, tmp_path, monkeypatch, order):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("mgdet.report.compare.compare", lambda sources, **options: asked.append((sources, options)))
    options = "--out out --data.workers 3 --eval bbox"
    sources = f"x={runs['alone-0']} y={runs['alone-1']}"
    words = order.format(options=options, sources=sources).split()
    if words[0] == "--out":
        words = ["--eval", "bbox", *words[:4], *words[-2:]]  # what takes several values ends at an option
    assert main(["compare", *words]) == 0
    ((given, kept),) = asked
    assert given == tuple(sources.split())
    assert (kept["data"].root, kept["data"].workers, str(kept["out"])) == (str(shown.root), 3, "out")


def test_another_librarys_detector_is_measured_beside_runs(runs, data, tmp_path):
    """Also as the teacher that a run names."""
    name = f"hf:{save_tiny('detr', tmp_path / 'own', names=('wide', 'square', 'tall'))}"
    found = compare([str(runs["mgd-0"]), f"theirs={name}"], data=data, bootstrap=FEW, teacher=str(runs["alone-0"]))
    assert [kind.name for kind in found.kinds] == ["MGD", "theirs", "teacher"]
    run = found.kinds[1].runs[0]
    assert (run.source, run.sha256) == (name, "") and run.scores["bbox"].stats["AP"] >= 0
    assert found.kinds[1].size is not None and found.kinds[1].speed is not None
    shutil.copytree(runs["mgd-0"], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["teacher"] = {"detector": name, "weights": "pretrained"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    found = compare([str(tmp_path / "run")], data=data, bootstrap=FEW)
    assert [(kind.role, kind.runs[0].source) for kind in found.kinds] == [
        ("baseline", str(tmp_path / "run")),
        ("teacher", name),
    ]
    with pytest.raises(UserError, match="hold the same"):
        compare([name, f"again={name}"], data=data, bootstrap=FEW)


def test_a_graph_is_measured_beside_what_it_was_exported_from(data, shown, tmp_path):
    pytest.importorskip("onnx")
    weights = tmp_path / "student.pth"
    write_detector(weights, seed=3)
    liven(weights)
    graph = mgdet.load(str(weights)).export(tmp_path / "student.onnx", images=shown.root / "val")
    found = compare([str(weights), f"graph={graph}"], data=data, bootstrap=FEW, out=tmp_path / "out")
    torch_kind, own = found.kinds
    assert own.name == "graph" and own.runs[0].sha256 != torch_kind.runs[0].sha256
    recalls = [kind.runs[0].scores["bbox"].stats["AR100"] for kind in found.kinds]
    assert recalls[1] == pytest.approx(recalls[0], abs=0.005) and recalls[0] > 0.03
    assert torch_kind.size is not None and own.size is None
    assert own.speed is not None and own.speed.median > 0
    assert f"the time of {graph} is that of ONNX Runtime on CPU, in fp32" in found.notes
    assert "graph" in (tmp_path / "out" / "report.html").read_text()


def test_a_graph_sees_images_as_large_as_fits_into_its_size(data, tmp_path, monkeypatch):
    """Where it is measured and where it is timed."""
    pytest.importorskip("onnx")
    write_graph(tmp_path / "nothing.onnx", (96, 128))
    sizes, place = [], Exported.placed
    monkeypatch.setattr(Exported, "placed", lambda graph, image: sizes.append(image.shape[:2]) or place(graph, image))
    found = compare([str(tmp_path / "nothing.onnx")], data=data, bootstrap=FEW)
    assert found.baseline.speed is not None and len(sizes) > 30, "30 images are measured, then some are timed"
    assert all(height == 96 or width == 128 for height, width in sizes)


def test_a_graph_that_does_not_fit_is_refused(data, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    graph = tmp_path / "nothing.onnx"
    write_graph(graph)
    with pytest.raises(UserError, match="finds only boxes; give --eval bbox"):
        compare([str(graph)], data=data, metrics=["segm"])
    monkeypatch.setattr("tiny.CLASSES", CLASSES[:2])
    write_graph(graph)
    with pytest.raises(UserError, match="knows 2 classes, the data has 3"):
        compare([str(graph)], data=data)


def test_a_teacher_of_other_classes_is_left_out_with_a_word(runs, data, tmp_path):
    """The run's own teacher knows other classes: its maps are shown, its AP is not measured."""
    shutil.copytree(runs["mgd-0"], tmp_path / "run")
    write_detector(tmp_path / "t.pth", seed=1, classes=("a", "b"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["teacher"]["weights"] = str(tmp_path / "t.pth")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    found = compare([str(tmp_path / "run")], data=data, bootstrap=FEW)
    assert [kind.role for kind in found.kinds] == ["baseline"]
    assert any("the teacher was not measured" in note and "knows 2 classes" in note for note in found.notes)


def test_the_numbers_are_coco(page):
    _, found, _ = page
    assert set(STATS) <= set(found.kinds[0].runs[0].scores["bbox"].stats)


def test_the_teachers_own_run_stands_as_the_teacher(runs, shown, data):
    found = compare([str(shown.teacher), str(runs["mgd-0"])], data=data, bootstrap=FEW)
    assert [(kind.name, kind.role) for kind in found.kinds] == [("MGD", "baseline"), ("teacher", "teacher")]
    assert any("is the teacher of the others and is shown as such" in note for note in found.notes)
