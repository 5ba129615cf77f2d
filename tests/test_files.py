"""Downloads from a server on this machine, and writes onto a full disk."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from typing import ClassVar

import pytest
import torch

import forged
from mgdet.errors import UserError
from mgdet.files import atomic_write, fetch, sha256_of
from mgdet.interop.loading import load_checkpoint
from refusals import refusal


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, keeps count, and cuts what it sends where the name asks for it."""

    requests: ClassVar[list[str]] = []

    def do_GET(self):
        self.requests.append(self.path)
        if "short" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
        else:
            super().do_GET()

    def log_message(self, *_: object):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """(folder that is served, its URL, folder of the downloads)."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(Handler, "requests", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", tmp_path / "hub" / "checkpoints"
    server.shutdown()
    server.server_close()


def named_by_hash(folder, content: bytes) -> str:
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    return name


def test_url_is_downloaded_once(site):
    folder, url, downloads = site
    name = named_by_hash(folder, b"weights")
    path = fetch(f"{url}/{name}")
    assert path == downloads / name
    assert path.read_bytes() == b"weights"
    count = len(Handler.requests)
    assert fetch(f"{url}/{name}") == path
    assert len(Handler.requests) == count


def test_those_who_ask_at_once_share_one_download(site):
    folder, url, downloads = site
    name = named_by_hash(folder, bytes(1 << 20))
    start, found = threading.Barrier(4), []

    def ask():
        start.wait()
        found.append(fetch(f"{url}/{name}"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [downloads / name] * 4
    assert Handler.requests == [f"/{name}"] * 2, "one that asks for the length, and the download"


def test_wrong_hash_leaves_nothing_behind(site):
    folder, url, downloads = site
    (folder / "net-0123abcd.pth").write_bytes(b"other weights")
    assert "SHA-256 does not start with 0123abcd" in refusal(fetch, f"{url}/net-0123abcd.pth")
    assert list(downloads.iterdir()) == []


def test_damaged_download_from_before_is_named(site):
    folder, url, downloads = site
    name = named_by_hash(folder, b"weights")
    fetch(f"{url}/{name}").write_bytes(b"weig")
    text = refusal(fetch, f"{url}/{name}")
    assert str(downloads / name) in text
    assert "delete it" in text


@pytest.mark.parametrize("name", ["short.pth", "short-0123abcd.pth"])
def test_broken_off_download_leaves_nothing_behind(site, name):
    _, url, downloads = site
    refusal(fetch, f"{url}/{name}")
    assert list(downloads.iterdir()) == []


def test_missing_on_the_server(site):
    _, url, downloads = site
    text = refusal(fetch, f"{url}/net-0123abcd.pth")
    assert "File not found" in text or "Not Found" in text
    assert str(downloads / "net-0123abcd.pth") in text


def test_no_network_says_which_file_goes_where(site):
    _, _, downloads = site
    text = refusal(fetch, "http://127.0.0.1:9/models/net-0123abcd.pth")
    assert "bring the file net-0123abcd.pth" in text
    assert f"put it at {downloads / 'net-0123abcd.pth'}" in text


def test_url_without_a_file(site):
    assert "does not name a file" in refusal(fetch, f"{site[1]}/")


def test_file_and_run_folder(tmp_path):
    assert "student_best.pth" in refusal(fetch, tmp_path)
    for name in ("student_last.pth", "student_best.pth"):
        (tmp_path / name).write_bytes(b"x")
        assert fetch(tmp_path) == tmp_path / name
    assert fetch(str(tmp_path / "student_last.pth")) == tmp_path / "student_last.pth"


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "teacher.pth").write_bytes(b"x")
    text = refusal(fetch, tmp_path / "teachr.pth")
    assert "does not exist" in text
    assert "'teacher.pth'" in text
    assert "does not exist" in refusal(fetch, tmp_path / "no" / "such.pth")


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_of(path) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_write_replaces_whole_files(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        atomic_write(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("hidden", [False, True], ids=["python", "torch"])
def test_full_disk_keeps_the_old_file(tmp_path, hidden):
    """Torch's writer turns the error of a full disk into one of its own."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(file):
        file.write(b"half")
        if hidden:
            torch.save({"a": torch.zeros(1000)}, Full())
        Full().write(b"")

    with pytest.raises(UserError, match="no space is left to write") as caught:
        atomic_write(path, write)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_file_size_limit_keeps_the_old_file(tmp_path):
    pytest.importorskip("resource")
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from mgdet.interop.weights import save_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        save_checkpoint(Path(path), {'w': torch.zeros(100_000)}, classes=None, config=None)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    paths = [tmp_path / "old.pth", tmp_path / "old.safetensors"]
    for path in paths:
        path.write_bytes(b"old")
    command = [sys.executable, "-c", code, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"no space is left to write {p}; what was there is untouched" for p in paths]
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]
    assert sorted(os.listdir(tmp_path)) == ["old.pth", "old.safetensors"]


def test_other_errors_of_a_write(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        atomic_write(tmp_path / "no" / "file", lambda file: file.write(b"x"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="directory"):
        atomic_write(tmp_path / "folder", lambda file: file.write(b"x"))
    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "file", lambda file: file.write(bytes([1 // 0])))
    assert os.listdir(tmp_path) == ["folder"]


def test_downloaded_checkpoint_loads(site):
    folder, url, _ = site
    torch.save(forged.state(), folder / "w.pth")
    name = named_by_hash(folder, (folder / "w.pth").read_bytes())
    detector = forged.TinyDetector()
    assert load_checkpoint(detector, f"{url}/{name}").missing == []
    assert forged.same(detector.state_dict(), forged.state())


def test_a_folder_of_transformers_is_named_as_one(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"give hf:{tmp_path}"):
        fetch(tmp_path)
