"""The page of a pair: everything that was measured, every choice, every run, with what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evidence import words
from evidence.arms import ALONE, INHERITS, LABELS, START, SWEPT, TWICE, Arm, arms_of, student_config, teacher_config
from evidence.backbones import BATCH, PICTURES, read_note
from evidence.choose import GAIN, own_searches
from evidence.differences import Row
from evidence.measure import Measured
from evidence.pairs import DECAY, Pair, Shapes, sweeps_of
from evidence.runs import Planned, command, gradient_share, sessions
from evidence.words import METRIC_NAMES, percent, signed
from mgdet.config import ModelConfig
from mgdet.models import detector_from

COMPARED = (ALONE, TWICE, LABELS, INHERITS, START)
"""The arms that others are compared with, a column for each that there is."""


@dataclass(slots=True)
class Page:
    """All that goes on a page.

    name, pair: which pair.
    root: of everything.
    choices: of `choose`.
    rows, sweeps: the arms, and those of the sweeps.
    base: the row that the sweeps change.
    teacher: None where it cannot be measured.
    images: how many test images there are.
    num_classes: of the data.
    looks: when students were measured on the test images.
    missing: reported runs that are not finished.
    """

    name: str
    pair: Pair
    root: Path
    choices: dict[str, Any]
    rows: list[Row]
    sweeps: list[Row]
    base: Row | None
    teacher: Measured | None
    images: int
    num_classes: int
    looks: list[dict[str, Any]]
    missing: list[Planned]

    def text(self, date: str) -> str:
        """The page in Markdown."""
        parts = [f"# Evidence: {self.name}, {date}", self._about()]
        if self.missing:
            parts.append(
                f"**Not complete:** {len(self.missing)} of the reported runs are not finished: "
                f"{', '.join(self._relative(run.folder) for run in self.missing)}."
            )
        for metric in self.pair.metrics:
            parts += [f"## Test images: {METRIC_NAMES[metric]}", self._arms(metric)]
        parts += ["## What this says", _list(self._sentences())]
        if self.sweeps:
            parts += ["## Sweeps", self._swept()]
        parts += ["## Every run", self._runs(), "## Choices", self._choices(), "## Where and how", self._where()]
        return "\n\n".join(parts) + "\n"

    @property
    def _compared(self) -> list[Arm]:
        return [arm for arm in COMPARED if arm in arms_of(self.pair)]

    def _about(self) -> str:
        images, pair = self.pair.images, self.pair
        height, width = images.size
        if isinstance(images, Shapes):
            least = f", no object under {images.smallest:g} square pixels" if images.smallest else ""
            what = (
                f"`shapes` at {height} x {width} pixels{least}: {images.num_train:,} training, {images.num_val:,} "
                f"validation and {self.images:,} test images, the test images from a seed of their own"
            )
        else:
            what = (
                f"BCCD at {height} x {width} pixels: of its training images {images.num_train} train and "
                f"{images.num_val} validate, its {self.images} evaluation images are the test images"
            )
        precision = "float32" if pair.amp == "off" else pair.amp
        another = " Of a teacher of another family a student inherits the neck and the first stage."
        shared = "" if pair.teacher == pair.student else another
        grids = f", grids of {' '.join(map(str, pair.grids))} cells" if pair.grids else ""
        teacher = teacher_config(pair, self.root, epochs=1, seed=0).student
        student = student_config(pair, self.root, epochs=1, rate=pair.rates[0], seed=0).student
        return (
            f"{pair.teacher} with {pair.teacher_backbone} ({self._size(teacher)}) teaches {pair.student} with "
            f"{pair.student_backbone} ({self._size(student)}), {pair.channels} channels{grids}. "
            f"{self._start()} {what}. "
            f"{self._more()}{self._chosen()} were chosen on the validation images{self._whose()}; "
            "all other settings were set by hand, some after earlier runs on the same validation images. All arms "
            f"share seeds, order of images, batch {pair.batch} and precision {precision}, and all but the one that is "
            f"twice as long train for {self.choices['length']['epochs']} epochs{self._steps()}. Each has the "
            f"rate and decay that its search chose, or that of the arm whose name it begins with.{shared} "
            "A score is that of the last student of a run, in float32. There is one teacher and one set of "
            "backbones; what another of them would change is in no interval."
            + (f"\n\n{pair.note}" if pair.note else "")
        )

    def _chosen(self) -> str:
        """What was searched."""
        searched = any(len(values) > 1 for values in self.pair.strengths.values())
        return "Lengths, rates, decays and strengths" if searched else "Lengths, rates and decays"

    def _whose(self) -> str:
        """Another pair whose choices these are."""
        return f" for the students of {self.pair.choices_of}" if self.pair.choices_of else ""

    def _size(self, model: ModelConfig) -> str:
        """Parameters of a detector."""
        with torch.device("meta"):
            detector = detector_from(model, self.num_classes)
        return f"{sum(tensor.numel() for tensor in detector.parameters()) / 1e6:.2f} M parameters"

    def _more(self) -> str:
        """What the teacher has seen beyond what its students have."""
        own, more = self.pair.images, self.pair.teacher_images
        if own == more:
            return ""
        return (
            f"The teacher was trained on {more.num_train:,} images, the students' {own.num_train:,} and others, so "
            "what a student gains from it may also come from images that it has not seen itself. "
        ) + (
            f"Arms on the teacher's images are trained on all {more.num_train:,}, with their labels. "
            if LABELS in arms_of(self.pair)
            else ""
        )

    def _steps(self) -> str:
        """What an epoch is to the arms that see more images."""
        if LABELS not in arms_of(self.pair):
            return ""
        return (
            " (those on the teacher's images for as many steps, to the nearest whole epoch, in an order of their own; "
            "for them nothing was searched, so with other rates and decays they may gain more)"
        )

    def _start(self) -> str:
        """What necks, heads and backbones start from."""
        pair = self.pair
        if not pair.pretraining:
            return "All start from random weights."
        notes = {name: read_note(self.root, pair, name) for name in (pair.student_backbone, pair.teacher_backbone)}
        said = ", ".join(f"{name} {percent(note['accuracy'])} % right" for name, note in notes.items())
        return (
            f"Necks and heads start from random weights. The backbones were first trained to classify crops of single "
            f"shapes: {pair.pretraining:,} steps of {BATCH} crops from {PICTURES:,} further pictures with the classes "
            f"of `shapes` ({said} on crops of unseen pictures). All arms start from them, as does the teacher."
        )

    def _arms(self, metric: str) -> str:
        header = [
            "",
            "AP",
            "sd",
            "AP50",
            "AP75",
            "seeds",
            *(f"minus {arm.title}" for arm in self._compared),
            "gap closed",
            "share",
            "search runs",
        ]
        header += ["images/s", "minutes"]
        lines = []
        if self.teacher is not None and self.teacher.scores:
            stats, finished = self.teacher.scores[metric], self.teacher.finished
            tried = str(len(self.choices["teacher"]["tried"]))
            own = ["teacher", percent(stats["AP"]), "", percent(stats["AP50"]), percent(stats["AP75"])]
            own += ["1", *[""] * len(self._compared), "", "", tried]
            lines.append([*own, f"{finished.images_per_second:.1f}", f"{finished.seconds / 60:.0f}"])
        lines += [self._arm(row, metric) for row in self.rows]
        note = (
            "Alone: the detector's own losses. Inherits: starts with the teacher's neck and head. MGD: masked "
            "generative distillation (arXiv 2205.01529). PKD: the Pearson correlation of maps (arXiv 2207.02039). FGD: "
            "focal and global distillation (arXiv 2111.11837).\n\n"
            "AP in percent, mean and standard deviation over seeds. Differences are means over the seeds that both "
            "arms have, with the number of seeds in which the arm is above and a 95 % interval, from resampling the "
            "test images (the same for both arms) and from the differences of the seeds, with Student's t. Share: how "
            "long the method's gradient is on the student's maps, in lengths of that of the detector's own losses "
            "there, the mean over the steps that the log has. Search runs: all that the arm's settings were chosen "
            "from; a method's include those of the arm that starts as it does, those of the student alone include the "
            "search for the length, which all arms use. Images/s and minutes are those of training one run while the "
            "machine also did other work: do not compare arms by them."
        )
        return f"{_table(header, lines)}\n\n{note}"

    def _arm(self, row: Row, metric: str) -> list[str]:
        deviation = row.deviation(metric)
        gap = row.gap.get(metric)
        speeds = [run.finished.images_per_second for run in row.whole]
        minutes = [run.finished.seconds / 60 for run in row.whole]
        searches = list(self.choices["arms"][row.arm.searched_as]["searches"])
        searches += [self.choices["length"]] if row.arm.searched_as == ALONE.name else []
        return [
            row.arm.title,
            percent(row.mean(metric)),
            "" if deviation is None else percent(deviation),
            percent(row.mean(metric, "AP50")),
            percent(row.mean(metric, "AP75")),
            str(len(row.whole)) if len(row.whole) == len(row.runs) else f"{len(row.whole)} of {len(row.runs)}",
            *(_minus(row, arm, metric) for arm in self._compared),
            "" if gap is None else f"{gap:.0%}".replace("%", " %").replace("-", words.MINUS),
            _share(row),
            str(len({tried["folder"] for own in searches for tried in own["tried"]})),
            f"{sum(speeds) / len(speeds):.1f}" if speeds else "",
            f"{sum(minutes) / len(minutes):.0f}" if minutes else "",
        ]

    def _sentences(self) -> list[str]:
        metric, sentences = self.pair.metrics[0], list[str]()
        for own in self.pair.metrics:
            sentences.append(words.of_many([*self.rows, *self.sweeps], own))
            sentences += words.of_arms(self.rows, own) + words.of_methods(self.rows, own)
        sentences += words.of_teacher(self.teacher, self.rows, self.choices, metric)
        if self.base is not None and self.sweeps:
            own = {"mgd.mask_ratio": self.pair.mask_ratio}
            own[f"mgd.{self.pair.strength}"] = self.choices["arms"][self.base.arm.name]["strength"]
            sentences += words.of_sweeps(self.sweeps, self.base, sweeps_of(self.pair), own, metric)
        broken = [run for row in (*self.rows, *self.sweeps) for run in row.runs if not run.scores]
        sentences += [f"{self._relative(run.folder)} broke off: {run.finished.error}" for run in broken]
        return sentences

    def _swept(self) -> str:
        metric = self.pair.metrics[0]
        rows = ([self.base] if self.base is not None else []) + self.sweeps
        lines = [
            [
                row.arm.title,
                percent(statistics.fmean(run.finished.ap for run in row.whole) if row.whole else None),
                percent(row.mean(metric)),
                percent(row.deviation(metric)),
                _minus(row, SWEPT, metric),
                str(len(row.whole)),
                _share(row),
            ]
            for row in rows
        ]
        header = ["", "val AP", f"test {METRIC_NAMES[metric]}", "sd", f"minus {SWEPT.title}", "seeds", "share"]
        return _table(header, lines)

    def _runs(self) -> str:
        metrics = self.pair.metrics
        header = ["run", "seed", *(f"test {METRIC_NAMES[m]}" for m in metrics), "AP50", "AP75", "val AP", "images/s"]
        header += ["minutes", "student's SHA-256"]
        runs: list[tuple[str, Measured]] = [] if self.teacher is None else [("teacher", self.teacher)]
        runs += [(row.arm.title, run) for row in (*self.rows, *self.sweeps) for run in row.runs]
        lines = []
        for title, run in runs:
            if not run.scores:
                lines.append([title, str(run.seed), "broke off", *[""] * (len(header) - 3)])
                continue
            stats = run.scores[metrics[0]]
            own = [title, str(run.seed), *(percent(run.scores[metric]["AP"]) for metric in metrics)]
            own += [percent(stats["AP50"]), percent(stats["AP75"]), percent(run.finished.ap)]
            own += [f"{run.finished.images_per_second:.1f}", f"{run.finished.seconds / 60:.0f}"]
            lines.append([*own, run.finished.sha256[:12]])
        return _table(header, lines)

    def _choices(self) -> str:
        """Each search with all that it tried."""
        choices = self.choices
        lines = [
            [
                f"teacher's length, at a rate of {self.pair.teacher_rate:g}, at a decay of {self.pair.teacher_decay:g}",
                *_tried(choices["teacher"], "epochs"),
            ],
            [f"student's length{_given(choices['arms'][ALONE.name], 'length')}", *_tried(choices["length"], "epochs")],
        ]
        for name, own in choices["arms"].items():
            for search in own_searches(own):
                what = words.setting_of(search, self.pair.strength)
                chosen, tried = _tried(search, "value")
                if search["what"] == "strength":
                    tried += f" (share {', '.join(self._shares(search, name.partition('-')[0]))})"
                lines.append([f"{name}: {what}{_given(own, search['what'])}", chosen, tried])
        precision = self.pair.amp if self.pair.amp != "off" else "float32"
        note = (
            f"AP on the validation images in {precision}{self._whose()}, one run each, with seed {choices['seed']}, "
            f"which is not reported.{self._luck()} Rates, decays and strengths are those that are best at 1x, "
            f"{self.pair.epochs} epochs; at the length that is reported other values may be better, for each arm by "
            "another amount. A method takes rate and decay of the arm that starts as it does. A length is the "
            f"shortest from which twice as long gains at most {100 * GAIN:g} AP, or {self.pair.longest}x, if none "
            f"does; the teacher is the better of the last two, of at most {self.pair.teacher_longest}x."
        )
        return f"{_table(['search', 'chosen', 'tried: AP'], lines)}\n\n{note}"

    def _shares(self, search: dict[str, Any], method: str) -> list[str]:
        """How strong a method was at each value of a search."""
        return [_short(gradient_share(self.root / own["folder"], method)) for own in search["tried"]]

    def _luck(self) -> str:
        """How far runs differ that differ in their seed alone."""
        alone = next((row for row in self.rows if row.arm == ALONE), None)
        values = [run.finished.ap for run in alone.whole] if alone is not None else []
        if len(values) < 2:
            return ""
        return (
            f" The reported runs of the student alone differ by {percent(statistics.stdev(values))} AP on these images "
            "(standard deviation over seeds), so smaller differences are luck."
        )

    def _where(self) -> str:
        """Machines, versions and commands of all runs."""
        folders = [run.folder for row in (*self.rows, *self.sweeps) for run in row.runs]
        searched = [self.choices["teacher"], self.choices["length"]]
        searched += [search for own in self.choices["arms"].values() for search in own["searches"]]
        folders += [self.root / one["folder"] for own in searched for one in own["tried"]]
        noted = [session for folder in dict.fromkeys(folders) for session in sessions(folder)]
        lines = [f"Trained on: {_kinds(noted, 'machine', 'threads')}."]
        lines.append(f"Versions: {_kinds(noted, 'torch', 'mgdet', 'commit')}.")
        lines.append(f"The choices were made at {self.choices['made']}.")
        if self.looks:
            times = ", ".join(look["time"] for look in self.looks)
            lines.append(f"Students were measured on the test images, each once, at {times}.")
        # Where the choices are another pair's, no run tells that they were taken.
        tuned = [f"python benchmarks/evidence tune --root ROOT --only {self.name}"] if self.pair.choices_of else []
        began = [own["command"] for own in sorted(noted, key=lambda own: own["time"])]
        typed = "\n".join(f"    {line}" for line in dict.fromkeys([*tuned, *began, command()]))
        return f"{_list(lines)}\n\nThe commands:\n\n{typed}"

    def _relative(self, folder: Path) -> str:
        return str(folder.relative_to(self.root))


def _kinds(noted: Iterable[dict[str, Any]], *names: str) -> str:
    """The different combinations of some fields, e.g. machines with their threads."""
    found = dict.fromkeys(
        ", ".join(f"{own[name]}" if name == "machine" else f"{name} {own[name]}" for name in names) for own in noted
    )
    return "; ".join(found) or "unknown"


def _minus(row: Row, other: Arm, metric: str) -> str:
    """How far an arm is above another, with the interval and the seeds; nothing where they were not compared."""
    found = next((one for one in row.differences.get(metric, []) if one.other == other), None)
    return "" if found is None else f"{signed(found.mean)} {words.interval(found)} {found.above}/{len(found.seeds)}"


def _share(row: Row) -> str:
    """How strong the method of an arm was, over its runs."""
    found = [gradient_share(run.folder, row.arm.method) for run in row.whole] if row.arm.method else []
    known = [value for value in found if value is not None]
    return _short(statistics.fmean(known)) if known else ""


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _given(chosen: dict[str, Any], what: str) -> str:
    """What an arm was trained with besides what a search was about."""
    known = {"rate": {"decay": DECAY}, "decay": {"rate": chosen["rate"]}}
    both = {name: chosen[name] for name in ("rate", "decay")}
    return "".join(f", at a {name} of {value:g}" for name, value in known.get(what, both).items())


def _tried(search: dict[str, Any], field: str) -> list[str]:
    values = ", ".join(
        f"{own[field]:g}: {'broke off' if own['AP'] < 0 else percent(own['AP'])}" for own in search["tried"]
    )
    return [f"{search[field]:g}", values]


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
