"""What a folder looks like in each format of data sets: every layout that it has, from names and first bytes alone.

A split is two names inside the data set's folder, its `Place`. The first says the format by its kind:

| annotations | images | format |
|---|---|---|
| a `.json` file | the folder that its file names start from | COCO |
| a `.yaml` file with the class names | the split's key in it: train, val or test | YOLO |
| a list of images, `.txt`, in `ImageSets/Main` | the folder of the images | Pascal VOC |
| a folder of `.xml` files | the folder of the images | Pascal VOC |
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mgdet.data.file_names import first_tail, is_file
from mgdet.data.voc import XML_FOLDERS, may_be_voc, xml_files
from mgdet.data.yolo import YAML_SUFFIXES, read_yaml
from mgdet.errors import UserError

SPLIT_WORDS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What splits are called in names of files and folders; `trainval` is taken where there is no `train`."""

IMAGE_FOLDERS = ("images", "imgs", "img", "data", "JPEGImages")
KEYPOINTS = "person_keypoints_"
OTHER_TASKS = ("captions_", KEYPOINTS, "panoptic_", "stuff_", "image_info_")
"""COCO's files for other tasks start like this. Those of keypoints have boxes, too."""
FEW = 3
"""So many files that list no images are taken for what their names say, so that the reader can say what is wrong."""

_WORD = re.compile(r"(?<![a-z])(trainval|training|train|validation|valid|val|dev|testing|test)(?![a-z])")
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.){1,1000}")')


class Place(NamedTuple):
    """Where one split is, as two names inside the data set's folder; see the table above."""

    annotations: str
    images: str


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to read a folder as a data set.

    name: as it is said to the user.
    splits: train, val and test, those that there are; several places where it is unclear which is meant.
    """

    name: str
    splits: Mapping[str, tuple[Place, ...]]


def find_layouts(root: Path) -> list[Layout]:
    """Every layout that the folder has, none if it holds no data set that we know.

    Only names and first bytes are looked at.

    Raises:
        UserError: `root` is not a folder, or all that there is to read in it is broken.
    """
    if not root.is_dir():
        missing = "does not exist; --data.root names another"
        what = "is a file; give the folder that it lies in" if root.exists() else missing
        raise UserError(f"the data set's folder '{root}' {what}")
    complaints: list[UserError] = []
    found = [*_coco(root), *_yolo(root, complaints), *_voc(root)]
    if not found and complaints:
        raise complaints[0]
    return found


def split_word(name: str) -> tuple[str, str] | None:
    """The split that a name speaks of, and the word for it: 'instances_valid.json' -> ('val', 'valid').

    `dev` beside another word names what is split: 'fold_dev_train.json' -> ('train', 'train').
    """
    words = _WORD.findall(name.lower())
    if not words:
        return None
    word = next((word for word in words if word != "dev"), "dev")
    return next(split for split, words in SPLIT_WORDS.items() if word in words), word


# COCO: JSON files in annotations/, beside the image folders, or in a folder of each split.


def _coco(root: Path) -> Iterator[Layout]:
    splits: dict[str, list[Place]] = {}
    alone: list[Path] = []
    preferred = {}
    for file in _coco_files(root):
        split = split_word(file.stem) or (split_word(file.parent.name) if file.parent != root else None)
        if split is None:
            alone.append(file)
            continue
        kind, word = split
        place = Place(_inside(file, root), images_of(root, _inside(file, root)))
        if word == "trainval":
            preferred[kind] = place
        else:
            splits.setdefault(kind, []).append(place)
    for kind, place in preferred.items():
        splits.setdefault(kind, [place])
    if not splits and alone:
        splits["train"] = [Place(_inside(file, root), images_of(root, _inside(file, root))) for file in alone]
    if splits:
        files = [place.annotations for places in splits.values() for place in places]
        title = "COCO as Roboflow exports it" if all("_annotations.coco" in name for name in files) else "COCO"
        yield Layout(title, {split: tuple(splits[split]) for split in SPLIT_WORDS if split in splits})


def _coco_files(root: Path) -> Iterator[Path]:
    """The COCO files of a data set: those that list images. Of those in annotations/ the names count, too."""
    inside = _files_in(root / "annotations", ".json")
    named = [file for file in inside if file.name.startswith("instances_")]
    named = named or [file for file in inside if not file.name.startswith(OTHER_TASKS)]
    found = [file for file in named if first_names(file)] or (named if len(named) <= FEW else [])
    folders = [entry for entry in folders_in(root) if split_word(entry.name)]
    for folder in (root, *folders):
        for file in _files_in(folder, ".json"):
            if "_annotations.coco" in file.name or first_names(file):
                found.append(file)
    yield from found or [file for file in inside if file.name.startswith(KEYPOINTS) and first_names(file)]


def _files_in(folder: Path, suffix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() == suffix and file.name[0] != "." and file.is_file()
    )


def folders_in(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _inside(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def first_names(file: Path, number: int = 3) -> list[str]:
    """The first file names that a COCO file lists, found without parsing it; none if it lists none."""
    try:
        if not file.is_file() or file.stat().st_size == 0:
            return []
        with file.open("rb") as stream:
            if stream.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                return _names_in(file.read_text("utf-16").encode(), number)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _names_in(content, number)
    except (OSError, ValueError):
        return []


def _names_in(content: bytes | mmap.mmap, number: int) -> list[str]:
    names = []
    for match in _FILE_NAME.finditer(content):
        try:
            names.append(json.loads(match.group(1)).replace("\\", "/"))
        except ValueError:
            continue
        if len(names) == number:
            break
    return names


def images_of(root: Path, annotations: str) -> str:
    """The folder that the file names of an annotation file start from; "" where no folder has the first ones."""
    path = root / annotations
    if path.suffix.lower() in YAML_SUFFIXES:
        return ""
    if path.suffix.lower() != ".json":
        return next((folder for folder in ("JPEGImages", "images") if (root / folder).is_dir()), annotations)
    # After "instances_", as CVAT and Datumaro name the folder; else from the split's word on, as COCO does.
    tails = [path.stem.removeprefix(KEYPOINTS).split("_", 1)[-1]]
    split = split_word(path.stem) or split_word(path.parent.name)
    if split is not None:
        kind, word = split
        tails = [path.stem[max(0, path.stem.lower().find(word)) :], *tails, word, *SPLIT_WORDS[kind]]
    candidates = []
    for name in tails:
        candidates += [name, f"images/{name}", f"{name}/images", f"{name}/data"]
    beside = _inside(path.parent, root) if path.parent.is_relative_to(root) else str(path.parent)
    candidates += [beside, *(f"{beside}/{name}" for name in IMAGE_FOLDERS), *IMAGE_FOLDERS, "."]
    candidates = [os.path.normpath(name) for name in candidates]
    names = first_names(path)
    for candidate in candidates:
        if any(is_file(root / candidate / name) for name in names):
            return candidate
    for candidate in candidates:
        if any(first_tail(root / candidate, name) for name in names):
            return candidate
    # None is there: the folder of that name, so that the reader can say which image is missing from it.
    return next((name for name in candidates if name not in (".", "annotations") and (root / name).is_dir()), "")


# YOLO: a YAML file that names classes and folders of images.


def _yolo(root: Path, complaints: list[UserError]) -> Iterator[Layout]:
    splits: dict[str, list[Place]] = {}
    for file in sorted(root.iterdir()):
        if file.suffix.lower() not in YAML_SUFFIXES or not file.is_file() or file.name.startswith("."):
            continue
        try:
            content = read_yaml(file)
        except UserError as error:
            complaints.append(error)
            continue
        if "names" not in content and "nc" not in content:
            continue
        for key, value in content.items():
            split = next((split for split, words in SPLIT_WORDS.items() if key.lower() in words), None)
            if split is not None and value:
                splits.setdefault(split, []).append(Place(file.name, str(key)))
    if splits:
        yield Layout("YOLO", {split: tuple(splits[split]) for split in SPLIT_WORDS if split in splits})


# Pascal VOC: XML files in Annotations/ with lists in ImageSets/Main, or beside the images of each split.


def _voc(root: Path) -> Iterator[Layout]:
    for home in sorted([root, *root.glob("VOC20*"), *root.glob("VOCdevkit/VOC20*")]):
        for name in XML_FOLDERS:
            if _has_xml(home / name, inside=True):
                title = "Pascal VOC" if home == root else f"Pascal VOC in {home.name}"
                yield Layout(title, _voc_lists(root, home, name))
    beside: dict[str, list[Place]] = {}
    for folder in folders_in(root):
        split = split_word(folder.name)
        for name in (".", *XML_FOLDERS):
            if split and _has_xml(folder / name, inside=name != "."):
                place = Place(_inside(folder / name, root), _inside(_voc_images(folder, name), root))
                beside.setdefault(split[0], []).append(place)
    if beside:
        splits = {split: tuple(beside[split]) for split in SPLIT_WORDS if split in beside}
        yield Layout("Pascal VOC with a folder for each split", splits)
    elif _has_xml(root):
        yield Layout("Pascal VOC, all in one folder", {"train": (Place(".", _inside(_voc_images(root, "."), root)),)})


def _voc_lists(root: Path, home: Path, name: str) -> dict[str, tuple[Place, ...]]:
    """The splits by their lists, or by the folders of their XML files; with neither all is one split, and with lists
    none of which names one it is unclear."""
    images = _inside(_voc_images(home, name), root)
    lists = [file for file in _files_in(home / "ImageSets" / "Main", ".txt") if file.stem.lower() != "default"]
    splits: dict[str, tuple[Place, ...]] = {}
    for split, words in SPLIT_WORDS.items():
        for word in words:
            own = tuple(Place(_inside(file, root), images) for file in lists if file.stem.lower() == word)
            if own:
                splits.setdefault(split, own)
    if not lists:
        splits = _voc_folders(root, home, name)
    places = (home / name, *lists)  # CVAT and Datumaro call the list of a set without splits default.txt
    return splits or {"train": tuple(Place(_inside(path, root), images) for path in places)}


def _voc_folders(root: Path, home: Path, name: str) -> dict[str, tuple[Place, ...]]:
    """The splits where each has a folder of its own for its XML files; none where one of them is of no split."""
    if _has_xml(home / name):
        return {}
    images = _voc_images(home, name)
    splits: dict[str, list[Place]] = {}
    for folder in folders_in(home / name):
        if not _has_xml(folder, inside=True):
            continue
        split = next((split for split, words in SPLIT_WORDS.items() if folder.name.lower() in words), None)
        if split is None:
            return {}
        own = images / folder.name
        place = Place(_inside(folder, root), _inside(own if own.is_dir() else images, root))
        splits.setdefault(split, []).append(place)
    return {split: tuple(places) for split, places in splits.items()}


def _voc_images(home: Path, xml: str) -> Path:
    """The folder of the images whose XML files lie in `home / xml`."""
    return next((home / name for name in ("JPEGImages", *IMAGE_FOLDERS) if (home / name).is_dir()), home / xml)


def _has_xml(folder: Path, *, inside: bool = False) -> bool:
    """Does an XML file of an image lie in a folder, or `inside` one of its folders?"""
    if not folder.is_dir():
        return False
    return any(may_be_voc(file) for file in (xml_files(folder) if inside else _files_in(folder, ".xml")))
