"""The commands: each a thin plain function over the package's own parts, in a file of its own."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

from mgdet.cli.parsing import say
from mgdet.errors import TrainingError, UserError, nearest, shortage

USAGE = """\
usage: mgdet COMMAND ...

  distill TEACHER DATA [--student NAME]     distil any teacher into a small student, on your own data
  recipes                                   what can be trained, and what is published about it
  check RECIPE | TEACHER DATA               check a run before it starts: weights, teacher, one step, time
  train RECIPE [--section.field value ...]  train a student, with its teacher or alone (or --config FILE)
  test [RECIPE] CHECKPOINT|RESULTS.json     COCO mAP of a checkpoint, or of any tool's detections
  compare RUN|CHECKPOINT|OUT.onnx ...       which is better, by how much, and how sure: a page and JSON
  transfer IN OUT                           checkpoints to and from MMDetection, or to safetensors
  predict CHECKPOINT IMAGE_OR_FOLDER ...    annotated pictures and one JSON
  export CHECKPOINT OUT.onnx                one ONNX graph, from the image to boxes, compared with torch
  data DIR                                  what a data set holds, and whether it can be trained on
  demo                                      all of it on a data set that it makes, in minutes, on any machine

mgdet COMMAND --help says more about one command; mgdet --version prints the version.
source <(mgdet --print-completion bash) completes commands and options; so does zsh, and fish with a file."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TRAINING = (
    "lower --train.batch and raise --train.accumulate as much, add --train.amp bf16, lower --data.short-edge and "
    "--data.long-edge, or lower --data.workers"
)
ADVICE = {
    "train": _TRAINING,
    "distill": _TRAINING,
    "check": "lower --train.batch, --data.short-edge and --data.long-edge",
    "test": "lower --batch, --data.short-edge and --data.long-edge, or --data.workers",
    "compare": "lower --data.workers",
    "predict": "lower --batch",
    "export": "give a smaller --size, or a folder of smaller pictures with --images",
}
"""What to do when memory is short."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; what went wrong is said in one sentence.

    0: done. 1: a run that cannot continue: a number that is not finite, too little memory, a process that died or
    hangs. 2: bad input, or a disk that is full. 130: Ctrl-C. 128 + n: signal n.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _let_memory_grow()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in letters that the terminal's encoding lacks
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from mgdet import __version__

        say(f"mgdet {__version__}")
        return 0
    try:
        if arguments[0] == "--print-completion":
            from mgdet.cli.completion import completion

            say(completion(" ".join(arguments[1:]), tuple(COMMANDS)).rstrip())
            return 0
        if arguments[0] not in COMMANDS:
            raise UserError(f"there is no command '{arguments[0]}'{nearest(arguments[0], COMMANDS)}")
        return COMMANDS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        text, code = _explain(error, arguments[0])
        if not text:
            raise
        sys.stderr.write(f"mgdet: {text}\n")
        return code


def _let_memory_grow() -> None:
    """Image sizes change from step to step; pieces of a GPU's memory that grow do not fragment. The user's word counts.

    Read by torch when CUDA starts, which is later. Only Linux has it.
    """
    if sys.platform == "linux" and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def _explain(error: Exception, command: str) -> tuple[str, int]:
    """The sentence and the exit code of an error; the sentence is empty for those that are our own fault."""
    if isinstance(error, UserError):
        return str(error), 2
    if lacking := shortage(error):
        advised = ";" in lacking or command not in ADVICE
        return lacking if advised else f"{lacking}; {ADVICE[command]}", 1
    if isinstance(error, TrainingError):
        return str(error), 1
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return "no space is left on the disk; free some, then resume a run with --resume", 2
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}", 2
    return "", 0


def _run(command: str, arguments: list[str]) -> int:
    """Runs the command that the module of its name holds."""
    code: int = importlib.import_module(f"mgdet.cli.{command}").run(arguments)
    return code


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    name: partial(_run, name)
    for name in (
        "distill",
        "recipes",
        "check",
        "train",
        "test",
        "compare",
        "transfer",
        "predict",
        "export",
        "data",
        "demo",
    )
}
