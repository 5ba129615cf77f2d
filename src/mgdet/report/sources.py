"""What is to be compared: runs, checkpoints and anyone's detections, each with its settings, its name and its kind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mgdet.config import Config, DataConfig, ModelConfig
from mgdet.detectors.exported import is_exported
from mgdet.detectors.foreign import names_library
from mgdet.engine.checkpoint import CONFIG_FILE, SAME_NUMBERS, flatten, read_config
from mgdet.errors import UserError
from mgdet.evaluate.results import is_results_file
from mgdet.files import RUN_FILES, fetch, sha256_of
from mgdet.interop.weights import Checkpoint, read_checkpoint
from mgdet.models.opened import Opened, open_detector, open_library
from mgdet.models.recognise import recognise, recognise_checkpoint

NOT_THE_KIND = (*SAME_NUMBERS, "train.seed")
"""Settings in which runs of one kind may differ."""
SAME_IMAGES = ("val_annotations", "val_images", "val_share", "split_seed")
"""Settings of the data that say which images a run was evaluated on, and so did not train on."""
LONGEST_DIFFERENCE = 2
"""Settings in the name of a kind, where methods alone do not tell kinds apart."""

_NAMED = re.compile(r"([^=/\\:]+)=(.+)", re.DOTALL)

Say = Callable[[str], None]


class Sizes(NamedTuple):
    """How images are resized for a detector, as in `DataConfig`; `canvas` is the (h, w) of an exported graph's."""

    long_edge: int
    short_edge: int
    square: int
    canvas: tuple[int, int] | None = None


@dataclass(slots=True)
class Source:
    """One thing to compare.

    given: as the user wrote it, without a name.
    file: the weights, or the detections; of another library's own detector its name.
    sha256: of that file; empty where there is none.
    name: what the user calls it; empty where nothing was said.
    folder: the folder of the run that the weights are of; None for all else.
    config: of the run that the weights are of; None for all else.
    model: how to build the detector; None for detections and exported graphs.
    sizes: at which images it looks; None for detections.
    checkpoint: the weights, until the detector is built; None for detections and for `opened`.
    opened: another library's own detector or an exported graph, until it is taken; None for all else.
    notes: what was recognised in a file that does not say what it holds, and why where in doubt.
    """

    given: str
    file: Path
    sha256: str
    name: str = ""
    folder: Path | None = None
    config: Config | None = None
    model: ModelConfig | None = None
    sizes: Sizes | None = None
    checkpoint: Checkpoint | None = None
    opened: Opened | None = None
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """What two sources that hold the same have in common."""
        return self.sha256 or self.given

    @property
    def seed(self) -> int | None:
        """The seed of its training, where it is known."""
        return self.config.train.seed if self.config is not None else None


@dataclass(slots=True)
class Group:
    """Sources of one kind: they differ in nothing but their seed, or the user gave them one name."""

    name: str
    sources: list[Source] = field(default_factory=list)


def open_source(text: str, recipe: Config | None) -> Source:
    """Finds out what the user gave.

    Args:
        text: a run's folder, a checkpoint file or its URL, an exported graph, SOURCE:NAME of another library, or a
            .json file of detections; NAME=... gives it a name.
        recipe: of checkpoints that mgdet did not write; None to recognise what they hold.

    Raises:
        UserError: there is no such thing, or it is not recognised.
    """
    name, given = _split(text)
    if is_results_file(given):
        file = Path(given)
        if not file.is_file():
            raise UserError(f"the file {given} does not exist")
        return Source(given, file, sha256_of(file), name)
    if names_library(given):
        theirs = recognise(given)
        return _library(given, theirs.model, name, open_library(theirs.model, theirs.lines))
    if is_exported(given):
        opened, file = open_detector(given), Path(given)
        return Source(given, file, sha256_of(file), name, sizes=_sizes_of_opened(opened), opened=opened)
    file = fetch(given)
    folder = file.parent if file.name in RUN_FILES and (file.parent / CONFIG_FILE).is_file() else None
    checkpoint = read_checkpoint(file)
    config = Config.from_dict(checkpoint.config) if checkpoint.config is not None else None
    if folder is not None and config is not None:
        config = read_config(folder) or config
    notes: tuple[str, ...] = ()
    if known := config or recipe:
        model, data = known.student, known.data
    else:
        recognised = recognise_checkpoint(checkpoint)
        model, data, notes = recognised.model, recognised.data(), recognised.lines
    return Source(
        given,
        file,
        checkpoint.sha256,
        name,
        folder=folder,
        config=config,
        model=model,
        sizes=sizes_of(data),
        checkpoint=checkpoint,
        notes=notes,
    )


def open_teacher(
    given: str | None, sources: Sequence[Source], recipe: Config | None
) -> tuple[Source | None, list[str]]:
    """The teacher that was given, or the one that the first distilled run among the sources names.

    Returns:
        The teacher, None where there is none, and what is to be said of that.

    Raises:
        UserError: the teacher that was given cannot be opened.
    """
    if given is not None:
        return open_source(given, recipe), []
    run = next((source for source in sources if source.config is not None and source.config.teacher is not None), None)
    if run is None or run.config is None or run.config.teacher is None:
        return None, []
    config = run.config.teacher
    try:
        if config.source:
            return _library(config.detector, config, "teacher", open_library(config)), []
        file = fetch(config.weights)
        checkpoint = read_checkpoint(file)
    except UserError as error:
        return None, [f"the teacher was not measured: {error}"]
    own = Config.from_dict(checkpoint.config).data if checkpoint.config is not None else run.config.data
    return Source(
        config.weights,
        file,
        checkpoint.sha256,
        "teacher",
        model=config,
        sizes=sizes_of(own),
        checkpoint=checkpoint,
    ), []


def _library(given: str, model: ModelConfig, name: str, opened: Opened) -> Source:
    return Source(given, Path(given), "", name, model=model, sizes=_sizes_of_opened(opened), opened=opened)


def sizes_of(data: DataConfig) -> Sizes:
    """The sizes that a detector is tested at."""
    return Sizes(data.long_edge, data.short_edge[1], data.square)


def _sizes_of_opened(opened: Opened) -> Sizes:
    return sizes_of(opened.data)._replace(canvas=opened.view.canvas)


def group_sources(sources: Sequence[Source]) -> list[Group]:
    """The sources by kind, in the order in which the first of each was given.

    Raises:
        UserError: one thing is given twice.
    """
    seen: dict[str, Source] = {}
    for source in sources:
        other = seen.setdefault(source.identity, source)
        if other is not source:
            raise UserError(f"{source.given} and {other.given} hold the same; give each thing to compare once")
    kinds: dict[str, list[Source]] = {}
    for number, source in enumerate(sources):
        kinds.setdefault(_kind(source, number), []).append(source)
    return [Group(name, own) for name, own in zip(_names(list(kinds.values())), kinds.values())]


def check_same_data(sources: Sequence[Source], data: DataConfig) -> None:
    """Refuses runs that were evaluated on other images than the rest, since they may have trained on these.

    Args:
        sources: all of them.
        data: what is measured on.

    Raises:
        UserError: names the first setting that differs.
    """
    runs = [source for source in sources if source.config is not None]
    for run in runs:
        for other in runs[:1]:
            for name in SAME_IMAGES:
                mine, theirs = _setting(run, name), _setting(other, name)
                if mine != theirs:
                    raise UserError(
                        f"{run.given} was trained with data.{name} {mine!r}, {other.given} with {theirs!r}; runs that "
                        "were evaluated on different images cannot be compared"
                    )
        for name in ("val_share", "split_seed"):
            if data.val_share and _setting(run, name) != getattr(data, name):
                raise UserError(
                    f"{run.given} was trained with data.{name} {_setting(run, name)!r}, but here it is "
                    f"{getattr(data, name)!r}, so it may have trained on the images to measure on; give "
                    f"--data.{name.replace('_', '-')} {_setting(run, name)}"
                )


def trained_on(sources: Sequence[Source], data: DataConfig) -> list[str]:
    """A sentence for each run that has trained on the very images that are measured.

    Args:
        sources: all of them.
        data: what is measured on, with the names of what was found.
    """
    here = (data.val_annotations, data.val_images)
    runs = [source for source in sources if source.config is not None and not data.val_share]
    return [
        f"{run.given} was trained on these very images, so its score says nothing about unseen ones"
        for run in runs
        if (_setting(run, "train_annotations"), _setting(run, "train_images")) == here
    ]


def data_of(texts: Sequence[str]) -> DataConfig | None:
    """The data of the first run among the sources; None without one.

    Raises:
        UserError: the run's config is damaged.
    """
    for text in texts:
        path = Path(_split(text)[1])
        try:
            config = read_config(path if path.is_dir() else path.parent)
        except UserError:
            if path.is_dir() or path.name in RUN_FILES:
                raise
            continue  # what lies beside any other file may be another tool's
        if config is not None:
            return config.data
    return None


def _split(text: str) -> tuple[str, str]:
    """The name that the user gave, if any, and what it stands for."""
    match = _NAMED.fullmatch(text)
    return (match[1], match[2]) if match and not Path(text).exists() else ("", text)


def _setting(source: Source, name: str) -> object:
    assert source.config is not None
    return getattr(source.config.data, name)


def _kind(source: Source, number: int) -> str:
    """What sources of one kind share."""
    if source.name:
        return f"name {source.name}"
    if source.config is None:
        return f"source {number}"
    settings = {name: value for name, value in _settings(source).items() if name not in NOT_THE_KIND}
    return json.dumps([source.file.name, settings], sort_keys=True)


def _settings(source: Source) -> dict[str, object]:
    assert source.config is not None
    return flatten(source.config.to_dict())


def _names(kinds: Sequence[Sequence[Source]]) -> list[str]:
    """A name for each kind, no two the same: the user's, the methods of a run, or the file's."""
    names = [_plain(own[0]) for own in kinds]
    for name in [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        alike = [i for i, other in enumerate(names) if other == name]
        for i, difference in zip(alike, _differences([kinds[i][0] for i in alike])):
            names[i] = f"{name}, {difference}" if difference else name
    for i, name in enumerate(names):
        if names.count(name) > 1:
            names[i] = f"{name} ({kinds[i][0].given})"
    return names


def _plain(source: Source) -> str:
    if source.name:
        return source.name
    if source.config is None:
        return source.file.stem
    methods = " + ".join(method.upper() for method in source.config.methods)
    return methods or ("inheriting" if source.config.inherit else "alone")


def _differences(sources: Sequence[Source]) -> list[str]:
    """What tells sources apart whose methods are the same: settings, or which student of a run it is."""
    if any(source.config is None for source in sources):
        return ["" for _ in sources]
    settings = [_settings(source) for source in sources]
    names = sorted(set().union(*settings) - set(NOT_THE_KIND))
    differing = [name for name in names if len({json.dumps(own.get(name)) for own in settings}) > 1]
    if not differing:
        return [source.file.stem.removeprefix("student_") for source in sources]
    return [", ".join(_said(name, own.get(name)) for name in differing[:LONGEST_DIFFERENCE]) for own in settings]


def _said(name: str, value: object) -> str:
    if isinstance(value, str) and value:
        return Path(value).name if "/" in value else value
    if isinstance(value, bool):
        return name.rpartition(".")[2] if value else f"no {name.rpartition('.')[2]}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
