"""Collating, normalising, padding and travelling between processes."""

import pickle

import numpy as np
import pytest
import torch

from mgdet.data.batch import collate
from mgdet.data.transforms import View, make_example
from mgdet.errors import UserError
from mgdet.structures import Pixels


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 70), (50, 60))]
    boxes, labels = np.array([[1, 2, 30, 20]], np.float32), np.array([3])
    return [
        make_example(image, View(0, 70, 50, False), file=f"{i}.png", image_id=i, boxes=boxes, labels=labels, masks=[])
        for i, image in enumerate(images)
    ]


def test_images_are_normalised_rgb_and_padded_with_zeros(examples):
    batch = collate(examples)
    assert batch.pixels.shape == (2, 64, 96, 3)
    assert batch.pixels.dtype == torch.uint8
    images = batch.images()
    assert images.shape == (2, 3, 64, 96)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    for image, example in zip(images.numpy(), examples):
        h, w = example.image.shape[:2]
        expected = np.zeros((3, 64, 96))
        expected[:, :h, :w] = ((example.image[..., ::-1] - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(image, expected, rtol=1e-6, atol=1e-6)
        # To the bit what float32 gives, as in the original.
        in_float32 = (example.image[..., ::-1].astype(np.float32) - mean.astype(np.float32)) / std.astype(np.float32)
        np.testing.assert_array_equal(image[:, :h, :w], in_float32.transpose(2, 0, 1))
        assert (image[:, h:] == 0).all()
        assert (image[:, :, w:] == 0).all()


def test_a_model_of_another_order_and_mean_gets_its_own(examples):
    batch = collate(examples)
    mean, std = (103.53, 116.28, 123.675), (1.0, 2.0, 4.0)
    images = batch.images(Pixels(mean, std, bgr=True))
    assert images.is_contiguous(memory_format=torch.channels_last)
    for image, example in zip(images.numpy(), examples):
        h, w = example.image.shape[:2]
        expected = (example.image.astype(np.float32) - np.float32(mean)) / np.float32(std)
        np.testing.assert_array_equal(image[:, :h, :w], expected.transpose(2, 0, 1))
        assert not image[:, h:].any() and not image[:, :, w:].any()
    squashed, _ = batch.images_on((32, 48), Pixels(mean, std, bgr=True))
    swapped, _ = batch.images_on((32, 48), Pixels(mean[::-1], std[::-1]))
    torch.testing.assert_close(squashed, swapped.flip(1))
    assert torch.equal(batch.images(), collate(examples).images())  # and the batch stays as it was


def test_padding_does_not_depend_on_what_lies_there(examples):
    batch = collate(examples)
    before = batch.images()
    batch.pixels[0, batch.sizes[0][0] :] += 1
    batch.pixels[1, :, batch.sizes[1][1] :] += 1
    assert torch.equal(batch.images(), before)


@pytest.mark.parametrize(
    ("multiple", "native", "shape"),
    [
        (32, None, (64, 96)),
        (16, None, (64, 96)),
        (64, None, (64, 128)),
        (28, None, (56, 84)),
        (10, None, (50, 70)),
        (32, (50, 70), (50, 70)),
    ],
)
def test_a_batch_is_fitted_by_its_padding_alone(examples, multiple, native, shape):
    batch = collate(examples)
    fitted = batch.fitted(multiple, native)
    assert fitted.pixels.shape == (2, *shape, 3)
    assert fitted.sizes == batch.sizes
    for image, whole, (h, w) in zip(fitted.images(), batch.images(), batch.sizes):
        assert torch.equal(image[:, :h, :w], whole[:, :h, :w])
        assert not image[:, h:].any() and not image[:, :, w:].any()


def test_an_image_beyond_the_native_size_is_refused(examples):
    with pytest.raises(UserError, match=r"takes images of 48 x 48 pixels only; give --data\.square 48"):
        collate(examples).fitted(32, (48, 48))


def test_a_canvas_of_its_own_squashes_images_and_sizes_alike(examples):
    batch = collate(examples)
    images, sizes = batch.images_on((32, 48))
    assert images.shape == (2, 3, 32, 48)
    assert sizes == [(20, 35), (25, 30)]
    same, own = batch.images_on((64, 96))
    assert torch.equal(same, batch.images()) and own == batch.sizes


def test_records_stay_in_order(examples):
    batch = collate(examples).to("cpu")
    assert batch.files == ["0.png", "1.png"]
    assert batch.image_ids == [0, 1]
    assert batch.originals == [(40, 70), (50, 60)]
    assert batch.sizes == [(40, 70), (50, 60)]
    assert batch.scales == [(1.0, 1.0), (1.0, 1.0)]


def test_pickle_keeps_everything(examples):
    batch = collate(examples)
    copy = pickle.loads(pickle.dumps(batch))
    assert torch.equal(copy.images(), batch.images())
    assert copy.files == batch.files
    assert copy.scales == batch.scales
    for ours, theirs in zip(copy.targets, batch.targets):
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.masks, theirs.masks)
        assert ours.size == theirs.size


def test_packed_masks_arrive_as_they_left(examples):
    draw = torch.Generator().manual_seed(0)
    for number, example in enumerate(examples, 1):
        example.target.masks = torch.randint(0, 2, (number, 64, 96), dtype=torch.uint8, generator=draw)
    batch = collate(examples)
    packed = pickle.loads(pickle.dumps(batch.packed()))
    assert all(target.masks is None for target in packed.targets)
    assert [bits.numel() * 8 for bits in packed.packed_masks] == [target.masks.numel() for target in batch.targets]
    arrived = packed.to("cpu")
    assert arrived.packed_masks == []
    for ours, theirs in zip(arrived.targets, batch.targets):
        assert torch.equal(ours.masks, theirs.masks)


def test_a_batch_without_masks_travels_as_it_is(examples):
    for example in examples:
        example.target.masks = None
    batch = collate(examples)
    assert batch.packed() is batch and batch.to("cpu").targets[0].masks is None
