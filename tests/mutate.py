"""Files that nobody planned: bytes and values of good ones, changed at random from a seed.

A test gives the good file, reads each mutant with `check_reader`, and is done.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STATM = Path("/proc/self/statm")
SECONDS, BYTES = 2.0, 2**30
SCRAPS = (b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"NaN", b"-", b"1e999", b'"', b"\\ud800", b"{", b"[", b"]]", b",")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 0.0, -0.0, 2**31, -(2**63), 2**64, 10**40, 1e18, 1e308, -1e308, 5e-324),
    *(math.nan, math.inf, -math.inf, "", " ", "0", "-1", "1e5", "nan", "x" * 300, "\ud800", "a/../../b", "\x00", "é"),
    *([], {}, [[]], [{}], {"": 0}, [0] * 7, [None] * 4, ["1", "2", "3", "4"], [[1, 2], [3, 4], [5, 6]]),
    *(
        {"size": [48, 64], "counts": [5, 2**62]},
        {"size": [2**20, 2**20], "counts": [2**40]},
        {"size": [9, 9], "counts": "~"},
    ),
)


def mutated_bytes(good: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """`number` copies of a file with one to four places cut, doubled, overwritten or moved."""
    rng = random.Random(seed)
    for _ in range(number):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(data) + 1)
            end = min(len(data), start + int(rng.expovariate(1 / 8)))
            kind = rng.randrange(5)
            if kind == 0:
                del data[start:end]
            elif kind == 1:
                data[start:start] = data[start:end]
            elif kind == 2:
                data[start:end] = rng.randbytes(end - start)
            elif kind == 3:
                data[start:start] = rng.choice(SCRAPS)
            else:
                data = data[:start] if rng.random() < 0.2 else data[start:] + data[:start]
        yield bytes(data)


def mutated_values(good: Any, number: int, seed: int = 0) -> Iterator[Any]:
    """`number` copies of a value, as of JSON, with one to four places replaced, removed or doubled."""
    rng = random.Random(seed)
    for _ in range(number):
        value = copy.deepcopy(good)
        for _ in range(rng.randint(1, 4)):
            value = _mutate(value, rng)
        yield value


def json_mutants(good: Any, number: int, seed: int = 0) -> Iterator[bytes]:
    """Half of them changed in bytes, half in values."""
    text = json.dumps(good).encode()
    yield from mutated_bytes(text, number // 2, seed)
    for value in mutated_values(good, number - number // 2, seed):
        yield json.dumps(value).encode()


def _mutate(value: Any, rng: random.Random) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(VALUES))
    holder, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == 2:
        other, its = rng.choice(places)
        holder[key] = copy.deepcopy(other[its])
    elif kind == 3 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 0.5, 1e3, 1e9))
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(inner)


def check_reader(
    read: Callable[[bytes], object], mutants: Iterator[bytes], expected: type[Exception]
) -> dict[str, int]:
    """Reads every mutant: it must be read or end in a sentence, in time and within memory.

    Here and not in a forked process: there, threads that other tests have started are missing, and who needs them
    waits permanently.

    Args:
        read: reads the bytes of a file; what it returns is not used.
        mutants: the files.
        expected: the error whose text is the sentence.

    Returns:
        How many were read and how many refused.

    Raises:
        AssertionError: another exception, more than a line, too much time or memory.
    """
    counts = {"read": 0, "refused": 0}
    failures = []
    with _limits():
        for mutant in mutants:
            verdict = _verdict(read, mutant, expected)
            if verdict in counts:
                counts[verdict] += 1
            else:
                failures.append(verdict)
    assert not failures, f"{len(failures)} failures, the first: {failures[0]}"
    return counts


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """No more memory than now and `BYTES`, on Linux; an alarm becomes an exception."""
    memory, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, _too_long)
    try:
        if STATM.exists():
            used = int(STATM.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, memory[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGPROF, handler)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def _verdict(read: Callable[[bytes], object], mutant: bytes, expected: type[Exception]) -> str:
    """ "read", "refused", or what went wrong."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process, however busy the machine is
    start = time.process_time()
    try:
        read(mutant)
    except expected as error:
        text = str(error)
        return "refused" if text and "\n" not in text and len(text) < 2000 else f"not a sentence: {text}"
    except Exception:
        return f"{traceback.format_exc()[-1500:]}{mutant[:3000]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "read" if time.process_time() - start < SECONDS else f"too long: {mutant[:3000]!r}"
