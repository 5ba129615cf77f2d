"""What `import mgdet` costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mgdet

HEAVY = ("torch", "cv2", "timm", "matplotlib", "numpy", "transformers")


@pytest.mark.parametrize(
    "code", ["import mgdet, mgdet.recipes", "from mgdet.cli import main; main(['--help'])", "import mgdet; dir(mgdet)"]
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code):
    check = f"{code}\nimport sys\nassert not [name for name in {HEAVY} if name in sys.modules], sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_every_public_name_is_there():
    for name in mgdet.__all__:
        assert getattr(mgdet, name).__name__ == name
    assert set(mgdet.__all__) <= set(dir(mgdet))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mgdet.nothing  # noqa: B018


def test_the_citation_is_of_this_version():
    citation = (Path(__file__).parent.parent / "CITATION.cff").read_text()
    assert f"\nversion: {mgdet.__version__}\n" in citation
