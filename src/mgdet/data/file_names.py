"""File names that an export brought from another machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mgdet.data.records import Records


def tails(name: str) -> list[str]:
    """A name with all of its folders, with fewer of them, and with none; a drive of Windows, or the `http:` of an
    address, is none of them. Folders are separated by slashes."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..") and part[-1] != ":"] or [""]
    return ["/".join(parts[i:]) for i in range(len(parts))]


def as_found(records: Records) -> Records:
    """The records with the names that the image files have here, and a note of it.

    Names may have backslashes, a drive, an address, or folders that are not here. Each stands for the file that its
    longest end names. They stay as they are where the first one is here, where any of them names nothing, or where two
    name the same file.
    """
    if not len(records) or is_file(records.folder / records.files[0]):
        return records
    found: dict[str, str] = {}
    taken: set[str] = set()
    for written in records.files:
        if written in found:
            continue
        name = first_tail(records.folder, written)
        if name is None or name in taken:
            return records
        found[written] = name
        taken.add(name)
    written = records.files[0]
    note = (
        f"'{records.source}' names image files as another machine has them; those of '{records.folder}' were taken "
        f"('{found[written]}' for '{written}')"
    )
    return replace(records, files=[found[written] for written in records.files], notes=(*records.notes, note))


def first_tail(folder: Path, written: str) -> str | None:
    """The longest end of a name that is a file in a folder, with slashes; None if there is none."""
    return next((tail for tail in tails(written.replace("\\", "/")) if is_file(folder / tail)), None)


def is_file(path: Path) -> bool:
    """Is there a file of this name? False also where no file can have it."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
