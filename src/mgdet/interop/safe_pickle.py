"""Opens a pickled checkpoint of unknown origin without running anything that it asks for.

A checkpoint of MMDetection or MMEngine also holds foreign objects: loggers, histories, config dicts. Torch's
restricted unpickler refuses every class that it does not know, so the file is read twice: first as a list of
instructions, which names the classes and shows how each is filled, then by `torch.load(weights_only=True)` with a
stand-in of no behaviour for each of them.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import pickletools
import sys
import tarfile
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from mgdet.errors import UserError, git_lfs_note
from mgdet.interop.names import shown

ZIP_MAGIC = b"PK\x03\x04"
UNPACKED_BYTES = 64 << 20
"""A file may claim more than it has up to here, as others may compress what torch.save does not."""
PLAIN_MODULES = {
    "_codecs",
    "argparse",
    "collections",
    "copyreg",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "logging",
    "pathlib",
    "pathlib._local",
    "uuid",
    "zoneinfo",
}
PLAIN_BUILTINS = {
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
}
DICTS = {"collections.defaultdict"}
LISTS = {"collections.deque"}


class StandIn:
    """A foreign object of which only the class's name is kept."""

    def __new__(cls, *args: object) -> Any:
        """Ignores what the foreign class would be called with."""
        return object.__new__(cls)

    def __init__(self, *args: object) -> None:
        """Ignores what the foreign class would be called with."""

    def __setstate__(self, state: object) -> None:
        """Ignores what the foreign object would hold."""


class DictStandIn(StandIn):
    """A foreign dict: what it holds ends up in a plain one."""

    def __new__(cls, *args: object) -> Any:
        """An empty dict that may carry attributes, as foreign ones do."""
        return OrderedDict()


class ListStandIn(StandIn):
    """A foreign list: what it holds ends up in a plain one."""

    def __new__(cls, *args: object) -> Any:
        """An empty list."""
        return []


class HostileError(UserError):
    """The pickle names something that no checkpoint needs and that could do harm."""


@dataclass(frozen=True, slots=True)
class Name:
    """On the scanned stack: a class or function, by its full name."""

    value: str


@dataclass(frozen=True, slots=True)
class Made:
    """On the scanned stack: what calling a class or function gave, by the full name of that."""

    value: str


@dataclass(frozen=True, slots=True)
class Text:
    """On the scanned stack: a string."""

    value: str


class Scan:
    """Follows the instructions of pickles on a stack of labels, and builds no object.

    names: every class and function that the pickles name.
    dicts: those of them whose instances are filled with keys and values.
    lists: those of them whose instances are filled with items.
    storages: how many numbers each storage of tensors claims to have, by its key.
    protocol: the highest pickle protocol seen.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.dicts: set[str] = set()
        self.lists: set[str] = set()
        self.storages: dict[object, int] = {}
        self.protocol = 0

    def read(self, file: IO[bytes]) -> object:
        """Follows one pickle and leaves `file` behind its end.

        Returns:
            The last number or string in it.

        Raises:
            HostileError: it names something harmful.
            Exception: of many kinds, where the bytes are not a pickle.
        """
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        last: object = None
        for opcode, value, _ in pickletools.genops(file):
            self._step(opcode, value, stack, memo)
            if value is not None:
                last = value
        return last

    def _step(self, opcode: pickletools.OpcodeInfo, value: Any, stack: list[Any], memo: dict[int, Any]) -> None:
        name = opcode.name
        if name == "PROTO":
            self.protocol = max(self.protocol, value)
        elif name in ("GLOBAL", "INST"):
            module, _, attribute = value.partition(" ")
            if name == "INST":
                _pop_mark(stack)
            label = self._found(module, attribute)
            stack.append(label if name == "GLOBAL" else Made(label.value))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(self._found(getattr(module, "value", "?"), getattr(attribute, "value", "?")))
        elif name in ("REDUCE", "NEWOBJ"):
            args, function = stack.pop(), stack.pop()
            _check_getattr(function, args)
            stack.append(Made(getattr(function, "value", "?")))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else value] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS", "APPEND", "SETITEM"):
            if opcode.stack_before[-1] is pickletools.stackslice:
                _pop_mark(stack)
            else:
                del stack[-(len(opcode.stack_before) - 1) :]
            if isinstance(stack[-1], Made):
                (self.dicts if name.startswith("SETITEM") else self.lists).add(stack[-1].value)
        elif name == "TUPLE":
            stack.append(tuple(_pop_mark(stack)))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = tuple(stack[-int(name[-1]) :])
            del stack[-len(items) :]
            stack.append(items)
        elif name == "BUILD":
            stack.pop()
        elif name == "BINPERSID":
            self._note_storage(stack.pop())
            stack.append(None)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name != "STOP":
            _replace(opcode, value, stack)

    def _note_storage(self, label: object) -> None:
        """Torch labels a storage by ("storage", type, key, device, numbers), with more behind in its older format."""
        if isinstance(label, tuple) and len(label) >= 5 and isinstance(label[4], int):
            self.storages[label[2]] = max(label[4], self.storages.get(label[2], 0))

    def _found(self, module: str, attribute: str) -> Name:
        """Notes one class or function under the name that it has in Python 3."""
        if (module, attribute) in _compat_pickle.NAME_MAPPING:
            module, attribute = _compat_pickle.NAME_MAPPING[module, attribute]
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        name = f"{module}.{attribute}"
        plain = attribute in PLAIN_BUILTINS | {"getattr"} if module == "builtins" else module in PLAIN_MODULES
        if module.partition(".")[0] in sys.stdlib_module_names and not plain:
            raise HostileError(f"its pickle asks for {shown(name)}")
        self.names.add(name)
        return Name(name)


def _check_getattr(function: object, args: object) -> None:
    """Lets `getattr` through for a foreign class only: MMEngine's histories name their methods so."""
    if function != Name("builtins.getattr"):
        return
    owner = args[0] if isinstance(args, tuple) and len(args) == 2 else None
    if not isinstance(owner, Name) or owner.value.partition(".")[0] in sys.stdlib_module_names | {"torch"}:
        raise HostileError("its pickle asks for builtins.getattr")


def _pop_mark(stack: list[Any]) -> list[Any]:
    """Takes everything down to the last mark, and the mark."""
    start = next(i for i in reversed(range(len(stack))) if stack[i] is pickletools.markobject)
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _replace(opcode: pickletools.OpcodeInfo, value: object, stack: list[Any]) -> None:
    """The effect of an instruction that neither calls nor fills anything."""
    before, after = opcode.stack_before, opcode.stack_after
    if pickletools.markobject in before:
        _pop_mark(stack)
    elif before:
        if len(stack) < len(before):
            raise IndexError("the pickle takes more than it has put")
        del stack[-len(before) :]
    for kind in after:
        if kind is pickletools.markobject:
            stack.append(kind)
        else:
            stack.append(Text(value) if isinstance(value, str) else value if isinstance(value, int) else None)


def _scan_file(path: Path) -> Scan:
    """Scans every pickle of a file that `torch.save` wrote, in today's zip format or in the one before.

    Raises:
        HostileError: a pickle names something harmful.
        Exception: of many kinds, where the file is none of `torch.save` or claims more than it has.
    """
    scan = Scan()
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) == ZIP_MAGIC:
            _scan_zip(path, size, scan)
        else:
            file.seek(0)
            if scan.read(file) != torch.serialization.MAGIC_NUMBER or tarfile.is_tarfile(path):
                raise ValueError("the magic number is missing")
            for _ in ("version", "system", "content", "storages"):
                scan.read(file)
    claimed = sum(scan.storages.values())
    if claimed > max(size, UNPACKED_BYTES):
        raise ValueError(f"it claims {claimed} numbers in {size} bytes")
    return scan


def _scan_zip(path: Path, size: int, scan: Scan) -> None:
    with zipfile.ZipFile(path) as archive:
        records = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if not records:
            raise ValueError("no data.pkl in the zip file")
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ValueError("a TorchScript program")
        unpacked = sum(record.file_size for record in archive.infolist())
        if unpacked > max(size, UNPACKED_BYTES):
            raise ValueError(f"{unpacked} bytes packed into {size}")
        for record in records:
            with archive.open(record) as data:
                scan.read(data)


def _begins_like_torch_file(path: Path) -> bool:
    magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
    with path.open("rb") as file:
        start = file.read(len(magic))
    return start.startswith(ZIP_MAGIC) or start == magic


def _stand_ins(scan: Scan) -> list[Any]:
    """One class without behaviour for each name, in the form that `torch.serialization.safe_globals` takes."""
    classes: list[Any] = []
    for name in sorted(scan.names):
        if name in scan.dicts | DICTS:
            base: type[StandIn] = DictStandIn
        else:
            base = ListStandIn if name in scan.lists | LISTS else StandIn
        classes.append((type(name.rpartition(".")[2], (base,), {}), name))
    return classes


def _first_sentence(error: Exception) -> str:
    """What went wrong, without torch's advice to load the file in an unsafe way."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return shown(text.partition("\n")[0].partition(". ")[0], 200).rstrip(".") or type(error).__name__


def load_untrusted(path: Path) -> Any:
    """Reads a file that `torch.save` wrote, onto the CPU; no code of it, or that it names, runs.

    Args:
        path: a file in today's zip format or in the one before torch 1.6.

    Returns:
        What was saved; every foreign object is a `StandIn`, or an `OrderedDict` or list of what it held.

    Raises:
        UserError: the file is missing, empty, truncated, not of `torch.save`, or hostile.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; it was probably not copied or downloaded completely")
        scan = _scan_file(path)
        if scan.protocol > 2:
            raise UserError(f"{path} is in pickle protocol {scan.protocol}; write it with torch.save's default, 2")
        with torch.serialization.safe_globals(_stand_ins(scan)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except HostileError as error:
        raise UserError(f"{path} is refused as hostile: {error}, which no checkpoint needs; nothing was run") from None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        if _begins_like_torch_file(path):
            reason = _first_sentence(error)
            raise UserError(f"{path} is truncated or damaged, or not a file of weights ({reason})") from None
        with path.open("rb") as file:
            reason = git_lfs_note(file.read(64)) or "torch.save did not write it; give a .pth file"
        raise UserError(f"{path} is not a checkpoint: {reason}") from None
