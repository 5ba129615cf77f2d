"""The tell-tale names of backbones, necks and heads that this package does not have, and what comes nearest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mgdet.errors import UserError


class Stranger(NamedTuple):
    """A part that this package does not have.

    what: its name, with an article.
    nearest: what there is in its place.
    """

    what: str
    nearest: str


FPN, RESNETS = "a detector with a plain FPN", "one with a ResNet or ResNeXt under MMDetection's names"
RETINANET, FASTER, MASK, CASCADE, SOLO = (
    "a retinanet",
    "a faster_rcnn",
    "a mask_rcnn",
    "a cascade_mask_rcnn",
    "a solo",
)
TORCHVISION = "torchvision:NAME with this file as its weights"
FOLDER = "the folder that save_pretrained wrote, as hf:FOLDER"

TORCHVISIONS: dict[str, tuple[str, str]] = {
    r"backbone\.body\.|roi_heads\.box_head\.|head\.classification_head\.": ("a detector of torchvision's", TORCHVISION),
}
OTHER_TOOLS: dict[str, tuple[str, str]] = {
    **TORCHVISIONS,
    r"(model\.)?backbone\.conv_encoder\.|class_labels_classifier\.|(model\.decoder\.)?class_embed\.": (
        "a detector of Hugging Face's",
        FOLDER,
    ),
    r"backbone\.backbone\.|model\.\d+\.(conv|cv1)\.|\d+\.cv1\.conv\.": ("a YOLO", "libreyolo:yolox-s"),
}
"""As `PARTS`, of names that MMDetection never gives, whatever else is in a file."""

# Names of other tools come first: what they call a backbone or a neck says nothing to the rest of the table.
PARTS: dict[str, tuple[str, str]] = {
    **OTHER_TOOLS,
    # Backbones.
    r"backbone\.stages\.\d\.blocks\.\d+\.attn\.w_msa\.": ("MMDetection's Swin Transformer", RESNETS),
    r"backbone\.layers\.\d\.": ("a transformer backbone of MMDetection's", RESNETS),
    r"backbone\.stem\.\d\.weight": ("a ResNet with a deep stem (V1d, Res2Net, ResNeSt)", RESNETS),
    r"backbone\.gn1\.": ("a ResNet with group norm", RESNETS),
    r"backbone\.layer\d\.\d+\.(context_block|gen_attention_block|nonlocal_block)": ("a ResNet with plugins", RESNETS),
    r"backbone\.layer\d\.\d+\.conv2\.(switch|weight_diff)|backbone\.\w+\.\d+\.rfp_conv": ("a DetectoRS", RESNETS),
    r"backbone\.features\.": ("a VGG", "torchvision:ssd300_vgg16"),
    r"backbone\.conv_res_block1\.|backbone\.stage\d\.\d+\.conv\.": ("a DarkNet", "libreyolo:yolox-s"),
    r"backbone\.layer\d\.\d+\.conv\.\d+\.conv\.": ("MMDetection's MobileNetV2", RESNETS),
    r"backbone\.timm_model\.": ("a timm backbone in MMDetection's wrapper", RESNETS),
    # Necks.
    r"neck\.(pafpn_convs|downsample_convs)\.": ("a PAFPN", FPN),
    r"neck\.fpn_stages\.|neck\.\d\.fpn_stages\.": ("a NAS-FPN", FPN),
    r"neck\.(\w*bifpn\w*)\.": ("a BiFPN", FPN),
    r"neck\.\d+\.refine\.": ("a Balanced Feature Pyramid", FPN),
    r"neck\.\d+\.dyhead_blocks\.": ("a Dynamic Head", FPN),
    r"neck\.\d+\.": ("a chain of necks", FPN),
    r"neck\.reduction_conv\.": ("an HRNet with its HRFPN", FPN),
    r"neck\.rfp_modules\.": ("a Recursive Feature Pyramid", FPN),
    r"neck\.upsample_modules\.": ("a CARAFE neck", FPN),
    r"neck\.(lateral_convs|fpn_convs)\.\d\.bn\.": ("an FPN with batch norm", FPN),
    r"neck\.(reduce_layers|top_down_blocks|detect\d)\.": ("a YOLO neck", FPN),
    r"neck\.(convs|extra_convs)\.\d": ("a neck that only maps channels", FPN),
    # One-stage heads.
    r"bbox_head\.atss_(cls|reg|centerness)\.": ("an ATSS head", RETINANET),
    r"bbox_head\.gfl_(cls|reg)\.": ("a GFL head", RETINANET),
    r"bbox_head\.vfnet_": ("a VarifocalNet head", RETINANET),
    r"bbox_head\.tood_": ("a TOOD head", RETINANET),
    r"bbox_head\.conv_centerness\.": ("an FCOS head", "torchvision:fcos_resnet50_fpn"),
    r"bbox_head\.(multi_level_|conv_)obj": ("a YOLOX head", "libreyolo:yolox-s"),
    r"bbox_head\.multi_level_conv_": ("a YOLOX head", "libreyolo:yolox-s"),
    r"bbox_head\.(convs_bridge|convs_pred)\.": ("a YOLOv3 head", "libreyolo:yolox-s"),
    r"bbox_head\.rtm_(cls|reg)\.": ("an RTMDet head", "libreyolo:yolox-s"),
    r"bbox_head\.(heatmap_head|tl_heat|br_heat)\.": ("a head of heat maps", RETINANET),
    r"bbox_head\.(conv_loc|conv_shape|feature_adaption)": ("a guided-anchoring head", RETINANET),
    r"bbox_head\.retina_(bbox_cls|bbox_reg)\.": ("a SABL head", RETINANET),
    r"bbox_head\.cls_convs\.\d\.\d\.": ("a RetinaNet with norms of its own for each level", RETINANET),
    r"bbox_head\.(conv_coeff|proto)|protonet\.": ("a YOLACT head", MASK),
    r"bbox_head\.(transformer|cls_branches|fc_cls|reg_ffn)\b|encoder\.layers\.\d": (
        "a head of the DETR family",
        "hf:PekingU/rtdetr_v2_r50vd",
    ),
    r"mask_head\.(kernel_convs|conv_kernel)|mask_head\.mask_feature_head\.": ("a SOLOv2 head", SOLO),
    r"mask_head\.conv_mask_list_[xy]\.": ("a decoupled SOLO head", SOLO),
    # Two-stage heads.
    r"bbox_head\.(\d\.)?fc_cls\.": ("a detector of MMDetection 1.x", "MMDetection's upgrade_model_version.py"),
    r"rpn_head\.(init_proposal|conv_loc|stages|rpn_conv\.\d)": ("another head for proposals", FASTER),
    r"roi_head\.(semantic_head|glbctx_head|feat_relay_head)\.": ("a head with semantic context (HTC, SCNet)", CASCADE),
    r"roi_head\.mask_head\.\d\.conv_res\.": ("a Hybrid Task Cascade", CASCADE),
    r"roi_head\.mask_iou_head\.": ("a Mask Scoring R-CNN", MASK),
    r"roi_head\.point_head\.": ("a PointRend head", MASK),
    r"roi_head\.grid_head\.": ("a Grid R-CNN", FASTER),
    r"roi_head\.bbox_head\.(\d\.)?(shared_convs|cls_convs|reg_convs|cls_fcs|reg_fcs|res_block|conv_branch)": (
        "another box head",
        FASTER,
    ),
    r"roi_head\.bbox_head\.\d\.(attention|instance_interactive_conv)": ("a Sparse R-CNN", CASCADE),
    r"roi_head\.shared_head\.": ("a detector without a pyramid (C4)", FASTER),
}
"""Patterns of names, what they belong to, and what is nearest to that."""


def strangers(names: Iterable[str], parts: Mapping[str, tuple[str, str]] = PARTS) -> list[Stranger]:
    """What of `parts` the names of a detector show, each once."""
    text = "\n".join(names)
    found = [Stranger(*part) for pattern, part in parts.items() if re.search(f"^({pattern})", text, re.MULTILINE)]
    return list(dict.fromkeys(found))


def lacking(path: Path, unknown: Sequence[Stranger]) -> UserError:
    """The sentence that names what a file holds and this package lacks."""
    what = " and ".join(part.what for part in unknown)
    choice = " and ".join(dict.fromkeys(part.nearest for part in unknown))
    if (path.parent / "config.json").is_file():
        choice = choice.replace(FOLDER, f"its folder, as hf:{path.parent}")
    return UserError(f"{path} holds {what}, which mgdet does not have; the nearest is {choice}")
