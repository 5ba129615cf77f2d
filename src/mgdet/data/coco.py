"""Annotation files in COCO format, read into records: only the fields that are used, in every form they come in.

A typed decoder reads what is written as COCO writes it; what is not goes, one record at a time, through Python's own
decoder and the checks of the builder. Fields that nothing here uses are never looked at.
"""

from __future__ import annotations

import codecs
import json
import math
import mmap
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Raw

from mgdet.data.records import Id, Records, RecordsBuilder, expected_layout, id_order
from mgdet.data.values import FARTHEST, integer_of
from mgdet.errors import UserError, git_lfs_note

_RELEASE_EVERY = 50_000
_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04")
_NO_MASK = Raw(b"null")


_Coordinate = Annotated[float, msgspec.Meta(gt=-FARTHEST, lt=FARTHEST)]
_Extent = Annotated[float, msgspec.Meta(gt=0, lt=FARTHEST)]


class _File(msgspec.Struct, gc=False):
    images: list[Raw]
    categories: list[Raw]
    annotations: list[Raw] | msgspec.UnsetType = msgspec.UNSET


class _Image(msgspec.Struct, gc=False):
    id: int | str
    file_name: str
    height: int | None = None
    width: int | None = None


class _Object(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int | str
    bbox: tuple[_Coordinate, _Coordinate, _Extent, _Extent]
    area: Annotated[float, msgspec.Meta(ge=0)] | None = None
    iscrowd: int | bool | None = None
    ignore: int | bool | None = None


class _MaskedObject(_Object, gc=False):
    segmentation: Raw = _NO_MASK


_decode_file = msgspec.json.Decoder(_File).decode
_decode_image = msgspec.json.Decoder(_Image).decode
_decode_object = msgspec.json.Decoder(_Object).decode
_decode_masked = msgspec.json.Decoder(_MaskedObject).decode
_decode_polygons = msgspec.json.Decoder(
    Annotated[list[Annotated[list[float], msgspec.Meta(min_length=6)]], msgspec.Meta(min_length=1)]
).decode


def read_coco(annotations: Path, images: Path, *, masks: bool = False) -> Records:
    """Reads a COCO instances file.

    Ids may be integers of any size or texts; annotations need none. Classes are the categories by ascending id.

    Args:
        annotations: the file; UTF-8 with or without BOM, or UTF-16.
        images: the folder that its file names start from; nothing is looked for there.
        masks: also read the objects' segmentations.

    Raises:
        UserError: the file is missing, is not COCO format, or refers to what is not there.
    """
    if not annotations.is_file():
        if annotations.exists():
            raise UserError(f"'{annotations}' is a folder or a pipe, not a file of annotations")
        raise UserError(f"there is no file '{annotations}'; {expected_layout(annotations, images)}")
    text = _read_text(annotations)
    file = _parse(text, annotations)
    where = f"in '{annotations}'"
    names = _categories(file.categories, where)
    builder = RecordsBuilder(str(annotations), images, list(names.values()), list(names), masks=masks)
    rows = _add_images(builder, file.images, where)
    if file.annotations is msgspec.UNSET:
        builder.annotated = False
    else:
        _release(text, len(text))
        _Objects(builder, rows, {category: label for label, category in enumerate(names)}).add(file.annotations, text)
    del file, text
    return builder.build()


def _parse(data: bytes | mmap.mmap, path: Path) -> _File:
    try:
        return _decode_file(data)
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass
    # Not COCO's lists, or not JSON by the book (NaN, half of a surrogate pair): Python reads more, and slower.
    content = _loads(data, path)
    if isinstance(content, list):
        raise UserError(f"'{path}' is not a COCO annotation file: it is a list, as results in COCO format are")
    lists = {}
    for name in ("images", "categories", "annotations"):
        if name == "annotations" and isinstance(content, dict) and name not in content:
            continue
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UserError(f"'{path}' is not a COCO annotation file: it has no list '{name}'")
        lists[name] = content[name]
    return _File(**lists)


def _read_text(path: Path) -> bytes | mmap.mmap:
    """The file as UTF-8 without BOM; mapped into memory, so that what has been read need not stay there."""
    try:
        with path.open("rb") as file:
            empty = file.seek(0, os.SEEK_END) == 0
            data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from None
    head = data[:4]
    if head.startswith(codecs.BOM_UTF8):
        return data[len(codecs.BOM_UTF8) :]
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if wide or 0 in head[:2]:
        encoding = "utf-16" if wide else "utf-16-be" if head[0] == 0 else "utf-16-le"
        try:
            return data[:].decode(encoding).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise UserError(f"'{path}' is not a COCO annotation file: it is not JSON (broken UTF-16)") from None
    return data


def _release(data: bytes | mmap.mmap, end: int) -> None:
    """Takes the file's first `end` bytes out of memory; whoever asks for them again gets them from the disk."""
    if isinstance(data, mmap.mmap) and hasattr(data, "madvise"):
        data.madvise(mmap.MADV_DONTNEED, 0, end // mmap.PAGESIZE * mmap.PAGESIZE)


def _loads(data: bytes | Raw | mmap.mmap, path: object = None) -> Any:
    """Decodes JSON as Python does, with NaN and lone surrogates."""
    problem = (
        f"'{path}' is not a COCO annotation file: it is not JSON" if isinstance(path, Path) else f"{path} is not JSON"
    )
    content = bytes(data)
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = f"byte {content[error.start]:#x} at {error.start} is not UTF-8; save it as UTF-8"
        if content.startswith(_COMPRESSED):
            reason = "it is compressed; unpack it"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
        if "int_max_str_digits" in reason:
            reason = "it has a number of thousands of digits"
        reason = git_lfs_note(content) or reason
    raise UserError(f"{problem} ({reason})")


def _fields(item: object, what: str) -> dict[str, Any]:
    """A record as a dict; `what` names it in errors."""
    record = _loads(item, what) if isinstance(item, Raw) else item
    if not isinstance(record, dict):
        raise UserError(f"{what} is {record!r:.80}, not an object with fields")
    return record


def _id(record: dict[str, Any], name: str, what: str) -> Id:
    """An id: an integer, a number without fraction, or a text."""
    if name not in record:
        raise UserError(f"{what} has no '{name}'")
    value = record[name]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{what} has {name} {value!r:.80}, which is neither an integer nor a string")
    return _printable(value) if isinstance(value, str) else value


def _printable(text: str) -> str:
    """The text without halves of surrogate pairs, which no file and no terminal takes."""
    return text.encode("utf-8", "replace").decode()


def _categories(items: Iterable[object], where: str) -> dict[Id, str]:
    """Id -> name, by ascending id."""
    names: dict[Id, str] = {}
    for i, item in enumerate(items):
        what = f"category number {i + 1} {where}"
        record = _fields(item, what)
        category, name = _id(record, "id", what), record.get("name")
        if category in names:
            raise UserError(f"two categories {where} have the id {category}")
        if "name" not in record:
            raise UserError(f"{what} has no 'name'")
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise UserError(f"{what} has name {name!r:.80}, which is not a string")
        names[category] = _printable(str(name))
    return {category: names[category] for category in sorted(names, key=id_order)}


def _add_images(builder: RecordsBuilder, items: Iterable[object], where: str) -> dict[Id, int]:
    """Id -> index in the records."""
    rows: dict[Id, int] = {}
    for i, item in enumerate(items):
        try:
            image = _decode_image(item)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            image = None
        if image is not None:
            key, index = image.id, builder.add_image(image.file_name, image.height, image.width, image.id)
        else:
            what = f"image number {i + 1} {where}"
            record = _fields(item, what)
            key, file = _id(record, "id", what), record.get("file_name")
            if not isinstance(file, str):
                has = f"has file_name {file!r:.80}, which is not a string" if file is not None else "has no 'file_name'"
                raise UserError(f"{what} {has}")
            index = builder.add_image(_printable(file), record.get("height"), record.get("width"), key)
        if rows.setdefault(key, index) != index:
            raise UserError(f"two images {where} have the id {key}")
    return rows


class _Objects:
    """Annotations on their way into the builder."""

    def __init__(self, builder: RecordsBuilder, images: dict[Id, int], labels: dict[Id, int]) -> None:
        self._builder, self._images, self._labels = builder, images, labels
        self._masks, self._append = builder.masks, builder.append
        self._unknown: dict[str, list[Id]] = {"category": [], "image": []}

    def add(self, items: Sequence[object], text: bytes | mmap.mmap) -> None:
        """Adds all, or says which ids nothing declares; releases the text that they lie in on the way."""
        read = 0
        for first in range(0, len(items), _RELEASE_EVERY):
            for i, item in enumerate(items[first : first + _RELEASE_EVERY], first):
                if not self._add_typed(item):
                    self._add_loose(item, i)
            read += sum(
                memoryview(item).nbytes for item in items[first : first + _RELEASE_EVERY] if isinstance(item, Raw)
            )
            _release(text, read)
        for noun, known in (("category", self._labels), ("image", self._images)):
            if self._unknown[noun]:
                raise UserError(
                    f"annotations in '{self._builder.source}' use {noun} ids that no {noun} declares: "
                    f"{_some(self._unknown[noun])}; declared are {_some(known) or 'none'}"
                )

    def _add_typed(self, item: object) -> bool:
        """Adds an annotation that is written as COCO writes it; returns whether it was."""
        mask: bytes | Raw = b""
        try:
            record: _Object
            if self._masks:
                record = masked = _decode_masked(item)  # type: ignore[arg-type]
                mask = masked.segmentation
                for polygon in _decode_polygons(mask):
                    if len(polygon) % 2:
                        return False
            else:
                record = _decode_object(item)  # type: ignore[arg-type]
            image, label = self._images[record.image_id], self._labels[record.category_id]
        except (KeyError, TypeError, ValueError, RecursionError):
            return False
        area = math.nan if record.area is None else record.area
        self._append(image, label, record.bbox, area, bool(record.iscrowd), bool(record.ignore), mask)
        return True

    def _add_loose(self, item: object, number: int) -> None:
        where = f"in '{self._builder.source}'"
        record = _fields(item, f"annotation number {number + 1} {where}")
        shown = record.get("id", "")
        name = f"annotation {shown!s:.40}" if isinstance(shown, int | str) and shown != "" else ""
        what = f"{name or 'annotation'} (number {number + 1}) {where}"
        image = self._find(self._images, _id(record, "image_id", what), "image")
        label = self._find(self._labels, _id(record, "category_id", what), "category")
        if image is None or label is None:
            return
        self._builder.add_object(
            image,
            label,
            record.get("bbox"),
            name=_printable(name) or f"annotation number {number + 1}",
            area=record.get("area"),
            crowd=record.get("iscrowd"),
            ignored=record.get("ignore"),
            segmentation=record.get("segmentation"),
        )

    def _find(self, known: dict[Id, int], key: Id, noun: str) -> int | None:
        """What an id refers to; a number that is written as text finds its number, and the other way round."""
        other = integer_of(key) if isinstance(key, str) else str(key) if key.bit_length() < 1000 else None
        for candidate in (key, other):
            if candidate is not None and candidate in known:
                return known[candidate]
        if key not in self._unknown[noun]:
            self._unknown[noun] = [*self._unknown[noun], key][:6]
        return None


def _some(ids: Iterable[Id]) -> str:
    first = sorted(islice(ids, 1000), key=id_order)
    return ", ".join(f"{i!s:.40}" for i in first[:5]) + (", ..." if len(first) > 5 else "")
