"""The recorded values of the original system in `tests/parity`, and the rules that make their weights and inputs.

Weights and inputs are pure functions of names, so only outputs are stored. `<model>.json` holds statistics, losses and
gradient norms, `<model>.npz` 64 elements of each tensor and the detections.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mgdet import Detections, Target

FOLDER = Path(__file__).parent / "parity"
IMAGE_SIZES = [(192, 256), (160, 224)]
PREDICTOR_GAINS = {
    "retina_cls.": 0.3,
    "rpn_cls.": 1.0,
    "fc_cls.": 0.5,
    "reppoints_cls_out.": 1.5,
    "conv_cls.": 0.7,
    "conv_mask_list.": 2.0,
    "conv_logits.": 3.0,
}
FOCAL_BIASES = {"bbox_head.retina_cls.bias", "bbox_head.reppoints_cls_out.bias", "mask_head.conv_cls.bias"}


def record(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as stored:
        return dict(stored)


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """The value of one state-dict entry: a function of its key and shape alone."""
    draw = generator(key)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var") or (len(shape) == 1 and key.endswith(".weight")):
        values = draw.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "moment_transfer")):
        values = 0.1 * draw.standard_normal(shape)
    elif key.endswith("reppoints_pts_init_out.bias"):
        values = draw.standard_normal(shape)
    elif key.endswith(".bias"):
        values = 0.01 * draw.standard_normal(shape) - (4.6 if key in FOCAL_BIASES else 0.0)
    else:
        values = draw.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:])) * _gain(key)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _gain(key: str) -> float:
    if key.endswith("conv_offset.weight"):
        return 0.1
    if key.startswith("backbone.layer") and key.endswith("conv3.weight"):
        return 0.35
    return next((gain for part, gain in PREDICTOR_GAINS.items() if part in key), 0.7)


def fill(model: nn.Module, prefix: str = "") -> None:
    """Gives every entry of the state dict its value by rule; `prefix` is put before the keys."""
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: weight(prefix + key, shape) for key, shape in shapes.items()})


def images() -> Tensor:
    """Two normalised images (2, 3, 192, 256). What lies outside the second's valid area is not zero."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 192, 256)).astype(np.float32))


def targets() -> list[Target]:
    boxes = [
        [[20, 30, 100, 120], [120, 40, 230, 150], [60, 100, 90, 130]],
        [[10, 20, 80, 90], [100, 60, 200, 150]],
    ]
    labels = [[0, 17, 56], [2, 79]]
    return [
        Target(torch.tensor(b, dtype=torch.float32), torch.tensor(c), ellipses(b), size=size)
        for b, c, size in zip(boxes, labels, IMAGE_SIZES)
    ]


def ellipses(boxes: list[list[int]]) -> Tensor:
    """The ellipse inside each box as a mask of the batch images' size, (N, 192, 256) uint8."""
    y, x = np.mgrid[0:192, 0:256] + 0.5
    masks = [
        ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1
        for x1, y1, x2, y2 in boxes
    ]
    return torch.from_numpy(np.stack(masks).astype(np.uint8))


def synthetic(name: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Stands in for a network's output, so that losses and post-processing are checked apart from the network."""
    values = generator("synth:" + name).standard_normal(shape) * scale + shift
    return torch.from_numpy(values.astype(np.float32))


def feature_maps() -> list[Tensor]:
    """Stand in for levels P2 to P6 of the recorded images."""
    return [synthetic(f"feat.{i}", (2, 256, -(-48 // 2**i), 64 // 2**i)) for i in range(5)]


def proposals() -> list[Tensor]:
    """Fixed proposals of each image, (100, 4) xyxy, best first: random ones, then neighbours of the objects."""
    found = []
    for i, ((height, width), target) in enumerate(zip(IMAGE_SIZES, targets())):
        draw, objects = generator(f"proposals:{i}"), target.boxes.double().numpy()
        left, top = draw.uniform(0, width - 20, 60), draw.uniform(0, height - 20, 60)
        across, down = draw.uniform(16, width / 2, 60), draw.uniform(16, height / 2, 60)
        near = objects[np.arange(40) % len(objects)]
        extent = np.tile(near[:, 2:] - near[:, :2], 2)
        jittered = near + 0.15 * extent * draw.standard_normal((40, 4))
        boxes = np.concatenate([np.stack([left, top, left + across, top + down], axis=1), jittered])
        limits = [width, height, width, height]
        found.append(torch.from_numpy(boxes.clip(0, limits).astype(np.float32)))
    return found


def mgd_uniform(size: tuple[int, int, int, int], **_: object) -> Tensor:
    """Stands in for `torch.rand` where MGD draws its mask."""
    batch, _channels, height, width = size
    values = generator(f"mgdmask_{batch}x{height}x{width}").random(size)
    return torch.from_numpy(values.astype(np.float32))


def assert_tensor(tensor: Tensor, name: str, stored: dict, samples: dict[str, np.ndarray]) -> None:
    """Shape, statistics and 64 elements agree within 1e-4 of the recorded standard deviation."""
    entry = stored["tensors"][name]
    values = tensor.detach().double().flatten()
    assert list(tensor.shape) == entry["shape"], name
    tolerance = 1e-4 * entry["std"]
    picked = values[torch.from_numpy(samples[f"{name}.idx"])].numpy()
    np.testing.assert_allclose(picked, samples[f"{name}.val"], rtol=0, atol=tolerance, err_msg=name)
    assert abs(values.std(correction=0).item() - entry["std"]) <= tolerance, name
    assert abs(values.abs().max().item() - entry["absmax"]) <= tolerance, name
    assert abs(values.sum().item() - entry["sum"]) <= tolerance * values.numel(), name


def assert_gradients(model: nn.Module, norms: dict[str, float | None], *, tolerance: float, prefix: str = "") -> None:
    """The gradient norm of every parameter agrees; None stands for a parameter that gets none."""
    for key, parameter in model.named_parameters():
        expected = norms[prefix + key]
        if expected is None:
            assert parameter.grad is None, key
        else:
            assert parameter.grad is not None, key
            norm = parameter.grad.double().norm().item()
            assert abs(norm - expected) <= tolerance * abs(expected) + 1e-9, (key, norm, expected)


def assert_losses(parts: dict[str, Tensor], expected: dict[str, float | list[float]]) -> None:
    """The same losses, and every value, of every level where a loss has levels, agrees within 1e-5."""
    assert parts.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(parts[name].detach().numpy(), values, rtol=1e-5, atol=1e-9, err_msg=name)


def assert_detections(found: list[Detections], stored: dict, samples: dict[str, np.ndarray], prefix: str) -> None:
    """As many detections as recorded, best first, and the boxes, scores and labels of the recorded best agree."""
    for i, detections in enumerate(found):
        boxes, labels = samples[f"{prefix}.{i}.boxes"], samples[f"{prefix}.{i}.labels"]
        assert len(detections.scores) == stored[f"{prefix}.{i}.n"]
        assert (detections.scores.diff() <= 0).all()
        np.testing.assert_allclose(detections.scores[: len(boxes)], boxes[:, 4], atol=1e-5, rtol=0)
        np.testing.assert_allclose(detections.boxes[: len(boxes)], boxes[:, :4], atol=0.01, rtol=0)
        np.testing.assert_array_equal(detections.labels[: len(boxes)], labels)
