"""The most memory that a run has used, in the units of each system, and what is free."""

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from mgdet.engine import memory
from mgdet.engine.memory import free_memory, peak_memory

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


def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch):
    files = {
        "MEMINFO": "MemTotal: 9 kB\nMemAvailable: 4194304 kB\n",
        "CGROUP_LIMIT": "3221225472",
        "CGROUP_NOW": "1073741824",
    }
    for name, content in files.items():
        monkeypatch.setattr(memory, name, tmp_path / name)
        (tmp_path / name).write_text(content)
    assert free_memory(CPU) == 2
    (tmp_path / "CGROUP_LIMIT").write_text("max\n")
    assert free_memory(CPU) == 4
    (tmp_path / "MEMINFO").write_text("nothing")
    monkeypatch.setattr(memory, "total_memory", lambda device: 6.0)
    assert free_memory(CPU) == 3


def test_this_machine_tells():
    assert free_memory(CPU) > 0
