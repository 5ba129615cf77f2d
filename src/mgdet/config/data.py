"""The section that describes a data set, and how its images are prepared."""

from __future__ import annotations

from dataclasses import dataclass

from mgdet.sections import Section, require


@dataclass(kw_only=True, slots=True)
class DataConfig(Section):
    """A data set, and how its images are prepared. Names that are empty are found by looking (`mgdet.data.layouts`)."""

    root: str = "data/coco"
    """Folder of the data set. The annotation and image paths are relative to it; those left empty are found."""
    train_annotations: str = ""
    """What to train on: a COCO .json, YOLO's data.yaml, a list in VOC's ImageSets/Main, or a folder of VOC's .xml."""
    train_images: str = ""
    """Folder of the training images; for YOLO the split's name in data.yaml."""
    val_annotations: str = ""
    """What to evaluate on, as `train_annotations`."""
    val_images: str = ""
    """Folder of the evaluation images; for YOLO the split's name in data.yaml."""
    val_share: float = 0.0
    """Take this share of the training images for evaluation, 0.1 for a tenth; 0: the data set has its own split."""
    split_seed: int = 0
    """Which images `val_share` takes; not `train.seed`, so that runs of several seeds are measured on the same."""
    long_edge: int = 1333
    """The longer edge of a resized image is at most this many pixels."""
    short_edge: tuple[int, int] = (800, 800)
    """The shorter edge in pixels, lowest and highest: training draws one, testing takes the highest."""
    short_edge_step: int = 1
    """Training draws the shorter edge in steps of this many pixels, from the lowest on."""
    square: int = 0
    """Squash images to squares of this edge in pixels instead of keeping their ratio; 0: keep it."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    workers: int = 2
    """Processes that read images, for each training process."""

    def check_values(self) -> None:
        low, high = self.short_edge
        require(0 < low <= high, f"data.short_edge is {low} {high}; give a lowest and a highest edge in pixels")
        require(self.square >= 0, f"data.square is {self.square}; give an edge in pixels, or 0")
        require(self.short_edge_step >= 1, f"data.short_edge_step is {self.short_edge_step}; give 1 or more")
        require(0 <= self.val_share < 1, f"data.val_share is {self.val_share}; give a share from 0 to below 1")
        require(self.split_seed >= 0, f"data.split_seed is {self.split_seed}; give 0 or more")
        require(0 <= self.flip <= 1, f"data.flip is {self.flip}; give a probability from 0 to 1")
        require(self.workers >= 0, f"data.workers is {self.workers}; give 0 or more")

    def check_together(self) -> None:
        high = self.short_edge[1]
        require(self.long_edge >= high, f"data.long_edge is {self.long_edge}; give at least short_edge, {high}")
