"""The sections of the optimizer, the schedule and the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mgdet.sections import Section, require

Metric = Literal["bbox", "segm"]

SEEDS = 2**64
"""Seeds that torch knows, from 0 on."""

SGD_RATES_FROM = 0.01
"""Learning rates for 16 images from here on are for SGD; AdamW diverges at them."""


@dataclass(kw_only=True, slots=True)
class OptimizerConfig(Section):
    """One optimizer for the student and the generators."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd, as published; adamw for students that start from random weights or are not ResNets."""
    lr: float
    """Learning rate for `base_batch` images per step; scaled in proportion to the actual number."""
    base_batch: int = 16
    """Images per step that `lr` is meant for."""
    momentum: float = 0.9
    """Momentum of SGD; AdamW's first beta."""
    weight_decay: float = 1e-4
    """Weight decay of every trained parameter."""
    backbone_share: float = 1.0
    """The backbone's share of the learning rate; 0.1 is usual for detectors of the DETR family."""
    clip_norm: float = 35.0
    """Gradients of student and generators together are clipped to this L2 norm."""

    def check_values(self) -> None:
        require(self.lr > 0, f"optimizer.lr is {self.lr}; give a positive rate")
        require(self.base_batch > 0, f"optimizer.base_batch is {self.base_batch}; give 1 or more")
        require(0 <= self.momentum < 1, f"optimizer.momentum is {self.momentum}; give a number from 0 to below 1")
        require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}; give 0 or more")
        require(
            0 < self.backbone_share <= 1,
            f"optimizer.backbone_share is {self.backbone_share}; give a share above 0, at most 1",
        )
        require(self.clip_norm > 0, f"optimizer.clip_norm is {self.clip_norm}; give a positive norm")

    def check_together(self) -> None:
        lr = self.lr * 16 / self.base_batch
        require(
            self.name != "adamw" or lr < SGD_RATES_FROM,
            f"optimizer.lr is {self.lr:g}, a rate for sgd, but optimizer.name is adamw, which diverges at it; give "
            f"optimizer.lr too, e.g. {0.0001 * self.base_batch / 16:g}",
        )


@dataclass(kw_only=True, slots=True)
class ScheduleConfig(Section):
    """The learning rate as a function of the step: linear warm-up, then drops to a tenth, or a cosine."""

    shape: Literal["steps", "cosine"] = "steps"
    """steps: the rate falls at `drops`, as published; cosine: it falls to `cosine_floor` over the whole run."""
    cosine_floor: float = 0.01
    """The share of the rate at which a cosine ends."""

    epochs: int
    """Passes over the training images."""
    drops: tuple[int, ...]
    """After how many epochs the rate falls to a tenth."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    warmup_ratio: float = 0.001
    """The first step's share of the rate."""

    def check_values(self) -> None:
        require(self.epochs >= 1, f"schedule.epochs is {self.epochs}; give 1 or more")
        require(all(drop >= 1 for drop in self.drops), f"schedule.drops is {self.drops}; give epochs from 1 on")
        require(0 <= self.cosine_floor <= 1, f"schedule.cosine_floor is {self.cosine_floor}; give a share from 0 to 1")
        require(self.warmup_steps >= 0, f"schedule.warmup_steps is {self.warmup_steps}; give 0 or more")
        require(0 <= self.warmup_ratio <= 1, f"schedule.warmup_ratio is {self.warmup_ratio}; give a share from 0 to 1")


@dataclass(kw_only=True, slots=True)
class TrainConfig(Section):
    """The loop."""

    batch: int = 2
    """Images for each process and each forward pass. On the command line also auto: the most that fit on the GPU, tried
    out before the run; its config holds the number."""
    accumulate: int = 1
    """Forward passes whose gradients make one step."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Automatic mixed precision: convolutions in it; errors, their sums and the detection losses stay in float32."""
    compile: bool = False
    """Compile backbones and necks with torch.compile, one graph for all image sizes; the first step takes minutes."""
    checkpoint_backbone: bool = False
    """Keep only the inputs of the backbone's blocks and compute them again in the backward pass: the same numbers in
    less memory and more time."""
    seed: int = 0
    """Seed of everything random: start weights, order of images, flips, masks, samplers."""
    log_every: int = 50
    """Steps between two log lines."""
    save_every: int = 1000
    """Steps between two checkpoints, in addition to the one at the end of each epoch."""
    eval_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated. 0: never."""
    metrics: tuple[Metric, ...] = ("bbox",)
    """What an evaluation measures; the first decides which checkpoint is the best."""
    patience: int = 0
    """End the run once so many evaluations in a row brought no better AP of the first metric; 0: never."""
    ema: float = 0.0
    """Decay of an exponential moving average of the student's weights, e.g. 0.9998; it is the average that is then
    evaluated and saved. 0: off, as published."""
    stop_after: int = 0
    """Save and stop after this many steps of the schedule; 0 runs all of it."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run's folder (pip install 'mgdet[tensorboard]')."""
    wandb: str = ""
    """Also log to this Weights & Biases project (pip install 'mgdet[wandb]'); empty: do not."""
    mlflow: str = ""
    """Also log to this experiment of MLflow, where MLFLOW_TRACKING_URI says (pip install 'mgdet[mlflow]'); empty: do
    not."""

    def check_values(self) -> None:
        for name in ("batch", "accumulate", "log_every", "save_every"):
            require(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; give 1 or more")
        require(self.eval_every >= 0, f"train.eval_every is {self.eval_every}; give 0 or more")
        require(0 <= self.seed < SEEDS, f"train.seed is {self.seed}; give 0 or more, below 2**64")
        require(self.stop_after >= 0, f"train.stop_after is {self.stop_after}; give 0 or more")
        require(self.patience >= 0, f"train.patience is {self.patience}; give 0 or more")
        require(0 <= self.ema < 1, f"train.ema is {self.ema}; give a decay from 0 to below 1, e.g. 0.9998")
        require(len(self.metrics) > 0, "train.metrics is empty; give bbox, segm or both")

    def check_together(self) -> None:
        require(
            not self.patience or self.eval_every > 0,
            f"train.patience is {self.patience}, but train.eval_every is 0, so nothing is evaluated; give "
            "--train.eval-every 1",
        )
        require(
            not (self.checkpoint_backbone and self.compile),
            "train.checkpoint_backbone and train.compile are both on, which do not go together; leave one of them out",
        )
