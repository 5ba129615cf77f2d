"""`mgdet --print-completion`: what shells really complete, and that it is what the commands take."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mgdet.cli import COMMANDS, main
from mgdet.cli.completion import FROM_RECIPE, OF_MGDET, completion, options_of
from mgdet.recipes import RECIPES


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script of each shell, as a file."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(completion(shell, tuple(COMMANDS)))
    return lambda shell: folder / shell


@pytest.fixture
def shown(capsys, monkeypatch):
    """What the help of a command shows of its options: name by name what stands behind it, such as its choices."""
    monkeypatch.setenv("COLUMNS", "100")

    def look(command):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
        firsts = [line.split("  ")[0] for line in lines if re.match(r"(-h, )?--\w", line)]
        return {name: re.sub(r"--[\w.-]+,?", "", first) for first in firsts for name in re.findall(r"--[\w.-]+", first)}

    return look


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_are_those_of_the_help(command, shown):
    assert {name for option in options_of(command) for name in option.names} == shown(command).keys() >= {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_choices_are_those_of_the_help(command, shown):
    kinds = {"INT", "FLOAT", "STR", "FILE", "h"}
    spelled = {name: set(re.findall(r"\w+", text)) - kinds for name, text in shown(command).items()}
    assert {name: set(option.words) for option in options_of(command) for name in option.names} == spelled


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_starts_from_a_recipe_completes_it(command, capsys):
    code = main([command, "--unknown-option"])
    assert code == 2
    assert ("needs a recipe first" in capsys.readouterr().err) == (command in FROM_RECIPE)


def test_a_shell_that_is_none(capsys):
    assert main(["--print-completion"]) == 2
    assert capsys.readouterr().err == "mgdet: --print-completion needs a shell; the choices are bash, fish, zsh\n"
    assert main(["--print-completion", "bsh"]) == 2
    assert capsys.readouterr().err == "mgdet: --print-completion is 'bsh'; did you mean 'bash'?\n"
    assert main(["--print-completion", "bash"]) == 0
    assert capsys.readouterr().out == completion("bash", tuple(COMMANDS))


CASES = [
    ("tra", {"train", "transfer"}),
    ("", {*COMMANDS, *OF_MGDET}),
    ("--pr", {"--print-completion"}),
    ("--print-completion ", {"bash", "zsh", "fish"}),
    ("train ", set(RECIPES)),
    ("train retinanet_x101_to_r", {"retinanet_x101_to_r50"}),
    ("test solo_r50", {"solo_r50", "solo_r50_3x"}),
    ("train --con", {"--config"}),
    ("train --config ", {"mine.json", "images"}),
    ("train --config m", {"mine.json"}),
    ("train pair --train.amp ", {"off", "bf16", "fp16"}),
    ("train pair --train.amp b", {"bf16"}),
    ("train pair --train.amp bf16 --optimizer.n", {"--optimizer.name"}),
    ("train pair --train.metrics ", {"bbox", "segm"}),
    ("train pair --train.metrics bbox s", {"segm"}),
    ("train pair --schedule.warmup_st", {"--schedule.warmup-steps"}),
    ("train pair --train.save_every ", set()),
    ("train pair --student.no-", {"--student.no-norm-eval", "--student.no-deformable", "--student.no-bgr"}),
    ("train pair --devices ", {"all"}),
    ("predict run/student.pth im", {"images"}),
    ("predict --em", {"--ema"}),
    ("nonsense --", set()),
]


@pytest.mark.parametrize(("line", "expected"), [*CASES, ("train pair --train.amp=b", {"bf16"})])
def test_bash_completes(line, expected, script, tmp_path):
    """Its words are split as bash splits them, at the equals sign too."""
    (tmp_path / "images").mkdir()
    (tmp_path / "mine.json").touch()
    words = ["mgdet", *re.findall(r"=|[^\s=]+", line)] + ([""] if line.endswith(" ") or not line else [])
    program = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mgdet; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", str(script("bash")), *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected


class Terminal:
    """A shell on a pseudo-terminal, as a person has it."""

    def __init__(self, arguments, folder):
        env = os.environ | {"PS1": "$ ", "HOME": str(folder), "TERM": "xterm", "COLUMNS": "200", "ZDOTDIR": str(folder)}
        self.process, self.main = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execvpe(arguments[0], arguments, env)

    def type(self, text, until, seconds=20):
        """Types, and waits for something to appear; returns all that did."""
        os.write(self.main, text.encode())
        out, end = "", time.monotonic() + seconds
        while until not in out:
            assert time.monotonic() < end, f"{until!r} does not come, only {out!r}"
            if select.select([self.main], [], [], 0.1)[0]:
                out += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(self.main, 65536).decode(errors="replace"))
        return out

    def close(self):
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.main)


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source {script}"),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit && compinit -u && source {script}"),
    "fish": (["fish", "--no-config", "-i"], "source {script}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_on_a_terminal(shell, script, tmp_path):
    """Keys typed into the shell itself: what is unique is written out, and a space after it."""
    if shutil.which(shell) is None:
        pytest.skip(f"this machine has no {shell}")
    (tmp_path / "mine.json").touch()
    arguments, load = SHELLS[shell]
    terminal = Terminal(arguments, tmp_path)
    try:
        terminal.type(f"{load.format(script=script(shell))}; echo is loa''ded\n", "is loaded")
        terminal.type("echo mgdet; mgdet predic\t", "predict ")
        terminal.type("\x15mgdet train retinanet_x101_to_mob\t", "retinanet_x101_to_mobilenetv3 ")
        terminal.type("--train.compi\t", "--train.compile ")
        terminal.type("--train.amp b\t", "bf16 ")
        terminal.type("--optimizer.name=ad\t", "adamw")
        terminal.type(" --config min\t", "mine.json")
    finally:
        terminal.close()


def test_completing_needs_no_torch():
    code = "import sys, mgdet.cli as cli; cli.main(['--print-completion', 'zsh']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
