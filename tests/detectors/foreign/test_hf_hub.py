"""Where Hugging Face's models come from: folder, cache or hub, and what is said where none of them has one."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import threading
import time

import pytest
import torch
from hf_tiny import shake, tiny_config
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForObjectDetection, RTDetrImageProcessor

from mgdet.detectors.foreign import hf_hub
from mgdet.detectors.foreign.huggingface import build
from mgdet.errors import UserError
from mgdet.interop.weights import save_checkpoint
from tiny import assert_same_tensors

HASH = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny-rtdetr"


def silent(line):
    """Takes a note and does nothing with it."""


def save(folder, names=("cat", "dog")):
    torch.manual_seed(1)
    library = AutoModelForObjectDetection.from_config(tiny_config("rt_detr_v2", names))
    shake(library)
    library.save_pretrained(folder)
    processor = RTDetrImageProcessor(do_normalize=True, image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.25])
    processor.save_pretrained(folder)
    return library


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and nobody at the hub's address."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return tmp_path / "cache"


def lay(hub):
    """Lays a model into the cache, as the hub's own client would."""
    repository = hub / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(HASH)
    return save(repository / "snapshots" / HASH)


def test_what_is_cached_needs_no_network(hub):
    library = lay(hub)
    said = []
    detector = build(NAME, classes=["dog", "cat"], weights="pretrained", say=said.append)
    assert detector.columns == (1, 0)
    state = library.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in detector.weights().items())
    assert detector.pixels.mean == pytest.approx((127.5, 102.0, 76.5))
    assert detector.pixels.std == pytest.approx((25.5, 51.0, 63.75))
    assert said == [f"hf:{NAME}: keeps its head with 2 outputs; 2 of them are the data's classes"]


def test_random_weights_need_only_the_settings(hub):
    library = lay(hub)
    for weights in hub.rglob("model.safetensors"):
        weights.unlink()
    detector = build(NAME, classes=["a", "b", "c"], weights="random", say=silent)
    assert detector.config.num_labels == 3
    assert detector.config.d_model == library.config.d_model
    with pytest.raises(UserError, match=r"model.safetensors"):
        build(NAME, classes=["a"], weights="pretrained", say=silent)


def test_a_run_on_a_model_of_the_hub_holds_its_settings(hub, tmp_path):
    """A student of the hub's, trained for three classes, is a teacher or a start on a machine without the hub."""
    lay(hub)
    run = build(NAME, classes=["a", "A", "b"], weights="pretrained", say=silent)
    shake(run)
    file = tmp_path / "student_best.pth"
    save_checkpoint(file, run.weights(), classes=["a", "A", "b"], config=None, description=run.description())
    shutil.rmtree(hub)
    for name in (NAME, "rt_detr_v2"):
        again = build(name, classes=["b", "a"], weights=str(file), say=silent)
        assert (again.columns, again.pixels) == ((2, 0), run.pixels)
        assert_same_tensors(again.weights(), run.weights())
    assert build(NAME, classes=None, weights=str(file), say=silent).output_names == ("a", "A", "b")
    with pytest.raises(UserError, match=r"hf:someone/else cannot be downloaded"):
        build("someone/else", classes=["a"], weights=str(file), say=silent)


def test_a_run_whose_classes_are_in_another_order_than_its_outputs_is_built_again(hub, tmp_path):
    lay(hub)
    run = build(NAME, classes=["dog", "cat"], weights="pretrained", say=silent)
    file = tmp_path / "student_best.pth"
    save_checkpoint(file, run.weights(), classes=["dog", "cat"], config=None, description=run.description())
    assert run.columns == (1, 0)
    assert build(NAME, classes=["dog", "cat"], weights=str(file), say=silent).columns == (1, 0)
    assert build(NAME, classes=None, weights=str(file), say=silent).output_names == ("cat", "dog")


def test_no_network_is_one_sentence_in_time(hub):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"bring config.json, preprocessor_config.json and model.safetensors") as caught:
        build(NAME, classes=["a"], weights="pretrained", say=silent)
    assert time.monotonic() - start < 10
    assert f"http://127.0.0.1:9/{NAME}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_host_that_never_answers_is_given_up(hub, monkeypatch):
    asked = threading.Event()

    def never(*_, **__):
        asked.wait(60)
        raise OSError

    monkeypatch.setattr(hf_hub, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(hf_hub.urllib.request, "urlopen", never)

    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer in 0.2 s"):
        build(NAME, classes=["a"], weights="pretrained", say=silent)
    assert time.monotonic() - start < 30
    asked.set()


def test_offline_mode_asks_nobody(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hf_hub, "_ask", lambda request: pytest.fail("asked"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        build(NAME, classes=["a"], weights="random", say=silent)


@pytest.fixture
def server(hub, tmp_path, monkeypatch):
    """A hub on this machine, with one repository."""
    files = tmp_path / "repository"
    save(files)
    names = [file.name for file in files.iterdir()]
    about = {"id": NAME, "sha": HASH, "siblings": [{"rfilename": name} for name in names], "private": False}

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, with_body):
            name = self.path.rsplit("/", 1)[-1]
            if self.path.startswith(f"/api/models/{NAME}"):
                body = json.dumps(about).encode()
            elif self.path.startswith(f"/{NAME}/resolve/") and name in names:
                body = (files / name).read_bytes()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for header, value in (("ETag", f'"{name}"'), ("X-Repo-Commit", HASH), ("Content-Length", len(body))):
                self.send_header(header, str(value))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def do_GET(self):
            self.answer(True)

        def do_HEAD(self):
            self.answer(False)

        def log_message(self, *_):
            """Nothing is printed."""

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{host.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield host
    host.shutdown()
    host.server_close()


def test_what_the_hub_has_is_downloaded_once(server, hub):
    detector = build(NAME, classes=["cat", "dog"], weights="pretrained", say=silent)
    assert detector.columns == (0, 1)
    assert list(hub.rglob("model.safetensors"))
    server.shutdown()
    again = build(NAME, classes=["cat", "dog"], weights="pretrained", say=silent)
    assert all(torch.equal(value, again.weights()[name]) for name, value in detector.weights().items())


def test_a_name_that_the_hub_does_not_have(server, hub):
    with pytest.raises(UserError, match=r"the hub has no model hf:someone/else"):
        build("someone/else", classes=["a"], weights="pretrained", say=silent)


@pytest.mark.parametrize(
    ("name", "weights", "sentence"),
    [
        ("rt_detr_v3", "random", "did you mean 'rt_detr_v2'"),
        ("rt_detr_v2", "pretrained", "model type without weights; give a name of the hub, such as hf:PekingU"),
        ("./nowhere", "random", "neither a folder nor a name of the hub"),
        ("rt_detr_v2", "backbone", "choose random, pretrained, a folder or a checkpoint"),
    ],
)
def test_names_that_cannot_be(hub, name, weights, sentence):
    with pytest.raises(UserError, match=sentence):
        build(name, classes=["a"], weights=weights, say=silent)


def test_folders_that_cannot_be_read(hub, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"has no config.json"):
        build(str(empty), classes=["a"], weights="pretrained", say=silent)
    (empty / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        build(str(empty), classes=["a"], weights="pretrained", say=silent)
    (empty / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="is a bert, not a detector or backbone"):
        build(str(empty), classes=["a"], weights="random", say=silent)
    save(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        build(str(tmp_path / "cut"), classes=["a"], weights="pretrained", say=silent)


def test_weights_that_are_not_finite_are_refused(hub, tmp_path):
    save(tmp_path / "diverged")
    path = tmp_path / "diverged" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("weight"))
    weights[name].flatten()[0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"diverged holds numbers that are not finite, in {re.escape(name)}"):
        build(str(path.parent), classes=["a"], weights="pretrained", say=silent)


def test_weights_of_another_architecture_are_refused(hub, tmp_path):
    save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps(settings | {"decoder_layers": 3}))
    with pytest.raises(UserError, match="tensors are missing or of another shape"):
        build(str(tmp_path / "saved"), classes=["cat", "dog"], weights="pretrained", say=silent)


def test_a_missing_library_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'mgdet\[hf\]'"):
        build("rt_detr_v2", classes=["a"], weights="random", say=silent)


def test_an_old_library_is_refused(monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.17.2")
    with pytest.raises(UserError, match=r"5\.17\.2 mixes denoising queries.*5\.18"):
        build("rt_detr_v2", classes=["a"], weights="random", say=silent)
