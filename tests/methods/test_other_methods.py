"""PKD and FGD against values recorded from their original code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recorded
from mgdet.methods.base import Truth
from mgdet.methods.fgd import FGD, background_mask, foreground_mask
from mgdet.methods.pkd import PKD

PKD_RECORDS, FGD_RECORDS = recorded.record("pkd"), recorded.record("fgd")


def feature(tag: str, shape) -> np.ndarray:
    """A map with busy cells and busy channels."""
    draw, (b, c, h, w) = recorded.generator(tag), shape
    values = draw.standard_normal((b, c, h, w))
    cell, channel = draw.uniform(0, 1, (b, 1, h, w)), draw.uniform(0, 1, (b, c, 1, 1))
    return (values * (0.5 + 1.5 * cell) * (0.5 + channel)).astype(np.float32)


def maps(tag: str, rule: str, student_shape, teacher_shape) -> tuple[np.ndarray, np.ndarray]:
    teacher = feature(f"{tag}T", teacher_shape)
    student = feature(f"{tag}S", student_shape)
    if rule == "mix":
        student = (0.5 * teacher.astype(np.float64) + 0.7 * student.astype(np.float64)).astype(np.float32)
    return student, teacher


def fill(module: torch.nn.Module, tag: str) -> None:
    state = {}
    for name, value in module.state_dict().items():
        draw, shape = recorded.generator(tag + name), tuple(value.shape)
        if len(shape) in (2, 4):
            values = draw.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
        elif name.endswith("bias"):
            values = 0.1 * draw.standard_normal(shape)
        else:
            values = draw.uniform(0.5, 1.5, shape)
        state[name] = torch.from_numpy(np.asarray(values, np.float32))
    module.load_state_dict(state)


def assert_gradient(gradient: torch.Tensor, entry: dict, samples: np.ndarray, name: str) -> None:
    values = gradient.double().flatten().numpy()
    assert list(gradient.shape) == entry["shape"]
    assert np.linalg.norm(values) == pytest.approx(entry["norm"], rel=1e-4, abs=1e-12)
    draw = recorded.generator(f"sample:{name}")
    rows = np.arange(values.size) if values.size <= 64 else draw.integers(0, values.size, 64)
    np.testing.assert_allclose(values[rows], samples, rtol=0, atol=2e-4 * entry["abs_max"] + 1e-15)


@pytest.mark.parametrize("name", [name for name in PKD_RECORDS if name != "pkd_single_element"])
def test_pkd(name):
    stored, samples = PKD_RECORDS[name], recorded.arrays("pkd")
    student, teacher = maps(f"open:{name}:", stored["S_rule"], stored["student_shape"], stored["teacher_shape"])
    if stored.get("affine"):
        student = student * np.float32(stored["affine"][0]) + np.float32(stored["affine"][1])
    constant = stored.get("constant")
    if constant:  # "student channel 1 = 0.5, teacher channel 2 = -0.25"
        student[:, 1], teacher[:, 2] = 0.5, -0.25
    mine = torch.from_numpy(student).requires_grad_()
    width = mine.shape[1]
    method = PKD(width, width, weight=stored["loss_weight"], resize_student=stored["resize_stu"])
    loss = method(mine, torch.from_numpy(teacher))
    assert loss.item() == pytest.approx(stored["loss"], rel=1e-5)
    loss.backward()
    if constant:  # divided by 1e-6, it is rounding times 1e6
        assert 0.1 < mine.grad.norm().item() / stored["grads"]["grad.S"]["norm"] < 10
    else:
        assert_gradient(mine.grad, stored["grads"]["grad.S"], samples[f"{name}/grad.S"], f"open:{name}:grad.S")


@pytest.mark.filterwarnings("ignore:std_mean")
def test_pkd_of_one_element_is_nan_as_in_the_original():
    """No standard deviation: a run stops there and names the loss."""
    one = torch.ones(1, 4, 1, 1)
    assert PKD(4, 4, weight=1.0)(one, one).isnan()


def test_pkd_does_not_see_scale_and_shift():
    student, teacher = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 6)
    method = PKD(8, 8, weight=6.0)
    assert method(3 * student - 2, 0.1 * teacher + 5).item() == pytest.approx(method(student, teacher).item(), rel=1e-4)


def truth_of(stored: dict) -> Truth:
    boxes = [torch.tensor(own, dtype=torch.float32).reshape(-1, 4) for own in stored["boxes"]]
    sizes = [tuple(size) for size in stored["img_shape"]]
    return Truth(boxes, [torch.zeros(len(own), dtype=torch.int64) for own in boxes], sizes)


@pytest.mark.parametrize("name", FGD_RECORDS)
def test_fgd(name):
    stored, samples = FGD_RECORDS[name], recorded.arrays("fgd")
    batch, height, width = stored["shape"]
    shapes = [(batch, stored[f"{side}_channels"], height, width) for side in ("student", "teacher")]
    student, teacher = maps(f"open:{name}:", stored["S_rule"], *shapes)
    method = FGD(
        shapes[0][1],
        shapes[1][1],
        weight=1.0,
        temperature=stored["temp"],
        foreground=stored["alpha_fgd"],
        background=stored["beta_fgd"],
        attention=stored["gamma_fgd"],
        relation=stored["lambda_fgd"],
    )
    assert {key: list(value.shape) for key, value in method.state_dict().items()} == stored["params"]
    fill(method, f"open:{name}:")
    if stored["zero_last_conv"]:
        for block in (method.channel_add_conv_s, method.channel_add_conv_t):
            torch.nn.init.zeros_(block[3].weight)
            torch.nn.init.zeros_(block[3].bias)
    mine, theirs, truth = torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher), truth_of(stored)
    parts = method.parts(mine, theirs, truth)
    assert {key: value.item() for key, value in parts.items()} == pytest.approx(stored["parts"], rel=1e-5)
    foreground = foreground_mask(truth, (height, width))
    for key, mask in {"mask_fg": foreground, "mask_bg": background_mask(foreground)}.items():
        assert_gradient(mask, stored["tensors"][key], samples[f"{name}/{key}"], f"open:{name}:{key}")
    loss = method(mine, theirs, truth)
    assert loss.item() == pytest.approx(stored["loss"], rel=1e-5)
    loss.backward()
    gradients = {"S": mine.grad} | {key: p.grad for key, p in method.named_parameters()}
    for gradient, entry in stored["grads"].items():
        key = gradient.removeprefix("grad.")
        if key in ("conv_mask_s.bias", "conv_mask_t.bias"):  # a softmax follows: 0 but for rounding, the record's too
            least = 1e-6 * gradients[key.replace("bias", "weight")].norm().item()
            assert gradients[key].norm().item() <= least and entry["norm"] <= least
        else:
            assert_gradient(gradients[key], entry, samples[f"{name}/grad.{key}"], f"open:{name}:grad.{key}")


def test_fgd_starts_with_identity_blocks():
    """At the first step the relation is the plain squared error."""
    method = FGD(4, 4, weight=1.0, temperature=0.5, foreground=1.0, background=1.0, attention=1.0, relation=1.0)
    student, teacher = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    truth = Truth([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2, [(48, 64)] * 2)
    parts = method.parts(student, teacher, truth)
    assert parts["rela"].item() == pytest.approx(((student - teacher) ** 2).sum().item() / 2, rel=1e-5)
    assert parts["fg"].item() == 0


def test_more_boxes_than_are_drawn_at_once_change_nothing():
    corner = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)) * 100
    boxes = torch.cat([corner, corner + 5], dim=1)
    labels = torch.zeros(300, dtype=torch.int64)
    together = foreground_mask(Truth([boxes], [labels], [(128, 128)]), (16, 16))
    apart = torch.stack([foreground_mask(Truth([box[None]], [labels[:1]], [(128, 128)]), (16, 16)) for box in boxes])
    assert torch.equal(together, apart.amax(dim=0))
