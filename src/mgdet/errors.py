"""What goes wrong because of what the user gave us, said in one sentence."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Mapping


class UserError(ValueError):
    """Bad input: the message names the thing, its value and the nearest valid choice.

    The command line prints the message alone and leaves with exit code 2.
    """


class TrainingError(RuntimeError):
    """A run that cannot continue: the message says where and why. The command line leaves with exit code 1."""


class NotFinite(TrainingError):
    """Losses or gradients that are no numbers."""


class Stalled(TrainingError):
    """No batch comes any more: a process that reads images hangs. No step is half done."""


SHARED_MEMORY = "no shared memory is left for the images that other processes read; enlarge /dev/shm"
_NO_SHARED_MEMORY = (
    "unable to allocate shared memory",
    "unable to open shared memory",
    "unable to mmap",
    "insufficient shared memory",
    SHARED_MEMORY,
)
_NO_GPU_MEMORY = ("CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_NO_MEMORY = ("DefaultCPUAllocator", "std::bad_alloc", "Insufficient memory", "Cannot allocate memory")


def shortage(error: BaseException) -> str:
    """What ran out where the machine, and not our code, is behind an error; empty for all other errors.

    CUDA's allocator, torch's on the CPU, numpy, OpenCV and the data loader each say it in their own way.
    """
    text = str(error)

    def says(signs: tuple[str, ...]) -> bool:
        return any(sign in text for sign in signs)

    worker = "DataLoader worker" in text
    if "Too many open files" in text:
        return "too many files are open at once; raise the limit with ulimit -n, or lower --data.workers"
    if says(_NO_SHARED_MEMORY) or (worker and "Bus error" in text):
        return f"{SHARED_MEMORY} (in Docker with --shm-size), or add --data.workers 0"
    if worker and ("killed by signal" in text or "exited unexpectedly" in text):
        killed = re.search(r"killed by signal: (\w+)", text)
        how = f"was ended by the signal {killed.group(1)}" if killed else "ended without a word"
        return f"a process that reads images {how}, as it happens where memory is short"
    if type(error).__name__ == "OutOfMemoryError" or says(_NO_GPU_MEMORY):
        wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
        return "the GPU has no memory left" + (f" for another {wanted.group(1)}" if wanted else "")
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or says(_NO_MEMORY):
        return "this machine has no memory left"
    return ""


def refuse_unused(what: str, options: Mapping[str, bool]) -> None:
    """Refuses options that were given where they mean nothing.

    Args:
        what: the sentence's start, e.g. "student.onnx is an exported graph".
        options: by name, which of them were given.

    Raises:
        UserError: one was given.
    """
    for option, given in options.items():
        if given:
            raise UserError(f"{what}, for which {option} means nothing; leave it out")


def git_lfs_note(head: bytes) -> str:
    """What to say of a file that begins like the note that Git LFS leaves in a file's place; empty for all others."""
    if not head.startswith(b"version https://git-lfs"):
        return ""
    return "Git LFS has put a note in its place; git lfs pull brings the file"


def nearest(name: str, choices: Iterable[str]) -> str:
    """Says which of `choices` was probably meant: `"; did you mean 'x'?"`, or the choices themselves."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; the choices are {', '.join(choices)}" if choices else ""
