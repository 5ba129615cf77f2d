"""Pascal VOC's XML files as records."""

import cv2
import numpy as np
import pytest

import formats
from formats import CLASSES, pictures
from mgdet.data import voc
from mgdet.data.file_names import tails
from mgdet.data.images import check_images
from mgdet.data.records import Reason
from mgdet.data.voc import parse_xml, read_voc
from mgdet.errors import UserError
from refusals import refusal

LISTED = [("ImageSets/Main/train.txt", "JPEGImages"), ("ImageSets/Main/val.txt", "JPEGImages")]
BESIDE = [("train", "train"), ("valid", "valid")]
BOX = "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>25</ymax></bndbox>"


def read(root, places=LISTED, *, masks=False):
    return read_voc(root, places, masks=[masks] * len(places))


def one_file(root, xml, *, name="0"):
    """A folder with one XML file and one image, 100 pixels wide and 50 high."""
    cv2.imwrite(str(root / f"{name}.png"), np.zeros((50, 100, 3), np.uint8))
    (root / f"{name}.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    (records,) = read(root, [(".", ".")])
    return records


@pytest.mark.parametrize(
    "layout, places", [(formats.voc, LISTED), (formats.voc_original, LISTED), (formats.voc_roboflow, BESIDE)]
)
def test_boxes_of_both_splits(tmp_path, layout, places):
    layout(tmp_path)
    for split, records in zip(("train", "val"), read(tmp_path, places)):
        assert records.classes == CLASSES
        assert records.files == [picture.name for picture in pictures(split)]
        for i, picture in enumerate(pictures(split)):
            rows = records.rows(i)
            assert (records.heights[i], records.widths[i]) == picture.pixels.shape[:2]
            assert records.labels[rows].tolist() == [thing.label for thing in picture.things]
            assert records.boxes[rows].tolist() == [list(thing.box) for thing in picture.things]
        assert not records.left_out.counts


def test_classes_are_those_of_all_splits(tmp_path):
    formats.voc(tmp_path)
    file = tmp_path / "Annotations/val_0.xml"
    file.write_text(file.read_text().replace("<name>cat", "<name>ant"))
    assert [records.classes for records in read(tmp_path)] == [("ant", *CLASSES)] * 2


def test_a_size_that_the_file_does_not_say_is_the_images(tmp_path):
    for size in ("", "<size><width>0</width><height>0</height></size>", "<size><width>x</width></size>"):
        records = one_file(tmp_path, f"<annotation>{size}<object><name>cat</name>{BOX}</object></annotation>")
        assert 0 in (records.heights[0], records.widths[0])
        records = check_images(records)
        assert (records.heights[0], records.widths[0]) == (50, 100)
        assert records.boxes.tolist() == [[10, 5, 20, 20]]


def test_the_image_is_found_by_the_xml_files_name_first(tmp_path):
    xml = f"<annotation><filename>C:\\me\\other.jpg</filename><object><name>cat</name>{BOX}</object></annotation>"
    assert one_file(tmp_path, xml, name="a b.c").files == ["a b.c.png"]
    (tmp_path / "a b.c.xml").rename(tmp_path / "1.xml")
    (tmp_path / "a b.c.png").rename(tmp_path / "Other.PNG")
    assert read(tmp_path, [(".", ".")])[0].files == ["Other.PNG"]


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((50, 100, 3), np.uint8))


def write_xml(path, image=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"<filename>{image}</filename>" if image else ""
    path.write_text(f"<annotation>{name}<object><name>cat</name>{BOX}</object></annotation>")


def test_of_images_that_share_a_stem_the_one_that_is_written_is_meant(tmp_path):
    for name in ("p0.jpg", "p0.png", "q0.jpg"):
        write_image(tmp_path / name)
    for name in ("p0.jpg", "p0.png", "q0.jpg"):
        write_xml(tmp_path / "p0.xml", name)
        assert read(tmp_path, [(".", ".")])[0].files == [name]
    for name in ("", "r0.jpg"):
        write_xml(tmp_path / "p0.xml", name)
        sentence = refusal(read, tmp_path, [(".", ".")])
        assert sentence.endswith("p0.xml' may be of p0.jpg or p0.png; write in it which, as its <filename>")


def test_capital_letters_tell_images_apart(tmp_path):
    for stem in ("a", "A"):
        write_image(tmp_path / f"{stem}.jpg")
        write_xml(tmp_path / f"{stem}.xml")
    assert read(tmp_path, [(".", ".")])[0].files == ["A.jpg", "a.jpg"]
    (tmp_path / "A.jpg").unlink()
    (tmp_path / "a.xml").unlink()
    assert read(tmp_path, [(".", ".")])[0].files == ["a.jpg"]


def test_difficult_objects_are_not_trained_on(tmp_path):
    marks = ("1", "0", "")
    things = "".join(f"<object><name>cat</name><difficult>{mark}</difficult>{BOX}</object>" for mark in marks)
    records = one_file(tmp_path, f"<annotation>{things}</annotation>")
    assert records.ignored.tolist() == [True, False, False]


def test_what_is_no_box_is_left_out_and_counted(tmp_path):
    boxes = ("", "<bndbox><xmin>1</xmin></bndbox>", BOX.replace("10", "nan"), BOX.replace("10", "10.5"), BOX)
    things = "".join(f"<object><name>cat</name>{box}</object>" for box in boxes)
    records = one_file(tmp_path, f"<annotation>{things}</annotation>")
    assert records.boxes.tolist() == [[10.5, 5, 19.5, 20], [10, 5, 20, 20]]
    assert records.left_out.counts == {Reason.NOT_A_BOX: 3}
    assert "object 1 of image '0.png'" in records.left_out.examples[Reason.NOT_A_BOX]


def test_parts_of_an_object_are_not_objects(tmp_path):
    part = f"<part><name>head</name>{BOX}</part>"
    records = one_file(tmp_path, f"<annotation><object><name>cat</name>{BOX}{part}</object></annotation>")
    assert records.classes == ("cat",)
    assert len(records.labels) == 1


def test_objects_have_no_masks(tmp_path):
    formats.voc(tmp_path)
    records = read(tmp_path, masks=True)[0]
    assert records.left_out.counts == {Reason.NO_MASK: len(records.labels)}


def test_a_list_may_hold_marks_and_endings(tmp_path):
    formats.voc(tmp_path)
    lines = ["train_0  1", "train_1.png", "./JPEGImages/train_2.png", "", "train_0"]
    (tmp_path / "ImageSets/Main/train.txt").write_text("\r\n".join(lines))
    assert read(tmp_path)[0].files == ["train_0.png", "train_1.png", "train_2.png"]


ENTITIES = "<!DOCTYPE annotation [<!ENTITY a 'aaaa'>]><annotation>&a;</annotation>"
EXTERNAL = "<!DOCTYPE annotation SYSTEM 'file:///etc/passwd'><annotation/>"


@pytest.mark.parametrize(
    "xml, sentence",
    [
        ("", "is not XML: no element found"),
        ("<annotation>", "is not XML"),
        ("<annotation><object></annotation>", "is not XML: mismatched tag"),
        (b"<annotation>\xe9</annotation>", "is not XML"),
        ("<?xml version='1.0' encoding='none'?><annotation/>", "is not XML"),
        ("<kml/>", "it begins with <kml>, not <annotation>"),
        (ENTITIES, "declares a document type"),
        (ENTITIES.encode("utf-16"), "declares a document type"),
        (EXTERNAL, "declares a document type"),
        ("<a>" * 100_000, "nests more than 50 deep"),
        ("<annotation>&lol;</annotation>", "is not XML: undefined entity"),
        (f"<annotation><object>{BOX}</object></annotation>", "object 1 in"),
        ("<annotation/>", "no class to learn"),
        (b"<annotation>" + b" " * (1 << 24), "which no such file needs"),
    ],
    ids=range(14),
)
def test_xml_that_is_none_is_one_sentence(tmp_path, xml, sentence):
    with pytest.raises(UserError) as error:
        one_file(tmp_path, xml)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings(tmp_path, encoding):
    declared = "" if encoding != "latin-1" else "<?xml version='1.0' encoding='iso-8859-1'?>"
    xml = f"{declared}<annotation><object><name>Käfer</name>{BOX}</object></annotation>"
    assert one_file(tmp_path, xml.encode(encoding)).classes == ("Käfer",)


def test_what_is_missing_is_named(tmp_path):
    formats.voc(tmp_path)
    file = tmp_path / "ImageSets/Main/train.txt"
    file.write_text("a\nb\nc\nd\ntrain_0\n")
    with pytest.raises(UserError, match=r"lists 4 images without an XML file in '.*': a.xml, b.xml, c.xml$"):
        read(tmp_path)
    file.write_text("\n")
    with pytest.raises(UserError, match="names no image"):
        read(tmp_path)
    with pytest.raises(UserError, match="there is no list or folder"):
        read(tmp_path, [("nothing.txt", "JPEGImages")])
    with pytest.raises(UserError, match="there is no folder"):
        read(tmp_path, [("Annotations", "nothing")])
    with pytest.raises(UserError, match=r"holds no .xml file"):
        read(tmp_path, [("JPEGImages", "JPEGImages")])


def test_attributes_and_comments_change_nothing(tmp_path):
    file = tmp_path / "a.xml"
    file.write_text("<annotation a='b'><!-- <object/> --><name><![CDATA[<x>]]></name></annotation>")
    assert parse_xml(file).findtext("name") == "<x>"
    assert parse_xml(file).find("object") is None


def test_two_files_of_one_image_are_refused(tmp_path):
    write_image(tmp_path / "0.png")
    for name in ("0.xml", "1.xml"):
        write_xml(tmp_path / name, "0.png")
    assert "0.xml' and '" in refusal(read, tmp_path, [(".", ".")])
    assert "1.xml' both speak of the image '0.png'; leave" in refusal(read, tmp_path, [(".", ".")])


@pytest.fixture
def datumaro(tmp_path):
    """As Datumaro writes it: folders, the same in all places."""
    for name in ("s1/a0", "s2/a0", "a0", "s1/deep/a1"):
        write_image(tmp_path / f"JPEGImages/{name}.jpg")
        write_xml(tmp_path / f"Annotations/{name}.xml", f"{name}.jpg")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("s1/a0\ns2\\a0.jpg 1\ns1/deep/a1\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("a0\n")
    return tmp_path


def test_folders_in_folders(datumaro):
    train, val = read(datumaro)
    assert train.files == ["s1/a0.jpg", "s2/a0.jpg", "s1/deep/a1.jpg"]
    assert val.files == ["a0.jpg"]
    (records,) = read(datumaro, [("Annotations", "JPEGImages")])
    assert records.files == ["a0.jpg", "s1/a0.jpg", "s1/deep/a1.jpg", "s2/a0.jpg"]
    for file in datumaro.rglob("*.xml"):
        write_xml(file, "a0.jpg")  # of another folder, for most of them
    assert read(datumaro, [("Annotations", "JPEGImages")])[0].files == records.files
    (datumaro / "ImageSets/Main/val.txt").write_text("s3/a9\n")
    assert refusal(read, datumaro).endswith("Annotations': s3/a9.xml")


def test_folders_in_a_list_without_annotations(datumaro):
    for file in (datumaro / "Annotations").glob("*/**/*.xml"):
        file.unlink()
    records, _ = read_voc(datumaro, LISTED, masks=[False, False], unlabelled=True)
    assert records.files == ["s1/a0.jpg", "s2/a0.jpg", "s1/deep/a1.jpg"]
    assert not records.annotated


def test_xml_files_of_another_kind_in_folders_are_none_of_ours(datumaro):
    (datumaro / "Annotations/s1/notes.xml").write_text("<?xml version='1.0'?><!-- <annotation> --><notes/>")
    (datumaro / "Annotations/s1/.a.xml").write_text("<annotation/>")
    assert len(read(datumaro, [("Annotations", "JPEGImages")])[0]) == 4
    (datumaro / "Annotations/s1/empty.xml").write_text("")
    assert "empty.xml' is not XML" in refusal(read, datumaro, [("Annotations", "JPEGImages")])


@pytest.mark.parametrize("line", ["C:\\data\\JPEGImages\\a.jpg", "C:/data/JPEGImages/a.jpg", "/data/JPEGImages/a.jpg"])
def test_a_line_with_the_path_of_another_machine_is_its_last_part(line):
    assert tails(voc._stem(line)) == ["data/JPEGImages/a", "JPEGImages/a", "a"]
