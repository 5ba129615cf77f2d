"""Reads the lists of attributes in docstrings, `name: what it is`, as the sections of Google style that they are."""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

ENTRY = re.compile(r"\w+(, \w+)*: \S")


class Attributes(griffe.Extension):
    """Puts the heading over such a list that the docstrings of this package leave out."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        if cls.docstring is not None:
            paragraphs = inspect.cleandoc(cls.docstring.value).split("\n\n")
            cls.docstring.value = "\n\n".join(titled(text) if is_list(text) else text for text in paragraphs)


def is_list(paragraph: str) -> bool:
    """Are all lines of a paragraph entries, or indented below one?"""
    lines = paragraph.splitlines()
    return bool(ENTRY.match(lines[0])) and all(ENTRY.match(line) or line.startswith(" ") for line in lines)


def titled(paragraph: str) -> str:
    return "Attributes:\n" + "".join(f"    {line}\n" for line in paragraph.splitlines())
