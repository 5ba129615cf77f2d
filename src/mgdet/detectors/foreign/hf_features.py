"""Backbones of Hugging Face transformers as teachers: DINOv2, DINOv3, ConvNeXt, ResNet, Swin, Hiera, SigLIP, ..."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from mgdet.detectors.face import Learned
from mgdet.detectors.foreign.base import Foreign
from mgdet.detectors.foreign.hf_families import to_map
from mgdet.detectors.foreign.hf_hub import Source, make_config, pixels_of, processor_in, quiet, read_weights
from mgdet.errors import UserError
from mgdet.structures import Detections, Pixels, Seen, Target

PYRAMIDS = (
    *("bit", "convnext", "convnextv2", "dinov3_convnext", "focalnet", "hgnet_v2", "hiera", "pvt_v2", "resnet"),
    *("rt_detr_resnet", "swin", "swinv2"),
)
PLAIN = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vitdet")
TOKENS = ("siglip_vision_model",)
WHOLE = {"siglip": "siglip_vision_model"}
BACKBONES = (*PYRAMIDS, *PLAIN, *TOKENS, *WHOLE)
"""Model types that only teach: with a map for each stage, with one map, with tokens, with a text model beside them."""

NORMS = "hidden_states_norms."


class HuggingFaceFeatures(Foreign):
    """A backbone of the library, which shows its maps and knows no objects.

    Args:
        library: an `AutoBackbone`, or a vision model that gives tokens.
        pixels: the normalisation of its image processor.
        name: as the user gave it, without `hf:`.
    """

    source = "hf"
    trains = False
    num_classes = 0
    columns = ()

    def __init__(self, library: Any, *, pixels: Pixels, name: str):
        super().__init__()
        self.backbone, self.name, self.pixels, self.notes = library, name, pixels, []
        config = library.config
        patch = getattr(config, "patch_size", None)
        plain = config.model_type not in PYRAMIDS
        self.multiple = int(patch) if plain and patch is not None else 32
        self.native_size = (config.image_size[0], config.image_size[1]) if config.model_type == "hiera" else None
        self.eval().requires_grad_(False)

    def see(self, images: Tensor, sizes: list[tuple[int, int]], *, outputs: bool = False) -> Seen:
        """See `Face.see`; there is no head, so there are no raw outputs."""
        if self.backbone.config.model_type in TOKENS:
            tokens = self.backbone(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
            taps = [to_map(tokens, (images.shape[2] // self.multiple, images.shape[3] // self.multiple))]
        else:
            taps = list(self.backbone(pixel_values=images).feature_maps)
        return Seen(taps, taps)

    def learn(self, images: Tensor, targets: list[Target], *, outputs: bool = False) -> Learned:
        """A backbone has no losses."""
        self._refuse()

    def find(
        self, images: Tensor, sizes: list[tuple[int, int]], scales: list[tuple[float, float]] | None = None
    ) -> list[Detections]:
        """A backbone finds nothing."""
        self._refuse()

    def weights(self) -> dict[str, Tensor]:
        """See `Face.weights`."""
        state: dict[str, Tensor] = self.backbone.state_dict()
        return state

    def description(self) -> dict[str, Any]:
        """See `Foreign.description`."""
        config = json.loads(self.backbone.config.to_json_string(use_diff=False))
        return {
            "source": self.source,
            "name": self.name,
            "outputs": 0,
            "columns": [],
            "config": config,
            "pixels": [list(self.pixels.mean), list(self.pixels.std)],
        }

    def export(self, out: Path) -> str:
        """A backbone only teaches, so nothing of it is written."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(f"hf:{self.name} is a backbone: it can teach, and nothing else; choose a detector")


def build_features(source: Source, *, random: bool, say: Callable[[str], None]) -> HuggingFaceFeatures:
    """A backbone with the weights of its folder, or with random ones.

    Raises:
        UserError: the weights are missing or do not fit.
    """
    config = _config(source.config)
    if random:
        with quiet():
            library = _kind(config)(config)
    else:
        library, _ = read_weights(_kind(config), source, config, spare=NORMS)
    processor = processor_in(source)
    if processor is None and not random:
        say(f"hf:{source.name} came without preprocessor_config.json, so its pixels are taken as ImageNet's")
    pixels = pixels_of(processor) if processor is not None else HuggingFaceFeatures.pixels
    return HuggingFaceFeatures(library, pixels=pixels, name=source.name)


def rebuild_features(description: Mapping[str, Any]) -> HuggingFaceFeatures:
    """The architecture of a description with random weights."""
    config = _config(description["config"])
    mean, std = description["pixels"]
    with quiet():
        library = _kind(config)(config)
    return HuggingFaceFeatures(library, pixels=Pixels(tuple(mean), tuple(std)), name=description["name"])


def _kind(config: Any) -> Any:
    """The library's class for a config; `AutoBackbone` would ask the hub, even for a folder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

    return (MODEL_MAPPING if config.model_type in TOKENS else MODEL_FOR_BACKBONE_MAPPING)[type(config)]


def _config(settings: Mapping[str, Any]) -> Any:
    """The config of the vision part, which shows all its stages, or the last one where all are of one size."""
    kind = settings["model_type"]
    if kind in WHOLE:
        settings, kind = settings.get("vision_config", {}), WHOLE[kind]
    plain = {key: value for key, value in settings.items() if key not in ("out_features", "out_indices")}
    plain["model_type"] = kind
    if kind in TOKENS:
        return make_config(plain)
    names = [name for name in make_config(plain).stage_names if name.startswith("stage")]
    return make_config({**plain, "out_features": names if kind in PYRAMIDS else names[-1:]})
