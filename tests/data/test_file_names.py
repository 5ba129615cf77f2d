"""COCO files whose names of images are those of another machine."""

import json

import pytest

import formats
from mgdet.config import DataConfig
from mgdet.data.file_names import first_tail
from mgdet.data.open import open_splits

WRITTEN = [
    "images\\{}",
    "C:\\Users\\me\\photos\\{}",
    "http://localhost:8080/data/upload/1/{}",
    "../../label-studio/data/media/upload/1/{}",
    "/data/local-files/?d=photos/{}",
    "s3://bucket/photos/{}",
]


def opened(root):
    return open_splits(DataConfig(root=str(root), val_share=0.5)).records


def rename(root, written):
    """Writes the names of the images as another machine has them."""
    path = root / "result.json"
    data = json.loads(path.read_text())
    for image in data["images"]:
        image["file_name"] = written.format(image["file_name"])
    path.write_text(json.dumps(data))


@pytest.fixture
def root(tmp_path):
    formats.write_coco(tmp_path / "result.json", tmp_path / "images", "train")
    return tmp_path


@pytest.mark.parametrize("written", WRITTEN)
def test_names_of_another_machine_are_found(root, written):
    plain = opened(root)
    assert not plain["train"].notes
    rename(root, written)
    found = opened(root)
    for split in ("train", "val"):
        images = [(found[split].folder / file).resolve() for file in found[split].files]
        assert images == [(plain[split].folder / file).resolve() for file in plain[split].files]
    (note,) = found["train"].notes
    assert "names image files as another machine has them" in note and written.format("train_0.png") in note
    assert not found["val"].notes, "it is said once"


def test_one_that_is_not_here_leaves_all_as_they_are(root):
    rename(root, WRITTEN[1])
    (root / "images" / "train_1.png").unlink()
    assert opened(root)["train"].files[0].startswith("C:"), "opening it for training says which are missing"


def test_two_names_of_one_file_are_not_taken_for_it(root):
    rename(root, "cam0/{}")
    data = json.loads((root / "result.json").read_text())
    data["images"].append({**data["images"][0], "id": 99, "file_name": "cam1/train_0.png"})
    (root / "result.json").write_text(json.dumps(data))
    assert opened(root)["train"].files[0].startswith("cam")


def test_folders_that_are_here_stay_in_the_name(tmp_path):
    (tmp_path / "cam0").mkdir()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "cam0" / "a.jpg").touch()
    assert first_tail(tmp_path, "D:\\set\\cam0\\a.jpg") == "cam0/a.jpg"
    assert first_tail(tmp_path, "D:\\set\\cam1\\a.jpg") == "a.jpg"
    assert first_tail(tmp_path, "D:\\set\\b.jpg") is None
    assert first_tail(tmp_path, "a\0.jpg") is None
