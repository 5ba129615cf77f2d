"""A run before its first step: data, student and teacher, read and built from one config; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mgdet.config import Config
from mgdet.data.dataset import DetectionDataset
from mgdet.data.pictures import LOOKED_AT, depth_notes
from mgdet.data.sampler import TrainSampler
from mgdet.distributed import World
from mgdet.engine.checkpoint import State, check_all_see_it, find_run
from mgdet.engine.feed import open_data, sampler_of
from mgdet.engine.fit import with_batch
from mgdet.engine.recomputed import recompute_backbone
from mgdet.engine.schedule import check_drops, schedule_notes
from mgdet.evaluate.coco import check_patience
from mgdet.models import Models, build_models
from mgdet.precision import set_float32


@dataclass(slots=True)
class Prepared:
    """All that a run stands on.

    config: with the names of the data that was found.
    world: this process among the others.
    processes: of the run.
    train_data, val_data: the images.
    sampler: which of them each step takes.
    models: student and teacher.
    state: where the run in the folder stands; None if it starts.
    data_notes: what is to be said of the data.
    model_notes: what is to be said of weights, levels and products.
    schedule_notes: what of the schedule will not come about.
    """

    config: Config
    world: World
    processes: int
    train_data: DetectionDataset
    val_data: DetectionDataset
    sampler: TrainSampler
    models: Models
    state: State | None
    data_notes: list[str]
    model_notes: list[str]
    schedule_notes: list[str]


def prepare(
    config: Config,
    folder: Path | None,
    *,
    resume: bool,
    world: World,
    processes: int | None = None,
    fit_batch: bool = False,
) -> Prepared:
    """Reads and builds what a run needs.

    Args:
        config: the run.
        folder: the run's folder, which may hold it already; None: it starts, whatever is there.
        resume: resume the run in `folder`.
        world: this process among the others.
        processes: of the run, to look at it in one of them alone; None: as many as there are.
        fit_batch: replace `train.batch` by the largest number that fits on the GPU.

    Raises:
        UserError: bad input, said in one sentence.
    """
    config.check_together()
    processes = processes or world.size
    config, train_data, val_data = open_data(config, world)
    state = find_run(folder, config, resume=resume) if folder is not None else None
    if state is None:
        check_drops(config.schedule)
        check_patience(val_data.records, config.train.metrics[0], config.train.patience)
    step = state.step if state is not None else 0
    if folder is not None:
        check_all_see_it(folder, world.gather(step))
    data_notes = [
        *train_data.notes,
        *val_data.notes,
        *depth_notes([train_data.file(i) for i in range(min(LOOKED_AT, len(train_data)))]),
    ]
    model_notes: list[str] = []
    if fit_batch:
        config, line = with_batch(config, train_data, world, folder)
        model_notes.append(line)
    sampler = sampler_of(config, train_data, replace(world, size=processes), start_step=step)
    if folder is not None and state is not None:
        state.check(
            folder,
            images_per_step=config.train.batch * config.train.accumulate * processes,
            steps_per_epoch=sampler.steps_per_epoch,
            classes=train_data.classes,
        )
    torch.manual_seed(config.train.seed)
    models = world.in_turn(
        lambda: build_models(
            config,
            train_data.classes,
            fresh=state is None,
            say=model_notes.append,
            description=state.description if state else None,
        )
    )
    if folder is not None and state is not None:
        state.check_teacher(folder, models.teacher_sha256)
    if config.train.checkpoint_backbone:
        model_notes.append(recompute_backbone(models.student.student))
    model_notes += filter(None, [set_float32(world.device, exact=False)])
    return Prepared(
        config,
        world,
        processes,
        train_data,
        val_data,
        sampler,
        models,
        state,
        data_notes,
        model_notes,
        schedule_notes(config.schedule, sampler.steps_per_epoch),
    )
