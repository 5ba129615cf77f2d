"""Batch norms: which of them keep their statistics, and what they need to learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mgdet.errors import UserError

_ONE_VALUE = "more than 1 value per channel"


def fix_norms(network: nn.Module, *, all_of_them: bool) -> None:
    """Takes batch norms out of training, so that they keep their statistics.

    Args:
        network: changed in place.
        all_of_them: else only those whose weights are frozen, as MMDetection does with frozen stages.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and (all_of_them or _is_frozen(module)):
            module.eval()


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own)


@contextmanager
def enough_values(name: str, images: Tensor) -> Iterator[None]:
    """Within it torch's complaint about a batch norm that sees one value per channel is a sentence for users.

    Args:
        name: of the detector.
        images: (B, 3, H, W), the batch.

    Raises:
        UserError: a batch norm sees one value per channel, of which it can learn nothing.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if _ONE_VALUE not in str(error):
            raise
        number, (height, width) = len(images), images.shape[2:]
        raise UserError(
            f"{name} normalises over the batch and finds one value per channel in {number} "
            f"image{'s' if number > 1 else ''} of {height} x {width}; choose larger images, or two or more for each "
            "process with --train.batch"
        ) from None
