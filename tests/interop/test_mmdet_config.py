"""MMDetection's config as text: what it says is read, none of it runs, and no text is too much."""

from __future__ import annotations

import math
import os

import pytest

import mmdet_files
from mgdet.interop.mmdet_config import LONGEST, UNKNOWN, get, read_settings

VALUES = {
    "a = 1": 1,
    "a = -2.5": -2.5,
    "a = 'x' 'y'": "xy",
    "a = None": None,
    "a = [1, (2, 'three'), dict(b={'c': 4})]": [1, (2, "three"), {"b": {"c": 4}}],
    "a = dict(dict(b=1), c=2)": {"b": 1, "c": 2},
    "a = dict({'b': 1})": {"b": 1},
    "b = dict(c=1)\na = dict(type='T', **b)": {"type": "T", "c": 1},
    "b = [1, 2]\na = dict(c=b)": {"c": [1, 2]},
    "a = 0.5 * 255": 127.5,
    "a = 1 / 4": 0.25,
    "a = 2 * 3 + 1": 7,
    "a = inf": math.inf,
    "a = b = 3": 3,
    "if True:\n    a = 1\na = 2\ndef f():\n    return 1": 2,
    "a = dict(\n    b=1,\n    c='C:\\\\data\\\\',\n)  # as yapf breaks lines": {"b": 1, "c": "C:\\data\\"},
}
ONLY_RUNNING_TELLS = [
    "a = f(1)",
    "a = b",
    "a = b.c",
    "a = [x for x in (1, 2)]",
    "a = 1 if 2 else 3",
    "a = 'x' * 3",
    "a = 'data/' + 'coco'",
    "a = 1 / 0",
    "a = 10**400",
    "a = 10000000000000000000000",
    "a = f'{1}'",
    "a = lambda: 1",
    "a = b'x'",
    "a = dict(**b)",
]


@pytest.mark.parametrize("text", VALUES)
def test_values(text):
    value = read_settings(text)["a"]
    assert value == VALUES[text] and type(value) is type(VALUES[text])


@pytest.mark.parametrize("text", ONLY_RUNNING_TELLS)
def test_what_only_running_it_tells_is_unknown(text):
    assert read_settings(text)["a"] is UNKNOWN


def test_a_whole_config_comes_back_from_each_version():
    described = mmdet_files.model("cascade_mask_rcnn", mmdet_files.backbone(101, "caffe", 32, 4, deformable=True))
    for make, write in (
        (mmdet_files.settings_2, mmdet_files.text_2),
        (mmdet_files.settings_3, mmdet_files.text_3),
    ):
        settings = make(described, mmdet_files.BGR)
        assert read_settings(write(settings)) == settings


def test_a_text_of_several_files_is_merged_as_mmdetection_does():
    settings = read_settings(mmdet_files.OLD_TEXT)
    backbone = settings["model"]["backbone"]
    assert backbone["style"] == "caffe" and backbone["depth"] == 50
    assert backbone["norm_cfg"] == {"type": "BN", "requires_grad": False}
    assert settings["model"]["bbox_head"]["anchor_ratios"] == [0.5, 1.0, 2.0]
    assert settings["data"]["test"]["type"] == "CocoDataset"
    step = settings["data"]["test"]["pipeline"][1]["transforms"][1]
    assert step == {"type": "Normalize", "mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "to_rgb": False}
    first = mmdet_files.OLD_TEXT.partition("/home/user/mmdetection/configs/retinanet/")[0]
    assert read_settings(first)["img_norm_cfg"]["mean"] == pytest.approx([123.675, 116.28, 103.53])


def test_a_file_may_replace_what_its_base_says():
    text = "a.py\nmodel = dict(neck=dict(type='FPN', num_outs=5))\n/b.py\n_base_ = 'a.py'\n"
    kept = read_settings(text + "model = dict(neck=dict(type='PAFPN'))")
    assert kept["model"]["neck"] == {"type": "PAFPN", "num_outs": 5}
    replaced = read_settings(text + "model = dict(neck=dict(_delete_=True, type='PAFPN'))")
    assert replaced["model"]["neck"] == {"_delete_": True, "type": "PAFPN"}
    unrelated = read_settings(text.replace("_base_ = 'a.py'\n", "") + "model = dict(neck=dict(type='PAFPN'))")
    assert unrelated["model"]["neck"] == {"type": "PAFPN"}


def test_nothing_runs(tmp_path):
    touched = tmp_path / "touched"
    command = f"touch {touched}"
    for expression in (
        f"__import__('os').system('{command}')",
        f"exec(\"import os; os.system('{command}')\")",
        f"open('{touched}', 'w')",
        f"dict(type=(lambda: open('{touched}', 'w'))())",
        f"[open('{touched}', 'w') for _ in (1,)]",
        f'f"{{open({str(touched)!r}, chr(119))}}"',
    ):
        for text in (f"import os\na = {expression}\nmodel = dict(type='RetinaNet', b={expression})", expression):
            try:
                settings = read_settings(text)
            except ValueError:
                continue
            assert get(settings, "model", "type") in ("RetinaNet", UNKNOWN)
    assert not os.path.exists(touched)


HOSTILE = {
    "ten megabytes": lambda: "a = 1\n" * (10 * 2**20 // 6),
    "brackets": lambda: "a = " + "[" * 100_000,
    "closed brackets": lambda: "a = " + "[" * 190 + "]" * 190,
    "minuses": lambda: "a = " + "-" * 900_000 + "1",
    "nots": lambda: "a = " + "not " * 200_000 + "1",
    "attributes": lambda: "a = b" + ".b" * 400_000,
    "calls": lambda: "a = b" + "()" * 400_000,
    "sum": lambda: "a = 1" + "+1" * 400_000,
    "subscripts": lambda: "a = b" + "[0]" * 250_000,
    "a chain of everything": lambda: "a = b" + ".b(1)[0]+1" * 80_000,
    "lambdas": lambda: "a = " + "lambda:" * 100_000 + "1",
    "names that unfold": lambda: "a0 = dict(x=1)\n" + "".join(f"a{i + 1} = dict(p=a{i}, q=a{i})\n" for i in range(99)),
    "names that unfold over files": lambda: (
        ("a0 = {}\n" + "".join(f"a{i + 1} = dict(p=a{i}, q=a{i})\n" for i in range(15)) + "/b.py\n_base_ = 'a'\n") * 9
    ),
    "names in one another": lambda: "".join(f"a{i + 1} = dict(p=a{i})\n" for i in range(1400)) * 2,
    "numbers that grow": lambda: "a0 = 9\n" + "".join(f"a{i + 1} = a{i} * a{i}\n" for i in range(1000)),
    "a long number": lambda: "a = " + "9" * 100_000,
    "no Python": lambda: "model = dict(\n    type='RetinaNet',\n",
    "a zero": lambda: "a = \0",
    "half a letter": lambda: "a = '\ud800'",
    "nothing": lambda: "",
    "bytes": lambda: "\x00\x01\x02\xff" * 1000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_end_in_a_value_error_or_in_settings(name):
    text = HOSTILE[name]()
    try:
        assert isinstance(read_settings(text), dict)
    except ValueError as error:
        assert len(str(error)) < 200


def test_why_a_text_is_refused():
    for text, words in (
        ("x" * (LONGEST + 1), "more than any config"),
        (HOSTILE["names that unfold"](), "more than any config"),
        (HOSTILE["sum"](), "nests too deep"),
        ("model = dict(", "it is no Python: '[(]' was never closed"),
    ):
        with pytest.raises(ValueError, match=words):
            read_settings(text)


def test_get_goes_through_dicts_and_lists():
    settings = {"a": [{"b": 1}, {"b": 2}], "c": None}
    assert get(settings, "a", 1, "b") == 2
    for path in (("a", 2), ("a", "b"), ("c", "d"), ("x",), ("a", 0, "c")):
        assert get(settings, *path) is UNKNOWN
