"""Where a data set's splits are: as the config names them, and the rest found by looking at its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mgdet.config import DataConfig
from mgdet.data.folders import SPLIT_WORDS, Layout, Place, find_layouts, first_names, folders_in, images_of, split_word
from mgdet.data.image_files import walk
from mgdet.data.others import of_another_tool
from mgdet.data.pictures import is_picture
from mgdet.errors import UserError

OWN_NAMES = {"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"}
"""COCO's own files: where they are, other files beside them do not make the choice unclear."""
SHOWN = 3
"""Files in a message."""
FOLDERS = 50
"""Folders of one depth that are looked into for a data set."""


def find_places(data: DataConfig, *, required: tuple[str, ...] = ("train", "val")) -> tuple[dict[str, Place], str]:
    """Where the splits are: as the config names them, and the rest found by looking.

    With `data.val_share` and no validation split named, the validation split's place is the training split's.

    Args:
        data: as the user gave it.
        required: which splits must be there.

    Returns:
        The place of each split that there is, and the layout's name; "" where the config names everything.

    Raises:
        UserError: a required split is not there, or several fit; the sentence says which option decides.
    """
    names = {
        "train": Place(data.train_annotations, data.train_images),
        "val": Place(data.val_annotations, data.val_images),
    }
    given = dict(names)
    if data.val_share:
        required = ("train", *(split for split in required if split not in ("train", "val")))
    title = ""
    if not required or not all(all(names.get(split, Place("", ""))) for split in required):
        root = Path(data.root)
        layout = _choose(root, names)
        title = layout.name if layout else ""
        for split in SPLIT_WORDS:
            place = _place(root, split, names.get(split, Place("", "")), layout, required=split in required)
            names[split] = place
    if data.val_share:
        if any(given["val"]) and given["val"] != names["train"]:
            raise UserError(
                f"data.val_share is {data.val_share:g} and data.val_annotations is '{given['val'].annotations}': "
                "each names a validation split, so leave one of the two out"
            )
        names["val"] = names["train"]
    return {split: place for split, place in names.items() if all(place)}, title


def with_places(data: DataConfig, places: Mapping[str, Place]) -> DataConfig:
    """The config with the names of its splits filled in."""
    nowhere = Place("", "")
    train, val = places.get("train", nowhere), places.get("val", nowhere)
    return replace(
        data,
        train_annotations=train.annotations or data.train_annotations,
        train_images=train.images or data.train_images,
        val_annotations=val.annotations or data.val_annotations,
        val_images=val.images or data.val_images,
    )


def _choose(root: Path, names: Mapping[str, Place]) -> Layout | None:
    """The layout to take; None if there is none and the options name what annotations to read."""
    layouts = find_layouts(root)
    for split, place in names.items():
        if place.annotations:  # the layout that has this very split, if one has
            fitting = [layout for layout in layouts if _matching(place, layout.splits.get(split, ()))]
            layouts = fitting or layouts
    if len(layouts) > 1:
        examples = [next(iter(layout.splits.values()))[0].annotations for layout in layouts]
        raise UserError(
            f"'{root}' can be read as {' and as '.join(layout.name for layout in layouts)}; "
            f"--data.train-annotations decides: {' or '.join(examples)}"
        )
    if not layouts and not any(place.annotations for place in names.values()):
        raise UserError(f"'{root}' holds no data set that mgdet knows: {_nothing(root)}")
    return layouts[0] if layouts else None


def _nothing(root: Path) -> str:
    """Why a folder is not a data set, and what would help."""
    inside = _inner(root)[:FOLDERS]
    inside += [folder for outer in inside for folder in _inner(outer)][:FOLDERS]
    for folder in inside:
        try:
            if any(_has_images(folder, layout) for layout in find_layouts(folder)):
                return f"but '{folder}' in it does; give that folder as --data.root"
        except UserError:
            continue
    files = sorted((root / "annotations").glob("*.json"))
    if len(files) > SHOWN and not any(map(first_names, files)):
        some = ", ".join(file.name for file in files[:SHOWN])
        return (
            f"none of the {len(files):,} JSON files in annotations/ lists images as COCO's do ({some}, ...); where "
            "each is of one image, export the data set as COCO, with one file for each split"
        )
    if other := of_another_tool(root):
        return other
    if (root / "labels").is_dir():
        return "it has labels as YOLO does, but no data.yaml with names: and train:; write one"
    return (
        "there is no annotations/*.json (COCO), no train/_annotations.coco.json (Roboflow), no data.yaml (YOLO) and "
        "no Annotations/*.xml (Pascal VOC) in it; --data.train-annotations and --data.train-images name other files"
    )


def _inner(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _has_images(root: Path, layout: Layout) -> bool:
    """Is there an image where one split of a layout has them?"""
    places = [place for own in layout.splits.values() for place in own]
    if any(place.images and not (root / place.images).is_dir() for place in places):
        return True  # YOLO's: the key of a split
    folders = {root / place.images for place in places if place.images}
    return any(is_picture(name) for folder in folders for _, names in walk(folder) for name in names)


def _place(root: Path, split: str, given: Place, layout: Layout | None, *, required: bool) -> Place:
    """The place of one split: what the options say, and the rest as it is found."""
    found = layout.splits.get(split, ()) if layout else ()
    if all(given):
        return given
    if given.annotations:
        images = next((place.images for place in found if _matching(given, (place,))), "")
        images = images or images_of(root, given.annotations)
        if not images and required:
            raise UserError(
                f"the images of '{root / given.annotations}' are in none of the folders where such images "
                f"lie; name their folder with --data.{split}-images"
            )
        return Place(given.annotations, images)
    if not found:
        if required:
            raise UserError(_missing(root, split, layout))
        return given
    chosen = found
    if len(found) > 1:
        chosen = tuple(place for place in found if place.annotations == OWN_NAMES.get(split))
    if len(chosen) != 1:
        if not required:
            return given
        raise UserError(
            f"'{root}' has {len(found):,} {_kinds(root, found)} for {split}: {_some(found)}; "
            f"--data.{split}-annotations decides which is meant"
        )
    place = chosen[0]
    images = given.images or place.images
    if not images and required:
        raise UserError(
            f"the images of '{root / place.annotations}' are in none of the folders where such images lie; name "
            f"their folder with --data.{split}-images"
        )
    return Place(place.annotations, images)


def _some(places: Sequence[Place]) -> str:
    names = [place.annotations for place in places[:SHOWN]]
    return " and ".join(names) if len(places) <= SHOWN else f"{', '.join(names)}, ..."


def _kinds(root: Path, places: Sequence[Place]) -> str:
    """What the annotations of several places are together."""
    return "files" if all((root / place.annotations).is_file() for place in places) else "folders and lists"


def _missing(root: Path, split: str, layout: Layout | None) -> str:
    has = f"; {layout.name} has {' and '.join(layout.splits)} there" if layout else ""
    has += _unread(root, split)
    if split == "val":
        return (
            f"'{root}' has no validation split{has}: --data.val-share 0.1 takes a tenth of the training images for "
            "it, or --data.val-annotations and --data.val-images name one"
        )
    return f"'{root}' has no training split{has}: --data.train-annotations and --data.train-images name one"


def _unread(root: Path, split: str) -> str:
    """Why a file with the split's name is not its annotations; empty if there is no such file."""
    for folder in (root, *folders_in(root)):
        for entry in sorted(folder.iterdir()):
            kind = split_word(entry.stem) or split_word(folder.name)
            if entry.suffix.lower() != ".json" or kind is None or kind[0] != split or first_names(entry):
                continue
            if not entry.is_file():
                return f", and '{entry}' is not a file"
            return f", and '{entry}' {'lists no images' if os.access(entry, os.R_OK) else 'may not be read'}"
    return ""


def _matching(given: Place, places: tuple[Place, ...]) -> bool:
    """Is one of these places the given one? Only the names that are given count."""
    return any(
        os.path.normpath(place.annotations) == os.path.normpath(given.annotations)
        and (not given.images or os.path.normpath(place.images) == os.path.normpath(given.images))
        for place in places
    )
