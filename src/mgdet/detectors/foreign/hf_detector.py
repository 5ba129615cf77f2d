"""A detector of Hugging Face transformers behind the outer face.

The library's model runs whole: its forward gives losses and raw outputs, its image processor makes detections, a hook
listens at the tap. Parameters and state dict keep the library's names.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgdet.detectors.face import Learned
from mgdet.detectors.foreign.base import Foreign, TestedSize
from mgdet.detectors.foreign.hf_families import FAMILIES, cells_needed, group_losses, loss_kinds
from mgdet.detectors.foreign.hf_hub import pixels_of, quiet
from mgdet.errors import UserError
from mgdet.layers.norms import enough_values
from mgdet.structures import Detections, Seen, Target

TOO_FEW_CELLS = "selected index k out of range"
PLACEHOLDER = "N/A"
NO_NUMBERS = ("corner) format", "invalid numeric entries")


class _Stop(Exception):
    """Ends a forward at the tap."""


class HuggingFace(Foreign):
    """One detector of the library behind the outer face.

    Args:
        library: a `...ForObjectDetection` model of the library.
        processor: its image processor: normalisation, and detections of raw outputs.
        name: as the user gave it, without `hf:`.
        columns: for each class of the data, the output of the head that stands for it.
        notes: what was decided while it was built.
    """

    source = "hf"

    def __init__(self, library: Any, processor: Any, *, name: str, columns: Sequence[int], notes: Sequence[str] = ()):
        super().__init__()
        # The library's children become ours, so that names stay the library's; the model itself is held aside.
        self._library = (library,)
        library.loss_function = partial(_loss_in_float32, library.loss_function)
        for child, module in library.named_children():
            self.add_module(child, module)
        self.name, self.notes = name, list(notes)
        self.processor = processor
        self.family = FAMILIES[library.config.model_type]
        outputs = range(library.config.num_labels)
        self.output_names = tuple(str(library.config.id2label.get(place, PLACEHOLDER)) for place in outputs)
        self.pixels = pixels_of(processor)
        self.multiple = self.family.multiple(library.config)
        self.native_size = _fixed_size(library.config)
        self.tested_size = _tested_size(processor)
        self.backbone_prefixes = self.family.backbone
        self.input_size: dict[str, int] | None = None
        self.keep(columns)
        self.train()

    def keep(self, columns: Sequence[int]) -> None:
        """See `Foreign.keep`."""
        self.num_classes, self.columns = len(columns), tuple(columns)
        labels = torch.full((self.config.num_labels + 1,), -1)
        labels[list(columns)] = torch.arange(len(columns))
        self.register_buffer("_columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.register_buffer("_labels", labels, persistent=False)

    @property
    def library(self) -> Any:
        """The library's own model; it shares every parameter with this one, and its training flag."""
        (model,) = self._library
        model.training = self.training  # it is not a child module, so no one else tells it
        return model

    @property
    def config(self) -> Any:
        """The library's config."""
        return self.library.config

    @property
    def smallest_side(self) -> int:
        """The smallest square canvas, in pixels, whose cells suffice for the queries."""
        needed = cells_needed(self.family, self.config)
        side = self.multiple
        while needed > sum(math.ceil(side / level.stride) ** 2 for level in self.levels):
            side += self.multiple
        return side

    def see(self, images: Tensor, sizes: list[tuple[int, int]], *, outputs: bool = False) -> Seen:
        """See `Face.see`. Raw outputs are the library's, with `logits` and `pred_boxes`."""
        with self._tapped(stop=not outputs) as taps:
            raw = None
            with contextlib.suppress(_Stop):
                raw = self._forward(images, sizes)
        return Seen(taps, taps, raw)

    def learn(self, images: Tensor, targets: list[Target], *, outputs: bool = False) -> Learned:
        """See `Face.learn`. The losses are the library's, summed by kind: every layer, the encoder, each query group.

        Numbers that are not finite make the library's matcher raise; here they give losses that are not numbers.

        Raises:
            UserError: the images have fewer cells than the model has queries.
        """
        sizes = [target.size for target in targets]
        labels = [self._as_labels(target, images) for target in targets]
        with self._tapped() as taps:
            try:
                raw = self._forward(images, sizes, labels=labels)
            except ValueError as error:
                if isinstance(error, UserError) or not any(part in str(error) for part in NO_NUMBERS):
                    raise
                return Learned(self._no_numbers(), Seen(taps, taps))
        sums = group_losses(self.family, self.config, raw.loss_dict)
        losses = {kind: sums.get(kind, raw.logits.new_zeros(())) for kind in loss_kinds(self.family, self.config)}
        if not any(len(target.labels) for target in targets):
            losses["loss_cls"] = losses["loss_cls"] + self._unused()
        return Learned(losses, Seen(taps, taps, raw if outputs else None))

    def find(
        self, images: Tensor, sizes: list[tuple[int, int]], scales: list[tuple[float, float]] | None = None
    ) -> list[Detections]:
        """See `Face.find`. In training the library adds queries, so this runs with the flags of evaluation.

        Raises:
            UserError: the images have fewer cells than the model has queries.
        """
        with _evaluating(self):
            raw = self._forward(images, sizes)
        raw.logits, raw.pred_boxes = raw.logits.float(), raw.pred_boxes.float()
        canvas = (images.shape[2], images.shape[3])
        spans = list(sizes) if self.family.reads_padding else [canvas] * len(images)
        found = self.processor.post_process_object_detection(raw, threshold=0.0, target_sizes=spans)
        return [
            self.as_detections(one, scales[place] if scales is not None else None) for place, one in enumerate(found)
        ]

    def description(self) -> dict[str, Any]:
        """See `Foreign.description`."""
        return {
            "source": self.source,
            "name": self.name,
            "outputs": int(self.config.num_labels),
            "columns": list(self.columns),
            "config": json.loads(self.config.to_json_string(use_diff=False)),
            "processor": json.loads(self.processor.to_json_string()),
        }

    def export(self, out: Path) -> str:
        """Writes a folder that `AutoModelForObjectDetection.from_pretrained` reads, with its image processor.

        The processor resizes to `input_size` where that is set, in the library's form: `{"height", "width"}` or
        `{"shortest_edge", "longest_edge"}`.
        """
        out = Path(out)
        if out.exists():
            raise UserError(f"{out} exists already; choose a new folder")
        unfinished = out.with_name(f"{out.name}.part")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            with quiet():
                self.library.save_pretrained(unfinished)
                self._run_processor().save_pretrained(unfinished)
            unfinished.rename(out)
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror or error})") from None
        kind = type(self.library).__name__
        return f"{out}: {kind} of transformers with {self.config.num_labels} outputs and its image processor"

    def _forward(self, images: Tensor, sizes: list[tuple[int, int]], **labels: Any) -> Any:
        height, width = images.shape[2:]
        padding = {"pixel_mask": _pixel_mask(images, sizes)} if self.family.reads_padding else {}
        try:
            with enough_values(f"hf:{self.name}", images):
                return self.library(pixel_values=images, **padding, **labels)
        except (RuntimeError, ValueError) as error:
            if TOO_FEW_CELLS not in str(error):
                raise
        raise UserError(
            f"hf:{self.name} has {cells_needed(self.family, self.config)} queries, more than images of {height} x "
            f"{width} have cells; {self.smallest_side} x {self.smallest_side} is the smallest square that suffices"
        )

    @contextlib.contextmanager
    def _tapped(self, *, stop: bool = False) -> Iterator[list[Tensor]]:
        """Listens at the tap; the list fills as the model runs.

        Args:
            stop: end the forward there, with `_Stop`.
        """
        taps: list[Tensor] = []
        grids: list[tuple[int, int]] = []

        def tap(module: Any, inputs: Any, arguments: dict[str, Any], output: Any) -> Any:
            taps.extend(self.family.read(output, arguments, grids[-1] if grids else None))
            if stop:
                raise _Stop
            return self.family.write(output, taps) if self.family.write is not None else None

        def grid(module: Any, inputs: Any, output: Tensor) -> None:
            grids.append((output.shape[2], output.shape[3]))

        hooks = [self.get_submodule(self.family.tap).register_forward_hook(tap, with_kwargs=True)]
        if self.family.grid:
            hooks.append(self.get_submodule(self.family.grid).register_forward_hook(grid))
        try:
            yield taps
        finally:
            for hook in hooks:
                hook.remove()

    def _as_labels(self, target: Target, images: Tensor) -> dict[str, Tensor]:
        height, width = target.size if self.family.reads_padding else images.shape[2:]
        left, top, right, bottom = target.boxes.unbind(1)
        centred = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width)
        boxes = torch.stack((*centred, (bottom - top) / height), dim=1)
        columns: Any = self._columns
        return {"class_labels": columns[target.labels], "boxes": boxes}

    def as_detections(self, found: dict[str, Tensor], scale: tuple[float, float] | None) -> Detections:
        """What the library found in one image, for classes of the data, best first; `scale` as in `find`."""
        known: Any = self._labels
        labels = known[found["labels"]]
        kept = (labels >= 0).nonzero().squeeze(1)
        best = kept[found["scores"][kept].argsort(descending=True, stable=True)]
        boxes = found["boxes"][best]
        if scale is not None:
            boxes = boxes / boxes.new_tensor([*scale, *scale])
        return Detections(boxes, found["scores"][best], labels[best])

    def _unused(self) -> Tensor:
        """Zero, of the parameters that only denoising queries read: without objects there are none of these."""
        embedding = getattr(self.model, "denoising_class_embed", None) if hasattr(self, "model") else None
        return embedding.weight.sum() * 0 if embedding is not None else torch.zeros(())

    def _no_numbers(self) -> dict[str, Tensor]:
        """A loss that is not a number and reaches every parameter: processes that join gradients wait for each."""
        everything = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * float("nan")
        return dict.fromkeys(loss_kinds(self.family, self.config), everything)

    def _run_processor(self) -> Any:
        settings = self.processor.to_dict()
        if self.input_size is not None:
            settings["size"] = dict(self.input_size)
        return type(self.processor).from_dict(settings)


def _loss_in_float32(loss: Callable[..., Any], logits: Tensor, *outputs: Any, **more: Any) -> Any:
    """A loss of the library's, of what is float32 also under autocast.

    In bfloat16 a probability above 0.998 is 1, and the logarithm of the rest is infinite.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return loss(_float32(logits), *_float32(outputs), **_float32(more))


def _float32(value: Any) -> Any:
    """The same with tensors of real numbers as float32, however deep in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _float32(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_float32(part) for part in value)
    return value


def _pixel_mask(images: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    mask = torch.zeros((len(images), *images.shape[2:]), dtype=torch.long, device=images.device)
    for one, (height, width) in zip(mask, sizes):
        one[:height, :width] = 1
    return mask


def _fixed_size(config: Any) -> tuple[int, int] | None:
    size = getattr(config, "anchor_image_size", None)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _tested_size(processor: Any) -> TestedSize | None:
    """How an image processor resizes: it squashes to a height and a width, or keeps the ratio within two edges."""
    size = processor.to_dict().get("size")
    if not processor.do_resize or not isinstance(size, dict):
        return None
    (height, width), (short, long) = (
        (size.get(one) or 0, size.get(other) or 0)
        for one, other in (("height", "width"), ("shortest_edge", "longest_edge"))
    )
    if height and width:
        return TestedSize(max(height, width), min(height, width), height if height == width else 0)
    return TestedSize(max(long, short), short) if long and short else None


@contextlib.contextmanager
def _evaluating(detector: HuggingFace) -> Iterator[None]:
    flags = {module: module.training for module in detector.modules()}
    detector.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training
