"""What users install: built from the source archive, installed without the clone, and run there."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import mgdet

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (archive,), (wheel,) = out.glob("mgdet-*.tar.gz"), out.glob("mgdet-*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Callable[..., str]:
    """Runs the installed `mgdet` in a folder of its own; the packages it needs are those of this environment."""
    target = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(built[1])], check=True, capture_output=True, text=True)

    def run(*words: str) -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        elsewhere = target.parent / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        command = [str(target / "bin" / "mgdet"), *words]
        done = subprocess.run(
            command, env=env | {"PYTHONPATH": str(target)}, cwd=elsewhere, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def sources() -> set[str]:
    """Every file of the package: modules, templates, and the mark that it is typed."""
    files = {path for path in (ROOT / "src" / "mgdet").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return {path.relative_to(ROOT / "src").as_posix() for path in files}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    assert {name for name in names if ".dist-info/" not in name} == sources()
    assert f"mgdet-{mgdet.__version__}.dist-info/licenses/LICENSE" in names


def test_the_source_archive_holds_what_builds_and_tests_the_package(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in sources()} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")} <= names
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "docs/method.md", "mkdocs.yml"} <= names


def test_a_package_index_shows_the_readme_with_links_that_lead_somewhere(built):
    archive = zipfile.ZipFile(built[1])
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    page = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert links and all(re.match("https?:|#", link) for link in links)
    assert re.search(r"!\[[^]]*\]\(https://raw\.\S+/docs/images/demo\.jpg\)", page)
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} == set(urls)


def test_what_is_installed_runs_without_the_clone(installed):
    assert installed("--version") == f"mgdet {mgdet.__version__}\n"
    assert "retinanet_x101_to_r50" in installed("recipes")
    assert "--optimizer.lr" in installed("train", "retinanet_r50", "--help")


@pytest.mark.long
def test_the_demo_of_what_is_installed(installed):
    assert "gap closed" in installed("demo", "--quick")
