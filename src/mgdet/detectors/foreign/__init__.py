"""Detectors of other libraries by source: each source is one module, imported when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from mgdet.detectors.foreign.base import Foreign
from mgdet.errors import UserError, nearest

SOURCES = {
    "hf": "huggingface",
    "libreyolo": "libreyolo",
    "timm": "features",
    "torchvision": "torchvision",
}


def names_library(source: str) -> bool:
    """Is it SOURCE:NAME of another library?"""
    prefix, colon, _ = source.partition(":")
    return bool(colon) and prefix in SOURCES


class Library(Protocol):
    """What each module offers.

    MODELS: names of models that are tested, see docs/any-teacher.md.
    """

    MODELS: Sequence[str]

    def build(self, name: str, *, classes: Sequence[str] | None, weights: str, say: Callable[[str], None]) -> Foreign:
        """A detector by its name in the library.

        Args:
            name: what stands behind the colon.
            classes: class names of the data; None keeps the model's own head, for a teacher that only shows maps.
            weights: random, pretrained, backbone, the library's own names of weights, a file or a folder.
            say: is told what was decided.

        Raises:
            UserError: no such model or weights, no network, or a missing extra.
        """

    def has_masks(self, name: str) -> bool:
        """Does the detector learn and find masks?"""

    def known_classes(self, name: str) -> tuple[str, ...] | None:
        """The classes of the library's own weights; None for a backbone, and where it takes the network to know.

        Raises:
            UserError: no such model, or a missing extra.
        """

    def rebuild(self, description: dict[str, Any], classes: Sequence[str]) -> Foreign:
        """The architecture that `Foreign.description` described, with random weights and without a network."""


def library(source: str) -> Library:
    """The module of a source.

    Raises:
        UserError: there is no such source.
    """
    if source not in SOURCES:
        raise UserError(f"there is no source '{source}' of detectors{nearest(source, SOURCES)}")
    return cast(Library, importlib.import_module(f"{__name__}.{SOURCES[source]}"))
