"""Damaged, odd and hostile checkpoints in numbers: each is read or refused in a sentence, fast, and runs nothing."""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

import forged
from mgdet.errors import UserError
from mgdet.interop.loading import load_checkpoint
from mgdet.interop.weights import read_checkpoint
from mgdet.transfer import transfer

SECONDS, GIB = 2.0, 1 << 30
NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
NAMES = ["", ".", "module.", "backbone.", "student.", "ema_", "\n", "\udc80", "a" * 5000, "module." * 5000, "é.ж"]
GLOBALS = [
    b"cos\nsystem\n",
    b"cposix\nsystem\n",
    b"cbuiltins\nexec\n",
    b"csubprocess\nPopen\n",
    b"cfunctools\npartial\n",
    b"ctorch.hub\nload\n",
    b"ctorch\nload\n",
    b"cnumpy\nload\n",
    b"cbuiltins\nbytearray\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ctorch._utils\n_rebuild_qtensor\n",
    b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n",
    b"cmmengine.config\nConfigDict\n",
]
CALL = b"cposix\nsystem\n(X\x09\x00\x00\x00touch RANtR0"
"""Calls a program and drops what it returns; put into a pickle, it would run with the rest of it."""


def odd_values(rng: random.Random) -> object:
    return rng.choice(
        [
            lambda: None,
            lambda: 3,
            lambda: "text",
            lambda: [torch.zeros(2)],
            lambda: {"state_dict": {"a": torch.zeros(1)}},
            lambda: float("nan"),
            lambda: torch.tensor(float("nan")),
            lambda: torch.zeros(0, 4),
            lambda: torch.zeros(1).expand(1 << 14, 1 << 14, 1 << 14),
            lambda: torch.zeros(3, device="meta"),
            lambda: torch.zeros(2, 2).to_sparse(),
            lambda: torch.zeros(4, 3, 3, 3, dtype=torch.complex64),
            lambda: torch.zeros(4, dtype=torch.bool),
            lambda: torch.zeros(4, 3, 3, 3, dtype=torch.float64),
            lambda: b"bytes",
            lambda: {1, 2},
            lambda: True,
            lambda: 10**40,
        ]
    )()


def whole(rng: random.Random) -> dict:
    """What a tool may have saved, sound."""
    weights = forged.state(rng.randrange(3))
    wrapped = rng.choice(["", "module.", "_orig_mod.", "student.", "architecture.", "model.net."])
    weights = {f"{wrapped}{name}": value for name, value in weights.items()}
    content = {"meta": {"CLASSES": forged.CLASSES, "mmdet_version": "2"}, rng.choice(["state_dict", "model"]): weights}
    if rng.random() < 0.3:
        content[rng.choice(["ema", "ema_state_dict", "optimizer"])] = {"steps": torch.tensor(1), **weights}
    return content


def odd(rng: random.Random) -> dict:
    """The same with values, names and keys that no tool would save."""
    content = whole(rng)
    for _ in range(rng.randint(1, 3)):
        key = rng.choice([key for key in content if isinstance(content[key], dict)] or ["meta"])
        inside = content.setdefault(key, {}) if rng.random() < 0.8 else content
        if not isinstance(inside, dict) or not inside:
            continue
        name = rng.choice(list(inside))
        value = inside.pop(name) if rng.random() < 0.6 else inside[name]
        new_name = rng.choice([name, f"{rng.choice(NAMES)}{name}", rng.choice(NAMES), 3, ("a", 1), None])
        inside[new_name] = odd_values(rng) if rng.random() < 0.6 else value
    return content


def bytes_of(content: dict, rng: random.Random) -> tuple[bytes, str]:
    """A file and its ending: safetensors where the content allows, else one of torch's two formats."""
    file = io.BytesIO()
    weights = next((v for k, v in content.items() if k in ("state_dict", "model")), None)
    if rng.random() < 0.2 and isinstance(weights, dict):
        tensors = {str(k).encode("ascii", "replace").decode(): v.clone() for k, v in weights.items() if safe(v)}
        return safetensors.torch.save(tensors, {"CLASSES": '["a"]'}), ".safetensors"
    torch.save(content, file, _use_new_zipfile_serialization=rng.random() < 0.6)
    return file.getvalue(), ".pth"


def safe(value: object) -> bool:
    plain = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta
    return plain and value.numel() < 10_000 and not value.is_complex()


def damage(data: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, written over, cut out, doubled or put in, or the end cut off."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 4, 8, 60])
        rest = data[at + length :]
        number = rng.choice(NUMBERS)
        middle = rng.choice(
            [
                b"",
                rng.randbytes(length),
                data[at : at + length] * 2,
                number.to_bytes(8, "little"),
                number.to_bytes(8, "big"),
                bytes(b ^ (1 << rng.randrange(8)) for b in data[at : at + length]),
            ]
        )
        data = data[:at] if rng.random() < 0.05 else data[:at] + middle + rest
    return data


def alter_pickle(data: bytes, rng: random.Random) -> bytes:
    """The same instructions with another class or function, another number, or a call of a program."""
    way = rng.randrange(4)
    if way == 0:
        return data[:2] + CALL + data[2:]
    lines = [i for i in range(len(data)) if data.startswith((b"ctorch", b"ccollections"), i)]
    if way == 1 and lines:
        at = rng.choice(lines)
        end = data.index(b"\n", data.index(b"\n", at) + 1) + 1
        return data[:at] + rng.choice(GLOBALS) + data[end:]
    numbers = [i for i in range(len(data) - 1) if data[i : i + 1] == b"K"]
    if way == 2 and numbers:
        at = rng.choice(numbers)
        return data[:at] + b"\x8a\x09" + rng.choice(NUMBERS).to_bytes(9, "little") + data[at + 2 :]
    return damage(data, rng)


def alter_zip(data: bytes, rng: random.Random) -> bytes:
    """One record of a zip file changed under a right checksum; sometimes all are compressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in records if n.endswith("/data.pkl")) if rng.random() < 0.8 else rng.choice(list(records))
    changed = alter_pickle(records[name], rng) if name.endswith("/data.pkl") else damage(records[name], rng)
    if rng.random() < 0.01:
        changed = bytes(80 << 20)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for other, content in records.items():
            archive.writestr(other, changed if other == name else content)
    return file.getvalue()


def mutant(rng: random.Random) -> tuple[bytes, str]:
    data, suffix = bytes_of(odd(rng) if rng.random() < 0.5 else whole(rng), rng)
    way = rng.random()
    if way < 0.35:
        return data, suffix
    if way < 0.7 and data.startswith(b"PK"):
        return alter_zip(data, rng), suffix
    if way < 0.7 and suffix == ".pth":
        at = data.find(b"ctorch")
        return (data[:at] + alter_pickle(data[at:], rng) if at > 0 else damage(data, rng)), suffix
    return damage(data, rng), suffix


def peak_bytes() -> int:
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def outcome(path: Path, detector: torch.nn.Module, ema: bool) -> str:
    """How far a file comes: "refused", "read", "loaded" or "transferred"; any other error is the test's."""
    out, reached = path.with_name("out.pth"), "refused"
    out.unlink(missing_ok=True)
    try:
        checkpoint = read_checkpoint(path, ema=ema)
        reached = "read"
        load_checkpoint(detector, checkpoint)
        reached = "loaded"
        transfer(path, out)
        return "transferred"
    except UserError as error:
        assert str(error).isprintable(), str(error)
        assert len(str(error)) < 1000
    return reached


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_nothing_but_a_sentence_or_a_clean_read(count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(7)
    detector = forged.TinyDetector()
    before, outcomes = peak_bytes(), []
    for number in range(count):
        data, suffix = mutant(rng)
        path = tmp_path / f"mutant{suffix}"
        path.write_bytes(data)
        start = time.process_time()
        try:
            outcomes.append(outcome(path, detector, ema=rng.random() < 0.2))
        except Exception as error:
            raise AssertionError(f"mutant {number} ended in {type(error).__name__}: {error!r:.300}") from error
        assert time.process_time() - start < SECONDS, number
    assert peak_bytes() - before < GIB
    assert not (tmp_path / "RAN").exists()
    assert min(outcomes.count(how) for how in ("refused", "read", "transferred")) > count // 50


def test_the_call_that_mutants_hold_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x02" + CALL + b"N.")
    assert os.listdir(tmp_path) == ["RAN"]


@pytest.mark.parametrize("header", [b"\xff" * 8, (2**62).to_bytes(8, "little"), (10**8).to_bytes(8, "little")])
def test_a_header_that_claims_to_be_huge(header, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(header + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,39999999996]}}')
    before = peak_bytes()
    with pytest.raises(UserError, match="truncated, damaged"):
        read_checkpoint(path)
    assert peak_bytes() - before < 64 << 20


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_that_claims_to_be_huge(zipped, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"a": torch.zeros(77)}}, path, _use_new_zipfile_serialization=zipped)
    huge = b"\x8a\x06" + (2**40).to_bytes(6, "little")
    if zipped:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name).replace(b"KM", huge) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, content)
    else:
        path.write_bytes(path.read_bytes().replace(b"KM", huge))
    before = peak_bytes()
    with pytest.raises(UserError, match="claims 1099511627776 numbers"):
        read_checkpoint(path)
    assert peak_bytes() - before < 64 << 20


def test_a_zip_that_unpacks_to_more_than_it_may(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"state_dict": forged.state()}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/999", bytes(70 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match="bytes packed into"):
        read_checkpoint(path)
