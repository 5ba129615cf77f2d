"""One small annotation file, and what people's files have in its place: changes by name, and what must come of them."""

from __future__ import annotations

import copy
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pycocotools import mask as pycocotools_mask

HEIGHT, WIDTH = 48, 64
BOXES = ([11.0, 28.0, 18.0, 18.0], [5.0, 6.0, 21.0, 12.0], [30.0, 10.0, 20.0, 30.0])
CATEGORIES = (1, 2, 1)


def corners(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def filled(box: list[float]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    x, y, w, h = map(int, box)
    mask[y : y + h, x : x + w] = 1
    return mask


def compressed(mask: np.ndarray) -> dict:
    rle = pycocotools_mask.encode(np.asfortranarray(mask))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode()}


def run_lengths(mask: np.ndarray) -> list[int]:
    """Counts of an uncompressed RLE."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def base() -> dict:
    """Three images with one object each."""
    return {
        "info": {"year": 2024, "version": "1", "date_created": "2024-01-01"},
        "licenses": [{"id": 1, "name": "MIT", "url": ""}],
        "categories": [{"id": 1, "name": "cat", "supercategory": "x"}, {"id": 2, "name": "dog", "supercategory": "x"}],
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(3)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": CATEGORIES[i],
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": [corners(box)],
            }
            for i, box in enumerate(BOXES)
        ],
    }


Change = Callable[[dict], object]


def every(part: str, **fields: object) -> Change:
    return lambda data: [record.update(copy.deepcopy(fields)) for record in data[part]]


def each_object(change: Callable[[dict, list[float]], object]) -> Change:
    return lambda data: [change(record, box) for record, box in zip(data["annotations"], BOXES)]


def as_mask(make: Callable[[list[float]], object]) -> Change:
    return each_object(lambda record, box: record.update(segmentation=make(box)))


def renumber(part: str, field: str, new: Callable[[int], object], refers: str = "") -> Change:
    def change(data: dict) -> None:
        for record in data[part]:
            record[field] = new(record[field])
        for record in data["annotations"] if refers else ():
            record[refers] = new(record[refers])

    return change


def swapped_rle(box: list[float]) -> dict:
    return {"size": [WIDTH, HEIGHT], "counts": compressed(filled(box))["counts"]}


# Read with boxes and with masks, and the truth handed back scores 1.
READ: dict[str, Change] = {
    "base": lambda data: None,
    "area text": each_object(lambda record, box: record.update(area=str(record["area"]))),
    "area empty text": every("annotations", area=""),
    "area null": every("annotations", area=None),
    "area missing": each_object(lambda record, box: record.pop("area")),
    "area list": each_object(lambda record, box: record.update(area=[record["area"]])),
    "area 0.5": every("annotations", area=0.5),
    "iscrowd '0'": every("annotations", iscrowd="0"),
    "iscrowd 'false'": every("annotations", iscrowd="false"),
    "iscrowd null": every("annotations", iscrowd=None),
    "iscrowd false": every("annotations", iscrowd=False),
    "iscrowd []": every("annotations", iscrowd=[]),
    "iscrowd missing": each_object(lambda record, box: record.pop("iscrowd")),
    "ignore '0'": every("annotations", ignore="0"),
    "ignore 0": every("annotations", ignore=0),
    "ignore null": every("annotations", ignore=None),
    "annotation id as text": renumber("annotations", "id", str),
    "annotation id as words": renumber("annotations", "id", lambda i: f"object {i}"),
    "annotation id negative": renumber("annotations", "id", lambda i: -i),
    "annotation id float": renumber("annotations", "id", float),
    "annotation id 1.5": renumber("annotations", "id", lambda i: i + 0.5),
    "annotation id null": every("annotations", id=None),
    "annotation id huge": renumber("annotations", "id", lambda i: i + 2**127),
    "annotation id missing": each_object(lambda record, box: record.pop("id")),
    "annotation ids from 0": renumber("annotations", "id", lambda i: i - 1),
    "annotation id repeated": every("annotations", id=7),
    "image id negative": renumber("images", "id", lambda i: -i, "image_id"),
    "image id huge": renumber("images", "id", lambda i: i + 2**127, "image_id"),
    "image id text": renumber("images", "id", lambda i: f"photo {i}", "image_id"),
    "image id float": renumber("images", "id", float, "image_id"),
    "image id text for a number": renumber("images", "id", str),
    "category id negative": renumber("categories", "id", lambda i: i - 5, "category_id"),
    "category id text": renumber("categories", "id", str, "category_id"),
    "category id text for a number": each_object(
        lambda record, box: record.update(category_id=str(record["category_id"]))
    ),
    "category id huge": renumber("categories", "id", lambda i: i + 2**127, "category_id"),
    "category name a number": lambda data: data["categories"][0].update(name=1),
    "category supercategory 0": every("categories", supercategory=0),
    "category supercategory []": every("categories", supercategory=[]),
    "category keypoints text": every("categories", keypoints="x"),
    "segmentation flat": as_mask(corners),
    "segmentation points": as_mask(lambda box: np.reshape(corners(box), (-1, 2)).tolist()),
    "segmentation nested points": as_mask(lambda box: [np.reshape(corners(box), (-1, 2)).tolist()]),
    "segmentation nested twice": as_mask(lambda box: [[corners(box)]]),
    "segmentation as the box": as_mask(lambda box: [list(box)]),
    "segmentation with a part of one point": as_mask(lambda box: [corners(box), box[:2]]),
    "segmentation of text numbers": as_mask(lambda box: [[str(v) for v in corners(box)]]),
    "RLE": as_mask(lambda box: compressed(filled(box))),
    "RLE list": as_mask(lambda box: [compressed(filled(box))]),
    "RLE uncompressed": as_mask(lambda box: {"size": [HEIGHT, WIDTH], "counts": run_lengths(filled(box))}),
    "RLE size swapped": as_mask(swapped_rle),
    "RLE turned": as_mask(lambda box: compressed(filled(box).T)),
    "RLE size float": as_mask(lambda box: compressed(filled(box)) | {"size": [float(HEIGHT), float(WIDTH)]}),
    "RLE counts float": as_mask(
        lambda box: {"size": [HEIGHT, WIDTH], "counts": [float(v) for v in run_lengths(filled(box))]}
    ),
    "RLE too short": as_mask(lambda box: {"size": [HEIGHT, WIDTH], "counts": run_lengths(filled(box))[:-1]}),
    "image license empty": every("images", license=""),
    "image license text": every("images", license="CC"),
    "image date 0": every("images", date_captured=0),
    "image date float": every("images", date_captured=1.5),
    "image flickr_url 0": every("images", flickr_url=0),
    "image coco_url null": every("images", coco_url=None),
    "image height float": every("images", height=float(HEIGHT)),
    "image width text": every("images", width=str(WIDTH)),
    "image width float text": every("images", width=f"{WIDTH}.0"),
    "info empty": lambda data: data.update(info=""),
    "info list": lambda data: data.update(info=[{"year": 1}]),
    "info year empty": lambda data: data.update(info={"year": ""}),
    "info year text": lambda data: data.update(info={"year": "2024"}),
    "info version number": lambda data: data.update(info={"version": 1.0}),
    "info date integer": lambda data: data.update(info={"date_created": 20240101}),
    "licenses null": lambda data: data.update(licenses=None),
    "licenses dict": lambda data: data.update(licenses={}),
    "licenses texts": lambda data: data.update(licenses=["MIT"]),
    "license id text": lambda data: data.update(licenses=[{"id": "1"}]),
    "keypoints []": every("annotations", keypoints=[]),
    "keypoints nested": every("annotations", keypoints=[[1, 2, 2]]),
    "num_keypoints text": every("annotations", num_keypoints="3"),
    "score text": every("annotations", score="0.9"),
    "obb": every("annotations", obb=[1, 2, 3, 4, 5, 6, 7, 8]),
    "caption": every("annotations", caption=3),
    "attributes": every("annotations", attributes={"occluded": False}),
    "NaN elsewhere": lambda data: data.update(info={"gamma": math.nan}),
    "NaN in area": every("annotations", area=math.nan),
    "lone surrogate": lambda data: data.update(info={"name": "\ud83d"}),
    "lone surrogate in a class": lambda data: data["categories"][0].update(name="c\ud83dt"),
    "bbox texts": each_object(lambda record, box: record.update(bbox=[str(v) for v in box])),
    "bbox in a text": each_object(lambda record, box: record.update(bbox=str(box))),
    "area negative": every("annotations", area=-1),
    "area true": every("annotations", area=True),
}

# Read, and what is left out is counted in this phrase.
COUNTED: dict[str, tuple[Change, str]] = {
    "area negative": (every("annotations", area=-1), "3 areas that are not numbers of 0 or more"),
    "area true": (every("annotations", area=True), "3 areas that are not numbers of 0 or more"),
    "one bbox of five": (
        lambda data: data["annotations"][0].update(bbox=[1, 2, 3, 4, 0]),
        "1 box that is not four numbers (first: annotation 1 of image '0.jpg': [1, 2, 3, 4, 0])",
    ),
    "one empty bbox": (lambda data: data["annotations"][0].update(bbox=[]), "1 box that is not four numbers"),
    "iscrowd maybe": (lambda data: data["annotations"][0].update(iscrowd="maybe"), "crowd flag is neither yes nor no"),
}

# Refused in training, with the true reason.
REFUSED: dict[str, tuple[Change, str]] = {
    "area 0": (every("annotations", area=0), "3 objects with area 0 .first: object 1 of image '0.jpg'"),
    "iscrowd 1": (every("annotations", iscrowd=1), "3 crowds .iscrowd is set"),
    "iscrowd 2": (every("annotations", iscrowd=2), "3 crowds .iscrowd is set"),
    "iscrowd 'true'": (every("annotations", iscrowd="true"), "3 crowds .iscrowd is set"),
    "ignore 1": (every("annotations", ignore=1), "3 ignored objects"),
    "bbox of five": (every("annotations", bbox=[1, 2, 3, 4, 0]), "3 boxes that are not four numbers"),
    "bbox normalised": (
        every("annotations", bbox=[0.1, 0.2, 0.3, 0.4]),
        "3 boxes under a pixel or outside .*boxes are in pixels",
    ),
    "no annotations": (lambda data: data.update(annotations=[]), "it has no objects"),
    "no list of annotations": (lambda data: data.pop("annotations"), "it has no list 'annotations'"),
    "no categories": (lambda data: data.pop("categories"), "it has no list 'categories'"),
    "images a dict": (lambda data: data.update(images={"1": {}}), "it has no list 'images'"),
    "category id 1.5": (lambda data: data["categories"][0].update(id=1.5), "has id 1.5, which is neither an integer"),
}

# Refused where masks are needed.
NO_MASKS: dict[str, Change] = {
    f"segmentation {value!r}": every("annotations", segmentation=value)
    for value in ("", {}, None, "None", [], [[]], [[1, 2, 3, 4]], 5, [[1, 2, None, 4, 5, 6]])
}

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "BOM": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without BOM": lambda text: text.encode("utf-16-le"),
    "UTF-16, big end first": lambda text: text.encode("utf-16-be"),
    "spaces around": lambda text: f"\n\n {text}\n".encode(),
    "a key twice": lambda text: text.replace('"iscrowd": 0', '"iscrowd": 0, "iscrowd": 0').encode(),
    "latin-1 elsewhere": lambda text: text.replace("MIT", "caf\xe9").encode("latin-1"),
}

BROKEN: dict[str, tuple[Callable[[str], bytes], str]] = {
    "latin-1": (lambda text: text.replace("cat", "caf\xe9").encode("latin-1"), "byte 0xe9 at .* is not UTF-8"),
    "jsonl": (lambda text: f"{text}\n{text}".encode(), "it is not JSON .Extra data"),
    "results list": (lambda text: json.dumps(json.loads(text)["annotations"]).encode(), "it is a list, as results in"),
    "nothing": (lambda text: b"", "it is not JSON"),
    "half": (lambda text: text[: len(text) // 2].encode(), "it is not JSON"),
    "a number without end": (lambda text: text.replace("[", "[" + "9" * 5000, 1).encode(), "thousands of digits"),
    "packed": (lambda text: gzip.compress(text.encode(), mtime=0), "it is compressed; unpack it"),
    "Git LFS": (lambda text: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "deep": (lambda text: b"[" * 200_000, "nested too deeply"),
    "odd UTF-16": (lambda text: text.encode("utf-16")[:-1], "broken UTF-16"),
}


def write(change: Change, path: Path, encode: Callable[[str], bytes] = str.encode) -> Path:
    data = base()
    change(data)
    path.write_bytes(encode(json.dumps(data)))
    return path
