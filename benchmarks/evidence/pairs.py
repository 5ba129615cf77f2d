"""The pairs: which detectors, on which images, how long, and what is searched for them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from mgdet.config import PROPOSALS_PER_LEVEL, ROIS_PER_IMAGE, FGDConfig, Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Pictures that are drawn: `mgdet.demo.shapes`.

    size: (h, w) in pixels; half of the images are turned.
    num_train, num_val, num_test: how many. Validation and test images come from different seeds.
    smallest: area in square pixels that no object is drawn smaller than.
    """

    size: tuple[int, int] = (128, 160)
    num_train: int = 200
    num_val: int = 300
    num_test: int = 600
    smallest: float = 0.0

    @property
    def name(self) -> str:
        """The data set's folder."""
        least = f"-{self.smallest:g}" if self.smallest else ""
        return f"shapes-{self.size[0]}x{self.size[1]}-{self.num_train}{least}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bccd:
    """Photographs of blood cells: 292 to train and 72 to evaluate on, 640 x 480 pixels, 3 classes.

    The 72 are the test images, as others report on them. Validation images are taken from the 292.

    size: (h, w) in pixels that landscape photographs are resized to, once.
    num_train, num_val: how many of the 292 train and validate.
    """

    size: tuple[int, int] = (120, 160)
    num_train: int = 232
    num_val: int = 60

    @property
    def name(self) -> str:
        """The data set's folder."""
        return f"bccd-{self.size[0]}x{self.size[1]}-{self.num_train}"


BF16_EDGE = 64
"""The stride, in pixels, of the last map that a convolution of stride 2 reads, in RetinaNet and RepPoints."""


DECAY = 0.01
"""AdamW's weight decay, where it is not searched for: searches of a rate and, but where a pair says another, the
teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A teacher and a student, everything that all arms share, and what is searched.

    teacher, student: detectors of this package.
    choices_of: the pair whose teacher, lengths, rates, decays and strengths are taken, so that nothing is searched for
        this one; it has the same teacher and images. Empty for choices of its own.
    images: what they see.
    teacher_num_train: how many images the teacher is trained on, of which the students' are the first, as where a
        teacher has seen more than its students get; 0: the students' images.
    on_teacher_images: where it has, three more arms are trained on all of them.
    note: what a reader of the page has to know about how these settings came about.
    metrics: what is measured; choices go by AP of the first.
    pretraining: steps in which the backbones learn to tell single shapes apart (`backbones.py`); 0: random weights.
    channels: width of necks and heads.
    rois_per_image: regions that train a second stage.
    proposals_per_level: boxes of a level that compete for it.
    grids: of a SOLO.
    amp: the precision of training, bf16 for the time it saves on processors that have it. On a CPU the gradients of
        bf16 convolutions of stride 2 are wrong where a map is one cell wide: images must be wider than `BF16_EDGE`.
    epochs: the student's schedule 1x; its length is a power of two times that.
    longest: no schedule of the student is longer than this many times 1x.
    teacher_epochs: the teacher's 1x.
    teacher_longest: no schedule of the teacher is longer than this many times its 1x.
    teacher_rate, teacher_decay: the teacher's learning rate and weight decay.
    rates: learning rates that are searched for arms without a method, for 16 images per step.
    decays: weight decays that are searched for them.
    strength: the setting by which methods are searched, a weight or a share of the gradient.
    strengths: for each method, its values that are searched, as many as there are rates; the published weight of MGD
        and PKD for one-stage detectors, and FGD's parts as published times these.
    mask_ratio: MGD's, as published.
    fgd: the parts of FGD, as published.
    seeds, sweep_seeds: how many runs are reported of each arm, and of each value of a sweep.
    """

    teacher: str
    student: str
    choices_of: str = ""
    images: Shapes | Bccd = Shapes()
    teacher_num_train: int = 0
    on_teacher_images: bool = True
    note: str = ""
    metrics: tuple[Metric, ...] = ("bbox",)
    teacher_backbone: str = "resnet18"
    student_backbone: str = "test_resnet"
    pretraining: int = 1500
    channels: int = 64
    rois_per_image: int = ROIS_PER_IMAGE
    proposals_per_level: int = PROPOSALS_PER_LEVEL
    grids: tuple[int, ...] = ()
    batch: int = 8
    amp: Literal["off", "bf16"] = "bf16"
    epochs: int = 32
    longest: int = 16
    teacher_epochs: int = 32
    teacher_longest: int = 16
    teacher_rate: float = 0.004
    teacher_decay: float = DECAY
    rates: tuple[float, ...] = (0.002, 0.004, 0.008)
    decays: tuple[float, ...] = (0.001, DECAY, 0.1)
    strength: str = "weight"
    strengths: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {
            "mgd": (5e-6, 2e-5, 8e-5),
            "pkd": (1.5, 6.0, 24.0),
            "fgd": (0.5, 2.0, 8.0),
        }
    )
    mask_ratio: float = 0.65
    fgd: FGDConfig = field(default_factory=FGDConfig)
    seeds: int = 3
    sweep_seeds: int = 3

    @property
    def teacher_images(self) -> Shapes | Bccd:
        """What the teacher is trained on."""
        if not self.teacher_num_train:
            return self.images
        return replace(self.images, num_train=self.teacher_num_train)

    @property
    def as_teacher(self) -> Pair:
        """This pair on what the teacher is trained on."""
        return replace(self, images=self.teacher_images, teacher_num_train=0)


CASCADE = Pair(
    teacher="cascade_mask_rcnn",
    student="faster_rcnn",
    teacher_backbone="resnet10t",
    channels=32,
    rois_per_image=64,
    proposals_per_level=400,
    rates=(0.003, 0.006, 0.009),
    decays=(DECAY, 0.1, 0.4),
    teacher_num_train=1000,
    note=(
        "Which values are searched, how long schedules may be and what the teacher sees was set after an earlier round "
        "on the same training and validation images, in which decays ended at 0.1 and students at 64 epochs. There the "
        "best decay was at the edge; of larger ones, 1.6 is better than 0.4 at 32 epochs (44.5 and 44.1 AP) and worse "
        "at 256 (48.2 and 53.2 after three quarters), so the search ends at 0.4. The teacher of that round had seen "
        "the students' 200 images and reached 61.2 AP, less than 10 above a student alone that learns for 256 epochs, "
        "so now it sees 1,000. The test images are drawn anew."
    ),
    teacher_epochs=16,
    longest=8,
    strengths={"mgd": (5e-6, 2e-5, 8e-5), "pkd": (0.4, 1.5, 6.0), "fgd": (2.0, 8.0, 32.0)},
    teacher_longest=2,
    mask_ratio=0.45,
    fgd=FGDConfig(foreground=5e-5, background=2.5e-5, attention=5e-5, relation=5e-7),
)
BY_TIME = (
    "How long schedules may be was set by the time there was, and what the teacher sees by rounds of a Faster R-CNN on "
    "`shapes`."
)
"""The note of pairs whose settings were set before any of their runs."""
LARGER = (
    f"{BY_TIME} MGD's and FGD's values are larger than those published, because the losses are sums over cells and "
    "these images have a fiftieth of them."
)
ONE_STAGE = Pair(
    teacher="retinanet",
    student="retinanet",
    teacher_backbone="resnet10t",
    teacher_num_train=1000,
    note=LARGER,
    longest=2,
    teacher_epochs=8,
    teacher_longest=4,
    teacher_rate=0.006,
    teacher_decay=0.1,
    rates=CASCADE.rates,
    decays=CASCADE.decays,
    strengths={"mgd": (2e-5, 1e-4, 5e-4), "pkd": (1.5, 6.0, 24.0), "fgd": (2.0, 8.0, 32.0)},
    sweep_seeds=1,
)
FEW = replace(
    ONE_STAGE,
    images=Shapes(num_train=50, smallest=1080.0),
    epochs=128,
    longest=4,
    teacher_epochs=16,
    teacher_longest=2,
)
"""Few scenes, and none with small objects: of more, or with those, students are far from their plateau after all the
epochs there is time for. An epoch has 7 steps."""
SHARES = dict.fromkeys(("mgd", "pkd", "fgd"), (3.0,))
"""Shares of the gradient for pairs that search no strength."""
BY_SHARE = (
    "No strength is searched for a method: each has a share of 3, the default of `mgdet distill`, which of 0.3, 1, 3 "
    "and 10 was best on average for MGD on three other pairs."
)
"""What the notes of those pairs say of it."""
SMALL = replace(
    FEW,
    images=Shapes(size=(96, 128), num_train=100, num_val=200, smallest=650.0),
    channels=32,
    amp="off",
    on_teacher_images=False,
    longest=2,
    teacher_epochs=12,
    rates=(0.003, 0.006),
    decays=(DECAY, 0.4),
    strength="share",
    strengths=SHARES,
)
"""Small pictures, narrow detectors and short searches: what three seeds have time for without bfloat16."""

PAIRS: dict[str, Pair] = {
    "retinanet": replace(
        FEW,
        note=f"{LARGER} How few images the student gets, and that none has small objects, was set after trials on the "
        "same validation images. There a student alone on these 50 reached 12.1 AP after 128 epochs and 14.3 after "
        "256, which it had reached after half of them, too (rate 0.006, decay 0.1). On 200 images with small objects "
        "one reached 20.6 AP after 32 epochs and 30.9 after 64 (decay 0.4): far from its plateau. A teacher without "
        "small objects reached 40.7 after 8 epochs (rate 0.004, decay 0.01).",
        seeds=5,
    ),
    "faster_rcnn": CASCADE,
    "faster_rcnn_short": replace(
        CASCADE,
        longest=2,
        teacher_epochs=8,
        sweep_seeds=1,
        note="The pair, its images and the values that are searched are those of a longer round (faster_rcnn), in "
        "which students learned for 256 epochs and there was time for two seeds of most arms. So that three fit, "
        "students learn for at most 64 epochs here and the teacher for at most 16; in the longer round "
        "twice the teacher's length gained 0.5 AP. The test images are the same; 13 students of the longer round have "
        "been measured on them, and nothing was chosen by that.",
    ),
    "mask_rcnn": replace(
        CASCADE,
        student="mask_rcnn",
        choices_of="faster_rcnn_short",
        metrics=("bbox", "segm"),
        longest=2,
        sweep_seeds=1,
        note="Nothing is searched for this pair, for any arm: it has the teacher, the images and all choices of a "
        "Faster R-CNN (faster_rcnn_short), which is this student without its masks.",
    ),
    "reppoints": replace(
        SMALL,
        teacher="reppoints",
        student="reppoints",
        note=f"{BY_TIME} The pictures, how many there are, the width and what is searched are those of a SOLO on "
        "`shapes`, set by what three seeds had time for on a processor without bfloat16. The teacher's rate "
        "lies between two of trials on validation images, with pictures of 128 x 160 pixels, 64 channels and "
        "bfloat16: there a teacher reached 18.4 AP after 8 epochs at a rate of 0.006 (decay 0.1) and 18.5 at 0.0015 "
        f"(decay 0.05). {BY_SHARE}",
        epochs=32,
        teacher_rate=0.003,
        fgd=FGDConfig(foreground=1.6e-3, background=8e-4, attention=8e-4, relation=8e-6),
    ),
    "solo": replace(
        SMALL,
        teacher="solo",
        student="solo",
        metrics=("segm", "bbox"),
        grids=(12, 10, 8, 6, 5),
        note=f"{BY_TIME} The size of the pictures, the width, the grids and the number of images are what three seeds "
        "had time for on a processor without bfloat16. Rates were set after trials with pictures of 128 x 160 pixels, "
        "64 channels and bfloat16. There a teacher with the published grids reached 2.4 mask AP on the validation "
        "images after 4 of 8 epochs (rate 0.006, decay 0.1). With grids of 16 14 10 8 6 one reached 3.7 there and 16.1 "
        "at the end; at a rate of 0.0015 and a decay of 0.05 20.8, and after 32 epochs 51.7. Students alone on 50 "
        "images reached 4.4, 6.7 and 6.7 after 128, 256 and 512 epochs. With the settings of this page one reached 1.9 "
        "on 40 images after 128 epochs, and 3.6 on 100 images after 64. "
        f"{BY_SHARE}",
        epochs=48,
        teacher_rate=0.0015,
        teacher_decay=0.05,
    ),
    # BCCD has no masks, so the teacher of Faster R-CNN is one, too, and can be inherited. An epoch has 29 steps.
    "bccd_faster_rcnn": replace(
        CASCADE,
        teacher="faster_rcnn",
        images=Bccd(),
        teacher_num_train=0,
        note="",
        epochs=20,
        longest=16,
        teacher_epochs=40,
        teacher_longest=16,
    ),
    # As many steps as the pair above; an epoch has one.
    "bccd_faster_rcnn_few": replace(
        CASCADE,
        teacher="faster_rcnn",
        images=Bccd(num_train=8),
        teacher_num_train=232,
        note="How few photographs the student gets, and the teacher's rate and decay, were set after runs on the same "
        "validation images. There a student alone on 64, 32, 16 and 8 photographs reached 38.3, 35.9, 34.7 and 32.9 "
        "AP (580 steps at a rate of 0.006 and a decay of 0.1), on all 232 up to 43.1. Only for 8 was a teacher "
        "likely to be 10 above. At a rate of 0.004 and a decay of 0.01 it had reached 41.1 AP after 40 epochs.",
        epochs=576,
        longest=4,
        teacher_epochs=40,
        teacher_longest=2,
        teacher_rate=0.006,
        teacher_decay=0.4,
    ),
    "bccd_retinanet_few": replace(
        ONE_STAGE,
        images=Bccd(num_train=8),
        teacher_num_train=232,
        note="The photographs are those of a Faster R-CNN (bccd_faster_rcnn_few), where rounds had shown how few "
        "leave a student something to learn from a teacher. In trials on the same validation images a student alone "
        "reached 27.6 AP (1,152 epochs, rate 0.006, decay 0.1), and a teacher 41.1 after 20 of 40 epochs. The values "
        "that are searched for the methods are those of a RetinaNet on pictures of about this size.",
        epochs=576,
        longest=4,
        teacher_epochs=40,
        teacher_longest=2,
        seeds=5,
        sweep_seeds=3,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One setting of the best MGD arm at several values, everything else as it was chosen.

    name: of the arms, as in `mgd-inherits.mask-0.25`.
    setting: of the config.
    values: what it is set to.
    relative: the values are factors of what was chosen.
    instead: a setting that is 0 beside it.
    """

    name: str
    setting: str
    values: tuple[float, ...]
    relative: bool = False
    instead: str = ""


def sweeps_of(pair: Pair) -> tuple[Sweep, ...]:
    """The sweeps of a pair."""
    shares = Sweep(name="share", setting="mgd.share", values=(0.3, 1.0, 3.0, 10.0), instead="mgd.weight")
    return (
        Sweep(name="mask", setting="mgd.mask_ratio", values=(0.0, 0.25, 0.45, 0.65, 0.85)),
        Sweep(name=pair.strength, setting=f"mgd.{pair.strength}", values=(0.0625, 0.25, 4.0, 16.0), relative=True),
        *([shares] if pair.strength == "weight" else []),
    )
