"""Detectors of Hugging Face: losses, detections and saved folders are the library's own, number for number."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
import tempfile

import pytest
import torch
from hf_tiny import TINY, VARIANTS, shake, tiny_config
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from mgdet.detectors.foreign.hf_families import FAMILIES
from mgdet.detectors.foreign.huggingface import build, rebuild
from mgdet.errors import UserError
from mgdet.structures import Target

NAMES = ("cat", "dog", "cell")
KINDS = sorted(TINY)


@functools.cache
def saved(kind, names, changes):
    """A folder as the library saves it, with weights whose scores differ; it lives until the tests end."""
    torch.manual_seed(0)
    library = AutoModelForObjectDetection.from_config(tiny_config(kind, names, **json.loads(changes)))
    shake(library)
    folder = tempfile.TemporaryDirectory()
    library.save_pretrained(folder.name)
    return folder


def folder_of(kind, names=NAMES, **changes):
    return saved(kind, names, json.dumps(changes)).name


def silent(line):
    """Takes a note and does nothing with it."""


def detector_of(kind, classes=NAMES, names=NAMES, **changes):
    return build(folder_of(kind, names, **changes), classes=classes, weights="pretrained", say=silent)


def batch_of(detector, side=None):
    """Two images in one padded batch; the second holds no object."""
    side = side or 128
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    small = (side - 24, side - 40)
    images[0, :, small[0] :] = 0
    images[0, :, :, small[1] :] = 0
    boxes = torch.tensor([[4.0, 6.0, 40.0, 30.0], [20.0, 10.0, 52.0, 60.0], [8.0, 8.0, 30.0, 33.0]])
    targets = [
        Target(boxes, torch.tensor([0, 2, 1]), size=small),
        Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), size=(side, side)),
    ]
    return images, targets


def library_inputs(detector, images, targets, labelled=False):
    """What the library's own image processor would hand to the model for this batch."""
    height, width = images.shape[2:]
    mask = torch.zeros(len(images), height, width, dtype=torch.long)
    labels = []
    for one, target in zip(mask, targets):
        one[: target.size[0], : target.size[1]] = 1
        if not labelled:
            continue
        h, w = target.size if detector.family.reads_padding else (height, width)
        corners = target.boxes / torch.tensor([w, h, w, h])
        centred = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
        columns = torch.tensor(detector.columns)[target.labels]
        labels.append({"class_labels": columns, "boxes": centred})
    inputs = {"pixel_values": images} | ({"labels": labels} if labelled else {})
    return inputs | ({"pixel_mask": mask} if detector.family.reads_padding else {})


def sizes_of(targets):
    return [target.size for target in targets]


def check_losses(detector, side=None):
    images, targets = batch_of(detector, side)
    twin = copy.deepcopy(detector)

    torch.manual_seed(7)
    theirs = twin.library(**library_inputs(detector, images, targets, labelled=True))
    theirs.loss.backward()
    torch.manual_seed(7)
    learned = detector.learn(images, targets)
    total = torch.stack(list(learned.losses.values())).sum()
    total.backward()

    assert 3 <= len(learned.losses) <= 5
    assert total.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    expected = dict(twin.library.named_parameters())
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is None) == (expected[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_librarys_own(kind):
    check_losses(detector_of(kind).train())


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_losses_of_other_settings_are_the_librarys_own_too(variant):
    kind, changes = VARIANTS[variant]
    detector = detector_of(kind, **changes).train()
    check_losses(detector)
    assert any(name.startswith(detector.backbone_prefixes) for name, _ in detector.named_parameters())


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lw_detr"])  # by default it has no level
def test_default_settings_of_every_detector(kind):
    torch.manual_seed(0)
    detector = build(kind, classes=NAMES, weights="random", say=silent).train()
    shake(detector, scale=0.005)
    side = max(detector.smallest_side, 2 * detector.multiple)
    check_losses(detector, side=side)


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_the_librarys_own_best_first(kind):
    names = ("cat", "dog", "sofa", "cell", "tvmonitor")
    folder = folder_of(kind, names)
    whole = build(folder, classes=None, weights="pretrained", say=silent).eval()
    images, targets = batch_of(whole)
    canvas = tuple(images.shape[2:])
    spans = sizes_of(targets) if whole.family.reads_padding else [canvas, canvas]
    with torch.no_grad():
        raw = whole.library(**library_inputs(whole, images, targets))
    expected = whole.processor.post_process_object_detection(raw, threshold=0.0, target_sizes=spans)
    common = int(torch.cat([one["labels"] for one in expected]).mode().values)
    columns = ((common + 1) % 5, common)

    detector = build(folder, classes=[names[place] for place in columns], weights="pretrained", say=silent).eval()
    assert detector.columns == columns
    with torch.no_grad():
        found = detector.find(images, sizes_of(targets))
        scaled = detector.find(images, sizes_of(targets), [(0.5, 0.25), (2.0, 1.0)])
    assert sum(len(one.scores) for one in found) > 0
    for ours, theirs, larger, scale in zip(found, expected, scaled, [(0.5, 0.25), (2.0, 1.0)]):
        wanted = sorted(
            (
                (-float(score), place, columns.index(int(label)), box)
                for place, (score, label, box) in enumerate(zip(theirs["scores"], theirs["labels"], theirs["boxes"]))
                if int(label) in columns
            ),
            key=lambda one: one[:2],
        )
        assert ours.labels.tolist() == [label for _, _, label, _ in wanted]
        assert ours.scores.tolist() == [-score for score, _, _, _ in wanted]
        if wanted:
            assert torch.equal(ours.boxes, torch.stack([box for *_, box in wanted]))
        torch.testing.assert_close(larger.boxes, ours.boxes / torch.tensor([*scale, *scale]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_shows_what_a_student_shows_and_stops_there(kind):
    detector = detector_of(kind).eval()
    images, targets = batch_of(detector)
    heads = []
    after = detector.class_labels_classifier if kind == "yolos" else detector.model.decoder
    after.register_forward_hook(lambda *_: heads.append(1))
    with torch.no_grad():
        seen = detector.see(images, sizes_of(targets))
        assert not heads
        whole = detector.see(images, sizes_of(targets), outputs=True)
    assert heads
    assert whole.outputs.logits.shape[0] == 2
    for level, first, second in zip(detector.levels, seen.taps, whole.taps):
        assert torch.equal(first, second)
        assert first.shape[1] == level.channels
        assert first.shape[2] == round(images.shape[2] / level.stride)


STRIDES = {
    "deformable_detr": [8, 16, 32, 64],
    "lw_detr": [8, 32],
    "rf_detr": [8],
    "detr": [32],
    "conditional_detr": [32],
    "dab-detr": [32],
    "yolos": [16],
}


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_measured_and_flags_are_left_alone(kind):
    detector = detector_of(kind).train()
    assert [level.stride for level in detector.levels] == STRIDES.get(kind, [8, 16, 32])
    assert {level.channels for level in detector.levels} == {32}
    images, targets = batch_of(detector)
    detector.find(images, sizes_of(targets))
    assert all(module.training for module in detector.modules())
    prefix = detector.backbone_prefixes
    named = [name for name, _ in detector.named_parameters() if name.startswith(prefix)]
    assert 0 < len(named) < len(list(detector.parameters()))


def test_maps_keep_their_place():
    detector = detector_of("detr").eval()
    images = torch.zeros(1, 3, 128, 192)
    tokens = []
    detector.model.encoder.register_forward_hook(lambda module, inputs, output: tokens.append(output[0]))
    with torch.no_grad():
        (tap,) = detector.see(images, [(128, 192)]).taps
    assert tap.shape == (1, 32, 4, 6)
    assert torch.equal(tap[0, :, 2, 5], tokens[0][0, 2 * 6 + 5])


@pytest.mark.parametrize("kind", KINDS)
def test_a_rebuilt_detector_is_bitwise_the_saved_one(kind):
    detector = detector_of(kind, classes=("dog",), names=("N/A", "cat", "dog")).eval()
    description = json.loads(json.dumps(detector.description()))
    again = rebuild(description, ["dog"]).eval()
    again.load_state_dict(detector.weights())
    assert set(detector.weights()) == set(detector.library.state_dict())
    images, targets = batch_of(detector)
    with torch.no_grad():
        for ours, theirs in zip(detector.find(images, sizes_of(targets)), again.find(images, sizes_of(targets))):
            assert all(torch.equal(one, other) for one, other in zip(ours[:3], theirs[:3]))
    assert (again.columns, again.pixels, again.multiple) == ((2,), detector.pixels, detector.multiple)


ALONE = """
import sys, torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection
folder, inputs, out = sys.argv[1:]
model, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
assert "mgdet" not in sys.modules
processor = AutoImageProcessor.from_pretrained(folder)
with torch.no_grad():
    raw = model.eval()(**torch.load(inputs))
torch.save({"logits": raw.logits, "boxes": raw.pred_boxes, "names": model.config.id2label,
            "size": dict(processor.size), "mean": processor.image_mean}, out)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_folder_is_whole(tmp_path, kind):
    detector = detector_of(kind, classes=("nut", "bolt")).eval()
    detector.input_size = {"height": 128, "width": 96}
    line = detector.export(tmp_path / "out")
    assert "2 outputs" in line
    library, report = AutoModelForObjectDetection.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert library.config.id2label == {0: "nut", 1: "bolt"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"height": 128, "width": 96}
    images, targets = batch_of(detector)
    inputs = library_inputs(detector, images, targets)
    with torch.no_grad():
        ours, theirs = detector.library(**inputs), library.eval()(**inputs)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.pred_boxes, theirs.pred_boxes)
    with pytest.raises(UserError, match="exists already"):
        detector.export(tmp_path / "out")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["rt_detr_v2", "detr"])
def test_the_library_alone_reads_an_export(tmp_path, kind):
    detector = detector_of(kind, classes=("nut", "bolt")).eval()
    detector.export(tmp_path / "out")
    images, targets = batch_of(detector)
    inputs = library_inputs(detector, images, targets)
    torch.save(inputs, tmp_path / "inputs.pt")
    script = [sys.executable, "-c", ALONE, str(tmp_path / "out"), str(tmp_path / "inputs.pt"), str(tmp_path / "r.pt")]
    subprocess.run(script, check=True, timeout=120)
    alone = torch.load(tmp_path / "r.pt")
    with torch.no_grad():
        raw = detector.library(**inputs)
    assert torch.equal(alone["logits"], raw.logits)
    assert torch.equal(alone["boxes"], raw.pred_boxes)
    assert alone["names"] == {0: "nut", 1: "bolt"}


@pytest.mark.parametrize("kind", KINDS)
def test_one_synthetic_step_and_a_batch_without_objects(kind):
    detector = detector_of(kind).train()
    side = 128
    images = torch.zeros(1, 3, side, side)
    one = Target(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([0]), size=(side, side))
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), size=(side, side))
    reached = []
    for target in (one, none):
        detector.zero_grad()
        learned = detector.learn(images, [target], outputs=True)
        assert all(bool(loss.isfinite()) for loss in learned.losses.values())
        torch.stack(list(learned.losses.values())).sum().backward()
        reached.append({name for name, p in detector.named_parameters() if p.grad is not None})
        names = list(learned.losses)
    assert reached[0] == reached[1]
    assert names == list(detector.learn(images, [one]).losses)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_not_finite_give_losses_that_are_not_numbers(kind):
    detector = detector_of(kind).train()
    images, targets = batch_of(detector)
    images[0, 0, 5, 5] = float("nan")
    losses = detector.learn(images, targets).losses
    total = torch.stack(list(losses.values())).sum()
    assert total.isnan()
    total.backward()


@pytest.mark.parametrize("kind", sorted(kind for kind in TINY if FAMILIES[kind].queries))
def test_more_queries_than_cells_is_one_sentence(kind):
    changes = {"num_queries": 200} if kind != "deformable_detr" else {"two_stage": True, "with_box_refine": True}
    changes |= {} if kind != "deformable_detr" else {"two_stage_num_proposals": 200, "num_queries": 200}
    detector = detector_of(kind, **changes).train()
    side = 96 if kind == "deformable_detr" else 64
    target = Target(torch.tensor([[2.0, 2.0, 9.0, 9.0]]), torch.tensor([0]), size=(side, side))
    smallest = detector.smallest_side
    with pytest.raises(UserError, match=rf"200 queries.*{smallest} x {smallest}"):
        detector.learn(torch.zeros(1, 3, side, side), [target])
    with pytest.raises(UserError, match="200 queries"):
        detector.find(torch.zeros(1, 3, side, side), [(side, side)])
    fits = Target(target.boxes, target.labels, size=(smallest, smallest))
    assert detector.learn(torch.zeros(1, 3, smallest, smallest), [fits]).losses


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_autocast_trains(kind):
    detector = detector_of(kind).train()
    images, targets = batch_of(detector)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.learn(images, targets).losses
        found = detector.find(images, sizes_of(targets))
    assert torch.stack([loss.float() for loss in losses.values()]).sum().isfinite()
    assert all(one.boxes.dtype == torch.float32 for one in found)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_sure_predictions_are_finite_in_half_precision(kind):
    """In bfloat16 a probability above 0.998, a logit of 6.2, is 1."""
    detector = detector_of(kind).train()
    heads = [p for name, p in detector.named_parameters() if "class" in name and name.endswith("bias") and p.ndim == 1]
    assert heads
    for bias in heads:
        with torch.no_grad():
            bias.fill_(5.0)
            bias[0] = -5.0
    images, targets = batch_of(detector)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.learn(images, targets).losses
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values()), losses


def test_a_copy_stands_on_its_own():
    detector = detector_of("rt_detr_v2")
    twin = copy.deepcopy(detector)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert next(twin.library.parameters()) is next(twin.parameters())
    assert not torch.equal(next(twin.parameters()), next(detector.parameters()))
