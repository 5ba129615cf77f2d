"""What the documentation's site adds to docs/: pages from elsewhere, the notebook, the commands' help, formulas."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mgdet import cli

ROOT = Path(__file__).parent.parent
PLACES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files of the repository and where they are on the site."""
FOLDERS = {"docs/": "", "benchmarks/results/": "benchmarks/"}
"""Folders of the repository and where what they hold is on the site."""
NOTEBOOK, NOTEBOOK_PAGE = "docs/distill.ipynb", "notebook.md"
COMMANDS = "reference/commands.md"
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures that are not in docs/."""
    results = (ROOT / "benchmarks" / "results").iterdir()
    for path in [*PLACES, *(file.relative_to(ROOT).as_posix() for file in results)]:
        place = place_of(path)
        assert place is not None
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, NOTEBOOK_PAGE, content=notebook_page()))
    files.append(File.generated(config, COMMANDS, content=commands_page()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Turns links between files of the repository into links on the site, or into addresses in the repository."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    folder = Path(source).relative_to(ROOT).parent.as_posix()
    here = posixpath.dirname(page.file.src_uri) or "."

    def moved(link: re.Match[str]) -> str:
        target, anchor = posixpath.normpath(posixpath.join(folder, link[1])), link[2] or ""
        path, place = ROOT / target, place_of(target)
        if path.is_file() and place is not None:
            return f"]({posixpath.relpath(place, here)}{anchor})"
        if path.exists():
            return f"]({config.extra['repository']}/{'tree' if path.is_dir() else 'blob'}/main/{target}{anchor})"
        return link[0]

    return LINK.sub(moved, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turns formulas into MathML, which browsers draw without a script."""
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: formula(m[1], "inline"), content)
    blocks = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
    return blocks.sub(lambda m: formula(m[1], "block"), content)


def formula(latex: str, display: str) -> str:
    return convert(html.unescape(latex).strip(), display=display)


def place_of(path: str) -> str | None:
    """Where a file of the repository is on the site; None where it is not on it."""
    if path.endswith(".py"):
        return None
    if path == NOTEBOOK:
        return NOTEBOOK_PAGE
    folder = next((folder for folder in FOLDERS if path.startswith(folder)), None)
    return PLACES.get(path) if folder is None else FOLDERS[folder] + path.removeprefix(folder)


def notebook_page() -> str:
    """The notebook's cells, one after the other."""
    parts = []
    for cell in json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """The help of every command, as a terminal of 100 columns shows it."""
    sections = [f"# Commands\n\n```text\n{help_of()}```\n"]
    sections += [f"## mgdet {name}\n\n```text\n{help_of(name)}```\n" for name in cli.COMMANDS]
    return "\n".join(sections)


def help_of(*command: str) -> str:
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())
