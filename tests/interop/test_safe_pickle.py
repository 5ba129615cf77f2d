"""Opening files: all that real checkpoints contain, and nothing that hostile ones do."""

from __future__ import annotations

import collections
import datetime
import getpass
import logging
import os
import pathlib
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
import torch

import forged
from mgdet.errors import UserError
from mgdet.interop.safe_pickle import StandIn, load_untrusted

both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def one_sentence(path) -> str:
    with pytest.raises(UserError) as caught:
        load_untrusted(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@both_formats
def test_plain_weights_come_back(tmp_path, zipped):
    path = tmp_path / "plain.pth"
    content = {"a": torch.arange(6.0).reshape(2, 3), "n": 3, "p": torch.nn.Parameter(torch.ones(2))}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_untrusted(path)
    assert torch.equal(loaded["a"], content["a"])
    assert loaded["n"] == 3
    assert torch.equal(loaded["p"], torch.ones(2))


@both_formats
def test_foreign_objects_become_stand_ins(tmp_path, zipped):
    path = tmp_path / "foreign.pth"
    config = forged.ConfigDict(model=forged.ConfigDict(type="RetinaNet"), lr=0.01)
    config.__dict__["frozen"] = True
    content = {
        "state_dict": {"w": torch.arange(4.0)},
        "hub": forged.MessageHub(),
        "history": forged.HistoryBuffer(),
        "logger": forged.MMLogger(),
        "config": config,
        "names": forged.NameList(["a", "b"]),
        "deque": collections.deque([1, 2], maxlen=4),
        "default": collections.defaultdict(list, x=[1]),
        "counter": collections.Counter("aab"),
        "scalar": np.float64(2.5),
        "array": np.arange(3),
        "when": datetime.datetime(2026, 1, 2),
        "path": pathlib.PurePosixPath("a/b"),
        "log": logging.getLogger("forged"),
        "bytes": b"",
        "set": {1, 2},
        "frozen": frozenset({3}),
    }
    forged.save_foreign(path, content, zipped=zipped)
    assert b"getattr" in path.read_bytes()
    loaded = load_untrusted(path)
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(4.0))
    assert loaded["config"]["model"]["type"] == "RetinaNet"
    assert loaded["config"]["lr"] == 0.01
    assert loaded["names"] == ["a", "b"]
    assert loaded["deque"] == [1, 2]
    assert loaded["default"] == {"x": [1]}
    assert loaded["set"] == {1, 2}
    for name in ("hub", "history", "logger", "scalar", "array", "when", "path", "log"):
        assert isinstance(loaded[name], StandIn), name
    assert type(loaded["history"]).__name__ == "HistoryBuffer"


@both_formats
@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch RAN",), "system"),
        (eval, ("open('RAN', 'w')",), "builtins.eval"),
        (exec, ("open('RAN', 'w')",), "builtins.exec"),
        (__import__, ("this",), "builtins.__import__"),
        (open, ("RAN", "w"), "open"),
        (subprocess.check_output, (["touch", "RAN"],), "subprocess.check_output"),
        (getpass.getuser, (), "getpass.getuser"),
        (getattr, (pathlib.Path, "home"), "builtins.getattr"),
        (getattr, (torch.Tensor, "numpy"), "builtins.getattr"),
        (getattr, ("text", "format"), "builtins.getattr"),
    ],
)
def test_hostile_file_runs_nothing_and_is_named(tmp_path, monkeypatch, zipped, function, args, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pth"
    content = {"state_dict": {"w": torch.zeros(2)}, "meta": Calls(function, *args)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    text = one_sentence(path)
    assert "hostile" in text
    assert name in text
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bare_hostile_pickle_is_named_in_every_protocol(tmp_path, protocol):
    path = tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {tmp_path / 'RAN'}"), protocol=protocol))
    text = one_sentence(path)
    assert "hostile" in text
    assert "system" in text
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02c__builtin__\neval\n(X\x01\x00\x00\x001tR.",
        b"\x80\x02ccommands\ngetoutput\n(X\x04\x00\x00\x00truetR.",
    ],
    ids=["OBJ", "INST", "python 2 builtin", "python 2 module"],
)
def test_hand_written_hostile_pickle_is_named(tmp_path, code):
    path = tmp_path / "hostile.pth"
    path.write_bytes(code)
    assert "hostile" in one_sentence(path)


def test_names_hidden_from_the_scan_run_nothing(tmp_path):
    """A zip file whose second data.pkl is hostile: refused, whichever one torch would read."""
    path = tmp_path / "hostile.pth"
    torch.save({"w": torch.zeros(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", pickle.dumps(Calls(os.system, "true"), protocol=2))
    assert "hostile" in one_sentence(path)


def test_calling_what_a_stand_in_gave_is_refused(tmp_path):
    inner = b"c__builtin__\ngetattr\ncforeign.module\nThing\nX\x03\x00\x00\x00run\x86R"
    path = tmp_path / "odd.pth"
    torch.save({"w": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(name, b"\x80\x02" + inner + b")R." if name.endswith("data.pkl") else data)
    assert "reduce" in one_sentence(path)


@both_formats
def test_truncated_anywhere_is_one_sentence(tmp_path, zipped):
    path = tmp_path / "whole.pth"
    forged.save_foreign(path, {"state_dict": forged.state(), "hub": forged.MessageHub()}, zipped=zipped)
    data = path.read_bytes()
    cut = tmp_path / "cut.pth"
    for length in [*range(1, 60), *range(60, len(data) - 1, 211), len(data) - 1]:
        cut.write_bytes(data[:length])
        text = one_sentence(cut)
        if length > 20:
            assert "truncated" in text


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(100),
        b"<html>404 not found</html>",
        b"weights of my model\n" * 9,
        b"\x00",
    ],
    ids=["jpg", "html", "text", "zero"],
)
def test_other_files_are_no_checkpoint(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    assert "is not a checkpoint" in one_sentence(path)


def test_plain_pickle_is_no_checkpoint(tmp_path):
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps({"a": [1, 2]}))
    assert "is not a checkpoint" in one_sentence(path)


def test_zip_of_something_else(tmp_path):
    path = tmp_path / "archive.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "no data.pkl" in one_sentence(path)


def test_empty_missing_and_folder(tmp_path):
    empty = tmp_path / "empty.pth"
    empty.touch()
    assert "empty" in one_sentence(empty)
    assert "No such file" in one_sentence(tmp_path / "missing.pth")
    assert "directory" in one_sentence(tmp_path)


def test_other_pickle_protocol_says_so(tmp_path):
    path = tmp_path / "new.pth"
    torch.save({"a": torch.zeros(2)}, path, pickle_protocol=4)
    assert "protocol 4" in one_sentence(path)


@pytest.mark.filterwarnings("ignore:.*jit:")
def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "script.pth"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert "TorchScript" in one_sentence(path)


def test_allowlist_of_torch_is_as_before(tmp_path):
    path = tmp_path / "foreign.pth"
    forged.save_foreign(path, {"hub": forged.MessageHub()}, zipped=True)
    before = set(torch.serialization.get_safe_globals())
    load_untrusted(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
