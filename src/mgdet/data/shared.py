"""One reading for all processes of a machine: the first one reads, the others map its arrays into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mgdet.data.records import LeftOut, Reason, Records

_META = "meta.json"
_ARRAYS = ("heights", "widths", "starts", "boxes", "labels", "crowd", "ignored", "areas", "segmentations", "spans")


def read_shared(read: Callable[[], Records], name: str, barrier: Callable[[], None]) -> Records:
    """What `read` returns, read once on each machine and shared by its processes.

    All processes of the run call it together. Where sharing fails, for want of room say, every process reads for
    itself.

    Args:
        read: reads the data set.
        name: tells this data set from others of the run.
        barrier: waits for all processes.

    Raises:
        UserError: `read` does.
    """
    # Torchrun says who is on this machine; all of them are its children.
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    folder = Path(tempfile.gettempdir()) / f"mgdet-{os.getppid()}-{name}"
    if local_rank == 0:
        records = read()
        if local_size > 1:
            with contextlib.suppress(OSError):
                store(records, folder)
        barrier()
    else:
        barrier()
        try:
            records = load(folder)
        except (OSError, ValueError):
            records = read()
    barrier()
    if local_rank == 0 and local_size > 1:
        shutil.rmtree(folder, ignore_errors=True)  # those who mapped the files keep them
    return records


def store(records: Records, folder: Path) -> None:
    """Writes records into a new folder that only this user can read.

    Raises:
        OSError: the folder is there already and of somebody else, or the disk is full.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", getattr(records, name), allow_pickle=False)
    rest = {f.name: getattr(records, f.name) for f in dataclasses.fields(records) if f.name not in _ARRAYS}
    rest["folder"] = str(records.folder)
    rest["left_out"] = [(r.name, count, records.left_out.examples[r]) for r, count in records.left_out.counts.items()]
    (folder / _META).write_text(json.dumps(rest))  # not msgspec: ids may have more than 64 bits


def load(folder: Path) -> Records:
    """The records that `store` wrote, their arrays mapped read-only into memory.

    Raises:
        OSError: there are none, or they are another user's.
        ValueError: they are incomplete.
    """
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise PermissionError(f"'{folder}' belongs to another user")
    rest: dict[str, Any] = json.loads((folder / _META).read_text())
    left_out = LeftOut()
    for name, count, example in rest["left_out"]:
        left_out.add(Reason[name], example, count)
    rest |= {"folder": Path(rest["folder"]), "left_out": left_out}
    rest |= {name: tuple(rest[name]) for name in ("classes", "category_ids", "notes")}
    rest |= {name: _map(folder / f"{name}.npy") for name in _ARRAYS}
    return Records(**rest)


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # nothing is in it, and nothing cannot be mapped
        return np.load(path, allow_pickle=False)
