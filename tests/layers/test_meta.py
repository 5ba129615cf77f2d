"""Networks built for their names and shapes alone."""

import timm
import torch

from mgdet.layers.meta import on_meta


def test_names_and_shapes_are_those_of_the_network():
    with on_meta():
        mine = timm.create_model("test_resnet")
    state, expected = mine.state_dict(), timm.create_model("test_resnet").state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in expected.items()}
    assert all(value.is_meta for value in state.values())


def test_tensors_with_values_keep_them():
    with on_meta():
        value = torch.ones(2, device="cpu").mul_(3).add_(1)
    assert value.tolist() == [4, 4]
