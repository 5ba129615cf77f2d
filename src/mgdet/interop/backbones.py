"""ImageNet weights for backbones, from timm by name."""

from __future__ import annotations

import contextlib
import urllib.request
from pathlib import Path

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError

from mgdet.errors import UserError
from mgdet.files import TIMEOUT_SECONDS, sha256_of
from mgdet.interop.weights import Checkpoint
from mgdet.layers.backbone import build_backbone

HUB = "huggingface.co"
FILES = ("model.safetensors", "pytorch_model.bin")


def read_timm(name: str) -> Checkpoint:
    """The ImageNet weights of a timm model, downloaded once, under the names that `build_backbone` gives.

    Args:
        name: model and tag, e.g. `resnet50.tv_in1k`.

    Raises:
        UserError: timm has no such weights, or they cannot be downloaded.
    """
    repository = _repository(name)
    if _cached(repository) is None:
        _reach(name, repository)
    backbone = build_backbone(name, frozen_stages=0, pretrained=True)
    path = _cached(repository)
    return Checkpoint(
        path=path or Path(f"timm:{name}"),
        sha256=sha256_of(path) if path else "",
        state_dict=dict(backbone.state_dict()),
        classes=None,
        config=None,
        kind="backbone",
        entries=len(backbone.state_dict()),
    )


def bring_timm(name: str) -> Path:
    """The file of a timm model's weights, downloaded once.

    Args:
        name: model and tag, e.g. `vit_small_patch14_dinov2.lvd142m`; without a tag, timm's choice.

    Raises:
        UserError: timm has no such weights, or they cannot be downloaded.
    """
    repository = _repository(name)
    path = _cached(repository)
    if path is not None:
        return path
    _reach(name, repository)
    for file in FILES:
        with contextlib.suppress(EntryNotFoundError):
            return Path(hf_hub_download(repository, file))
    raise UserError(f"{HUB}/{repository} has neither {' nor '.join(FILES)}; bring the weights and give the file")


def _repository(name: str) -> str:
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if not any(tag == name or tag.startswith(f"{name}.") for tag in tags):
        choices = f"there are {', '.join(tags[:4])}" if tags else "timm.list_pretrained() lists them"
        raise UserError(f"timm has no weights 'timm:{name}'; {choices}")
    settings = timm.get_pretrained_cfg(name)
    return str(settings.hf_hub_id) if settings else ""


def _cached(repository: str) -> Path | None:
    found = (try_to_load_from_cache(repository, file) for file in FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _reach(name: str, repository: str) -> None:
    """Fails at once where there is no network: the hub's own client tries for most of a minute."""
    try:
        urllib.request.urlopen(f"https://{HUB}/{repository}", timeout=TIMEOUT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"the weights timm:{name} cannot be downloaded ({getattr(error, 'reason', error)}); bring {FILES[0]} of "
            f"{HUB}/{repository} from a machine with a network and give that file as weights"
        ) from None
