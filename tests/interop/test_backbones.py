"""Weights of timm by name: from which hub, what without one, and how long that may take."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from typing import ClassVar

import pytest
from huggingface_hub import constants

import mgdet.interop.backbones
from mgdet import files
from mgdet.errors import UserError
from mgdet.interop.backbones import read_timm

NAME, REPOSITORY = "test_resnet.r160_in1k", "timm/test_resnet.r160_in1k"


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that has nothing, and keeps what it is asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: object):
        pass


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(mgdet.interop.backbones, "_cached", lambda _: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        read_timm(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_hub_is_that_of_the_environment(hub):
    text = refusal(NAME)
    assert Hub.asked == [f"/{REPOSITORY}"]
    assert f"timm:{NAME} cannot be downloaded (Not Found)" in text
    assert f"bring model.safetensors of {constants.ENDPOINT}/{REPOSITORY}" in text
    assert "give that file as weights" in text


def test_offline_asks_nobody(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = refusal(NAME)
    assert "(HF_HUB_OFFLINE is set)" in text
    assert "bring model.safetensors of" in text
    assert Hub.asked == []


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(files, "REACH_SECONDS", 0.3)
        start = time.monotonic()
        assert "bring model.safetensors" in refusal(NAME)
        assert time.monotonic() - start < 8  # the library's own patience is 10


def test_a_look_up_that_hangs_is_given_up(monkeypatch):
    """The system's resolver knows no limit of ours."""
    asked = threading.Event()

    def hang(*_: object, **__: object):
        asked.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(files, "REACH_SECONDS", 0.3)
    start = time.monotonic()
    assert "(no answer in 0.3 seconds)" in refusal(NAME)
    assert time.monotonic() - start < 30
    asked.set()


def test_it_is_given_up_within_ten_seconds():
    assert files.REACH_SECONDS < 10


def test_a_download_that_breaks_off_is_a_sentence(monkeypatch):
    """The hub answers, and then timm's own download fails."""

    def fail(*_: object, **__: object):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(mgdet.interop.backbones, "reach", lambda _: None)
    monkeypatch.setattr(mgdet.interop.backbones, "build_backbone", fail)
    text = refusal(NAME)
    assert f"timm:{NAME} cannot be downloaded (Connection reset by peer)" in text
    assert "bring model.safetensors" in text


def test_unknown_weights_name_those_there_are():
    assert "timm has no weights 'timm:resnet50.mine'; there are resnet50." in refusal("resnet50.mine")
