"""The section of what training does to its images beyond their size and the flip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mgdet.sections import Section, require


@dataclass(kw_only=True, slots=True)
class AugmentConfig(Section):
    """Random changes of the training images beyond size and flip (see docs/training.md); all are off, as published."""

    crop: float = 0.0
    """Probability of a random crop, which is taken from the image file before it is resized."""
    crop_rule: Literal["relative_range", "relative", "absolute_range", "absolute"] = "relative_range"
    """How large a crop is, by the rules of MMDetection's RandomCrop; see `crop_size`."""
    crop_size: tuple[float, float] = (0.5, 0.5)
    """relative: shares of height and width; relative_range: the lowest shares, up to 1; absolute: height and width in
    pixels of the image file; absolute_range: lowest and highest edge in pixels, e.g. 384 600."""
    crop_empty: bool = False
    """Also take crops without any object, like MMDetection's allow_negative_crop."""
    color_jitter: float = 0.0
    """Strength of random changes of brightness, contrast, saturation and hue: 1 has the ranges of SSD and of
    MMDetection's PhotoMetricDistortion; 0: none."""
    mosaic: float = 0.0
    """Probability that an image is a mosaic of itself and three others."""

    @property
    def on(self) -> bool:
        """Is anything changed at all?"""
        return self.crop > 0 or self.color_jitter > 0 or self.mosaic > 0

    def check_values(self) -> None:
        for name in ("crop", "mosaic"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"augment.{name} is {value}; give a probability from 0 to 1")
        require(
            0 <= self.color_jitter <= 1, f"augment.color_jitter is {self.color_jitter}; give a strength from 0 to 1"
        )
        require(min(self.crop_size) > 0, f"augment.crop_size is {self._size()}; give two positive numbers")

    def check_together(self) -> None:
        low, high = self.crop_size
        if self.crop_rule.startswith("relative"):
            require(
                max(low, high) <= 1,
                f"augment.crop_size is {self._size()}, but augment.crop_rule {self.crop_rule} takes shares from 0 to "
                "1, e.g. 0.5 0.5",
            )
            return
        example = "384 600" if self.crop_rule == "absolute_range" else "512 512"
        require(
            low >= 1 and high >= 1 and low.is_integer() and high.is_integer(),
            f"augment.crop_size is {self._size()}, but augment.crop_rule {self.crop_rule} takes whole pixels, e.g. "
            f"{example}",
        )
        require(
            self.crop_rule != "absolute_range" or low <= high,
            f"augment.crop_size is {self._size()}; give the lowest edge and then the highest",
        )

    def _size(self) -> str:
        return f"{self.crop_size[0]:g} {self.crop_size[1]:g}"
