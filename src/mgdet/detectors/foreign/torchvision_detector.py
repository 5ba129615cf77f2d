"""The outer face of torchvision's detectors: one class for all of them, around the library's own forward.

Letters in shapes: B images, L tapped levels, N objects in one image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from mgdet.detectors.face import Learned
from mgdet.detectors.foreign.base import Foreign, TestedSize
from mgdet.errors import UserError
from mgdet.files import atomic_write
from mgdet.layers.norms import enough_values
from mgdet.structures import Detections, Pixels, Seen, Target

MASK_THRESHOLD = 0.5
MASKS_AT_ONCE = 16
NOTE = "mgdet"
"""Where a state dict's metadata, which torchvision never looks up by this name, keeps what weights do not show."""
PREDICTORS = ("backbone", "head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")
SUFFIXES = (".pth", ".pt")


class TorchvisionDetector(Foreign):
    """A detector of torchvision. Its modules carry torchvision's names, so its state dict is torchvision's.

    name: as in `torchvision.models.detection`.
    outputs: of the classification head, with background.
    classes: the data's class names; None for a teacher whose classes do not matter.
    wide_tail: SSDlite only: does its backbone have the tail that ImageNet weights need?

    Args:
        model: as torchvision builds it; what resizes and normalises inside it is taken out.
        name: see above.
        outputs: see above.
        columns: for each class of the data the output that stands for it, from 1: output 0 is background.
        classes: see above.
        wide_tail: see above.
    """

    source = "torchvision"

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        outputs: int,
        columns: Sequence[int],
        classes: Sequence[str] | None,
        wide_tail: bool = False,
    ):
        super().__init__()
        self.name, self.outputs, self.wide_tail, self.notes = name, outputs, wide_tail, []
        self.assign(columns, classes)
        self._read_transform(model)
        # The parts are modules of this face, so that names are torchvision's; the whole stands aside, in a tuple,
        # because as a module it would hold every part a second time.
        self._whole = (model,)
        for part, module in model.named_children():
            if part != "transform":
                self.add_module(part, module)
        self.backbone: Any = model.backbone
        self.has_masks = getattr(getattr(model, "roi_heads", None), "mask_predictor", None) is not None
        self.backbone_prefixes = ("backbone.body.",) if hasattr(self.backbone, "body") else ("backbone.features.",)
        for part, module in model.named_modules():
            if part in PREDICTORS:
                module.register_forward_hook(_in_float32)
        self._set_strides()

    @property
    def library(self) -> Any:
        """The library's own model; its parts are those of this one."""
        return self._whole[0]

    def assign(self, columns: Sequence[int], classes: Sequence[str] | None) -> None:
        """Says which output of the head stands for which class of the data; arguments as in the constructor."""
        self.columns, self.num_classes = tuple(columns), len(columns)
        self.classes = None if classes is None else tuple(classes)
        column_of = torch.tensor(self.columns, dtype=torch.int64)
        label_of = torch.full((self.outputs,), -1, dtype=torch.int64)
        label_of[column_of] = torch.arange(len(self.columns))
        self.column_of: Tensor
        self.label_of: Tensor
        self.register_buffer("column_of", column_of, persistent=False)
        self.register_buffer("label_of", label_of, persistent=False)

    def keep(self, columns: Sequence[int]) -> None:
        """See `Foreign.keep`."""
        names = self.output_names
        self.assign(columns, None if names is None else [names[column] for column in columns])

    @torch.no_grad()
    def _set_strides(self) -> None:
        """Has the poolers of regions take their strides from an empty image.

        Else they take them for good from the sizes, without padding, of the first images that come: one of 40 x 500 on
        a canvas of 64 x 512 would make 2 of a stride of 4.
        """
        poolers = [module for module in self.modules() if isinstance(module, MultiScaleRoIAlign)]
        if not poolers:
            return
        edge, flags = 2 * self.multiple, {module: module.training for module in self.modules()}
        features = self.eval().backbone(torch.zeros(1, 3, edge, edge))
        for pooler in poolers:
            pooler(features, [torch.zeros(1, 4)], [(edge, edge)])
        for module, training in flags.items():
            module.training = training

    def _read_transform(self, model: nn.Module) -> None:
        transform: Any = model.transform
        mean, std = ([255 * value for value in values] for values in (transform.image_mean, transform.image_std))
        self.pixels = Pixels((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
        if transform.fixed_size is not None:
            width, height = transform.fixed_size
            self.native_size = (height, width)
        self.tested_size = TestedSize(transform.max_size, transform.min_size[-1])
        model.transform = _Nothing()

    def see(self, images: Tensor, sizes: list[tuple[int, int]], *, outputs: bool = False) -> Seen:
        """See `Face.see`; raw predictions of a foreign head are not shown."""
        self._check_canvas(images)
        return _seen(self.backbone(images))

    def learn(self, images: Tensor, targets: list[Target], *, outputs: bool = False) -> Learned:
        """See `Face.learn`; raw predictions of a foreign head are not shown.

        Boxes without an area, which torchvision refuses, are left out.

        Raises:
            UserError: a canvas that the model does not take, boxes without masks for a model that learns masks, or a
                batch norm that sees one value per channel.
        """
        self._check_canvas(images)
        truths = [self._truth(target, images) for target in targets]
        features: list[dict[str, Tensor]] = []
        listener = self.backbone.register_forward_hook(lambda module, inputs, output: features.append(output))
        try:
            with enough_values(self.name, images), self._learning(True) as model:
                losses = model(_Batch(images, [target.size for target in targets]), truths)
        finally:
            listener.remove()
        return Learned(losses, _seen(features[0]))

    def find(
        self, images: Tensor, sizes: list[tuple[int, int]], scales: list[tuple[float, float]] | None = None
    ) -> list[Detections]:
        """See `Face.find`: torchvision's own detections, without those of outputs that are not classes of the data."""
        self._check_canvas(images)
        with self._learning(False) as model:
            results = model(_Batch(images, sizes))
        factors = scales or [(1.0, 1.0)] * len(results)
        return [self._detections(*each) for each in zip(results, sizes, factors)]

    def description(self) -> dict[str, Any]:
        """See `Foreign.description`."""
        norms = [module for module in self.modules() if isinstance(module, FrozenBatchNorm2d)]
        return {
            "name": self.name,
            "outputs": self.outputs,
            "columns": list(self.columns),
            "frozen_norms_eps": norms[0].eps if norms else None,
            "frozen": [name for name, parameter in self.named_parameters() if not parameter.requires_grad],
            "wide_tail": self.wide_tail,
        }

    def export(self, out: Path) -> str:
        """See `Foreign.export`: a plain state dict, which `load_state_dict` of torchvision's model takes."""
        out = Path(out)
        if out.suffix not in SUFFIXES:
            raise UserError(f"{out} ends in '{out.suffix}', but torchvision reads {' or '.join(SUFFIXES)}")
        if out.exists():
            raise UserError(f"{out} exists already; give the name of a new file")
        if not out.parent.is_dir():
            raise UserError(f"the folder {out.parent} of {out.name} does not exist; make it first")
        state: Any = self.weights()
        for name, value in state.items():
            state[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        state._metadata[NOTE] = self.description() | {"classes": self.classes and list(self.classes)}
        atomic_write(out, lambda file: torch.save(state, file))
        return f"wrote {out}: {len(state)} tensors for {self._recipe()}"

    def _recipe(self) -> str:
        """How torchvision alone builds the model that reads the file."""
        backbone = "'DEFAULT'" if self.wide_tail else "None"
        line = f"torchvision's {self.name}(weights=None, weights_backbone={backbone}, num_classes={self.outputs})"
        eps = self.description()["frozen_norms_eps"]
        if eps is None:
            return line
        return f"{line}; the eps of its backbone's norms, which were frozen, is {eps}, so set that on them"

    @contextmanager
    def _learning(self, learning: bool) -> Iterator[nn.Module]:
        """Switches what torchvision returns, which it reads from three flags; norms keep theirs."""
        model = self._whole[0]
        parts = [model, *(module for name, module in model.named_children() if name in ("rpn", "roi_heads"))]
        before = [part.training for part in parts]
        for part in parts:
            part.training = learning
        try:
            yield model
        finally:
            for part, flag in zip(parts, before):
                part.training = flag

    def _check_canvas(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if self.native_size not in (None, (height, width)):
            own = " x ".join(map(str, self.native_size or ()))
            raise UserError(
                f"{self.name} takes images of {own} pixels only, not of {height} x {width}; set --data.square "
                f"{(self.native_size or (0,))[0]}"
            )

    def _truth(self, target: Target, images: Tensor) -> dict[str, Tensor]:
        kept = (target.boxes[:, 2:] > target.boxes[:, :2]).all(dim=1)
        truth = {"boxes": target.boxes[kept], "labels": self.column_of[target.labels[kept]]}
        if self.has_masks:
            if target.masks is not None:
                truth["masks"] = target.masks[kept]
            elif len(target.boxes) == 0:
                truth["masks"] = images.new_zeros((0, *images.shape[-2:]), dtype=torch.uint8)
            else:
                raise UserError(f"{self.name} learns masks, and an image has {len(target.boxes)} boxes without any")
        return truth

    def _detections(self, result: dict[str, Tensor], size: tuple[int, int], scale: tuple[float, float]) -> Detections:
        labels = self.label_of[result["labels"]]
        kept = labels >= 0
        boxes = result["boxes"][kept]
        (height, width), (x, y) = size, scale
        boxes = boxes / boxes.new_tensor([x, y, x, y])
        masks = None
        if self.has_masks:
            masks = _paste(result["masks"][kept], boxes, (round(height / y), round(width / x)))
        return Detections(boxes, result["scores"][kept], labels[kept], masks)


class _Batch(ImageList):
    """Padded images as torchvision's own transform gives them; one by one, they come without their padding."""

    def __iter__(self) -> Iterator[Tensor]:
        for image, (height, width) in zip(self.tensors, self.image_sizes):
            yield image[:, :height, :width]


class _Nothing(nn.Module):
    """Stands where torchvision resizes and normalises images and maps boxes back: here that is done outside."""

    def forward(self, images: _Batch, targets: list[dict[str, Tensor]] | None = None) -> tuple[Any, Any]:
        """Everything as it came."""
        return images, targets

    def postprocess(self, result: Any, image_shapes: object, original_image_sizes: object) -> Any:
        """Everything as it came."""
        return result


def _in_float32(module: nn.Module, inputs: object, output: Any) -> Any:
    """What a part predicts, in float32 also under autocast.

    torchvision makes anchors and boxes in the type of what the network predicts, and bfloat16 cannot tell pixel 301
    from pixel 300. Convolutions still follow autocast.
    """
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return type(output)((name, value.float()) for name, value in output.items())
    return type(output)(_in_float32(module, inputs, value) for value in output)


def _seen(features: dict[str, Tensor]) -> Seen:
    """The levels that convolutions made, without the one that is only pooled."""
    taps = [level for name, level in features.items() if name != "pool"]
    return Seen(taps, taps)


def _paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, 28, 28) probabilities to (N, H, W) bool, some at a time: torchvision pastes them as float32."""
    pasted = [
        paste_masks_in_image(some, own, size)[:, 0] > MASK_THRESHOLD
        for some, own in zip(masks.split(MASKS_AT_ONCE), boxes.split(MASKS_AT_ONCE))
    ]
    return torch.cat(pasted)
