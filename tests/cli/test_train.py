"""`mgdet train` as a user meets it: what it does, and what it says when it cannot."""

import contextlib
import os
import resource

import pytest

from mgdet.cli import main
from refusals import contents, spoil_file


class TestTrain:
    def test_missing_root_shows_the_layout(self, tiny, refused):
        text = refused(*tiny.arguments("train"), "--data.root", "nowhere")
        assert (
            "'nowhere/annotations/train.json'; expected are" in text and "images in the folder 'nowhere/train'" in text
        )

    @pytest.mark.parametrize("text", ["[]", "{", "", '{"images": []}'])
    def test_not_a_coco_file(self, tiny, data, refused, text):
        (data.root / "annotations" / "train.json").write_text(text)
        assert "is not a COCO annotation file" in refused(*tiny.arguments("train"), "--data.root", data.root)

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_undeclared_categories(self, tiny, data, refused, split):
        data.edit(split, lambda content: content["annotations"][0].update(category_id=77))
        text = refused(*tiny.arguments("train"), "--data.root", data.root)
        assert f"{split}.json' use category ids that no category declares: 77; declared are 2, 5, 9" in text

    def test_train_and_val_declare_other_classes(self, tiny, data, refused):
        data.edit("val", lambda content: content["categories"].append({"id": 10, "name": "round"}))
        assert "val.json' has 'round'" in refused(*tiny.arguments("train"), "--data.root", data.root)

    def test_degenerate_boxes_are_counted_and_said_once(self, tiny, data, capsys):
        data.edit("train", lambda content: content["annotations"][0].update(bbox=[0, 0, 0, 5]))
        data.edit("train", lambda content: content["annotations"][1].update(bbox=[500, 500, 9, 9]))
        assert main([*tiny.arguments("train"), "--data.root", str(data.root), "--run-dir", "run"]) == 0
        out = capsys.readouterr().out
        assert out.count("left out 1 box without width or height (first: annotation 1 of image '0.jpg'") == 1
        assert (
            out.count(
                "left out of training: 1 box under a pixel or outside its image (first: object 1 of image '0.jpg')"
            )
            == 1
        )

    @pytest.mark.parametrize("workers", ["0", "1"])
    def test_a_truncated_picture_is_named(self, tiny, data, capsys, workers):
        """It is met in the middle of a run, whose folder then is there; the run can go on from it."""
        picture = data.root / "train" / "7.jpg"
        whole = picture.read_bytes()
        os.truncate(picture, 400)
        arguments = [*tiny.arguments("train"), "--data.root", str(data.root), "--run-dir", "run"]
        assert main([*arguments, "--data.workers", workers]) == 2
        assert capsys.readouterr().err == f"mgdet: image '{picture}' is truncated; copy it again\n"
        picture.write_bytes(whole)
        assert main([*arguments, "--resume"]) == 0

    @pytest.mark.parametrize(
        "kind, words",
        [
            ("missing", "missing.pth"),
            ("truncated", "truncated.pth is truncated or damaged"),
            ("empty", "empty.pth is empty"),
            ("text", "text.pth is not a checkpoint"),
            ("architecture", "does not fit this detector: 41 tensors match, 28 missing (backbone.conv1.0.weight"),
            ("classes", "classes.pth knows 2 classes, the data has 3"),
            ("names", "names.pth knows class 1 as 'high', in the data it is 'tall'"),
            ("hostile", "hostile.pth is refused as hostile"),
            ("hostile pickle", "hostile pickle.pth is refused as hostile"),
        ],
    )
    def test_a_teacher_that_is_none(self, tiny, folder, refused, kind, words):
        path = spoil_file(tiny, folder, kind)
        assert words in refused(*tiny.arguments("train"), "--teacher.weights", path, "--run-dir", "run")
        assert not (folder / "run").exists() and not (folder / "broken into").exists()

    def test_a_teacher_without_weights(self, tiny, refused):
        text = refused(*tiny.arguments("train"), "--teacher.weights", "random", "--run-dir", "run")
        assert text == "teacher.weights is 'random'; a teacher needs the checkpoint of a trained detector"

    def test_a_folder_that_holds_another_run(self, tiny, refused, capsys):
        one_step = [*tiny.arguments("train"), "--run-dir", "run", "--train.stop_after", "1"]
        assert main(one_step) == 0
        capsys.readouterr()
        assert "run already holds a run; add --resume" in refused(*one_step)
        text = refused(*one_step, "--resume", "--mgd.weight", "1")
        assert text.startswith("run holds a run with mgd.weight 0.002, which --resume cannot change to 1.0")
        assert "holds a run with student.backbone" in refused(*one_step, "--resume", "--student.backbone", "resnet18")
        text = refused(*tiny.arguments("train", distil=False), "--run-dir", "run", "--resume")
        assert "holds a run with inherit True" in text

    @pytest.mark.parametrize("command", ["train", "check"])
    def test_a_setting_of_the_other_shape_of_a_schedule(self, tiny, refused, command):
        text = refused(command, "pair", "--data.root", tiny.root, "--schedule.drops", "8", "11")
        assert text.startswith("schedule.drops is 8 11, but schedule.shape is cosine, which has no drops; give --sched")
        text = refused(*tiny.arguments(command), "--schedule.cosine-floor", "0.1")
        assert text.startswith("schedule.cosine_floor is 0.1, but schedule.shape is steps, which has no floor; give --")
        text = refused(*tiny.arguments(command), "--schedule.cosine-floor", "0.1", "--run-dir", "new", "--resume")
        assert text.startswith("schedule.cosine_floor is 0.1, but"), "there is no run to resume"

    def test_a_run_folder_that_cannot_be_made(self, tiny, folder, refused):
        (folder / "file").write_text("precious")
        for run_dir in ("file", "file/inside"):
            assert "cannot be made" in refused(*tiny.arguments("train"), "--run-dir", run_dir)


@contextlib.contextmanager
def disk_of(size):
    """No file may grow beyond so many bytes: what a full disk looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    def test_a_checkpoint_does_not_fit(self, tiny, folder, capsys):
        arguments = [*tiny.arguments("train"), "--run-dir", "run", "--train.save_every", "2"]
        assert main([*arguments, "--train.stop_after", "2"]) == 0
        kept = {path: content for path, content in contents(folder).items() if path.suffix == ".pth"}
        with disk_of(1_000_000):
            assert main([*arguments, "--resume"]) == 2
        err = capsys.readouterr().err
        assert err == "mgdet: no space is left to write run/student_last.pth; what was there is untouched\n"
        assert kept == {path: content for path, content in contents(folder).items() if path.suffix == ".pth"}
        assert not list(folder.rglob("*.tmp"))
        assert main([*arguments, "--resume"]) == 0

    def test_the_log_does_not_fit(self, tiny, capsys):
        with disk_of(100):
            assert main([*tiny.arguments("train"), "--run-dir", "run"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("mgdet: no space is left") and err.count("\n") == 1

    def test_results_and_pictures_do_not_fit(self, tiny, folder, capsys):
        checkpoint, images = str(tiny.teacher), str(tiny.root / "val")
        with disk_of(100):
            assert main(["predict", checkpoint, images, "--out", "out"]) == 2
            assert main(["transfer", checkpoint, "out.pth"]) == 2
        err = capsys.readouterr().err
        assert err.count("mgdet: no space is left to write") == err.count("\n") == 2
        assert not contents(folder)


def test_a_run_from_the_first_command_to_the_last(tiny, folder, capsys):
    """train, train --resume, test, transfer and predict, each with the folder of the run as its source."""
    arguments = [*tiny.arguments("train"), "--run-dir", "run"]
    assert main([*arguments, "--train.stop_after", "3"]) == 0
    assert main([*arguments, "--resume"]) == 0
    assert main(["test", "tiny:distilled", "run", "--data.root", str(tiny.root)]) == 0
    assert main(["transfer", "run", "student.safetensors"]) == 0
    assert main(["predict", "student.safetensors", str(tiny.root / "val")]) == 0
    out = capsys.readouterr().out
    assert "done; the student is run/student_last.pth" in out
    assert out.count("run/student_best.pth: 126 tensors loaded") == 1
    assert (folder / "predictions" / "detections.json").exists()
