"""A config that lies in a file: a run's `config.json`, or JSON or YAML written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from mgdet.config import Config
from mgdet.errors import UserError

CONFIG_FILE = "config.json"
"""Name of a run's config in its folder."""
YAML_ENDINGS = (".yaml", ".yml")


def find_config(source: str | Path) -> Path:
    """The file that `source` means: a file, or the config in a run's folder.

    Raises:
        UserError: there is none.
    """
    path = Path(source)
    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no config '{file}'; give a run's folder, its {CONFIG_FILE}, or a JSON or YAML file")
    return file


def load_config(file: Path) -> Config:
    """Reads a config: YAML by its ending, or else JSON.

    Raises:
        UserError: the file cannot be read, or does not hold a whole config.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the config '{file}' cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{file} is not a run's config: it is not text in UTF-8") from None
    try:
        return Config.from_dict(_from_yaml(text) if file.suffix.lower() in YAML_ENDINGS else json.loads(text))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not a run's config: {reason}") from None


def _from_yaml(text: str) -> Any:
    """YAML 1.2's scalars: in PyYAML's own 1.1 `off` is false and `2e-5` is text.

    Raises:
        ValueError: it is not YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    for kind, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", "~nN"),
        ("int", r"[-+]?[0-9]+", "-+0123456789"),
        (
            "float",
            r"[-+]?(\.[0-9]+|[0-9]+\.?[0-9]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            "-+.0123456789",
        ),
    ):
        firsts = [*first, ""] if kind == "null" else [*first]
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), firsts)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
