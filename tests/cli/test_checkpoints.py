"""What is done with a checkpoint: `mgdet test`, `transfer` and `predict` as a user meets them."""

import dataclasses
import json
import os

import cv2
import pytest
import torch

import mgdet.report.measure as measure
from mgdet import load
from mgdet.cli import main
from mgdet.interop.weights import read_checkpoint
from refusals import spoil_file
from test_any_pair import save_tiny
from tiny import CLASSES, NUM_VAL, assert_same_tensors, write_graph


class TestTest:
    @pytest.fixture
    def arguments(self, tiny):
        return ["test", "tiny:alone", str(tiny.teacher), "--data.root", str(tiny.root)]

    def test_twelve_numbers_a_table_and_the_results(self, tiny, arguments, folder, capsys):
        assert main([*arguments, "--out", "results.json"]) == 0
        out = capsys.readouterr().out
        assert "126 tensors loaded, 0 missing" in out
        names = [line.split()[0] for line in out.splitlines() if line.strip()]
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", *CLASSES):
            assert names.count(name) == 1
        assert json.loads((folder / "results.json").read_text()) == []
        assert "0 detections written to results.json" in out

    def test_in_the_precision_of_training(self, arguments, monkeypatch, capsys):
        """Float32 unless it is asked for, whatever the recipe trains in."""
        asked = []
        run = measure.run_detector
        monkeypatch.setattr(
            measure, "run_detector", lambda *a, amp, **rest: asked.append(amp) or run(*a, amp=amp, **rest)
        )
        for more in ([], ["--train.amp", "bf16"]):
            assert main([*arguments, "--data.workers", "0", *more]) == 0
            out = capsys.readouterr().out
            assert ("measured with backbone and neck in bf16" in out) == bool(more)
        assert asked == ["off", "bf16"]

    @pytest.mark.parametrize(
        "more, words",
        [
            (["--eval", "bbox", "mask"], "--eval has 'mask'; the choices are bbox and segm"),
            (["--eval", "segm"], "--eval has segm, but a retinanet finds only boxes; choose bbox"),
            (["--eval"], "--eval is empty; give bbox, segm or both"),
            (["--out", "old.json"], "old.json exists already"),
            (["--out", "no/folder.json"], "the folder no of folder.json does not exist"),
            (["--data.root", "nowhere"], "there is no file 'nowhere/annotations/val.json'"),
            (["--devices", "0"], "--devices is 0"),
            (["--batch", "0"], "--batch is 0; give 1 or more"),
            (["--batch", "two"], "--batch is 'two', which is not a number"),
            (["--student.weights", "/nowhere.pth"], "is what is tested, for which --student.weights means nothing"),
        ],
    )
    def test_refusals(self, arguments, folder, refused, more, words):
        (folder / "old.json").write_text("precious")
        assert words in refused(*arguments, *more)

    @pytest.mark.parametrize(
        "more",
        [
            ["--ema"],
            ["--train.amp", "bf16"],
            ["--batch", "2"],
            ["--batch", "4"],
            ["--devices", "2"],
            ["--student.backbone", "resnet18"],
            ["--student.no-norm-eval"],
            ["--data.square", "96"],
            ["--data.long-edge", "2000"],
        ],
    )
    def test_detections_that_are_made_already_take_no_options_of_making_them(self, tiny, folder, refused, more):
        (folder / "found.json").write_text("[]")
        text = refused("test", "found.json", "--data.root", tiny.root, *more)
        assert (
            text
            == f"found.json holds detections that are made already, for which {more[0]} means nothing; leave it out"
        )

    def test_sizes_mean_nothing_to_a_graph_of_one_size(self, tiny, folder, refused):
        write_graph(folder / "any.onnx")
        write_graph(folder / "one.onnx", (64, 96))
        for option in ("--data.square", "--data.long-edge", "--data.long_edge"):
            text = refused("test", "one.onnx", "--data.root", tiny.root, option, "128")
            what = "one.onnx is an exported graph for images of 64 x 96 pixels"
            assert text == f"{what}, for which {option.replace('_', '-')} means nothing; leave it out"
            text = refused("test", "any.onnx", "--data.root", tiny.root, option, "128", "--eval", "segm")
            assert "finds only boxes" in text  # which is looked at later

    def test_another_librarys_detector_is_measured_in_the_datas_classes(self, tiny, folder, refused, capsys):
        name = f"hf:{save_tiny('detr', folder / 'own', names=('N/A', 'wide', 'Square', 'bus', 'tall'))}"
        options = ["--data.root", str(tiny.root)]
        assert main(["test", name, *options, "--out", "found.json"]) == 0
        out = capsys.readouterr().out
        assert f"{name}, of that folder, 4 classes" in out
        assert [line.split()[0] for line in out.splitlines() if line.split(" ")[0] in CLASSES] == [*CLASSES]
        truth = json.loads((tiny.root / "annotations" / "val.json").read_text())
        image, names = truth["images"][0], {own["id"]: own["name"] for own in truth["categories"]}
        found = json.loads((folder / "found.json").read_text())
        (own,) = load(name).predict(str(tiny.root / "val" / image["file_name"]), score=0.0)
        theirs = [
            (name.lower(), round(score, 4)) for name, score in zip(own.names, own.scores.tolist()) if name != "bus"
        ]
        ours = [(names[one["category_id"]], round(one["score"], 4)) for one in found if one["image_id"] == image["id"]]
        assert ours and ours == theirs
        for more in (["--ema"], ["--student.channels", "32"]):
            text = refused("test", name, *options, *more)
            assert text == f"{name} is another library's detector, for which {more[0]} means nothing; leave it out"
        other = f"hf:{save_tiny('detr', folder / 'other')}"
        capsys.readouterr()  # what saving says
        text = refused("test", other, *options)
        assert text.startswith(f"{other} knows 3 classes (cat, dog, cell), not square, tall, wide of the data; measure")

    @pytest.mark.parametrize("command", ["train", "check"])
    def test_a_detector_of_another_library_is_no_recipe(self, command, refused):
        name = "torchvision:ssdlite320_mobilenet_v3_large"
        text = refused(command, name, "--data.root", "data")
        assert text.startswith(f"{name} is a detector of another library and no recipe; mgdet distill {name} DATA ")
        assert text.endswith(f"and mgdet test {name} --data.root DATA measures it")

    def test_needs_a_checkpoint(self, refused):
        assert "mgdet test tiny:alone needs CHECKPOINT|RESULTS.json (" in refused("test", "tiny:alone")

    @pytest.mark.parametrize("kind", ["missing", "truncated", "architecture", "classes", "names", "hostile"])
    def test_a_checkpoint_that_does_not_fit(self, tiny, arguments, folder, refused, kind):
        path = spoil_file(tiny, folder, kind)
        assert path.name in refused("test", "tiny:alone", path, *arguments[3:], "--out", "out.json")

    def test_a_truncated_picture(self, tiny, data, arguments, refused):
        os.truncate(data.root / "val" / "3.jpg", 400)
        text = refused(*arguments, "--data.root", data.root, "--out", "out.json")
        assert text == f"image '{data.root}/val/3.jpg' is truncated; copy it again"


class TestTransfer:
    def test_to_pth_and_safetensors(self, tiny, folder, capsys):
        for out in ("out.pth", "out.safetensors"):
            assert main(["transfer", str(tiny.teacher), out]) == 0
            assert f"wrote {out}: 126 tensors, 3 class names" in capsys.readouterr().out
            left, right = read_checkpoint(tiny.teacher), read_checkpoint(folder / out)
            assert_same_tensors(left.state_dict, right.state_dict)
            assert dataclasses.replace(right, path=left.path, sha256=left.sha256, state_dict=left.state_dict) == left

    def test_refusals(self, tiny, folder, refused):
        (folder / "old.pth").write_text("precious")
        assert "old.pth exists already" in refused("transfer", tiny.teacher, "old.pth")
        assert "ends in '.txt'; the choices are" in refused("transfer", tiny.teacher, "new.txt")
        assert "mgdet transfer needs OUT" in refused("transfer", tiny.teacher)
        for kind in ("missing", "truncated", "hostile"):
            assert f"{kind}.pth" in refused("transfer", spoil_file(tiny, folder, kind), "out.pth")


class TestEma:
    """`--ema` of the three commands that read a finished checkpoint."""

    @pytest.fixture
    def both(self, tiny, folder):
        content = torch.load(tiny.teacher, weights_only=True)
        average = {f"ema_{name.replace('.', '_')}": value * 2 for name, value in content["state_dict"].items()}
        torch.save(content | {"state_dict": content["state_dict"] | average}, folder / "both.pth")
        return folder / "both.pth"

    @pytest.mark.parametrize("ema", [False, True])
    def test_one_copy_is_taken_and_said(self, ema, both, tiny, folder, capsys):
        option = ["--ema"] if ema else []
        said = "taken: the EMA copy under the ema names" if ema else "taken: the weights under their own names"
        assert main(["test", "tiny:alone", str(both), "--data.root", str(tiny.root), *option]) == 0
        assert said in capsys.readouterr().out
        assert main(["predict", str(both), str(tiny.root / "val"), "--out", "pictures", *option]) == 0
        assert said in capsys.readouterr().out
        assert main(["transfer", str(both), "out.pth", *option]) == 0
        assert said in capsys.readouterr().out
        plain, written = read_checkpoint(tiny.teacher), read_checkpoint(folder / "out.pth")
        assert_same_tensors(written.state_dict, {n: v * 2 if ema else v for n, v in plain.state_dict.items()})

    def test_a_copy_that_is_not_there_is_refused(self, tiny, folder, refused):
        for arguments in (
            ["test", "tiny:alone", tiny.teacher, "--data.root", tiny.root],
            ["predict", tiny.teacher, tiny.root / "val"],
            ["transfer", tiny.teacher, "out.pth"],
        ):
            assert "holds no EMA copy of its weights; leave --ema out" in refused(*arguments, "--ema")


class TestPredict:
    def test_pictures_and_one_json(self, tiny, folder, capsys):
        images = [str(tiny.root / "val"), str(tiny.root / "train" / "0.jpg")]
        assert main(["predict", str(tiny.teacher), *images, "--out", "out", "--score", "0"]) == 0
        assert f"objects in {NUM_VAL + 1} images; pictures and detections.json are in out" in capsys.readouterr().out
        report = json.loads((folder / "out" / "detections.json").read_text())
        assert [entry["picture"] for entry in report] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "0_2.jpg"]
        assert {path.name for path in (folder / "out").iterdir()} == {
            "detections.json",
            *(entry["picture"] for entry in report),
        }
        for entry in report:
            height, width = cv2.imread(str(folder / "out" / entry["picture"])).shape[:2]
            assert (entry["width"], entry["height"]) == cv2.imread(entry["file"]).shape[1::-1] == (width, height)

    @pytest.mark.parametrize("more", [["--recipe", "retinanet_r50"], ["--ema"]])
    def test_another_librarys_detector_takes_no_options_of_files(self, more, tiny, refused):
        text = refused("predict", "torchvision:ssd300_vgg16", tiny.root / "val", *more)
        assert f"torchvision:ssd300_vgg16 is another library's detector, for which {more[0]} means nothing" in text

    def test_a_checkpoint_from_elsewhere_may_be_given_its_recipe(self, tiny, folder, refused):
        checkpoint = torch.load(tiny.teacher, weights_only=True)
        del checkpoint["meta"]["mgdet"]
        torch.save(checkpoint, folder / "plain.pth")
        arguments = ["predict", folder / "plain.pth", tiny.root / "val", "--out", "out"]
        assert "there is no recipe 'retinanet_r5'; did" in refused(*arguments, "--recipe", "retinanet_r5")
        assert "does not fit this detector" in refused(*arguments, "--recipe", "retinanet_r50")
        assert main([*map(str, arguments), "--recipe", "tiny:alone"]) == 0

    def test_refusals(self, tiny, data, folder, refused):
        images = data.root / "val"
        assert "--score is 2.0; give a score from 0 to 1" in refused("predict", tiny.teacher, images, "--score", "2")
        assert "--score is nan" in refused("predict", tiny.teacher, images, "--score", "nan")
        assert "no image is given" in refused("predict", tiny.teacher)
        assert "there is no image or folder 'none.jpg'" in refused("predict", tiny.teacher, "none.jpg")
        text = refused("predict", tiny.teacher, data.root / "annotations")
        assert "annotations holds no image (.jpg, " in text and text.endswith(", only 2 .json")
        assert "--batch is 0; give 1 or more" in refused("predict", tiny.teacher, images, "--batch", "0")
        assert "cannot be decoded" in refused("predict", tiny.teacher, tiny.teacher)
        assert "mgdet predict needs CHECKPOINT" in refused("predict")
        for kind in ("missing", "truncated", "hostile"):
            path = spoil_file(tiny, folder, kind)
            assert path.name in refused("predict", path, images)

    def test_pictures_are_never_written_over(self, tiny, data, refused):
        images = data.root / "val"
        assert "already holds 0.jpg, which would be written over" in refused(
            "predict", tiny.teacher, images, "--out", images
        )

    def test_a_picture_that_cannot_be_read_leaves_nothing(self, tiny, data, refused):
        os.truncate(data.root / "val" / "3.jpg", 400)
        assert "3.jpg' is truncated" in refused("predict", tiny.teacher, data.root / "val", "--out", "out")
