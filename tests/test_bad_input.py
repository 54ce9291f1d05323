"""Damaged input ends in a result or in one clear line: a bounded part of ``make fuzz``, and each defect it found."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cellseg.config import check_config, load_config, parse_override
from cellseg.core import CellsegError
from cellseg.datasets import coco
from cellseg.datasets.coco import decode_polygons, paint, rasterise, read_coco
from cellseg.datasets.index import read_index
from cellseg.evaluate_coco import evaluate_coco
from cellseg.files import atomic_path, write_text

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import doors
import fuzz
import sound

DEEP = "[" * 100_000


def test_a_part_of_the_corpus_ends_in_results_and_clear_lines():
    slow = ("predict", "command")
    numbers = [number for number, (_, door, _) in enumerate(fuzz.named()) if door not in slow][::5]
    numbers += range(len(fuzz.named()), len(fuzz.named()) + 60)
    answers = list(fuzz.run(numbers, seed=0))
    bad = [one for one in answers if one["verdict"] not in fuzz.GOOD]
    assert not bad, json.dumps(bad, indent=1)
    assert sorted(one["number"] for one in answers) == sorted(numbers)
    verdicts = Counter(one["verdict"] for one in answers)
    assert verdicts["result"] > 20 and verdicts["error"] > 20


def write_out(root):
    (root / "out").mkdir()
    (root / "out" / "a").write_text("x")


def write_beside(root):
    (root / "aside").write_text("x")


def want_memory(root):
    np.ones(2**40, np.uint8)


def say_too_much(root):
    raise CellsegError("x" * (fuzz.LONGEST_LINE + 1))


def say_it(root):
    raise CellsegError("a.tif: no such file")


def fall(root):
    raise KeyError("x")


@pytest.mark.parametrize(
    ("door", "verdict"),
    [
        (write_out, "result"), (say_it, "error"), (write_beside, "outside"), (want_memory, "memory"),
        (say_too_much, "unclear"), (fall, "traceback"),
    ],
)  # fmt: skip
def test_the_judge_sees_what_must_not_be(tmp_path, monkeypatch, door, verdict):
    (tmp_path / "case").mkdir()
    name = fuzz.named()[0][1]
    monkeypatch.setitem(doors.DOORS, name, door)
    assert fuzz.run_case(tmp_path / "case", 0, 0, "")["verdict"] == verdict


def test_a_worker_that_dies_or_hangs_is_named_and_replaced(monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT_WALL_S", 0.0)
    late = list(fuzz.run([0, 1], seed=0))
    assert [(one["number"], one["verdict"]) for one in late] == [(0, "hang"), (1, "hang")]
    monkeypatch.setattr(fuzz, "LIMIT_WALL_S", 60.0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(
        fuzz.Worker, "give", lambda self, number: setattr(self, "number", number) or setattr(self, "since", 1e18)
    )
    assert [one["verdict"] for one in fuzz.run([0], seed=0)] == ["crash"]


@pytest.mark.parametrize("name", sorted(set(doors.DOORS) - {"command", "weights", "state", "predict"}))
def test_the_sound_inputs_that_are_damaged_are_sound(tmp_path, name):
    from random_cases import FORMS, ONE_FILE

    files = FORMS[name][1]()
    for place, group in enumerate([{one: files[one]} for one in files] if name in ONE_FILE else [files]):
        root = tmp_path / str(place)
        root.mkdir()
        sound.write(root, group)
        doors.DOORS[name](root)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_a_file_cannot_be_written_into(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(CellsegError, match=r"a/b\.txt: cannot be written"), atomic_path(tmp_path / "a" / "b.txt"):
        pass


def test_a_name_that_is_no_utf8_is_said_and_nothing_is_written(tmp_path):
    with pytest.raises(CellsegError, match=r"t\.csv: cannot be written: 'id,\\udcff\.tif' is no UTF-8"):
        write_text(tmp_path / "t.csv", "id,\udcff.tif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", "a\x01b"])
def test_an_id_that_is_no_file_name(tmp_path, name):
    row = f"{name},a.tif,,toy,train,x,48,64,,,,\n"
    (tmp_path / "index.csv").write_text(sound.INDEX_HEAD + row)
    with pytest.raises(CellsegError, match=r"index\.csv:2: id .* must not hold a path or control characters"):
        read_index(tmp_path)


def test_a_path_too_long_for_any_file(tmp_path):
    (tmp_path / "index.csv").write_text(sound.INDEX_HEAD + f"a,{'a' * 5000}.tif,,toy,train,x,48,64,,,,\n")
    with pytest.raises(CellsegError, match=r"index\.csv:2: image file .* does not exist"):
        read_index(tmp_path)


# --- COCO -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [DEEP, '{"images": [], "annotations": [], "x": ' + DEEP])
def test_brackets_in_brackets_are_no_coco_file(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CellsegError, match=r"c\.json: (is no COCO file|wanted a COCO file)"):
        read_coco(tmp_path / "c.json")


def test_an_outline_without_end_covers_nothing_and_costs_nothing():
    saw = [[0.0, 0.0, 64.0, 48.0] * 150_000]
    (encoding, other) = rasterise([saw, [sound.box(4, 8)]], 48, 64)
    assert coco.run_pixels([encoding])[0].size == 0
    assert coco.run_pixels([other])[0].size == 64
    assert paint([saw, [sound.box(4, 8)]], 48, 64).empty == [0]


def test_cells_that_cover_the_image_a_thousand_times_over_are_refused():
    whole = [[0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]]
    assert paint([whole] * coco.MOST_LAYERS, 10, 10).n_instances == 1
    with pytest.raises(CellsegError, match="its 1,001 annotated cells would cover the image 1,001 times"):
        paint([whole] * (coco.MOST_LAYERS + 1), 10, 10)


def test_pieces_of_the_work_give_what_the_whole_gives(monkeypatch):
    rng = np.random.default_rng(0)
    cells = [[sound.box(*rng.integers(0, 50, 2), side=float(rng.integers(1, 12)))] for _ in range(300)]
    cells += cells[:20]  # double contours
    whole = paint(cells, 60, 64)
    monkeypatch.setattr(coco, "_PIXELS_AT_ONCE", 50)
    monkeypatch.setattr(coco, "_ROWS_AT_ONCE", 7)
    pieces = paint(cells, 60, 64)
    assert np.array_equal(pieces.labels, whole.labels)
    assert pieces.double == whole.double
    assert {(place, 300 + place) for place in range(20)} <= set(whole.double)
    assert (pieces.contested, pieces.covered, pieces.empty) == (whole.contested, whole.covered, whole.empty)


def test_polygons_of_any_shape_are_none():
    for text in (DEEP, "[[" + "9" * 400 + "]]", "[[1e999,0,1,1,0,1]]"):
        assert decode_polygons(coco.CocoAnnotation(0, segmentation=coco.msgspec.Raw(text.encode()))) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("height", -1, "no width and height"), ("width", 0, "no width and height"), ("width", 10**12, "once decoded")],
)
def test_sizes_that_no_image_has(tmp_path, key, value, message):
    content = sound.annotations()
    content["images"][0][key] = value
    sound.write(tmp_path, sound.coco() | {"truth.json": json.dumps(content)})
    with pytest.raises(CellsegError, match=rf"truth\.json: image {sound.NAME}.*{message}"):
        evaluate_coco(tmp_path / "in" / "truth.json", tmp_path / "in" / "pred")


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = 5", r"run\.toml: base = 5: wanted the name of a file or a list of names"),
        ("base = [1]", r"run\.toml: base = \[1\]: wanted the name"),
        ('base = "\\u0000"', "cannot be read as TOML"),
        ('base = "."', "a folder, a pipe or a device"),
        (f"a = {DEEP}", r"run\.toml: cannot be read as TOML"),
        (f"a = {'9' * 5000}", r"run\.toml: cannot be read as TOML"),
        ("train = " + "{ a = " * 100 + "1" + "}" * 100, r"unknown key 'train\.a'"),
        ("".join(f"k{n} = 1\n" for n in range(50)), "unknown key 'k7'.*; and 42 more$"),
        ("[train]\nlr = nan", r"'train\.lr' = nan: "),
        ("[train]\nlr = inf", r"'train\.lr' = inf: input should be a finite number"),
        ("[data]\ndiameter = inf", r"'data\.diameter.*finite number"),
        ('[model]\nnetwork = "cellpose"\nwidths = [1000000000]', r"'model\.widths\.0' = 1000000000: .*4096"),
    ],
)
def test_configurations_of_wrong_shapes(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(CellsegError, match=message) as error:
        load_config(tmp_path / "run.toml")
    assert len(str(error.value)) < fuzz.LONGEST_LINE and "\n" not in str(error.value)


def test_a_long_value_and_a_long_key_are_cut():
    with pytest.raises(CellsegError) as error:
        check_config({"train": {"lr": "x" * 10**6}, "y" * 10**6: 1})
    assert len(str(error.value)) < 800
    assert "'train.lr' = 'xxxxxxxx" in str(error.value) and f"unknown key '{'y' * 100}…'" in str(error.value)


def test_an_override_of_brackets_is_a_word():
    assert parse_override(f"train.lr={DEEP}") == {"train": {"lr": DEEP}}
