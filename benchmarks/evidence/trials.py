"""One detector alone on the validation images: how a pair's settings are found before anything is searched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evidence.arms import student_config, teacher_config
from evidence.choose import SEED
from evidence.pairs import Bccd, Pair, Shapes
from evidence.runs import Planned
from mgdet.errors import UserError

TRIALS_FOLDER = "trials"


def seeing(pair: Pair, *, num_train: int | None, smallest: float | None) -> Pair:
    """A pair whose teacher and student see the same images, those of its student or others.

    Args:
        pair: the pair.
        num_train: how many are trained on; None for as many as the student's.
        smallest: area in square pixels that no object is drawn smaller than; None for the pair's.

    Raises:
        UserError: there are no such images.
    """
    images: Shapes | Bccd = pair.images
    if num_train is not None:
        if num_train < 1:
            raise UserError(f"--num-train is {num_train}; give 1 or more")
        images = replace(images, num_train=num_train)
    if smallest is not None:
        if not isinstance(images, Shapes):
            raise UserError("--smallest is for pairs on shapes; photographs are as they are")
        images = replace(images, smallest=smallest)
    return replace(pair, images=images, teacher_num_train=0)


def trial(pair: Pair, root: Path, name: str, who: str, *, epochs: int, rate: float, decay: float) -> Planned:
    """One run of a detector alone, with the seed of the searches.

    Args:
        pair: the pair, with the images that are seen.
        root: of everything.
        name: of the pair.
        who: "teacher" or "student".
        epochs, rate, decay: the schedule, its learning rate for 16 images per step, and weight decay.
    """
    if who == "teacher":
        pair = replace(pair, teacher_rate=rate, teacher_decay=decay)
        config = teacher_config(pair, root, epochs=epochs, seed=SEED)
    else:
        config = student_config(pair, root, epochs=epochs, rate=rate, decay=decay, seed=SEED)
    folder = f"{name}-{who}-{pair.images.name}-{epochs}-epochs-lr-{rate:g}-decay-{decay:g}"
    return Planned(root / TRIALS_FOLDER / folder, config)
