"""The maps of a distilled run, rebuilt from its folder."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mgdet.data.batch import collate
from mgdet.data.coco import read_coco
from mgdet.data.dataset import DetectionDataset
from mgdet.engine.checkpoint import State
from mgdet.engine.step import show
from mgdet.methods.mgd import MGD
from mgdet.report import features
from mgdet.report.features import Alone, draw_maps
from mgdet.report.sources import Sizes, open_source
from mgdet.report.timing import view_of

CPU = torch.device("cpu")


@pytest.fixture
def dataset(shown):
    records = read_coco(shown.root / "annotations" / "val.json", shown.root / "val", masks=False)
    return DetectionDataset(records, training=False)


def test_a_run_shows_teacher_students_mask_and_what_is_generated(runs, dataset):
    source = open_source(str(runs["mgd-0"]), None)
    alone = open_source(str(runs["alone-0"]), None)
    models, _, _ = features._rebuild(alone_as_student(source, alone), dataset, "")
    detector = models.student.student.eval()
    maps = draw_maps(source, "MGD", Alone("alone", detector, Sizes(96, 64, 0)), dataset, CPU)
    assert maps.notes == []
    assert len(maps.images) == features.DRAWN
    for _, image, levels in maps.images:
        assert max(image.shape[:2]) == features.LONG_EDGE
        assert [level.stride for level in levels] == [8, 16]  # at stride 32 an edge has 2 cells
        for level in levels:
            assert [title for title, _ in level.pictures] == [
                "teacher",
                "alone",
                "MGD",
                "MGD, masked",
                "generated",
            ]
            assert {picture.shape for _, picture in level.pictures} == {image.shape}
    assert maps.regenerated.keys() == {8, 16, 32, 64}  # a single cell has no variance
    assert maps.measured == 15  # of 30 images every other one is empty
    assert all(share <= 1 for pair in maps.regenerated.values() for share in pair)


def alone_as_student(source, alone):
    """`source` with the weights of a run of the same student."""
    source = open_source(source.given, None)
    source.folder, source.file = None, alone.file
    return source


def test_what_is_regenerated_is_what_the_loss_measures(runs, dataset):
    """Error and share from the modules of the run, by hand."""
    source = open_source(str(runs["mgd-0"]), None)
    models, config, trained = features._rebuild(source, dataset, "")
    assert trained
    models.student.eval()
    state = State.load(runs["mgd-0"])
    assert all(torch.equal(value, models.student.state_dict()[name]) for name, value in state.model.items())
    batch = collate([dataset[view_of(source.sizes, 0)]])
    shown = features._see(models, config, batch, seed=3, generate=True)[0]
    with torch.no_grad():
        images = batch.images()
        theirs = show(models.teacher, (0, 0), batch, images, models.student.student.pixels)
        method = models.student.distill_losses["loss_mgd_fpn_0"]
        mine = models.student.student.see(images, batch.sizes).taps[0]
        torch.manual_seed(3)
        loss = method(mine, theirs.taps[0])
    error = F.mse_loss(shown.generated, shown.teacher, reduction="sum")
    assert config.mgd.weight * float(error) == pytest.approx(float(loss), rel=1e-5)
    wrong, variance = features._errors(shown)
    assert wrong[0] == pytest.approx(float(error), rel=1e-6)
    assert 0 < wrong[1] < wrong[0] and 0 < variance[1] < variance[0]
    assert shown.kept.float().mean() == pytest.approx(1 - config.mgd.mask_ratio, abs=0.15)


def test_a_checkpoint_without_a_state_shows_what_it_has(runs, dataset, tmp_path):
    shutil.copytree(runs["mgd-0"], tmp_path / "run", ignore=shutil.ignore_patterns("state.pth"))
    maps = draw_maps(open_source(str(tmp_path / "run"), None), "MGD", None, dataset, CPU)
    assert "has no state.pth, which holds the generators" in maps.notes[0]
    assert maps.regenerated == {}
    assert [title for title, _ in maps.images[0][2][0].pictures] == ["teacher", "MGD"]


def test_without_the_teacher_there_is_a_sentence_and_no_maps(runs, dataset, shown, tmp_path):
    source = open_source(str(runs["mgd-0"]), None)
    source.config.teacher.weights = str(tmp_path / "gone.pth")
    maps = draw_maps(source, "MGD", None, dataset, CPU)
    assert maps.images == []
    assert "the teacher's checkpoint" in maps.notes[0] and "is not here" in maps.notes[0]
    other = draw_maps(source, "MGD", None, dataset, CPU, teacher_weights=str(runs["alone-0"] / "student_last.pth"))
    assert other.images == []
    assert "is not the file that taught it" in other.notes[0]
    moved = draw_maps(source, "MGD", None, dataset, CPU, teacher_weights=str(shown.teacher))
    assert moved.regenerated and not moved.notes


def test_masked_cells_are_grey_and_the_others_coloured():
    strength = np.arange(16.0).reshape(4, 4)
    kept = np.eye(4, dtype=bool)
    picture = features._colour(strength, strength, (32, 32), kept)
    cell = features.LONG_EDGE // 4
    centres = picture[cell // 2 :: cell, cell // 2 :: cell]
    assert (centres[~kept] == features.MASKED).all()
    assert len(np.unique(centres[kept], axis=0)) == 4
    assert (
        features._colour(strength + 100, strength, (32, 32)) == picture[-1, -1]
    ).all()  # beyond the scale: brightest


def test_regenerating_is_the_loss(runs):
    """`MGD.regenerate` draws the mask that `forward` draws."""
    method = MGD(8, 8, weight=0.5, mask_ratio=0.6)
    student, teacher = torch.randn(2, 8, 5, 7), torch.randn(2, 8, 5, 7)
    torch.manual_seed(1)
    loss = method(student, teacher)
    torch.manual_seed(1)
    kept, generated = method.regenerate(student)
    assert torch.equal(loss, 0.5 / 2 * F.mse_loss(generated, teacher, reduction="sum"))
    assert kept.shape == (2, 1, 5, 7) and kept.dtype == torch.bool


def test_cells_of_the_padding_alone_are_left_out(dataset):
    """An image of 50 x 75 in a batch of 64 x 96: at stride 8 it has 7 x 10 of the 8 x 12 cells."""
    batch = collate([dataset[view_of(Sizes(75, 50, 0), 0)]])
    assert (batch.sizes, batch.pixels.shape[1:3]) == ([(50, 75)], (64, 96))
    maps = torch.arange(96.0).view(1, 1, 8, 12)
    assert torch.equal(features._crop(maps, batch), maps[0, :, :7, :10])
    assert features._crop(maps[:, :, :1, :2], batch).shape == (1, 1, 2)
