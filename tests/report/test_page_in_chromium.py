"""The page in a real browser: nothing is asked of any machine, and nothing is complained about."""

import json
import os
import re
import shutil
import subprocess

import pytest

from mgdet.config import DataConfig
from mgdet.report.compare import compare
from mgdet.report.intervals import Bootstrap

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless=new",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--log-level=0",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; CONTRIBUTING.md says how to get it"),
]


@pytest.fixture
def opened(tmp_path):
    """Opens a file in a fresh browser: what it shows as HTML, what it asked of the network, and the console's lines."""

    def open_page(path, *options):
        log = tmp_path / "network.json"
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [CHROMIUM, *QUIET, *sandbox, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"]
        done = subprocess.run(
            [*command, *options, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        events = json.loads(log.read_text())["events"]
        parameters = [event["params"] for event in events if "url" in event.get("params", {})]
        asked = {own["url"] for own in parameters if own.get("initiator", "").startswith(("file:", "null"))}
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return done.stdout, asked, console

    return open_page


@pytest.fixture(scope="module")
def page(runs, shown, perturbed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    (folder / "theirs.json").write_text(json.dumps(perturbed(2)))
    data = DataConfig(root=str(shown.root), workers=0)
    sources = [str(runs["alone-0"]), str(runs["alone-1"]), str(folder / "theirs.json"), str(runs["mgd-0"])]
    found = compare(sources, data=data, out=folder / "out", bootstrap=Bootstrap(100))
    return found, folder / "out" / "report.html"


def test_the_browser_would_tell(opened, tmp_path):
    """A page that does ask and complain is seen to."""
    path = tmp_path / "bad.html"
    path.write_text('<img src="http://example.invalid/x.png"><script>console.error("broken")</script>')
    _, asked, console = opened(path)
    assert asked == {"http://example.invalid/x.png"}
    assert any("broken" in line for line in console)


SECTIONS = (
    "AP: difference from",
    "AP and cost",
    "How far to trust this",
    "AP of each class",
    "Error types",
    "Training curves",
    "Feature maps of",
    "Sources",
)


@pytest.mark.parametrize("options", [("--window-size=1400,900",), ("--window-size=390,844",)])
def test_it_asks_nothing_and_the_console_is_silent(opened, page, options):
    found, path = page
    shown, asked, console = opened(path, *options)
    assert asked == set()
    assert console == []
    assert found.headlines[0].split(", ")[0] in shown
    # Pictures that differ most are shown where detectors of so few steps find anything that differs.
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", shown)
    assert [each for each in SECTIONS if not any(heading.startswith(each) for heading in headings)] == []


def test_without_its_policy_it_asks_nothing_either(opened, page, tmp_path):
    """The policy forbids what the page does not do anyway."""
    _, path = page
    free = tmp_path / "free.html"
    free.write_text(path.read_text().replace("default-src 'none'; ", ""))
    _, asked, console = opened(free)
    assert (asked, console) == (set(), [])
