"""Formats of other tools, which are not read: a refusal says what the files look like and what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mgdet.data.image_files import walk

EXPORT = "export it from there as COCO, YOLO or Pascal VOC"
SIGNS = (
    (r"(^|/)metadata\.(jsonl|csv|parquet)$|\.(parquet|arrow)$", "a data set of Hugging Face", "convert it to COCO"),
    (r"\.tfrecords?(-[\d-]+(of-\d+)?)?$", "TFRecords of TensorFlow", "convert them to COCO"),
    (r"createml\.json$", "CreateML", EXPORT),
    (r"(^|/)via_[^/]*\.(json|csv)$", "the VGG Image Annotator", EXPORT),
    (r"(^|/)ann/[^/]+\.json$", "Supervisely", EXPORT),
    (r"(^|/)samples\.json$", "FiftyOne", EXPORT),
    (r"(^|/)label_2/[^/]+\.txt$", "KITTI", "convert it to COCO"),
    (
        r"(^|/)(obj\.(names|data)|_darknet\.labels)$",
        "YOLO as Darknet has it",
        "write a data.yaml with names:, train: and val:, folders or lists of images; its labels are read as they are",
    ),
    (r"\.csv$", "a table of boxes", "convert it to COCO"),
)
"""The path of a file that only this format has, where it comes from, and what helps."""
CONTENTS = (
    (rb'"imagePath"', "LabelMe", "convert it with labelme2coco, or export it as COCO, YOLO or Pascal VOC"),
    (rb'^\s*\[.*"(annotations|completions)"', "Label Studio's own JSON", EXPORT),
)
"""The same for JSON files, by what they begin with."""
MOST_FILES, MOST_JSON, HEAD = 5_000, 20, 1 << 16


def of_another_tool(root: Path) -> str:
    """What a folder looks like and what helps, as the end of a sentence; empty where it looks like nothing known."""
    names = list(islice(_names(root), MOST_FILES))
    for pattern, what, advice in SIGNS:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            return f"'{found}' in it looks like {what}; {advice}"
    for name in [name for name in names if name.endswith(".json")][:MOST_JSON]:
        for content, what, advice in CONTENTS:
            if re.search(content, _head(root / name), re.DOTALL):
                return f"'{name}' in it looks like {what}; {advice}"
    return ""


def _names(root: Path) -> Iterator[str]:
    for parent, files in walk(root):
        inside = os.path.relpath(parent, root)
        yield from (os.path.normpath(os.path.join(inside, name)).replace(os.sep, "/") for name in files)


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(HEAD)
    except OSError:
        return b""
