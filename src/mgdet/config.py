"""One run as one value: `Config` and its sections, with strict reading and writing.

A recipe (`mgdet.recipes`) returns a `Config`; the command line changes fields of it; the loop stores it beside the
run, and `Config.from_dict` reads it back.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from mgdet.errors import UserError
from mgdet.sections import Section, plain, read, require

Metric = Literal["bbox", "segm"]

ROIS_PER_IMAGE = 512
METHODS = ("mgd", "pkd", "fgd")
"""Sections of `Config` that are methods of distillation."""


SGD_RATES_FROM = 0.01
"""Learning rates for 16 images from here on are for SGD; AdamW diverges at them."""


@dataclass(kw_only=True, slots=True)
class ModelConfig(Section):
    """One detector: its architecture and the weights it starts from."""

    detector: str
    """One of ours, e.g. retinanet, or SOURCE:NAME of another library: torchvision:NAME, hf:NAME, libreyolo:NAME, and
    timm:NAME for a teacher."""
    backbone: str = ""
    """Any timm backbone with four feature stages, e.g. resnet50 or resnext101_64x4d; only for our detectors."""
    deformable: bool = False
    """Deformable 3x3 convolutions (version 1) in stages c3 to c5 of a ResNet with bottlenecks."""
    channels: int = 256
    """Width of the neck and of the heads."""
    frozen_stages: int = 1
    """How many backbone stages, counted with the stem, do not train: 1 is the stem and the first stage."""
    norm_eval: bool = True
    """Keep the backbone's batch norm statistics fixed in training. Turn off only to train from random weights."""
    rois_per_image: int = ROIS_PER_IMAGE
    """Regions of an image that the second stage trains on; only Faster, Mask and Cascade Mask R-CNN have one."""
    weights: str = "random"
    """Where training starts: random, timm:NAME for a backbone, a checkpoint file, or its URL. Detectors of other
    libraries also know pretrained, backbone, and the library's own names of weights."""
    canvas: tuple[int, int] = (0, 0)
    """Height and width of the images that a teacher sees, squashed to them; 0 0: those of the student, rounded to what
    the teacher takes."""
    precision: Literal["step", "fp32", "bf16"] = "step"
    """The precision that a teacher runs in. step: that of `train.amp`; fp32 or bf16, whatever that says."""

    def check_values(self) -> None:
        require(
            self.channels > 0 and self.channels % 32 == 0,
            f"channels is {self.channels}; give a multiple of 32",
        )
        require(0 <= self.frozen_stages <= 4, f"frozen_stages is {self.frozen_stages}; give 0 to 4")
        require(self.rois_per_image >= 1, f"rois_per_image is {self.rois_per_image}; give 1 or more")
        require(
            min(self.canvas) > 0 or self.canvas == (0, 0),
            f"canvas is {self.canvas[0]} {self.canvas[1]}; give a height and a width in pixels, or 0 0",
        )

    @property
    def source(self) -> str:
        """The library that the detector comes from; empty for ours."""
        source, colon, _ = self.detector.partition(":")
        return source if colon else ""


@dataclass(kw_only=True, slots=True)
class MGDConfig(Section):
    """Masked Generative Distillation, the same on every level (paper, section 3)."""

    weight: float = 0.0
    """Weight of the loss, alpha in the paper: 2e-5 for one-stage, 5e-7 for two-stage detectors; 0: off."""
    mask_ratio: float = 0.65
    """Share of the student's cells that is masked, lambda in the paper: 0.65 one-stage, 0.45 two-stage."""

    def check_values(self) -> None:
        require(self.weight >= 0, f"mgd.weight is {self.weight}; give 0 or more")
        require(0 <= self.mask_ratio <= 1, f"mgd.mask_ratio is {self.mask_ratio}; give a share from 0 to 1")


@dataclass(kw_only=True, slots=True)
class PKDConfig(Section):
    """Distillation by Pearson correlation (arXiv 2207.02039)."""

    weight: float = 0.0
    """Weight of the loss: 10 for one-stage, 6 for two-stage detectors in the paper; 0: off."""
    levels: int = 4
    """How many levels are compared, from the finest on."""

    def check_values(self) -> None:
        require(self.weight >= 0, f"pkd.weight is {self.weight}; give 0 or more")
        require(self.levels >= 1, f"pkd.levels is {self.levels}; give 1 or more")


@dataclass(kw_only=True, slots=True)
class FGDConfig(Section):
    """Focal and Global Distillation (arXiv 2111.11837); the parts' defaults are RetinaNet's."""

    weight: float = 0.0
    """Weight of the whole loss: 1 is as published; 0: off."""
    temperature: float = 0.5
    """Of the attention, tau in the paper."""
    foreground: float = 1e-3
    """Weight of the cells of objects, alpha in the paper: 1e-3 RetinaNet and SOLO, 1.6e-3 RepPoints, 5e-5 two-stage."""
    background: float = 5e-4
    """Weight of the other cells, beta in the paper: 5e-4, 8e-4, 2.5e-5."""
    attention: float = 5e-4
    """Weight of the attention loss, gamma in the paper: 5e-4, 8e-4, 5e-5."""
    relation: float = 5e-6
    """Weight of the relation loss, lambda in the paper: 5e-6, 8e-6, 5e-7."""

    def check_values(self) -> None:
        for name in ("weight", "foreground", "background", "attention", "relation"):
            require(getattr(self, name) >= 0, f"fgd.{name} is {getattr(self, name)}; give 0 or more")
        require(self.temperature > 0, f"fgd.temperature is {self.temperature}; give a positive number")


@dataclass(kw_only=True, slots=True)
class PairingConfig(Section):
    """Which level of the teacher teaches which level of the student, and in what form."""

    pairs: tuple[str, ...] = ()
    """Pairs as strides, STUDENT:TEACHER, e.g. 8:8 16:14; empty: each level takes the nearest stride."""
    standardise: bool | None = None
    """Bring each channel of the teacher to mean 0 and deviation 1 over the batch; None: where either side is a
    detector of another library."""


@dataclass(kw_only=True, slots=True)
class DataConfig(Section):
    """A data set, and how its images are prepared. Names that are empty are found by looking (`mgdet.data.layouts`)."""

    root: str = "data/coco"
    """Folder of the data set; the next four are inside it, and found by looking where they are empty."""
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


@dataclass(kw_only=True, slots=True)
class OptimizerConfig(Section):
    """One optimizer over student and generators, one parameter group."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd, as published; adamw for students that start from random weights or are no ResNets."""
    lr: float
    """Learning rate for `base_batch` images per step; scaled in proportion to the real number."""
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
        require(0 < self.backbone_share <= 1, f"optimizer.backbone_share is {self.backbone_share}; give over 0 to 1")
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
    """Images for each process and each forward pass."""
    accumulate: int = 1
    """Forward passes whose gradients make one step."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Automatic mixed precision; MGD and the detection losses stay in float32."""
    compile: bool = False
    """Compile backbones and necks with torch.compile, one graph for all image sizes; the first step takes minutes."""
    seed: int = 0
    """Seed of everything random: start weights, order of images, flips, masks, samplers."""
    log_every: int = 50
    """Steps between two log lines."""
    save_every: int = 1000
    """Steps between two checkpoints, beside the one at the end of each epoch."""
    eval_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated. 0: never."""
    metrics: tuple[Metric, ...] = ("bbox",)
    """What an evaluation measures; the first decides which checkpoint is the best."""
    stop_after: int = 0
    """Save and stop after this many steps of the schedule; 0 runs all of it."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run's folder (pip install 'mgdet[tensorboard]')."""
    wandb: str = ""
    """Also log to this Weights & Biases project (pip install 'mgdet[wandb]'); empty: do not."""

    def check_values(self) -> None:
        for name in ("batch", "accumulate", "log_every", "save_every"):
            require(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; give 1 or more")
        require(self.eval_every >= 0, f"train.eval_every is {self.eval_every}; give 0 or more")
        require(self.seed >= 0, f"train.seed is {self.seed}; give 0 or more")
        require(self.stop_after >= 0, f"train.stop_after is {self.stop_after}; give 0 or more")
        require(len(self.metrics) > 0, "train.metrics is empty; give bbox, segm or both")


@dataclass(kw_only=True, slots=True)
class Config(Section):
    """Everything that decides a run."""

    student: ModelConfig
    """The detector that trains."""
    teacher: ModelConfig | None = None
    """The frozen detector it learns from; None for training alone."""
    inherit: bool = False
    """Start the student's neck and head as a copy of the teacher's."""
    mgd: MGDConfig = field(default_factory=MGDConfig)
    """Masked Generative Distillation."""
    pkd: PKDConfig = field(default_factory=PKDConfig)
    """Distillation by Pearson correlation."""
    fgd: FGDConfig = field(default_factory=FGDConfig)
    """Focal and Global Distillation."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Which levels are compared."""
    data: DataConfig
    """The images."""
    optimizer: OptimizerConfig
    """How weights change."""
    schedule: ScheduleConfig
    """How long, and at which rate."""
    train: TrainConfig
    """The loop."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The sections of the methods that are on."""
        return tuple(name for name in METHODS if getattr(self, name).weight > 0)

    def check_together(self) -> None:
        """Refuses what settings cannot mean together: a teacher that teaches nothing, methods without one,
        or a teacher's setting on the student.

        Raises:
            UserError: says which setting is wrong or missing.
        """
        for entry in dataclasses.fields(self):
            section = getattr(self, entry.name)
            if isinstance(section, Section):
                section.check_together()
        if self.student.precision != "step":
            raise UserError(
                f"student.precision is {self.student.precision}, but a student trains in the precision of train.amp; "
                "give --train.amp, or --teacher.precision for its teacher"
            )
        require(
            self.student.canvas == (0, 0),
            f"student.canvas is {self.student.canvas[0]} {self.student.canvas[1]}, but only a teacher has a canvas of "
            "its own; give --data.square or --data.short-edge",
        )
        if self.teacher is None and (self.methods or self.inherit):
            what = (
                f"{self.methods[0]}.weight is {getattr(self, self.methods[0]).weight:g}"
                if self.methods
                else "inherit is on"
            )
            raise UserError(f"{what}, but there is no teacher; give --teacher.detector and --teacher.weights")
        if self.teacher is not None and not self.methods and not self.inherit:
            raise UserError(
                "there is a teacher, but nothing is learned from it: every method's weight is 0 and inherit is off; "
                "give e.g. --mgd.weight 2e-5"
            )

    def to_dict(self) -> dict[str, Any]:
        """This config as plain dicts, lists and scalars, ready for JSON."""
        result: dict[str, Any] = plain(dataclasses.asdict(self))
        return result

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Reads what `to_dict` wrote, also before a field came in: what is missing takes its default.

        Raises:
            UserError: a field is unknown or of another type, or one without a default is missing.
        """
        config: Config = read(cls, _modern(values), "config")
        return config


def _modern(values: Any) -> Any:
    """The config of a run from before methods had sections that are always there, and inherit was the run's."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    mgd = values.get("mgd", {})
    if mgd is None:
        del values["mgd"]
    elif isinstance(mgd, dict) and "inherit" in mgd:
        values["mgd"] = {name: value for name, value in mgd.items() if name != "inherit"}
        values.setdefault("inherit", mgd["inherit"])
    return values
