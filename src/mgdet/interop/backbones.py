"""ImageNet weights for backbones, from timm by name, and the name of a backbone by its weights."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Mapping
from pathlib import Path

import timm
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError

from mgdet.errors import UserError
from mgdet.files import reach, reason_of, sha256_of
from mgdet.interop.weights import Checkpoint
from mgdet.layers.backbone import build_backbone, features_of
from mgdet.layers.meta import on_meta

FILES = ("model.safetensors", "pytorch_model.bin")
COUNTER = ".num_batches_tracked"
SIMILAR = 0.6
"""Share of the names, digits apart, that two networks of one family have in common."""
FIRST = ("resnet", "mobilenetv3", "efficientnet", "regnet", "convnext")
"""timm's modules of the backbones that detectors mostly have: they are looked through before all others."""

Shapes = Mapping[str, tuple[int, ...]]


def read_timm(name: str) -> Checkpoint:
    """The ImageNet weights of a timm model, downloaded once, under the names that `build_backbone` gives.

    The hub is the one that `HF_ENDPOINT` names; with `HF_HUB_OFFLINE` only what was downloaded before is taken.

    Args:
        name: model and tag, e.g. `resnet50.tv_in1k`.

    Raises:
        UserError: timm has no such weights, or they cannot be downloaded.
    """
    repository, place = _source(name)
    if _cached(repository) is None:
        _reach(name, place)
    try:
        backbone = build_backbone(name, frozen_stages=0, pretrained=True)
    except (OSError, http.client.HTTPException) as error:
        raise _not_downloaded(name, place, reason_of(error)) from None
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
    repository, place = _source(name)
    path = _cached(repository)
    if path is not None:
        return path
    _reach(name, place)
    try:
        for file in FILES:
            with contextlib.suppress(EntryNotFoundError):
                return Path(hf_hub_download(repository, file))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _not_downloaded(name, place, reason_of(error)) from None
    raise UserError(f"{place} has neither {' nor '.join(FILES)}; bring the weights and give the file")


def _source(name: str) -> tuple[str, str]:
    """The repository of a timm model's weights on the hub, empty if they are elsewhere; and their address.

    Raises:
        UserError: timm has no such weights.
    """
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if not any(tag == name or tag.startswith(f"{name}.") for tag in tags):
        choices = f"there are {', '.join(tags[:4])}" if tags else "timm.list_pretrained() lists them"
        raise UserError(f"timm has no weights 'timm:{name}'; {choices}")
    settings = timm.get_pretrained_cfg(name)
    repository = str(settings.hf_hub_id or "") if settings else ""
    return repository, f"{constants.ENDPOINT}/{repository}" if repository else str(settings.url if settings else "")


def _cached(repository: str) -> Path | None:
    if not repository:
        return None
    found = (try_to_load_from_cache(repository, file) for file in FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _reach(name: str, place: str) -> None:
    """Fails at once where there is no network: the hub's own client tries for most of a minute."""
    if constants.HF_HUB_OFFLINE:
        raise _not_downloaded(name, place, "HF_HUB_OFFLINE is set")
    try:
        reach(place)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _not_downloaded(name, place, reason_of(error)) from None


def _not_downloaded(name: str, place: str, reason: str) -> UserError:
    return UserError(
        f"the weights timm:{name} cannot be downloaded ({reason.partition(chr(10))[0]}); bring {FILES[0]} of {place} "
        "from a machine with a network and give that file as weights"
    )


def timm_names(shapes: Shapes) -> list[str]:
    """The timm models whose feature stages have exactly these names and shapes.

    It needs no memory for weights, but builds a member of each family, and all of a similar one: a few seconds for a
    ResNet, some twenty for others.

    Args:
        shapes: of a backbone's tensors, by name.
    """
    wanted = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}
    pattern = _without_digits(wanted)
    modules = dict.fromkeys([*FIRST, *timm.list_modules()])
    families = [members for module in modules if (members := timm.list_models(module=module))]
    for place in (0.5, 0.0, 1.0):  # a family's members may differ: its middle one, and if need be its first and last
        for members in families:
            other = _without_digits(shapes_of(members[round(place * (len(members) - 1))]))
            if len(pattern & other) >= SIMILAR * max(1, len(pattern | other)):
                found = [name for name in members if shapes_of(name) == wanted]
                if found:
                    return found
    return []


def shapes_of(name: str) -> Shapes:
    """Of a timm model's feature stages, without memory for its weights; empty where it has no such stages."""
    try:
        with on_meta():
            network = features_of(name)
    except UserError:
        return {}
    return {key: tuple(value.shape) for key, value in network.state_dict().items() if not key.endswith(COUNTER)}


def _without_digits(names: Shapes) -> set[str]:
    return {re.sub(r"\d+", "#", name) for name in names}
