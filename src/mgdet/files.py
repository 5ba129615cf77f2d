"""Where files come from and how they are written: downloads that are checked, writes that are whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlparse

import torch
from filelock import FileLock
from torch import Tensor

from mgdet.errors import UserError, nearest

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
REACH_SECONDS = 8
"""How long a server may take to answer, its name's look-up and all its addresses together."""
RUN_FILES = ("student_best.pth", "student_last.pth")
SUFFIXES = (".pth", ".pt", ".safetensors")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors with their names, 64 hexadecimal digits: the hash of weights that are not one file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fetch(source: str | Path) -> Path:
    """The local file of weights behind a path or a URL.

    A run's folder stands for its best student, else for its last. A URL is downloaded once into
    `torch.hub.get_dir()/checkpoints`; a hash in its name (`name-022c2187.pth`: the first digits of the SHA-256) is
    checked then and on every later use.

    Args:
        source: a file, a run's folder, or an http(s) URL.

    Raises:
        UserError: there is no such file, or the download fails or does not have the hash of its name.
    """
    if str(source).startswith(("http://", "https://")):
        return _download(str(source))
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for name in RUN_FILES:
            if (path / name).is_file():
                return path / name
        if (path / "model.safetensors").is_file() and (path / "config.json").is_file():
            raise UserError(f"{path} is a folder as Hugging Face's transformers leave it; give hf:{path}")
        raise UserError(
            f"{path} is a folder without {' or '.join(RUN_FILES)}; give a checkpoint file or a run's folder"
        )
    beside = [p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES] if path.parent.is_dir() else []
    raise UserError(f"the checkpoint {path} does not exist{nearest(path.name, beside) if len(beside) < 20 else ''}")


def _download(url: str) -> Path:
    name = Path(unquote(urlparse(url).path)).name
    if not name:
        raise UserError(f"{url} does not name a file; give the URL of a checkpoint")
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    match = HASH_IN_NAME.search(name)
    prefix = match.group(1) if match else None
    if not path.is_file():
        advice = f"bring the file {name} from a machine with a network and put it at {path}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(_lock_of(path)):  # the processes of a machine may ask at once
                if not path.is_file():
                    _download_to(path, url, prefix, advice)
                    return path
        except UserError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UserError(f"{url} cannot be downloaded ({reason_of(error)}); {advice}") from None
    if prefix and not sha256_of(path).startswith(prefix):
        raise UserError(f"{path} is not the file of {url}: its SHA-256 does not start with {prefix}; delete it")
    return path


def _lock_of(path: Path) -> Path:
    return Path(tempfile.gettempdir(), f"mgdet-{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}.lock")


def _download_to(path: Path, url: str, prefix: str | None, advice: str) -> None:
    length = reach(url)
    try:
        torch.hub.download_url_to_file(url, str(path), prefix, progress=sys.stderr.isatty())
    except RuntimeError:
        raise UserError(
            f"{url} gave a file whose SHA-256 does not start with {prefix}; try again, or {advice}"
        ) from None
    if length and path.stat().st_size != int(length):
        size = path.stat().st_size
        path.unlink()
        raise UserError(f"{url} gave only {size} of {length} bytes; try again, or {advice}")


def reach(url: str) -> str | None:
    """Asks a server for a URL and waits at most `REACH_SECONDS`; the system may look up a name for much longer.

    Returns:
        What the server gives as the length of the file, in bytes, if it does.

    Raises:
        OSError: there is no answer in time, or it is an error.
        ValueError: this is not a URL.
        HTTPException: what answers does not speak HTTP.
    """
    answers: list[str | None] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=REACH_SECONDS) as answer:
                answers.append(answer.headers.get("Content-Length"))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {REACH_SECONDS} seconds")
    return answers[0]


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file whole or not at all: until the last byte is on the disk, what was there stays.

    Only one process may write a path at a time.

    Args:
        path: the file; its folder exists.
        write: is given the open file and writes the content.

    Raises:
        UserError: no space is left, or the file may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None:
            raise
        if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"no space is left to write {path}; what was there is untouched") from None
        raise UserError(f"{path} cannot be written: {reason_of(cause)}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, where they are not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}") from None


def check_folder(folder: Path) -> None:
    """Refuses a folder that could not be made or written into, before there is anything to write.

    Raises:
        UserError: says why.
    """
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
    if not os.path.isdir(there):
        raise UserError(f"{there} is not a folder" + (f", so {folder} cannot be made" if there != folder else ""))
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"the folder {there} may not be written into")


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system behind `error`: torch's writer hides it behind one of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def reason_of(error: Exception) -> str:
    """What went wrong with a network or a file, in few words."""
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error or type(error).__name__)
