"""Pascal VOC's format: one XML file per image.

The original's boxes count pixels from 1 and include the last one; files of that origin say so in `source/database`.
All other tools write corners as they are, and so they are read.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.parsers import expat

from mgdet.data.file_names import is_file, tails
from mgdet.data.image_files import list_images, walk
from mgdet.data.pictures import is_picture
from mgdet.data.records import Reason, Records, RecordsBuilder
from mgdet.data.values import four_numbers, number
from mgdet.data.yolo import read_bytes
from mgdet.errors import UserError

MAX_XML_BYTES = 1 << 24
MAX_LIST_BYTES = 1 << 28
MAX_DEPTH = 50
XML_FOLDERS = ("Annotations", "annotations", "labels")
"""What the folder of the XML files is called; `labels` is FiftyOne's."""
_HEAD = 1 << 12
_COMMENT, _FIRST_TAG = re.compile(rb"<!--.*?-->", re.DOTALL), re.compile(rb"<([A-Za-z_][^\s/>]*)")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """An object of an XML file: its class, its corners as texts, and whether it is marked as difficult."""

    name: str
    corners: tuple[str, ...]
    difficult: str


class VocImage(NamedTuple):
    """What an XML file says: its image, its size in pixels or zeros, its objects, and where boxes count from."""

    xml: Path
    image: str
    height: int
    width: int
    objects: list[VocObject]
    first_pixel: int


def read_voc(
    root: Path, places: Sequence[tuple[str, str]], *, masks: Sequence[bool], unlabelled: bool = False
) -> list[Records]:
    """Reads splits in Pascal VOC's format, which share their classes: all that occur, in the order of the alphabet.

    Args:
        root: the data set's folder.
        places: for each split the list of its images or its folder of XML files, and its folder of images, both
            inside `root`.
        masks: for each split, whether objects need one: VOC's XML holds none, so all are then left out.
        unlabelled: also take a list none of whose images has an XML file; its records are not `annotated`.

    Returns:
        The records of each split.

    Raises:
        UserError: something is missing or is not in VOC's format.
    """
    splits = [_read_split(root / annotations, root / images, unlabelled) for annotations, images in places]
    classes = sorted({thing.name for split in splits for image in split for thing in image.objects})
    if not classes:
        raise UserError(f"no XML file of '{root / places[0][0]}' has an object, so there is no class to learn")
    return [
        _records(split, str(root / annotations), root / images, classes, with_masks)
        for split, (annotations, images), with_masks in zip(splits, places, masks)
    ]


def _read_split(annotations: Path, images: Path, unlabelled: bool) -> list[VocImage]:
    home, files = _xml_files(annotations, unlabelled)
    if not images.is_dir():
        raise UserError(f"there is no folder '{images}' with the images of '{annotations}'")
    listed = _Listed(list_images(images))
    stems = [file.relative_to(home).as_posix()[: -len(file.suffix)] for file in files]
    if not is_file(files[0]):  # then none of them is there
        split = [VocImage(file, _unlabelled(file, stem, listed), 0, 0, [], 0) for file, stem in zip(files, stems)]
    else:
        split = [_read_image(file, stem, listed) for file, stem in zip(files, stems)]
    seen: dict[str, Path] = {}
    for one in split:
        if (other := seen.setdefault(one.image, one.xml)) != one.xml:
            raise UserError(f"'{other}' and '{one.xml}' both speak of the image '{one.image}'; leave one of them out")
    return split


def _xml_files(annotations: Path, unlabelled: bool) -> tuple[Path, list[Path]]:
    """The folder of a split's XML files and the files: all that lie in a folder and the folders in it, or those that a
    list names; if `unlabelled`, none need be there."""
    if annotations.is_dir():
        files = sorted(xml_files(annotations))
        if not files:
            raise UserError(f"the folder '{annotations}' holds no .xml file")
        return annotations, files
    if not annotations.is_file():
        raise UserError(f"there is no list or folder '{annotations}' of Pascal VOC's XML files")
    homes = [home / name for home in annotations.parents[:3] for name in XML_FOLDERS]
    home = next((folder for folder in homes if folder.is_dir()), None)
    if home is None:
        raise UserError(f"there is no folder Annotations for the list '{annotations}'")
    lines = read_bytes(annotations, MAX_LIST_BYTES).decode("utf-8-sig", "replace").splitlines()
    files = [_xml_of(home, line.strip()) for line in lines if line.strip()]
    missing = [file for file in files if not is_file(file)]
    if missing and not (unlabelled and len(missing) == len(files)):
        names = ", ".join(f"{file.relative_to(home).as_posix():.80}" for file in missing[:3])
        images = "1 image" if len(missing) == 1 else f"{len(missing):,} images"
        raise UserError(f"'{annotations}' lists {images} without an XML file in '{home}': {names}")
    if not files:
        raise UserError(f"the list '{annotations}' names no image")
    return home, list(dict.fromkeys(files))


def xml_files(folder: Path) -> Iterator[Path]:
    """The XML files in a folder, and in the folders in it those that are not surely of another kind."""
    for parent, names in walk(folder):
        for name in names:
            file = Path(parent, name)
            if name[0] != "." and file.suffix.lower() == ".xml" and (parent == str(folder) or may_be_voc(file)):
                yield file


def may_be_voc(file: Path) -> bool:
    """Does an XML file begin as an annotation does? Only its first bytes are looked at."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD).replace(b"\0", b"")  # UTF-16
    except OSError:
        return False
    first = _FIRST_TAG.search(_COMMENT.sub(b"", head))
    return first is None or first[1] == b"annotation"


def _xml_of(home: Path, line: str) -> Path:
    """The XML file of a line in a list: a name, perhaps with folders, an ending or a mark after it."""
    whole, first = (tails(_stem(text)) for text in (line, line.split(maxsplit=1)[0]))
    for ends in (whole, first):
        # A folder that is there is meant, and is not one of the machine that the list is from.
        here = len(ends) > 1 and _is_folder(home / ends[0].split("/", 1)[0])
        for tail in ends[:1] if here else ends:
            if is_file(home / f"{tail}.xml"):
                return home / f"{tail}.xml"
    return home / f"{first[0]}.xml"


def _stem(name: str) -> str:
    name = name.replace("\\", "/")
    return name.rsplit(".", 1)[0] if is_picture(name.rsplit("/", 1)[-1]) or name.lower().endswith(".xml") else name


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


class _Listed:
    """The images of a split, by their names and stems, as written and in small letters."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = set(names)
        self._stems, self._loose = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for name in names:
            stem = str(PurePosixPath(name).with_suffix(""))
            self._stems[stem].append(name)
            for key in (name.lower(), stem.lower()):
                self._loose[key].append(name)

    def find(self, stem: str, written: str, xml: Path) -> str | None:
        """The image that an XML file speaks of; None if it is not there.

        The file's own name goes before the one that is written in it, which may be of another time; where several
        images share it, a photo and its mask say, the one that is written is meant. Capital letters for small ones
        count last.

        Args:
            stem: the file's name without its ending, with the folders in the split's folder that it lies in.
            written: the image's name as the file has it; may be empty.
            xml: the file, for errors.

        Raises:
            UserError: several images fit.
        """
        own = self._stems.get(stem, [])
        names = _names(stem, written)
        for name in names:
            if name in own or (len(own) != 1 and name in self._names):
                return name
        own = own or self._loose.get(stem.lower(), [])
        others = [self._loose.get(name.lower()) for name in names]
        others += [self._stems.get(_stem(name)) for name in names]
        others += [self._loose.get(_stem(name).lower()) for name in names]
        for found in (own, *others):
            if found and len(found) == 1:
                return found[0]
        if own:
            raise UserError(f"'{xml}' may be of {' or '.join(own[:3])}; write in it which, as its <filename>")
        return None


def _names(stem: str, written: str) -> list[str]:
    """Where the image that is written in an XML file may lie: in the folder that the file lies in, or elsewhere."""
    written = written.replace("\\", "/")
    base = written.rsplit("/", 1)[-1]
    return list(dict.fromkeys([str(PurePosixPath(stem).parent / base), written, base])) if base else []


def _unlabelled(file: Path, stem: str, listed: _Listed) -> str:
    """The image of a list's line without an XML file."""
    return next((image for tail in tails(stem) if (image := listed.find(tail, "", file))), f"{stem}.jpg")


def _read_image(file: Path, stem: str, listed: _Listed) -> VocImage:
    root = parse_xml(file)
    if root.tag != "annotation":
        raise UserError(f"'{file}' is not a Pascal VOC annotation: it begins with <{root.tag:.40}>, not <annotation>")
    written = _text(root, "filename")
    image = listed.find(stem, written, file) or next(iter(_names(stem, written)), f"{stem}.jpg")
    # Where there is no such image the name stays, and opening the data set says which images are missing.
    size = root.find("size")
    return VocImage(
        file,
        image,
        0 if size is None else _pixels(size, "height"),
        0 if size is None else _pixels(size, "width"),
        list(_objects(root, file)),
        1 if _text(root, "source/database").lower().startswith("the voc") else 0,
    )


def _objects(root: ET.Element, file: Path) -> Iterator[VocObject]:
    for i, thing in enumerate(root.findall("object")):
        name = _text(thing, "name")
        if not name:
            raise UserError(f"object {i + 1} in '{file}' has no name, so its class is unknown")
        yield VocObject(name, tuple(_text(thing, f"bndbox/{side}") for side in CORNERS), _text(thing, "difficult"))


def _text(element: ET.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _pixels(size: ET.Element, side: str) -> int:
    """An edge in pixels; 0 where the file does not say it, as several tools do."""
    value = number(_text(size, side))
    return int(value) if value is not None and value == int(value) and value > 0 else 0


def _records(split: list[VocImage], source: str, folder: Path, classes: list[str], masks: bool) -> Records:
    builder = RecordsBuilder(source, folder, classes, masks=masks)
    label = {name: i for i, name in enumerate(classes)}
    builder.annotated = is_file(split[0].xml)
    for image in split:
        index = builder.add_image(image.image, image.height, image.width)
        for i, thing in enumerate(image.objects):
            name = f"object {i + 1}"
            corners = four_numbers(list(thing.corners))
            if corners is None:
                shown = ", ".join(thing.corners) if any(thing.corners) else None
                builder.leave_out(Reason.NOT_A_BOX, index, name, shown)
                continue
            x0, y0, x1, y1 = corners
            x0, y0 = x0 - image.first_pixel, y0 - image.first_pixel
            builder.add_object(index, label[thing.name], (x0, y0, x1 - x0, y1 - y0), name=name, ignored=thing.difficult)
    return builder.build()


class _Refused(Exception):
    """What no annotation file needs."""


def parse_xml(file: Path) -> ET.Element:
    """The content of an XML file without a document type, so that nothing in it stands for something else.

    Raises:
        UserError: the file cannot be read, is not XML, declares a document type, or nests without end.
    """
    content = read_bytes(file, MAX_XML_BYTES)
    builder, parser, depth = ET.TreeBuilder(), expat.ParserCreate(), 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise _Refused(f"nests more than {MAX_DEPTH} deep")
        builder.start(name, {})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: object) -> None:
        raise _Refused("declares a document type (<!DOCTYPE ...>), which is not read; take it out")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except _Refused as error:
        raise UserError(f"'{file}' {error}") from None
    except (expat.ExpatError, ET.ParseError, ValueError, LookupError, AssertionError) as error:
        raise UserError(f"'{file}' is not XML: {error:}") from None
