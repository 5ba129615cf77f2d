"""What a recipe is, and the settings that the published recipes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mgdet.config import Config

MMDETECTION = "https://download.openmmlab.com/mmdetection/v2.0/"
IMAGENET_R50 = "timm:resnet50.tv_in1k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One experiment: a function that returns its config, and what is published about it.

    build: returns a fresh config.
    student: the detector that trains, for people.
    teacher: the detector that it learns from; empty for training alone.
    baseline: published COCO mAP of the student trained alone, e.g. `box 37.4`; empty where none is published.
    distilled: published COCO mAP with MGD; empty for training alone.
    original: name of the original system's config.
    checkpoint: file name of the official MMDetection checkpoint that belongs to it: the teacher's, or its own.
    """

    build: Callable[[], Config]
    student: str
    teacher: str = ""
    baseline: str = ""
    distilled: str = ""
    original: str = ""
    checkpoint: str = ""
