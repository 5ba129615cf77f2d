"""A folder to work in, and a data set to spoil."""

import json
import shutil

import pytest


@pytest.fixture(autouse=True)
def in_a_folder(folder):
    """Each test works in an empty folder."""


@pytest.fixture
def data(tiny, folder):
    """A copy of the data set, to spoil."""
    return Data(tiny.root, folder / "data")


class Data:
    def __init__(self, source, root):
        self.root = root
        shutil.copytree(source, root)

    def edit(self, split, change):
        path = self.root / "annotations" / f"{split}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
