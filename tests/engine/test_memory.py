"""The most memory that a run has used, in the units of each system."""

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from mgdet.engine.memory import peak_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_the_units_of_the_system(platform, unit, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 2**30 // unit))
    assert peak_memory(CPU) == 3.0


def test_nothing_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(CPU) == 0.0


def test_this_process_has_used_some():
    assert 0.05 < peak_memory(CPU) < 1000
