"""The outer face of LibreYOLO's YOLOX and YOLOv9, around the library's own forward and its own post-processing.

Letters in shapes: B images, N objects in the fullest of them, K outputs of the head's classifier.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mgdet.detectors.face import Learned
from mgdet.detectors.foreign.base import Foreign, TestedSize
from mgdet.errors import UserError
from mgdet.files import atomic_write
from mgdet.layers.norms import enough_values
from mgdet.structures import Detections, Pixels, Seen, Target

GREY = 114.0
"""What the library pads with, of 255. As mean of the normalisation it makes the zero of our padding the same grey."""
SUFFIXES = (".pt", ".pth")


class LibreYolo(Foreign):
    """A detector of LibreYOLO. Its modules carry the library's names, so its state dict is the library's.

    name: such as `yolox-n` or `yolov9-t`.
    names: the class name of each of the K outputs.
    towers: YOLOv9 only: the number of classes that the width of its class towers was chosen for; else None.
    score_thresh, nms_thresh, max_detections: of the library's post-processing, as its own validation sets them.

    Args:
        model: as the library builds it.
        name: see above.
        names: see above.
        columns: for each class of the data the output that stands for it.
        towers: see above.
    """

    source = "libreyolo"
    backbone: Any
    neck: Any
    head: Any
    pixels = Pixels((GREY, GREY, GREY), (1.0, 1.0, 1.0))
    score_thresh = 0.001
    nms_thresh = 0.6
    max_detections = 300
    neck_name: str
    """The child whose output are the three levels of strides 8, 16 and 32."""
    loss_names: tuple[str, ...]
    """The library's terms, already weighted, whose sum is its `total_loss`."""

    def __init__(
        self, model: Any, *, name: str, names: Sequence[str], columns: Sequence[int], towers: int | None = None
    ):
        super().__init__()
        self.name, self.towers, self.notes = name, towers, []
        self.assign(columns, names)
        # The parts are modules of this face, so that names are the library's; the whole stands aside, in a tuple,
        # because as a module it would hold every part a second time.
        self._whole = (model,)
        for part, module in model.named_children():
            self.add_module(part, module)
        for predictor in self._predictors():
            predictor.register_forward_hook(_in_float32)
        edge = self.wrapper().INPUT_SIZES[self.size]
        self.tested_size = TestedSize(edge, edge)
        self._kept_for: tuple[torch.device, bool] | None = None

    @property
    def library(self) -> Any:
        """The library's own model; its parts are those of this one."""
        return self._whole[0]

    @property
    def size(self) -> str:
        """The library's letter for the size."""
        return self.name.rpartition("-")[2]

    def assign(self, columns: Sequence[int], names: Sequence[str]) -> None:
        """Says which output of the head stands for which class of the data; arguments as in the constructor."""
        self.columns, self.num_classes = tuple(columns), len(columns)
        self.names = self.output_names = tuple(names)
        column_of = torch.tensor(self.columns, dtype=torch.int64)
        label_of = torch.full((len(names),), -1, dtype=torch.int64)
        label_of[column_of] = torch.arange(len(self.columns))
        self.column_of: Tensor
        self.label_of: Tensor
        self.register_buffer("column_of", column_of, persistent=False)
        self.register_buffer("label_of", label_of, persistent=False)

    def keep(self, columns: Sequence[int]) -> None:
        """See `Foreign.keep`."""
        self.assign(columns, self.names)

    def see(self, images: Tensor, sizes: list[tuple[int, int]], *, outputs: bool = False) -> Seen:
        """See `Face.see`; raw predictions of a foreign head are not shown."""
        taps = self.levels_of(self.as_library(images))
        return Seen(taps, taps)

    def learn(self, images: Tensor, targets: list[Target], *, outputs: bool = False) -> Learned:
        """See `Face.learn`; raw predictions of a foreign head are not shown.

        Boxes without an area are left out. Numbers that are not finite, which end the library's matcher and with it
        a whole CUDA device, give losses that are not numbers.

        Raises:
            UserError: a batch in which batch norms see one value per channel.
        """
        truth = self.as_truth(targets, (images.shape[2], images.shape[3]))
        taps: list[Tensor] = []
        with self._running(images, learning=True) as model, ExitStack() as hooks:
            neck = self.get_submodule(self.neck_name)
            hooks.callback(neck.register_forward_hook(lambda module, inputs, output: taps.extend(output)).remove)
            self._heed(hooks)
            try:
                with enough_values(self.name, images):
                    found = model(self.as_library(images), truth)
                losses = {name: found[name] for name in self.loss_names}
            except _NotFinite:
                losses = self._no_numbers()
        return Learned(losses, Seen(taps, taps))

    @torch.no_grad()
    def find(
        self, images: Tensor, sizes: list[tuple[int, int]], scales: list[tuple[float, float]] | None = None
    ) -> list[Detections]:
        """See `Face.find`: the library's own detections, without those of outputs that are not classes of the data.

        They come as plain numbers, so no gradient reaches through them.
        """
        with self._running(images, learning=False) as model:
            raw = model(self.as_library(images))
        factors = scales or [(1.0, 1.0)] * len(sizes)
        return [
            self._as_detections(self.postprocess(raw, place, size), scale)
            for place, (size, scale) in enumerate(zip(sizes, factors))
        ]

    def description(self) -> dict[str, Any]:
        """See `Foreign.description`."""
        return {
            "source": self.source,
            "name": self.name,
            "outputs": len(self.names),
            "columns": list(self.columns),
            "names": list(self.names),
            "towers": self.towers,
        }

    def export(self, out: Path) -> str:
        """Writes a checkpoint that `LibreYOLO(file)` reads, with the class names.

        The library predicts on its own canvas for the size unless it is given `imgsz`.
        """
        from libreyolo.utils.serialization import wrap_libreyolo_checkpoint

        out = Path(out)
        if out.suffix not in SUFFIXES:
            raise UserError(f"{out} ends in '{out.suffix}', but LibreYOLO reads {' or '.join(SUFFIXES)}")
        if out.exists():
            raise UserError(f"{out} exists already; give the name of a new file")
        if not out.parent.is_dir():
            raise UserError(f"the folder {out.parent} of {out.name} does not exist; make it first")
        state = {
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in self.weights().items()
        }
        wrapper = self.wrapper()
        extra = {"letterbox_pad": "topleft"} if wrapper.FAMILY == "yolo9" else {}
        content = wrap_libreyolo_checkpoint(
            state,
            model_family=wrapper.FAMILY,
            size=self.size,
            task="detect",
            nc=len(self.names),
            names=list(self.names),
            imgsz=wrapper.INPUT_SIZES[self.size],
            **extra,
        )
        atomic_write(out, lambda file: torch.save(content, file))
        return (
            f"wrote {out}: {len(state)} tensors for LibreYOLO('{out.name}'), a {self.name} of {len(self.names)} outputs"
        )

    @classmethod
    @abstractmethod
    def wrapper(cls) -> Any:
        """The library's class around such a model: family, file names, addresses and canvases."""

    @abstractmethod
    def as_library(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised with `pixels`, in the range and order that the library's own pixels have."""

    @abstractmethod
    def as_truth(self, targets: list[Target], canvas: tuple[int, int]) -> Tensor:
        """The ground truth (B, N, 5) in the library's form; `canvas` is the (h, w) of the batch."""

    @abstractmethod
    def postprocess(self, raw: Any, place: int, size: tuple[int, int]) -> dict[str, Any]:
        """The library's own detections of the image at `place` of the batch, in its pixels; `size` is its (h, w)."""

    @abstractmethod
    def levels_of(self, pixels: Tensor) -> list[Tensor]:
        """Runs the library's own pixels up to the taps."""

    @abstractmethod
    def _predictors(self) -> list[nn.Module]:
        """The last convolutions of the head."""

    @abstractmethod
    def _forget(self) -> None:
        """Drops the grids that the library keeps between forwards and does not move with the model."""

    def _heed(self, hooks: ExitStack) -> None:
        """Raises `_NotFinite` where the library would fall over such numbers; YOLOv9 does not."""

    @contextmanager
    def _running(self, images: Tensor, *, learning: bool) -> Iterator[Any]:
        """The library's model, switched to what it shall return, which it reads from two flags; norms keep theirs."""
        kept_for = (images.device, torch.is_inference_mode_enabled())
        if kept_for != self._kept_for:
            self._forget()
            self._kept_for = kept_for
        (model,) = self._whole
        before = model.training, model.head.training
        model.training = model.head.training = learning
        try:
            yield model
        finally:
            model.training, model.head.training = before

    def _no_numbers(self) -> dict[str, Tensor]:
        """A loss that is not a number and reaches every parameter: processes that join gradients wait for each."""
        everything = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * float("nan")
        return dict.fromkeys(self.loss_names, everything)

    def _rows(self, targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, N, 4), columns (B, N) and which of them are objects (B, N), which come first in each image."""
        boxes = pad_sequence([target.boxes.float() for target in targets], batch_first=True)
        labels = pad_sequence([target.labels for target in targets], batch_first=True, padding_value=-1)
        real = (labels >= 0) & (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
        order = real.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        boxes = boxes.gather(1, order[..., None].expand_as(boxes))
        columns = self.column_of[labels.clamp(min=0)].gather(1, order)
        return boxes, columns, real.gather(1, order)

    def _as_detections(self, found: dict[str, Any], scale: tuple[float, float]) -> Detections:
        device = self.label_of.device
        boxes = torch.tensor(found["boxes"], dtype=torch.float32, device=device).reshape(-1, 4)
        labels = self.label_of[torch.tensor(found["classes"], dtype=torch.int64, device=device)]
        scores = torch.tensor(found["scores"], dtype=torch.float32, device=device)
        kept = labels >= 0
        return Detections(boxes[kept] / boxes.new_tensor([*scale, *scale]), scores[kept], labels[kept])


class YoloX(LibreYolo):
    """YOLOX: pixels are B, G, R from 0 to 255; its pyramid is part of the library's `backbone`."""

    neck_name = "backbone"
    loss_names = ("iou_loss", "obj_loss", "cls_loss")
    backbone_prefixes = ("backbone.backbone.",)

    @classmethod
    def wrapper(cls) -> Any:
        """See `LibreYolo.wrapper`."""
        from libreyolo.models.yolox.model import LibreYOLOX

        return LibreYOLOX

    def as_library(self, images: Tensor) -> Tensor:
        """See `LibreYolo.as_library`."""
        return images.flip(1) + GREY

    def as_truth(self, targets: list[Target], canvas: tuple[int, int]) -> Tensor:
        """Rows of column, centre, width and height in pixels of the batch; the rest is zero."""
        boxes, columns, real = self._rows(targets)
        corner, other = boxes[..., :2], boxes[..., 2:]
        rows = torch.cat([columns[..., None].to(boxes.dtype), (corner + other) / 2, other - corner], dim=2)
        return rows * real[..., None]

    def postprocess(self, raw: Any, place: int, size: tuple[int, int]) -> dict[str, Any]:
        """See `LibreYolo.postprocess`."""
        from libreyolo.postprocess.yolox import postprocess

        result: dict[str, Any] = postprocess(
            [level[place : place + 1] for level in raw],
            conf_thres=self.score_thresh,
            iou_thres=self.nms_thresh,
            original_size=(size[1], size[0]),
            max_det=self.max_detections,
        )
        return result

    def levels_of(self, pixels: Tensor) -> list[Tensor]:
        return list(self.backbone(pixels))

    def _predictors(self) -> list[nn.Module]:
        head = self.head
        return [*head.cls_preds, *head.reg_preds, *head.obj_preds]

    def _forget(self) -> None:
        self.head.grids = [torch.zeros(1)] * len(self.head.grids)

    def _heed(self, hooks: ExitStack) -> None:
        head = self.head
        heard: list[Tensor] = []

        def hear(module: nn.Module, inputs: object, output: Tensor) -> None:
            heard.append(output.detach().isfinite().all())
            # The last level's objectness is the last that is predicted, and the matcher comes next.
            if module is head.obj_preds[-1] and not torch.stack(heard).all():
                raise _NotFinite

        for predictor in (*head.cls_preds, *head.obj_preds):
            hooks.callback(predictor.register_forward_hook(hear).remove)


class YoloV9(LibreYolo):
    """YOLOv9: pixels are R, G, B from 0 to 1. Without the auxiliary branch that the library can add in training."""

    neck_name = "neck"
    loss_names = ("box_loss", "dfl_loss", "cls_loss")

    @classmethod
    def wrapper(cls) -> Any:
        """See `LibreYolo.wrapper`."""
        from libreyolo.models.yolo9.model import LibreYOLO9

        return LibreYOLO9

    def as_library(self, images: Tensor) -> Tensor:
        """See `LibreYolo.as_library`."""
        return (images + GREY) / 255.0

    def as_truth(self, targets: list[Target], canvas: tuple[int, int]) -> Tensor:
        """Rows of column and corners as shares of the batch's width and height; the rest is column -1 and zero."""
        boxes, columns, real = self._rows(targets)
        height, width = canvas
        boxes = boxes / boxes.new_tensor([width, height, width, height]) * real[..., None]
        columns = torch.where(real, columns, -1)
        return torch.cat([columns[..., None].to(boxes.dtype), boxes], dim=2)

    def postprocess(self, raw: Any, place: int, size: tuple[int, int]) -> dict[str, Any]:
        """See `LibreYolo.postprocess`."""
        from libreyolo.postprocess.yolo9 import postprocess

        result: dict[str, Any] = postprocess(
            {"predictions": raw["predictions"][place : place + 1]},
            conf_thres=self.score_thresh,
            iou_thres=self.nms_thresh,
            input_size=size,
            original_size=(size[1], size[0]),
            max_det=self.max_detections,
            letterbox=False,
        )
        return result

    def levels_of(self, pixels: Tensor) -> list[Tensor]:
        return list(self.neck(*self.backbone(pixels)))

    def _predictors(self) -> list[nn.Module]:
        return [tower[-1] for tower in (*self.head.cv2, *self.head.cv3)]

    def _forget(self) -> None:
        self.head._loss_fn = self.head.shape = None


class _NotFinite(Exception):
    """Ends a forward whose predictions the library's matcher cannot read."""


def _in_float32(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """What a last convolution predicts, in float32 also under autocast.

    The library makes grids and boxes in the type of what it predicts, and bfloat16 cannot tell pixel 301 from 300.
    """
    return output.float()
