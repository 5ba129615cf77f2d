"""Less memory for more time: the blocks of a network keep only their inputs, and are computed again going backward."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

LAYERS_PER_BLOCK = 2


def recompute_blocks(network: nn.Module) -> int:
    """Has every block of a network computed again in the backward pass; returns how many there are.

    A block is an element of a `Sequential`, a `ModuleList` or a `ModuleDict` with at least two layers of weights.
    Losses, gradients and the statistics of norms stay what they are: random draws are repeated, and norms count a
    batch once. Names stay, too, and in eval mode or without gradients a block runs as it always did.

    Args:
        network: is changed; a copy made later behaves alike.
    """
    blocks = list(blocks_of(network))
    for block in blocks:
        block.forward = functools.partial(_run, block, block.forward)
    return len(blocks)


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """What `recompute_blocks` has computed again: the outermost blocks in sequences, and the innermost elements of
    dictionaries that have none inside."""
    in_sequence = isinstance(network, nn.Sequential | nn.ModuleList)
    for child in network.children():
        whole = _num_layers(child) >= LAYERS_PER_BLOCK and not isinstance(child, nn.Sequential | nn.ModuleList)
        if in_sequence and whole:
            yield child
            continue
        inside = list(blocks_of(child))
        yield from inside or ([child] if whole and isinstance(network, nn.ModuleDict) else [])


def _num_layers(module: nn.Module) -> int:
    return sum(parameter.ndim >= 2 for parameter in module.parameters())


def _run(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs, **options)

    def run(*given: Any) -> Any:
        return forward(*map(_copied, given), **options)

    return checkpoint(run, *map(_copied, inputs), use_reentrant=False, context_fn=lambda: _contexts(block))


def _copied(value: Any) -> Any:
    """Networks that hand on lists of maps put new ones into them; the second time must see what the first one saw."""
    return list(value) if isinstance(value, list) else value


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What surrounds a block: nothing the first time, and norms that gather nothing the second time."""
    return contextlib.nullcontext(), _norms_at_rest(block)


@contextlib.contextmanager
def _norms_at_rest(block: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch as before, but do not count it into their statistics a second time."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, counter
