"""What a run is fed with: its data sets, as the config describes them, and the order of the images."""

from __future__ import annotations

import dataclasses

from mgdet.config import Config
from mgdet.data.dataset import DetectionDataset, check_same_classes
from mgdet.data.open import open_splits
from mgdet.data.sampler import TrainSampler
from mgdet.distributed import World
from mgdet.errors import UserError
from mgdet.evaluate.coco import check_truth
from mgdet.models import has_masks


def open_data(config: Config, world: World | None = None) -> tuple[Config, DetectionDataset, DetectionDataset]:
    """The data sets to train and to evaluate on, and the config with the names of what was found.

    The processes of a machine read them once together.

    Raises:
        UserError: a split is missing or cannot be read, the two have other classes, or masks are to be measured where
            the detector or the annotations have none.
    """
    masks, measures_masks = has_masks(config.student), "segm" in config.train.metrics
    if measures_masks and not masks:
        raise UserError(f"train.metrics has segm, but a {config.student.detector} finds only boxes; choose bbox")
    barrier = world.barrier if world is not None else lambda: None
    splits = open_splits(config.data, train_masks=masks, val_masks=measures_masks, barrier=barrier)
    train, val = splits.records["train"], splits.records["val"]
    check_same_classes(train, val)
    check_truth(val, config.train.metrics)
    train_data = DetectionDataset(train, training=True, masks=masks, augment=config.augment)
    train_data.notes.insert(0, splits.line)
    return dataclasses.replace(config, data=splits.data), train_data, DetectionDataset(val, training=False)


def sampler_of(config: Config, data: DetectionDataset, world: World, *, start_step: int = 0) -> TrainSampler:
    """The order in which a process of a run sees the images of `data`, from a step on."""
    return TrainSampler(
        data.portrait,
        batch=config.train.batch,
        accumulate=config.train.accumulate,
        rank=world.rank,
        world_size=world.size,
        seed=config.train.seed,
        long_edge=config.data.long_edge,
        short_edge=config.data.short_edge,
        short_edge_step=config.data.short_edge_step,
        flip=config.data.flip,
        square=config.data.square,
        seeds=config.augment.on,
        start_step=start_step,
    )
