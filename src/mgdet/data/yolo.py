"""YOLO's format: a YAML file with class names and image folders, and one text file of labels per image.

A line of a label file is a class number and then a box (centre x, centre y, width, height) or a polygon (x, y, x, y,
... of three points or more), as fractions of the image's size. An image whose label file is empty or missing has no
objects.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import yaml

from mgdet.data.image_files import list_images, upright_sizes
from mgdet.data.label_files import label_file, label_files, orphans_of
from mgdet.data.pictures import SUFFIXES
from mgdet.data.records import Reason, Records, RecordsBuilder
from mgdet.data.values import number
from mgdet.errors import UserError

YAML_SUFFIXES = (".yaml", ".yml")
MAX_YAML_BYTES = 1 << 18
MAX_LABEL_BYTES = 1 << 24
MAX_LIST_BYTES = 1 << 28
MAX_CLASSES = 10_000
OUTSIDE = 0.01
"""Shares may lie so far outside 0 .. 1: tools round."""

_APART = ("train", "training", "trainval", "val", "valid", "validation", "dev")
"""Keys of splits that are to have no image in common."""

_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every scalar is a text: no tag means anything, nothing runs


@dataclass(frozen=True, slots=True)
class Yaml:
    """What a data set's YAML file says.

    file: the YAML file.
    classes: names by label.
    keypoints: numbers that follow each box, for data sets of poses; 0 otherwise.
    """

    file: Path
    classes: tuple[str, ...]
    keypoints: int = 0


def read_yolo(file: Path, split: str, *, masks: bool, unlabelled: bool = False) -> Records:
    """Reads one split of a data set in YOLO's format.

    Args:
        file: the YAML file.
        split: the key of the split in it.
        masks: read polygons as masks; objects that have only a box are then left out.
        unlabelled: also take a split in which no image has a label file; its records are not `annotated`.

    Returns:
        The records; file names start from the YAML file's folder.

    Raises:
        UserError: something is missing, is not YOLO's format, or no image has a label file.
    """
    content = read_yaml(file)
    about = Yaml(file, _classes(content, file), _keypoints(content, file))
    images = split_images(file, content, split)
    builder = RecordsBuilder(str(file), file.parent, about.classes, masks=masks)
    sizes = upright_sizes([file.parent / name for name in images])
    labelled = 0
    for name, (height, width) in zip(images, sizes):
        index = builder.add_image(name, height, width)
        labels = label_file(file.parent / name)
        if labels is not None:
            labelled += 1
            _add_labels(builder, about, index, labels, height, width)
    orphans = orphans_of([file.parent / name for name in images])
    if orphans:
        builder.left_out.add(Reason.NO_IMAGE, f"'{orphans[0]}'", len(orphans))
    builder.annotated = labelled > 0
    if not labelled and not unlabelled:
        expected = label_files(file.parent / images[0])[0]
        raise UserError(
            f"none of the {len(images):,} images of {split} in '{file}' has a label file; "
            f"that of '{images[0]}' would be '{expected}'"
        )
    return builder.build()


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file as dict, lists and texts; numbers and tags stay texts.

    Raises:
        UserError: the file cannot be read, or is not a YAML file with names at its top.
    """
    content = read_bytes(file, MAX_YAML_BYTES)
    try:
        values = yaml.load(content, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).replace('in "<byte string>", ', "at ").split())
        raise UserError(f"'{file}' is not a YAML file: {reason:.200}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"'{file}' has no names at its top, such as names:, train: and val:")
    return values


def read_bytes(file: Path, most: int) -> bytes:
    """A small file's content.

    Raises:
        UserError: the file cannot be read, or holds more than `most` bytes.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(most + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > most:
        raise UserError(f"'{file}' has more than {most:,} bytes, which no such file needs")
    return content


def _classes(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    """Class names by label, from `names` as a list or as numbers with names, or only their number `nc`."""
    names, number = content.get("names"), content.get("nc")
    count = None
    if number is not None:
        count = _integer(number)
        if count is None or not 1 <= count <= MAX_CLASSES:
            raise UserError(f"'{file}' has nc {_shown(number)}, which is not a number of classes")
    if isinstance(names, dict):
        numbers = [_integer(key) for key in names]
        if sorted(-1 if n is None else n for n in numbers) != list(range(len(names))):
            raise UserError(
                f"'{file}' numbers its names {_shown(', '.join(map(str, list(names)[:5])))}; they count 0, 1, 2, ..."
            )
        names = [name for _, name in sorted(zip(numbers, names.values()), key=lambda pair: pair[0] or 0)]
    elif names is None and count is not None:
        names = [f"class {label}" for label in range(count)]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"'{file}' has names that are not a list of strings; write names: [first, second, ...]")
    if count is not None and count != len(names):
        raise UserError(f"'{file}' has nc {count} and {len(names)} names; they must agree")
    if len(names) > MAX_CLASSES:
        raise UserError(f"'{file}' has {len(names):,} names; at most {MAX_CLASSES:,} classes can be told apart")
    return tuple(names)


def _keypoints(content: dict[str, Any], file: Path) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    sides = [_integer(side) for side in shape] if isinstance(shape, list) else []
    if len(sides) != 2 or any(side is None or not 1 <= side <= 1000 for side in sides):
        raise UserError(f"'{file}' has a kpt_shape that is not two numbers, such as [17, 3]")
    return math.prod(side for side in sides if side)


def _integer(value: object) -> int | None:
    """A number without fraction in a text, or None."""
    try:
        return int(value) if isinstance(value, str) and len(value) <= 20 else None
    except ValueError:
        return None


def _shown(value: object) -> str:
    """A value for a message; what is nested is not written out, it could be endless."""
    return repr(value[:60]) if isinstance(value, str) else f"a {type(value).__name__}"


# Where the images are.


def split_images(file: Path, content: dict[str, Any], split: str) -> list[str]:
    """Names of a split's images, relative to the YAML file's folder.

    Paths of another machine are followed as far as their last parts lead to something beside the YAML file.

    Args:
        file: the YAML file.
        content: what it says.
        split: the key of the split in it.

    Raises:
        UserError: the split, a folder or a list does not exist, holds no image, or is another split's.
    """
    if not content.get(split):
        has = ", ".join(key for key in content if key.lower() in (*_APART, "test") and content[key])
        raise UserError(f"'{file}' has no {split}: with folders of images; it has {has or 'none'}")
    images: list[str] = []
    for source in _sources(file, content, split):
        images += _listed(file, source, content) if source.is_file() else _in_folder(file, source)
    images = list(dict.fromkeys(images))
    if not images:
        raise UserError(f"'{file}' names no image for {split}; its folders hold no {', '.join(SUFFIXES)}")
    _check_apart(file, content, split)
    return images


def _texts(file: Path, content: dict[str, Any], split: str) -> list[str]:
    value = content.get(split)
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"'{file}' has under {split}: something that is not the path of a folder or list of images")
    return [str(text).strip() for text in texts]


def _sources(file: Path, content: dict[str, Any], split: str) -> list[Path]:
    sources = []
    for text in _texts(file, content, split):
        source = follow(text, _bases(file, content))
        if source is None:
            raise UserError(f"'{file}' has {split}: {_shown(text)}, and there is no such folder or list of images")
        sources.append(source)
    return sources


def _bases(file: Path, content: dict[str, Any]) -> list[Path]:
    """The folders that paths start from: `path` in the YAML file, where that leads somewhere, and its own."""
    home = file.parent
    path = content.get("path")
    start = follow(path, [home]) if isinstance(path, str) and path.strip() else None
    return [start, home] if start is not None and start.is_dir() else [home]


def follow(text: str, bases: Sequence[Path]) -> Path | None:
    """The file or folder that a path means, which may have been written on another machine; None if there is none.

    Tried are the path as it is and without leading `..`, then its last parts, the longest first, from each base.
    """
    parts = PurePosixPath(text.strip().replace("\\", "/")).parts
    inner = [part for part in parts if part not in ("..", ".", "/")]
    tries = [base / Path(*parts) for base in bases if parts]
    tries += [base.joinpath(*inner[i:]) for i in range(len(inner)) for base in bases]
    return next((path for path in tries if _exists(path) and not _holds(path, bases[-1])), None)


def _holds(path: Path, home: Path) -> bool:
    """Whether a folder lies above the data set: then it is not the one that is meant."""
    return path.resolve() in home.resolve().parents


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _in_folder(file: Path, folder: Path) -> list[str]:
    inside = os.path.relpath(folder, file.parent)
    return [os.path.normpath(os.path.join(inside, name)).replace(os.sep, "/") for name in list_images(folder)]


def _listed(file: Path, source: Path, content: dict[str, Any]) -> list[str]:
    """The images of a list: one path in each line, from the list's own folder or the data set's."""
    text = read_bytes(source, MAX_LIST_BYTES).decode("utf-8-sig", "replace")
    bases = list(dict.fromkeys([source.parent, *_bases(file, content)]))
    images, missing = [], []
    for line in filter(None, map(str.strip, text.splitlines())):
        image = follow(line, bases)
        if image is None or not image.is_file():
            missing.append(line)
        else:
            images.append(os.path.relpath(image, file.parent).replace(os.sep, "/"))
    if missing:
        first = ", ".join(f"{line:.80}" for line in missing[:3])
        what = "1 image that does" if len(missing) == 1 else f"{len(missing):,} images that do"
        raise UserError(f"'{source}' lists {what} not exist: {first}")
    return images


def _check_apart(file: Path, content: dict[str, Any], split: str) -> None:
    """Refuses two splits that were apart where they were written, and that here lead to the same images."""
    mine = _texts(file, content, split)
    for other in [key for key in content if key.lower() in _APART]:
        if other == split or not content[other] or _texts(file, content, other) == mine:
            continue
        theirs = [follow(text, _bases(file, content)) for text in _texts(file, content, other)]
        if theirs == _sources(file, content, split):
            raise UserError(
                f"'{file}' has {split}: {_shown(mine[0])} and {other}: {_shown(_texts(file, content, other)[0])}, "
                f"which both lead to '{theirs[0]}'; correct the paths"
            )


# What the labels say.


def _add_labels(builder: RecordsBuilder, about: Yaml, image: int, file: Path, height: int, width: int) -> None:
    text = read_bytes(file, MAX_LABEL_BYTES).decode("utf-8-sig", "replace")
    for i, line in enumerate(text.splitlines(), 1):
        values = line.split()
        if not values:
            continue
        name = f"line {i} of '{file.name}'"
        shares, label = _shares(values[1:], about.keypoints), _label(values[0])
        if isinstance(shares, Reason) or label is None:
            reason = shares if isinstance(shares, Reason) else Reason.NOT_A_LABEL
            builder.leave_out(reason, image, name, " ".join(values[:6]))
            continue
        if not 0 <= label < len(about.classes):
            last = len(about.classes) - 1
            known = f"{last + 1} classes, 0 to {last}" if last else "only class 0"
            raise UserError(f"{name} in '{file.parent}' has class {label}, but '{about.file}' names {known}")
        if len(shares) == 4:
            x, y, w, h = shares[0] * width, shares[1] * height, shares[2] * width, shares[3] * height
            builder.add_object(image, label, (x - w / 2, y - h / 2, w, h), name=name)
        else:
            _add_polygon(builder, image, label, shares, (height, width), name)


def _add_polygon(
    builder: RecordsBuilder, image: int, label: int, shares: list[float], size: tuple[int, int], name: str
) -> None:
    """Adds an object by its outline, clipped to the image."""
    if min(shares) < 0 or max(shares) > 1:
        shares = [min(max(share, 0.0), 1.0) for share in shares]
    height, width = size
    xs, ys = [share * width for share in shares[::2]], [share * height for share in shares[1::2]]
    box = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    if min(box[2:]) <= 0:
        builder.leave_out(Reason.NO_EXTENT, image, name)
        return
    # The values are checked: no need to go through every form that a segmentation can have.
    mask = b""
    if builder.masks:
        mask = msgspec.json.encode([[v for point in zip(xs, ys) for v in point]])
    builder.append(image, label, box, math.nan, False, False, mask)


def _label(text: str) -> int | None:
    """A class number, which some tools write with a fraction of zero."""
    value = number(text)
    return int(value) if value is not None and value == int(value) and abs(value) < MAX_CLASSES * 1000 else None


def _shares(texts: list[str], keypoints: int) -> list[float] | Reason:
    """The four numbers of a box or the six and more of a polygon, as fractions of the image's size; or why not."""
    if keypoints and len(texts) == 4 + keypoints:
        texts = texts[:4]
    if len(texts) < 4 or len(texts) % 2:
        return Reason.NOT_A_LABEL
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return Reason.NOT_A_LABEL
    if not math.isfinite(sum(values)):
        return Reason.NOT_A_LABEL
    if min(values) < -OUTSIDE or max(values) > 1 + OUTSIDE:
        return Reason.OUT_OF_SHARES
    return values
