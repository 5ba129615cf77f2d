"""The documentation as tests see it: its pages, their blocks of code, the commands in them, links and anchors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    + [path for folder in ("docs", "benchmarks/results") for path in (ROOT / folder).rglob("*.md")]
)
ADVICE = [page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.name != "results"]
"""Pages that say what to type today; the others say what was."""
SHELL = ("bash", "sh")
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
PLACEHOLDERS = {
    "RECIPE": "retinanet_x101_to_r50",
    "DEVICES": "2",
    "CHECKPOINT": "teacher.pth",
    "RUN/config.json": "runs/pair/config.json",
}
"""Words in a command that stand for something that has to be of a kind."""


@dataclass(frozen=True)
class Block:
    """A block of code in a page.

    page: where it is.
    line: of its fence, from 1.
    language: what stands behind the fence; text is what a command prints.
    text: its lines.
    not_run: why no test runs it; empty where one does.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page, all of them or those in some languages."""
    found = _blocks(page)
    return [block for block in found if not languages or block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    start, fence, body, above = 0, "", [], ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = re.match(r" *(```+)(.*)$", line)
        if not fence and mark:
            start, fence, language, body = number, mark[1], mark[2].strip(), []
        elif fence and line.strip() == fence:
            reason = NOT_RUN.fullmatch(above.strip())
            yield Block(page, start, language, "".join(f"{line}\n" for line in body), reason[1] if reason else "")
            fence, above = "", ""
        elif fence:
            body.append(line)
        elif line.strip():
            above = line
    assert not fence, f"{name_of(page)}:{start} does not end"


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *(```+).*?^ *\1 *$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def lines(block: Block) -> list[list[str]]:
    """The words of each command of a block, without its comments."""
    joined = block.text.replace("\\\n", " ").splitlines()
    return [words for line in joined if (words := shlex.split(line, comments=True))]


def arguments(words: list[str]) -> list[str] | None:
    """What `mgdet` is given in a command, with a value for each placeholder; None for another command."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:1] == ["torchrun"] and "-m" in words:
        words = words[words.index("-m") + 1 :]
    if words[:1] != ["mgdet"]:
        return None
    return [PLACEHOLDERS.get(word, word) for word in words[1:] if word != "..."]


def spans(page: Path) -> list[str]:
    """The code inside of a page's sentences and tables."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def links(page: Path) -> list[tuple[str, str]]:
    """Where a page's links to other files of the repository lead: the file, relative to the page, and the anchor."""
    found = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", prose(page))
    return list(dict.fromkeys(found))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the docs' site name them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in plain}
