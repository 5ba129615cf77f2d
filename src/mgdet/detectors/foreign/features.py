"""Backbones that only teach: they show features and know nothing of boxes.

`timm:NAME` is any model of timm that shows its intermediate maps: DINOv2 and DINOv3, SigLIP, ConvNeXt, Swin, ResNet.
"""

from __future__ import annotations

import difflib
import math
import textwrap
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
from torch import Tensor, nn

from mgdet.detectors.face import Learned
from mgdet.detectors.foreign.base import Foreign
from mgdet.errors import UserError
from mgdet.interop.backbones import bring_timm
from mgdet.structures import Detections, Pixels, Seen, Target

MODELS = (
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_siglip_224.webli",
    "eva02_tiny_patch14_224.mim_in22k",
    "resnet50.a1_in1k",
    "convnext_tiny.fb_in22k",
    "efficientnet_b0.ra_in1k",
    "swin_tiny_patch4_window7_224.ms_in22k",
    "swinv2_tiny_window8_256.ms_in1k",
    "mambaout_femto.in1k",
    "maxvit_nano_rw_256.sw_in1k",
    "hiera_tiny_224.mae_in1k_ft_in1k",
    "efficientformerv2_s0.snap_dist_in1k",
    "coat_lite_tiny.in1k",
    "gcvit_xxtiny.in1k",
    "mvitv2_tiny.fb_in1k",
)
"""One model of each kind that is tested; any other that shows its intermediate maps works too."""

RANDOM, PRETRAINED = "random", "pretrained"
FINEST, COARSEST = 8, 32
LONGEST_REASON = 120
PROBE = 192
"""Pixels of one edge of the image that shows whether a model takes any size; the other is longer than its own."""

Say = Callable[[str], None]


class FeatureTeacher(Foreign):
    """A backbone as a teacher. It has no head, so it neither learns nor finds, and needs no classes."""

    trains = False
    columns = ()
    num_classes = 0

    name: str

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """The maps that it teaches, (B, C, H_l, W_l), of images (B, 3, H, W)."""

    def see(self, images: Tensor, sizes: list[tuple[int, int]], *, outputs: bool = False) -> Seen:
        """See `Face.see`; there are no raw predictions.

        Raises:
            UserError: a canvas that the model does not take.
        """
        height, width = images.shape[-2:]
        if self.native_size not in (None, (height, width)):
            own = " x ".join(map(str, self.native_size or ()))
            raise UserError(f"{self.source}:{self.name} takes images of {own} pixels only, not of {height} x {width}")
        if self.native_size is None and (height % self.multiple or width % self.multiple):
            raise UserError(
                f"{self.source}:{self.name} takes images of multiples of {self.multiple} pixels, "
                f"not of {height} x {width}"
            )
        taps = self.features(images)
        return Seen(taps, taps)

    def learn(self, images: Tensor, targets: list[Target], *, outputs: bool = False) -> Learned:
        """Refused: see `trains`."""
        self._refuse("learn")

    def find(
        self, images: Tensor, sizes: list[tuple[int, int]], scales: list[tuple[float, float]] | None = None
    ) -> list[Detections]:
        """Refused: it has no head."""
        self._refuse("find objects")

    def export(self, out: Path) -> str:
        """Refused: its weights are the library's own, unchanged."""
        self._refuse("be exported: nothing in it has changed")

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(f"{self.source}:{self.name} is a backbone that only teaches; it cannot {what}")


class TimmTeacher(FeatureTeacher):
    """A model of timm: of a plain transformer the last block, normalised, of others the stages of strides 8 to 32.

    Args:
        model: as timm builds it.
        name: timm's, for messages and for `rebuild`.

    Raises:
        UserError: the model shows no maps, or takes no image at all.
    """

    source = "timm"

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model: Any = model
        self.name, self.notes = name, []
        settings: Any = self.model.pretrained_cfg
        mean, std = ([255 * value for value in settings[part]] for part in ("mean", "std"))
        self.pixels = Pixels((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
        stages: Any = getattr(model, "feature_info", None)
        if not hasattr(model, "forward_intermediates") or not stages:
            raise UserError(
                f"timm's '{name}' does not show its features; try vit_small_patch14_dinov2 or convnext_tiny"
            )
        strides = [math.ceil(level["reduction"]) for level in stages]
        self.is_plain = len(set(strides)) == 1
        self.multiple = max(strides)
        last = {stride: place for place, stride in enumerate(strides)}
        self.stages = [last[stride] for stride in last if FINEST <= stride <= COARSEST] or [len(strides) - 1]
        if self.is_plain:
            self.stages = [len(strides) - 1]
        self.native_size = self._only_size((settings["input_size"][1], settings["input_size"][2]))

    def features(self, images: Tensor) -> list[Tensor]:
        """See `FeatureTeacher.features`; timm permutes what it computes as (B, H, W, C)."""
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=self.stages, norm=self.is_plain, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def description(self) -> dict[str, Any]:
        """See `Foreign.description`."""
        return {"name": self.name}

    def _only_size(self, native: tuple[int, int]) -> tuple[int, int] | None:
        """The one size that the model takes; None if it takes others too."""
        height, width = (math.ceil(edge / self.multiple) * self.multiple for edge in (PROBE, max(native) + 1))
        if self._takes(height, width):
            return None
        if not self._takes(*native):
            raise UserError(
                f"timm's '{self.name}' cannot show its features, not even of {native[0]} x {native[1]} pixels; "
                "try vit_small_patch14_dinov2 or convnext_tiny"
            )
        return native

    @torch.no_grad()
    def _takes(self, height: int, width: int) -> bool:
        training = self.model.training
        try:
            self.model.eval()
            maps = self.features(torch.zeros(1, 3, height, width))
        except (RuntimeError, AssertionError, ValueError, IndexError, TypeError, NotImplementedError):
            return False
        finally:
            self.model.train(training)
        return all(level.shape[2] * width == level.shape[3] * height for level in maps)


def build(name: str, *, classes: Sequence[str] | None, weights: str, say: Say) -> TimmTeacher:
    """A backbone of timm as a teacher.

    Args:
        name: any timm model, with the tag of its weights or without: `vit_small_patch14_dinov2.lvd142m`.
        classes: the data's; nothing here depends on them.
        weights: `random`, `pretrained`, or a file with timm's names.
        say: is told one line for the file.

    Raises:
        UserError: timm does not know the name or the weights, they cannot be downloaded or do not fit, or the model
            shows no maps.
    """
    if weights == RANDOM:
        say(f"timm:{name} starts from random weights")
        return TimmTeacher(_create(name), name)
    path = bring_timm(name) if weights == PRETRAINED else Path(weights)
    if not path.is_file():
        raise UserError(f"weights of timm:{name} are '{weights}'; give {PRETRAINED}, {RANDOM}, or a file that is here")
    teacher = TimmTeacher(_create(name, path), name)
    say(f"timm:{name}: all its tensors loaded from {path}")
    return teacher


def has_masks(name: str) -> bool:
    """A backbone finds nothing."""
    return False


def known_classes(name: str) -> tuple[str, ...] | None:
    """None: a backbone knows no classes.

    Raises:
        UserError: timm does not know the name.
    """
    _check_name(name)
    return None


def rebuild(description: dict[str, Any], classes: Sequence[str] | None) -> TimmTeacher:
    """The teacher of a description, with random weights and without a file."""
    name = description["name"]
    return TimmTeacher(_create(name), name)


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"timm has no backbone '{name}'; {hint}")


def _create(name: str, file: Path | None = None) -> nn.Module:
    """timm's model, open to any image size where it has a switch for that, filled from a file."""
    _check_name(name)
    weights: dict[str, Any] = {}
    if file is not None:
        weights = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    switches: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
    for switch in switches:
        try:
            return timm.create_model(name, **weights, **switch)
        except TypeError as error:
            if not switch or not any(argument in str(error) for argument in switch):
                raise
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
            first = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
            about = f"{file} does not fit timm:{name}" if file else f"timm's '{name}' cannot be built"
            raise UserError(f"{about}: {textwrap.shorten(first, LONGEST_REASON, placeholder=' ...')}") from None
    raise AssertionError("the last try has no switch")
