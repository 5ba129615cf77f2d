"""Batches that are sent ahead: in order, each before the one in hand is given out, and only to a GPU."""

from __future__ import annotations

import contextlib
from itertools import islice

import pytest
import torch

from mgdet.data.batch import Batch
from mgdet.engine.ahead import ahead
from mgdet.structures import Target

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def batch_of(number: int) -> Batch:
    target = Target(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), torch.ones(1, 32, 32), size=(32, 32))
    pixels = torch.full((1, 32, 32, 3), number, dtype=torch.uint8)
    return Batch(pixels, [target], [str(number)], [number], [(32, 32)], [(1.0, 1.0)])


def test_on_a_cpu_batches_are_as_they_come():
    batches = [batch_of(i) for i in range(3)]
    assert [one is other for one, other in zip(ahead(iter(batches), CPU), batches, strict=True)] == [True] * 3


def test_each_is_sent_before_the_one_in_hand_is_given_out(monkeypatch):
    done = []

    class Stream:
        def wait_stream(self, other):
            done.append(f"{self.name} waits for {other.name}")

        def __init__(self, name="side"):
            self.name = name if isinstance(name, str) else "side"

    current = Stream("current")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(Batch, "to", lambda batch, device, non_blocking: done.append(f"send {batch.files[0]}") or batch)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: done.append(f"kept for {stream.name}"))
    given = []
    for batch in ahead(iter([batch_of(i) for i in range(3)]), CUDA):
        done.append(f"give {batch.files[0]}")
        given.append(batch.image_ids[0])
    handed = ["current waits for side", *["kept for current"] * 4]
    assert given == [0, 1, 2]
    assert done == [
        "send 0",
        *handed,
        "send 1",
        "give 0",
        *handed,
        "send 2",
        "give 1",
        *handed,
        "give 2",
    ]


@pytest.mark.gpu
def test_what_arrives_is_what_was_sent():
    batches = [batch_of(i).pin_memory() for i in range(20)]
    for number, batch in enumerate(islice(ahead(iter(batches), CUDA), 20)):
        assert {tensor.device.type for tensor in batch.tensors()} == {"cuda"}
        assert bool((batch.pixels == number).all()) and bool((batch.targets[0].masks == 1).all())
