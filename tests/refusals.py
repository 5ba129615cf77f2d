"""Files that must be refused, the sentence that refuses them, and a look at what a folder holds."""

import os
import pickle

import pytest
import torch

from mgdet.errors import UserError
from tiny import CLASSES, write_detector


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def spoil_file(tiny, folder, kind):
    """A file that is no teacher for `tiny:distilled`."""
    path = folder / f"{kind}.pth"
    content = tiny.teacher.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "architecture":
        write_detector(path, seed=1, backbone="resnet18")
    elif kind == "classes":
        write_detector(path, seed=1, classes=CLASSES[:2])
    elif kind == "names":
        write_detector(path, seed=1, classes=("square", "high", "wide"))
    elif kind == "hostile":
        torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Hostile()}, path)
    elif kind == "hostile pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    return path


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("broken into",)


def refusal(call, *args, **options) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
