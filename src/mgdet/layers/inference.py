"""The form of a network that only looks: batch norms inside the convolutions before them, channels last in memory."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mgdet.layers.winograd import is_plain, quicken

M = TypeVar("M", bound=nn.Module)


def inference_form(detector: M, *, quick: bool = True) -> M:
    """A copy in eval mode, without gradients, that computes the same within rounding and in less time.

    `detector` stays as it is, and the copy shares all tensors that are no different. Batch norms of a backbone go into
    its convolutions, if torch can trace it; deformable convolutions keep theirs, as they have no bias. On a CPU some
    convolutions need fewer multiplications (`winograd.py`), unless they are to be counted: then it is not `quick`.
    """
    tensors = [*detector.parameters(), *detector.buffers()]
    form = copy.deepcopy(detector, {id(tensor): tensor for tensor in tensors}).eval()
    if isinstance(getattr(form, "backbone", None), nn.Module):
        fold_batch_norms(form.get_submodule("backbone"))
    for module in form.modules():
        for name, parameter in module.named_parameters(recurse=False):
            value = parameter.detach()
            if value.dim() == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
    if quick:
        quicken(form)
    return form


def fold_batch_norms(network: nn.Module) -> int:
    """Takes every batch norm, in eval mode, into the convolution whose output only it reads; returns how many.

    A network with control flow that torch cannot trace stays as it is.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception:  # whatever a network does that a proxy of a tensor cannot do
        return 0
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    num_folded = 0
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        if calls[node.target] > 1 or calls[source.target] > 1:
            continue
        norm, conv = network.get_submodule(str(node.target)), network.get_submodule(str(source.target))
        if isinstance(norm, _BatchNorm) and norm.track_running_stats and is_plain(conv):
            _fold(conv, norm)
            # timm's norm with an activation keeps the activation.
            rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
            parent, _, name = str(node.target).rpartition(".")
            setattr(network.get_submodule(parent), name, rest.train(norm.training))
            num_folded += 1
    return num_folded


class _Tracer(fx.Tracer):
    """Stops at convolutions and norms, also at those that a library derives from torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | _BatchNorm) or next(m.children(), None) is None


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
