"""Weights, classes and files of LibreYOLO's models: names, caches, heads, and what the library alone reads back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("libreyolo")

from libreyolo.utils.serialization import wrap_libreyolo_checkpoint
from yolo_models import CLASSES, MODELS, NANO, TINY, detector_of, lively, ours_of, photos, silent

from mgdet.data.coco_names import COCO_CLASSES
from mgdet.detectors.foreign.libreyolo import build, has_masks, rebuild
from mgdet.detectors.foreign.libreyolo_detector import LibreYolo
from mgdet.errors import UserError
from mgdet.interop.weights import read_checkpoint, save_checkpoint
from tiny import assert_same_tensors

FAST = (NANO, TINY)
EACH = [pytest.param(name, marks=[] if name in FAST else pytest.mark.long) for name in MODELS]
FILES = {NANO: "LibreYOLOXn.pt", TINY: "LibreYOLO9t.pt"}
ALONE = """
import sys, logging, torch
from libreyolo import LibreYOLO
loud = []
class Ear(logging.Handler):
    def emit(self, record):
        loud.append(record.getMessage())
logging.getLogger("libreyolo").addHandler(Ear(logging.WARNING))
read = {}
for file in sys.argv[1:]:
    model = LibreYOLO(file, device="cpu")
    with torch.no_grad():
        raw = model.model(torch.load(file + ".batch"))
    raw = [raw["predictions"]] if isinstance(raw, dict) else raw
    read[file] = {"raw": raw, "names": model.names, "state": model.model.state_dict()}
ours = [name for name in sys.modules if name.partition(".")[0] == "mgdet"]
torch.save({"files": read, "loud": loud, "ours": ours}, "out.pt")
"""
"""Reads each file with the library alone."""


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch's, an empty folder to work in, and no network behind them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def lay(path: Path, name: str, names: tuple[str, ...] | None = None, **extra) -> dict[str, torch.Tensor]:
    """Puts a checkpoint as the library writes it, with COCO's classes or others; returns its weights."""
    detector = lively(build(name, classes=names, weights="random", say=silent))
    family = detector.wrapper().FAMILY
    state = detector.weights()
    content = wrap_libreyolo_checkpoint(
        state | extra,
        model_family=family,
        size=detector.size,
        task="detect",
        nc=len(detector.names),
        names=None if names is None else list(names),
    )
    torch.save(content, path)
    return state


def raw_of(detector: LibreYolo) -> list[torch.Tensor]:
    images = detector.as_library(ours_of(photos(), detector))
    with torch.no_grad(), detector.eval()._running(images, learning=False) as model:
        raw = model(images)
    return [raw["predictions"]] if isinstance(raw, dict) else raw


def assert_read_alone(folder: Path, detectors: list[LibreYolo]) -> None:
    """The library, without mgdet, reads what `export` wrote: nothing missing or left over, and equal outputs."""
    files = [f"student{place}.pt" for place in range(len(detectors))]
    for file, ours in zip(files, detectors):
        line = ours.export(folder / file)
        assert file in line and f"{len(ours.names)} outputs" in line
        torch.save(ours.as_library(ours_of(photos(), ours)), folder / f"{file}.batch")
    command = [sys.executable, "-c", ALONE, *files]
    # How many threads share a sum decides its last bits.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=alone, check=False)
    assert run.returncode == 0, run.stderr
    read = torch.load(folder / "out.pt")
    assert (read["loud"], read["ours"]) == ([], [])
    for file, ours in zip(files, detectors):
        there, threads = read["files"][file], torch.get_num_threads()
        torch.set_num_threads(1)
        raw = raw_of(ours)
        torch.set_num_threads(threads)
        assert there["names"] == dict(enumerate(ours.names))
        assert_same_tensors(there["state"], ours.weights())
        assert all(torch.equal(a, b) for a, b in zip(raw, there["raw"], strict=True))


@pytest.mark.parametrize("name", EACH)
def test_a_rebuilt_one_is_the_same(name):
    ours = detector_of(name)
    again = rebuild(json.loads(json.dumps(ours.description())), CLASSES)
    again.load_state_dict(ours.state_dict())
    assert_same_tensors(again.state_dict(), ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(raw_of(ours), raw_of(again), strict=True))
    assert again.description() == ours.description() and not has_masks(name)


@pytest.mark.long
def test_the_library_alone_reads_what_export_writes_of_every_size(tmp_path):
    assert_read_alone(tmp_path, [detector_of(name) for name in MODELS])


@pytest.mark.slow
def test_the_library_alone_reads_what_export_writes(hub, tmp_path):
    # The third has class towers as wide as those for COCO's classes.
    lay(hub / FILES[TINY], TINY)
    wide = build(TINY, classes=CLASSES, weights="pretrained", say=silent)
    assert wide.towers == 80
    assert_read_alone(tmp_path, [detector_of(NANO), detector_of(TINY), wide])
    back = build(TINY, classes=("owl", "cat"), weights=str(tmp_path / "student2.pt"), say=silent)
    assert back.columns == (2, 0) and back.towers == wide.towers
    assert_same_tensors(back.weights(), wide.weights())


@pytest.mark.parametrize("name", FAST)
def test_pretrained_keeps_the_columns_that_the_data_know(hub, name):
    state = lay(hub / FILES[name], name)
    lines: list[str] = []
    classes = ("tvmonitor", *COCO_CLASSES[:40])
    ours = build(name, classes=classes, weights="pretrained", say=lines.append)
    assert_same_tensors(ours.weights(), state)
    assert (ours.columns[:3], len(ours.names), ours.num_classes) == ((62, 0, 1), 80, 41)
    assert str(hub / FILES[name]) in lines[0] and "SHA-256" in lines[0]
    assert lines[1:] == ours.notes
    assert "knows all 41 classes of the data and keeps its head of 80 outputs" in lines[1]
    every = build(name, classes=None, weights="pretrained", say=silent)
    assert (every.num_classes, every.notes) == (80, [])
    again = rebuild(json.loads(json.dumps(ours.description())), classes)
    again.load_state_dict(ours.state_dict())
    assert_same_tensors(again.state_dict(), ours.state_dict())
    assert again.columns == ours.columns and again.names[62] == "tvmonitor"


@pytest.mark.parametrize("name", FAST)
def test_unknown_classes_get_a_new_head_also_where_their_number_is_equal(hub, name):
    state = lay(hub / FILES[name], name)
    for number in (3, 80):
        classes = ("person", *(f"cell {place}" for place in range(number - 1)))
        ours = build(name, classes=classes, weights="pretrained", say=silent)
        assert ours.columns == tuple(range(number)) and ours.names == classes
        assert "does not know 'cell 0'" in ours.notes[0] and f"with {number} outputs" in ours.notes[0]
        new = {entry for entry, value in ours.weights().items() if not torch.equal(value, state[entry])}
        part = "cls_preds" if name == NANO else "cv3"
        assert {entry.split(".")[1] for entry in new} == {part} and len(new) == 6
        biases = [value for entry, value in ours.weights().items() if entry in new and entry.endswith("bias")]
        assert all(len(bias.unique()) == 1 and bias[0] < -4 for bias in biases)

    ours = build(name, classes=CLASSES, weights="pretrained", say=silent)
    assert ours.towers == (None if name == NANO else 80)
    again = rebuild(json.loads(json.dumps(ours.description())), CLASSES)
    again.load_state_dict(ours.state_dict())
    assert_same_tensors(again.state_dict(), ours.state_dict())


def test_files_of_other_forms(tmp_path):
    file = tmp_path / "old.pt"
    extra = {"aux.spp.cv1.conv.weight": torch.zeros(2), "aux_head.cv2.0.0.conv.weight": torch.zeros(2)}
    state = lay(file, TINY, CLASSES, **extra)
    lines: list[str] = []
    ours = build(TINY, classes=CLASSES, weights=str(file), say=lines.append)
    assert_same_tensors(ours.weights(), state)
    assert "2 tensors of the auxiliary branch" in lines[0]

    old = {entry.replace("head.", "detect.", 1): value for entry, value in state.items()}
    torch.save(old | {"detect.dfl.conv.weight": torch.arange(16.0).view(1, 16, 1, 1)}, file)
    ours = build(TINY, classes=CLASSES, weights=str(file), say=lines.append)
    assert_same_tensors(ours.weights(), state)
    assert "names no classes, so its 3 are taken for the data's" in ours.notes[0]
    assert (
        "trained for 3 classes, the data has 2"
        in build(TINY, classes=("a", "b"), weights=str(file), say=silent).notes[0]
    )

    mine = tmp_path / "student_last.pth"
    ours = detector_of(NANO)
    save_checkpoint(mine, ours.weights(), classes=CLASSES, config=None, description=ours.description())
    assert read_checkpoint(mine).description == ours.description()
    back = build(NANO, classes=("dog", "cat"), weights=str(mine), say=silent)
    assert back.columns == (1, 0)
    assert_same_tensors(back.weights(), ours.weights())


class Harm:
    def __reduce__(self):
        return (print, ("run",))


def test_what_is_wrong_is_one_sentence(hub, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"no model 'yolox-nano' that mgdet knows; did you mean 'yolox-n'"):
        build("yolox-nano", classes=CLASSES, weights="random", say=silent)
    with pytest.raises(
        UserError, match=r"weights of libreyolo:yolox-n are 'pretraind', which is not a file.*'pretrained'"
    ):
        build(NANO, classes=CLASSES, weights="pretraind", say=silent)
    lay(tmp_path / "tiny.pt", TINY, CLASSES)
    with pytest.raises(UserError, match=r"tiny\.pt holds a yolov9-t, not a libreyolo:yolox-n"):
        build(NANO, classes=CLASSES, weights=str(tmp_path / "tiny.pt"), say=silent)
    torch.save({"model": {"head.stems.0.conv.weight": torch.zeros(2)}}, tmp_path / "part.pt")
    with pytest.raises(UserError, match="does not fit this detector"):
        build(NANO, classes=CLASSES, weights=str(tmp_path / "part.pt"), say=silent)
    torch.save({"model": {"a": torch.zeros(2)}, "names": Harm()}, tmp_path / "harm.pt")
    with pytest.raises(UserError, match="refused as hostile"):
        build(NANO, classes=CLASSES, weights=str(tmp_path / "harm.pt"), say=silent)
    assert capsys.readouterr().out == ""
    ours = detector_of(NANO)
    with pytest.raises(UserError, match=r"made for 3 classes, the data has 2"):
        rebuild(ours.description(), CLASSES[:2])
    with pytest.raises(UserError, match=r"exists already"):
        ours.export(tmp_path / "tiny.pt")
    with pytest.raises(UserError, match=r"ends in '\.onnx'"):
        ours.export(tmp_path / "tiny.onnx")
    with pytest.raises(UserError, match=r"the folder .*nowhere.* does not exist"):
        ours.export(tmp_path / "nowhere" / "tiny.pt")


def test_a_missing_library_is_one_sentence_that_names_the_extra(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "libreyolo"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "libreyolo", None)
    with pytest.raises(UserError, match=r"need libreyolo: pip install 'mgdet\[yolo\]'$"):
        build(NANO, classes=CLASSES, weights="random", say=silent)


def test_without_a_network_one_sentence_comes_soon_and_the_librarys_own_folder_counts(hub, monkeypatch):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be downloaded.*bring the file LibreYOLOXn\.pt.*checkpoints"):
        build(NANO, classes=CLASSES, weights="pretrained", say=silent)
    assert time.monotonic() - start < 10
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set; bring the file LibreYOLO9t\.pt to .*checkpoints"):
        build(TINY, classes=CLASSES, weights="pretrained", say=silent)
    Path("weights").mkdir()
    state = lay(Path("weights", FILES[NANO]), NANO)
    assert_same_tensors(build(NANO, classes=None, weights="pretrained", say=silent).weights(), state)


def test_both_opencvs_live_together():
    """They share one folder, so whichever was installed last is in use, and both lists of files are still there."""
    script = (
        "import cv2, numpy as np, importlib.metadata as m\n"
        "import libreyolo.preprocess.yolo9 as theirs, mgdet.data.pictures as ours\n"
        "assert theirs.cv2 is ours.cv2 is cv2\n"
        "pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)\n"
        "assert (cv2.imdecode(cv2.imencode('.png', pixels)[1], cv2.IMREAD_COLOR) == pixels).all()\n"
        "print(m.version('opencv-python'), m.version('opencv-python-headless'), cv2.__version__)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    gui, headless, used = run.stdout.split()
    assert used in (".".join(gui.split(".")[:3]), ".".join(headless.split(".")[:3]))
