"""Where a model of Hugging Face comes from: a folder, the hub's own cache, or the hub, asked once and briefly."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import pickle
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mgdet.errors import UserError
from mgdet.interop.loading import check_finite
from mgdet.structures import Pixels

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OLDEST = (5, 18)
PROBE_SECONDS = 8
SHOWN = 3


@dataclass(frozen=True)
class Source:
    """A model's files.

    name: as the user gave it, for messages.
    config: the content of its config.json.
    folder: holds config.json and, where `weights` is true, the weights; None for a bare model type.
    weights: are there weights in the folder?
    """

    name: str
    config: dict[str, Any]
    folder: Path | None
    weights: bool


def require() -> ModuleType:
    """The library, imported when first used: that takes seconds.

    Raises:
        UserError: it is not installed, or too old.
    """
    try:
        import scipy  # noqa: F401 - the library's matchers need it, and say so only in the first step
        import transformers
    except ImportError as error:
        raise UserError(f"hf: models need {error.name or error}: pip install 'mgdet[hf]'") from None
    version = tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2])
    if version < OLDEST:
        raise UserError(
            f"transformers {transformers.__version__} mixes denoising queries into the losses of RT-DETR and D-FINE; "
            f"hf: models need {OLDEST[0]}.{OLDEST[1]} or later: pip install --upgrade 'mgdet[hf]'"
        )
    return transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The library reports on loading in tables and bars of its own; here notes say what matters."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def locate(name: str, *, weights: bool) -> Source:
    """Finds a model by hub name (`owner/name`) or folder.

    What lies in the hub's cache is taken from there, without a look at the network. `HF_HOME`, `HF_ENDPOINT`,
    `HF_HUB_OFFLINE` and a token count as they do for the library.

    Args:
        name: `owner/name`, or the path of a folder that `save_pretrained` wrote.
        weights: also find the weights?

    Raises:
        UserError: there is no such model, or no network; the sentence names the files to bring.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise UserError(f"hf:{name} is neither a folder nor a name of the hub, such as hf:PekingU/rtdetr_v2_r50vd")
        folder = _from_hub(name, weights=weights)
    return read_folder(folder, name, weights=weights)


def read_folder(folder: Path, name: str, *, weights: bool) -> Source:
    """A folder as `save_pretrained` writes it.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}; give a folder that save_pretrained wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder / CONFIG} names no model_type; give a folder that save_pretrained wrote")
    has_weights = any((folder / file).is_file() for file in WEIGHTS)
    if weights and not has_weights:
        raise UserError(f"{folder} has no weights ({WEIGHTS[0]}); bring that file, or set the weights to random")
    return Source(name, config, folder, has_weights)


def make_config(settings: Mapping[str, Any]) -> Any:
    """The library's config of plain settings.

    Raises:
        UserError: the library does not know the model type, or refuses a setting.
    """
    from huggingface_hub.errors import StrictDataclassError

    transformers, kind = require(), settings["model_type"]
    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(dict(settings))
    except KeyError:
        raise UserError(f"transformers {transformers.__version__} knows no model type {kind}") from None
    except (ValueError, TypeError, StrictDataclassError) as error:
        why = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"transformers refuses these settings of a {kind}: {why}") from None


def read_weights(auto: Any, source: Source, config: Any, *, spare: str = "\0") -> tuple[Any, list[str]]:
    """A model of the library with the weights of a folder.

    Args:
        auto: the library's class that makes the model of a config.
        source: has weights.
        config: the model's config.
        spare: what the names of entries start with that may be missing.

    Returns:
        The model, and the names in the file that have no place in it.

    Raises:
        UserError: the file is damaged, does not fill the model, or holds a number that is not finite.
    """
    try:
        with quiet():
            model, report = auto.from_pretrained(
                str(source.folder), config=config, output_loading_info=True, local_files_only=True, dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"the weights in {source.folder} cannot be read: {_short(error)}") from None
    lost = [name for name in sorted(report["missing_keys"]) if not name.startswith(spare)]
    lost += sorted(str(entry[0]) for entry in report["mismatched_keys"])
    if lost:
        raise UserError(
            f"the weights in {source.folder} do not fill this {config.model_type}: {len(lost)} tensors are missing or "
            f"of another shape ({', '.join(lost[:SHOWN])}); bring the {CONFIG} that belongs to them"
        )
    assert source.folder is not None
    check_finite(source.folder, model, model.state_dict())
    return model, sorted(report["unexpected_keys"])


def names_of_now(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names that this version of the library has.

    Files keep the names of earlier versions, and `save_pretrained` writes those; only `from_pretrained` knows both.

    Args:
        model: of the library, made for the same config.
        state: under either names, complete or not.

    Returns:
        As much as there is, under the model's names; what has no place in it, or another shape, without its values.
    """
    if state.keys() == model.state_dict().keys():
        return dict(state)
    with quiet():
        filled, report = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    found = {name: value for name, value in filled.state_dict().items() if name not in report["missing_keys"]}
    rest = {name: shape for name, shape, _ in report["mismatched_keys"]} | dict.fromkeys(
        report["unexpected_keys"], (0,)
    )
    return found | {name: torch.empty(shape, device="meta") for name, shape in rest.items()}


def processor_in(source: Source) -> Any:
    """The image processor that came with the weights, else None.

    Raises:
        UserError: its file is damaged.
    """
    if source.folder is None or not (source.folder / PROCESSOR).is_file():
        return None
    try:
        with quiet():
            return require().AutoImageProcessor.from_pretrained(source.folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{source.folder / PROCESSOR} cannot be read: {str(error).splitlines()[0]}") from None


def pixels_of(processor: Any) -> Pixels:
    """The normalisation of an image processor, for values in 0 .. 255."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    first, second, third = (value / factor for value in mean)
    low, middle, high = (value / factor for value in std)
    return Pixels((first, second, third), (low, middle, high))


def _from_hub(name: str, *, weights: bool) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    cached = _cached(name)
    if cached is not None and (not weights or any((cached / file).is_file() for file in WEIGHTS)):
        return cached
    bring = (
        f"bring {CONFIG}, {PROCESSOR} and {WEIGHTS[0]} of {constants.ENDPOINT}/{name} from a machine with a network in "
        f"one folder and give that folder: hf:FOLDER"
    )
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"hf:{name} is not in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set; {bring}")
    files = _list_files(name, bring)
    kind = next((file for file in WEIGHTS if file in files), None)
    if CONFIG not in files or (weights and kind is None):
        raise UserError(
            f"hf:{name} has no {WEIGHTS[0] if CONFIG in files else CONFIG} on the hub; choose another model"
        )
    wanted = [CONFIG, *(file for file in (PROCESSOR,) if file in files)]
    if weights and kind is not None:
        shards = kind.removesuffix(".index.json").replace(".", "-*.") if kind.endswith(".index.json") else kind
        wanted += [kind, *(file for file in files if file != kind and fnmatch.fnmatch(file, shards))]
    try:
        places = [hf_hub_download(name, file, cache_dir=constants.HF_HUB_CACHE) for file in wanted]
    except (OSError, HfHubHTTPError) as error:
        raise UserError(f"hf:{name} cannot be downloaded ({_short(error)}); {bring}") from None
    return Path(places[0]).parent


def _cached(name: str) -> Path | None:
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(name, CONFIG, cache_dir=constants.HF_HUB_CACHE)
    return Path(found).parent if isinstance(found, str) else None


def _list_files(name: str, bring: str) -> set[str]:
    """The files of a repository; one short request, because the hub's own client tries for half a minute."""
    from huggingface_hub import constants, get_token

    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{name}")
    if token := get_token():
        request.add_header("Authorization", f"Bearer {token}")
    answer = _ask(request)
    if isinstance(answer, urllib.error.HTTPError) and answer.code in (401, 403, 404):
        raise UserError(f"the hub has no model hf:{name}, or it asks for a login; look at {constants.ENDPOINT}/{name}")
    if isinstance(answer, Exception):
        raise UserError(f"hf:{name} cannot be downloaded ({_short(answer)}); {bring}")
    return {str(file["rfilename"]) for file in answer.get("siblings", ())}


def _ask(request: urllib.request.Request) -> dict[str, Any] | Exception:
    """The answer, or why there is none. Looking up a host's name knows no time limit, so it waits in a thread."""
    answers: list[dict[str, Any] | Exception] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as answer:
                answers.append(json.load(answer))
        except (OSError, ValueError) as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answers[0] if answers else TimeoutError(f"no answer in {PROBE_SECONDS} s")


def _short(error: Exception) -> str:
    text = str(getattr(error, "reason", error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
