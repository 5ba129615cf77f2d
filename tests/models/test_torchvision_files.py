"""A state dict of torchvision's is recognised wherever a checkpoint is taken."""

from pathlib import Path

import pytest
import torch
from torchvision.models import get_model_builder

from mgdet.cli import main
from mgdet.detectors.foreign.torchvision import MODELS, SSDLITE, build
from mgdet.errors import UserError
from mgdet.interop.weights import Checkpoint
from mgdet.models import recognise, recognise_checkpoint
from mgdet.models.opened import open_detector
from mgdet.planning.plan import plan

TWINS = ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn")
"""They have the same weights."""


def checkpoint_of(name: str, outputs: int, **changes) -> Checkpoint:
    """The shapes of a detector, as a file that was read."""
    with torch.device("meta"):
        state = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=outputs).state_dict()
    return Checkpoint(
        path=Path("model.safetensors"),
        sha256="",
        state_dict=state | changes,
        classes=None,
        config=None,
        kind="state_dict",
        entries=len(state),
    )


@pytest.mark.parametrize("outputs", [91, 4])
@pytest.mark.parametrize("name", sorted(set(MODELS) - set(TWINS)))
def test_each_detector_is_recognised_by_its_weights(name, outputs):
    found = recognise_checkpoint(checkpoint_of(name, outputs), "model.safetensors")
    assert (found.model.detector, found.model.weights) == (f"torchvision:{name}", "model.safetensors")
    assert found.num_classes == (80 if outputs == 91 else 3)
    assert (found.classes is None) == (outputs == 4)
    assert found.square == (300 if name.startswith("ssd300") else 320 if name == SSDLITE else 0)
    assert found.lines == (
        f"model.safetensors: torchvision:{name}, {'80 classes' if outputs == 91 else '3 classes (not named)'}",
    )


@pytest.mark.parametrize("name", TWINS)
def test_two_with_the_same_weights_are_both_named(name):
    with pytest.raises(UserError, match=f"may be any of torchvision:{TWINS[0]}, torchvision:{TWINS[1]}, which have"):
        recognise_checkpoint(checkpoint_of(name, 4))


@pytest.mark.parametrize("changes", [{"backbone.body.conv1.weight": torch.empty(32, 3, 7, 7)}, {"more": torch.ones(1)}])
def test_another_detector_under_the_same_names_is_none_of_them(changes):
    with pytest.raises(UserError, match="holds a detector of torchvision's, which mgdet does not have"):
        recognise_checkpoint(checkpoint_of("retinanet_resnet50_fpn", 4, **changes))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """What torchvision's training script leaves, of a detector with three classes."""
    torch.manual_seed(0)
    model = get_model_builder(SSDLITE)(weights=None, weights_backbone=None, num_classes=4)
    path = tmp_path_factory.mktemp("torchvision") / "model_7.pth"
    torch.save({"model": model.state_dict(), "optimizer": {"state": {}}, "epoch": 7}, path)
    return path


def test_it_is_opened_with_its_own_size_and_as_many_classes_as_it_has(file):
    assert recognise(str(file)).model.detector == f"torchvision:{SSDLITE}"
    opened = open_detector(str(file))
    assert opened.classes == ("class 0", "class 1", "class 2")
    assert (opened.detector.num_classes, opened.data.square) == (3, 320)


def test_there_is_nothing_to_transfer(file, refused):
    assert refused("transfer", file, "out.pth").endswith(
        f"holds torchvision:{SSDLITE} under torchvision's own names, so there is nothing to transfer: every command "
        "takes it as it is"
    )


@pytest.mark.slow
def test_it_is_measured_and_teaches_without_being_named(tiny, file, tmp_path, capsys):
    assert main(["test", str(file), "--data.root", str(tiny.root)]) == 0
    assert f"{file}: torchvision:{SSDLITE}, 3 classes (not named)" in capsys.readouterr().out
    arguments = ["--student", "test_resnet", "--student.weights", "random", "--data.square", "64"]
    arguments += ["--train.batch", "2", "--schedule.epochs", "1", "--train.stop-after", "1", "--no-check"]
    run = tmp_path / "run"
    assert main(["distill", str(file), str(tiny.root), *arguments, "--run-dir", str(run)]) == 0
    assert f"teacher  {file}: torchvision:{SSDLITE}, 3 classes (not named)" in capsys.readouterr().out
    assert (run / "student_last.pth").is_file()


def test_other_classes_than_the_datas_are_said_as_classes(tiny, tmp_path, refused):
    model = get_model_builder(SSDLITE)(weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "two.pth")
    text = refused("test", tmp_path / "two.pth", "--data.root", tiny.root)
    assert text == f"{tmp_path / 'two.pth'} knows 2 classes, the data has 3"


def test_what_transfer_wrote_says_which_of_two_it_is(tmp_path):
    torch.manual_seed(0)
    written = build(TWINS[1], classes=("cat", "dog"), weights="random", say=lambda line: None)
    written.export(tmp_path / "out.pth")
    found = recognise(str(tmp_path / "out.pth"))
    assert (found.model.detector, found.classes) == (f"torchvision:{TWINS[1]}", ("cat", "dog"))


def test_weights_that_are_given_are_said_in_place_of_the_published_ones(tiny, file):
    given = {"teacher.weights": str(file), "student.weights": "random", "train.batch": 2}
    made = plan(f"torchvision:{SSDLITE}", tiny.root, student="test_resnet", settings=given)
    assert made.config.teacher.weights == str(file)
    assert f"teacher  torchvision:{SSDLITE} with {file}, 3 classes (not named)" in made.lines
