"""A folder to work in, commands that must be refused in it, and a data set to spoil."""

import json
import shutil

import pytest

from mgdet.cli import main
from refusals import contents


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys, folder):
    """Runs a command that must be refused: one line, exit code 2, and every file as it was."""

    def run(*arguments):
        before = contents(folder)
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 2
        assert err.startswith("mgdet: ") and err.count("\n") == 1 and err.endswith("\n")
        assert "Traceback" not in out
        assert contents(folder) == before
        return err.removeprefix("mgdet: ").rstrip("\n")

    return run


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
