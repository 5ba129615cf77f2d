"""README and docs: every block of code is run or read in full, every command can be typed, every link leads somewhere.

A block that no test can run says why, on the line above it: <!-- not run: needs two machines -->. What a command prints
is a block of `text`. A new page is tested without a line here; small things for what it names are in `stand_ins.py`.
"""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgdet import cli
from mgdet.cli import distill as cli_distill
from mgdet.cli import parsing
from mgdet.config import Config
from mgdet.engine.schedule import WARMUP_SHARE
from mgdet.planning import decide, memory, rules
from mgdet.planning.plan import SGD_BACKBONES
from mgdet.recipes import RECIPES, load_recipe
from pages import ADVICE, NOT_RUN, PAGES, ROOT, SHELL, Block, anchors, arguments, blocks, lines, links, name_of, spans
from stand_ins import enter, furnish, smaller, write_read

LANGUAGES = {*SHELL, "python", "text", "json", "yaml"}
README = ROOT / "README.md"
MOVING = ROOT / "docs" / "moving.md"


def of(*languages: str) -> list[Block]:
    return [block for page in ADVICE for block in blocks(page, *languages)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is_and_why_it_is_not_run(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: give one of {', '.join(sorted(LANGUAGES))}"
    marks = [line for line in page.read_text().splitlines() if line.startswith("<!-- not run")]
    assert [NOT_RUN.sub(r"\1", mark) for mark in marks] == [block.not_run for block in blocks(page) if block.not_run]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder of somebody who does what a page says."""
    enter(tmp_path, monkeypatch)


class Parsed(Exception):
    """A command was read to its end; it would begin now."""


def read(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a command read its arguments, all of them, and do nothing."""
    write_read(words)
    if words[0] not in cli.COMMANDS:
        assert cli.main(words) == 0, words
        return
    module = importlib.import_module(f"mgdet.cli.{words[0]}")

    def stop(*given: Any, **named: Any) -> None:
        raise Parsed(parsing.parse(*given, **named))

    for reader in {module, cli_distill}:  # `check` has `distill` read a teacher and its data
        monkeypatch.setattr(reader, "parse", stop)
    with pytest.raises((Parsed, SystemExit)) as done:  # --help leaves with 0
        module.run(words[1:])
    result = done.value.args[0]
    config = getattr(result, "config", None)
    assert isinstance(done.value, Parsed) or result == 0
    if isinstance(config, Config):
        config.check_together()


@pytest.mark.parametrize("block", of(*SHELL), ids=str)
def test_commands_can_be_typed(block, here, monkeypatch):
    for words in lines(block):
        typed = arguments(words)
        if typed is not None:
            read(typed, monkeypatch)
        elif not block.not_run:
            assert understood(words), f"{block}: what is this? {shlex.join(words)}"


def understood(words: list[str]) -> bool:
    """A command that is not mgdet's: does what it names exist?"""
    if words[0] == "make":
        return f"\n{words[1]}: " in (ROOT / "Makefile").read_text()
    if words[:2] == ["pip", "install"]:
        extras = {extra for found in re.findall(r"\[([\w,]+)\]", " ".join(words)) for extra in found.split(",")}
        return all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)
    if words[0] == "python":
        return all((ROOT / word).exists() for word in words[1:] if word.endswith(".py"))
    return words[0] in (".", "cd", "pre-commit") or words[:2] == ["source", "<(mgdet"]


@pytest.mark.parametrize("page", ADVICE, ids=name_of)
def test_commands_inside_of_sentences_can_be_typed(page, here, monkeypatch):
    for span in spans(page):
        words = shlex.split(span) if span.startswith(("mgdet ", "torchrun ")) else []
        typed = arguments(words)
        if typed and typed[0] != "COMMAND":
            assert typed[0] in cli.COMMANDS or typed[0].startswith("--"), span
            if len(typed) > 1 and "..." not in words:
                read(typed, monkeypatch)


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of `train` and `test`, as section.name."""
    config = load_recipe("retinanet_x101_to_r50").to_dict()
    return {f"{section}.{name}" for section, values in config.items() if isinstance(values, dict) for name in values}


@pytest.mark.parametrize("page", [page for page in ADVICE if page != MOVING], ids=name_of)
def test_settings_that_are_named_exist(page, options):
    """Those of the original, on the left of moving.md, are others."""
    sections = {option.partition(".")[0] for option in options}
    for span in spans(page):
        for found in re.findall(r"(?:^|--)(\w+\.[a-z][\w-]*)(?= |$)", span):
            if found.partition(".")[0] in sections and not found.endswith((".py", ".txt", ".json", ".yaml")):
                assert found.replace("-", "_").replace(".no_", ".") in options, span


def test_files_can_be_read():
    for block in of("json", "yaml"):
        assert json.loads(block.text) if block.language == "json" else yaml.safe_load(block.text)


@pytest.mark.parametrize("page", [page for page in ADVICE if blocks(page, "python")], ids=name_of)
def test_examples_in_python_run(page, here, monkeypatch):
    """One after the other, as somebody would type them."""
    names: dict[str, object] = {"__name__": "__page__"}
    furnish("".join(block.text for block in blocks(page, "python")), monkeypatch)
    for block in blocks(page, "python"):
        code = compile("\n" * block.line + block.text, name_of(page), "exec")
        if not block.not_run:
            exec(code, names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_menu_of_the_site_lists_every_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"[\w/.-]+\.md", json.dumps(config["nav"])))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.is_relative_to(ROOT / "docs")}
    results = {f"benchmarks/{path.name}" for path in PAGES if path.is_relative_to(ROOT / "benchmarks")}
    elsewhere = {"index.md", "changelog.md", "contributing.md", "notebook.md", "reference/commands.md"}
    assert listed == pages | results | elsewhere


def test_the_house_has_the_rooms_that_its_page_says():
    package = ROOT / "src" / "mgdet"
    rows = re.findall(
        r"^\| `(\w+/|\w+\.py)` \| (.*) \| .* \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
    )
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert {room for room, _ in rows} == files | {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    for room, holds in rows:
        missing = [name for name in re.findall(r"`(\w+\.py)`", holds) if not (package / room / name).exists()]
        assert not missing, f"{room} has no {missing}"


def test_the_reference_has_every_method_of_distillation():
    page = (ROOT / "docs" / "reference" / "methods.md").read_text()
    modules = {path.stem for path in (ROOT / "src" / "mgdet" / "methods").glob("*.py")} - {"__init__"}
    assert set(re.findall(r"^::: mgdet\.methods\.(\w+)$", page, re.MULTILINE)) == modules


def test_the_table_of_detectors_is_made_by_the_script():
    script = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    page = (ROOT / "docs" / "any-teacher.md").read_text()
    assert page == script["filled"](page), "run docs/make_tables.py"
    rows = [line for line in script["table"]().splitlines() if line.startswith("| `")]
    for source in ("torchvision", "hf", "libreyolo", "timm"):
        assert any(row.startswith(f"| `{source}:") for row in rows)
    assert "| `timm:resnet50.a1_in1k` | yes | no | |" in rows
    assert "| `torchvision:maskrcnn_resnet50_fpn` | yes | yes | boxes and masks |" in rows


def test_the_published_table_is_that_of_the_recipes():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w+ [\d.]+) \| (\w+ [\d.]+) \|$", README.read_text(), re.MULTILINE)
    assert len(rows) == 5
    for name, baseline, distilled_ap in rows:
        assert baseline in RECIPES[name].baseline
        assert distilled_ap in RECIPES[name].distilled


def test_the_rules_of_distill_are_those_of_its_page():
    """Numbers and names; words that stand for numbers are beside them here."""
    page = (ROOT / "docs" / "distill.md").read_text()
    (table,) = re.findall(r"\| what \| rule \|\n(.*?)\n\n", page, re.DOTALL)
    for words in (
        f"{rules.FEWEST_STEPS:,} steps",
        f"at most {rules.MOST_EPOCHS}",
        f"{rules.MOST_EPOCHS} epochs hold {rules.FEWEST_STEPS:,} steps",
        f"up to {rules.EDGE_DIVISOR} pixels",
        f"a share of {rules.SHARE:g}",
        f"{decide.PUBLISHED_SIZE[1]} x {decide.PUBLISHED_SIZE[0]}",
        f"{decide.PUBLISHED_CHANNELS} wide",
        {0.9: "nine tenths"}[rules.HELD],
        {1 / 8: "an eighth"}[WARMUP_SHARE],
        {0.5: "half the area"}[decide.LEAST_AREA],
        {("resnet", "resnext", "mobilenetv3_large_100"): "ResNet, ResNeXt or MobileNetV3"}[SGD_BACKBONES],
    ):
        assert words in table, words
    assert f"Up to {memory.GPU_SHARE:.0%} of a GPU's" in page
    assert f"and {({0.5: 'half'})[memory.HOST_SHARE]} of a machine's" in page


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in ADVICE if blocks(page, *SHELL)], ids=name_of)
def test_commands_run_in_their_order(page, here, monkeypatch, capsys):
    run = [block for block in blocks(page, *SHELL) if not block.not_run]
    furnish("".join(block.text for block in run), monkeypatch)
    for block in run:
        for words in lines(block):
            if (typed := arguments(words)) is not None:
                typed = smaller(typed)
                assert cli.main(typed) == 0, (shlex.join(words), capsys.readouterr().err)
                assert all(Path(file).exists() for file in written(typed)), shlex.join(words)


def written(typed: list[str]) -> list[str]:
    """What a command says that it writes."""
    outs = [typed[i + 1] for i, word in enumerate(typed) if word in ("--out", "--run-dir")]
    return outs + ([typed[2]] if typed[0] in ("transfer", "export") else [])
