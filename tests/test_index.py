import dataclasses
import shutil
from pathlib import Path

import pytest

from cellseg.config import Selection
from cellseg.core import CellsegError, Record
from cellseg.datasets.index import (
    COLUMNS,
    PrepareReport,
    read_index,
    select,
    told_diameter,
    write_index,
    write_prepared,
)
from cellseg.datasets.left_out import Finding


def record(folder: Path, name: str, **changes) -> Record:
    """A record whose files exist."""
    (folder / "images").mkdir(exist_ok=True, parents=True)
    image, labels = folder / "images" / f"{name}.png", folder / "images" / f"{name}.tif"
    image.touch()
    labels.touch()
    values = {
        "id": name,
        "image": image,
        "labels": labels,
        "dataset": "toy",
        "split": "train",
        "group": "A",
        "height": 30,
        "width": 40,
        "n_instances": 3,
        "label_kind": "instances",
        "diameter": 12.345678901234567,
        "well": "B7",
    }
    return Record(**(values | changes))


def unlabelled(folder: Path, name: str, **changes) -> Record:
    nothing = {"labels": None, "label_kind": "", "n_instances": None, "diameter": None, "split": "unlabelled"}
    return record(folder, name, **(nothing | changes))


@pytest.fixture
def records(tmp_path):
    return [
        record(tmp_path, "a"),
        unlabelled(tmp_path, "b, with comma", group='odd "group", ü', well=""),
        record(tmp_path, "c", label_kind="foreground", n_instances=None, diameter=None),
        record(tmp_path, "d", n_instances=0, diameter=None),
    ]


def test_round_trip_is_exact(tmp_path, records):
    write_index(tmp_path / "prepared" / "index.csv", records)
    assert read_index(tmp_path / "prepared" / "index.csv") == records
    assert read_index(tmp_path / "prepared") == records


def test_every_label_kind_comes_back(tmp_path):
    kinds = ("instances", "partial", "foreground")
    write_index(tmp_path / "index.csv", [record(tmp_path, kind, label_kind=kind) for kind in kinds])
    assert tuple(one.label_kind for one in read_index(tmp_path)) == kinds


def test_columns_and_paths_as_designed(tmp_path, records):
    write_index(tmp_path / "prepared" / "index.csv", records[:1])
    assert (tmp_path / "prepared" / "index.csv").read_text() == (
        "id,image,labels,dataset,split,group,height,width,n_instances,label_kind,diameter,well\n"
        "a,../images/a.png,../images/a.tif,toy,train,A,30,40,3,instances,12.345678901234567,B7\n"
    )


def test_a_prepared_folder_can_be_moved_and_read_from_anywhere(tmp_path, records, monkeypatch):
    write_index(tmp_path / "old" / "index.csv", [record(tmp_path / "old", "a")])
    shutil.move(tmp_path / "old", tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    (got,) = read_index("new/index.csv")
    assert got.image == tmp_path / "new" / "images" / "a.png" and got.image.is_absolute()


def test_write_refuses_repeated_ids(tmp_path, records):
    with pytest.raises(CellsegError, match=r"index\.csv: ids must be unique; repeated: 'a'"):
        write_index(tmp_path / "index.csv", [records[0], records[0]])
    assert not (tmp_path / "index.csv").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("height", "thirty", "height = 'thirty'; wanted a whole number of at least 1"),
        ("width", "0", "width = '0'"),
        ("width", "", "width = ''"),
        ("height", "30.5", "height = '30.5'"),
        ("n_instances", "-1", "n_instances = '-1'; wanted a whole number of at least 0"),
        ("diameter", "wide", "diameter = 'wide'; wanted a number above 0"),
        ("diameter", "nan", "diameter = 'nan'"),
        ("diameter", "0", "diameter = '0'"),
        ("label_kind", "boxes", "label_kind 'boxes'"),
        ("label_kind", "", "label_kind ''"),
        ("labels", "", "label_kind 'instances' with labels ''"),
        ("labels", "gone.tif", "labels file .*gone.tif does not exist"),
        ("image", "gone.png", "image file .*gone.png does not exist"),
        ("image", "", "must not be empty"),
        ("id", "", "must not be empty"),
        ("id", "../a", "must not hold a path"),
        ("id", "a", "id 'a' is already used on line 2"),
    ],
)
def test_a_bad_value_is_named_with_file_and_line(tmp_path, column, value, message):
    write_index(tmp_path / "index.csv", [record(tmp_path, "a"), record(tmp_path, "b")])
    head, first, second = (tmp_path / "index.csv").read_text().splitlines()
    cells = dict(zip(COLUMNS, second.split(","), strict=True)) | {column: value}
    (tmp_path / "index.csv").write_text("\n".join([head, first, ",".join(cells.values()), ""]))
    with pytest.raises(CellsegError, match=rf"index\.csv:3: .*{message}"):
        read_index(tmp_path / "index.csv")


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path, records, column):
    kept = [name for name in COLUMNS if name != column]
    (tmp_path / "index.csv").write_text(",".join(kept) + "\n")
    with pytest.raises(CellsegError, match=rf"index\.csv: not an index: column '{column}' is missing"):
        read_index(tmp_path / "index.csv")


def test_a_file_that_is_no_index(tmp_path, records):
    with pytest.raises(CellsegError, match=r"none\.csv: no such index"):
        read_index(tmp_path / "none.csv")
    (tmp_path / "index.csv").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(CellsegError, match="cannot be read as CSV"):
        read_index(tmp_path / "index.csv")
    (tmp_path / "index.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(CellsegError, match="holds no image"):
        read_index(tmp_path / "index.csv")
    (tmp_path / "index.csv").write_text(",".join(COLUMNS) + "\na,b\n")
    with pytest.raises(CellsegError, match=r"index\.csv:2: wanted 12 values"):
        read_index(tmp_path / "index.csv")


def test_columns_may_be_more_and_in_any_order_and_have_a_byte_order_mark(tmp_path):
    write_index(tmp_path / "index.csv", [record(tmp_path, "a")])
    rows = [line.split(",")[::-1] for line in (tmp_path / "index.csv").read_text().splitlines()]
    text = "\n".join(",".join([*row, extra]) for row, extra in zip(rows, ("remark", "fine"), strict=True))
    (tmp_path / "index.csv").write_text(text, encoding="utf-8-sig")
    assert read_index(tmp_path / "index.csv") == [record(tmp_path, "a")]


# --- select ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path):
    """Groups in the order B B B A C A, one more of A for validation."""
    rows = [record(tmp_path, f"{place}{group}", group=group) for place, group in enumerate("BBBACA")]
    write_index(tmp_path / "index.csv", [*rows, record(tmp_path, "6A", group="A", split="val")])
    return str(tmp_path / "index.csv")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "0B 1B 2B 3A 4C 5A 6A"),
        ({"split": "train"}, "0B 1B 2B 3A 4C 5A"),
        ({"split": "val"}, "6A"),
        ({"groups": ("C", "B")}, "0B 1B 2B 4C"),
        ({"limit": 1}, "0B"),
        ({"limit": 2}, "0B 3A"),
        ({"limit": 3}, "0B 3A 4C"),
        ({"limit": 4}, "0B 1B 3A 4C"),
        ({"limit": 5}, "0B 1B 3A 4C 5A"),
        ({"limit": 99}, "0B 1B 2B 3A 4C 5A 6A"),
        ({"split": "train", "groups": ("A",), "limit": 1}, "3A"),
        ({"max_pixels": 30 * 40, "split": "val"}, "6A"),
        ({"ids": ("3A", "6A")}, "3A 6A"),
        ({"groups": ("A",), "without": ("5A",)}, "3A 6A"),
    ],
)
def test_select(index, asked, expected):
    assert " ".join(one.id for one in select(Selection(index=index, **asked))) == expected


def test_select_says_what_there_is(index):
    with pytest.raises(CellsegError, match=r"index\.csv: no group 'D'; the index has 'A', 'B', 'C'"):
        select(Selection(index=index, groups=("A", "D")))
    with pytest.raises(CellsegError, match=r"index\.csv: no image '9X'; the index has '0B', "):
        select(Selection(index=index, without=("9X",)))
    with pytest.raises(CellsegError, match=r"no image of split 'test'; the index has 2 of split 'train' group 'A'"):
        select(Selection(index=index, split="test"))
    with pytest.raises(CellsegError, match=r"no image of split 'val' and groups 'B'"):
        select(Selection(index=index, split="val", groups=("B",)))


# --- report ---------------------------------------------------------------------------------------------------------


def test_report_counts_and_names_everything(tmp_path, records):
    findings = [
        Finding("unreadable", "x.png", "cut short"),
        Finding("empty labels", "y.png", "no cell"),
        Finding("unreadable", "z.png", "gone"),
    ]
    records[1] = dataclasses.replace(records[1], group="")
    report = PrepareReport("toy", tmp_path / "source", records, findings, {"overlaps": "smaller on top"})
    path = write_prepared(tmp_path / "out", report)
    assert path == tmp_path / "out" / "index.csv" and read_index(path) == records
    assert (
        (tmp_path / "out" / "report.md").read_text()
        == f"""# toy

Source: `{(tmp_path / "source").as_posix()}`
- overlaps: smaller on top

| group | split | images | labelled | instances |
|---|---|--:|--:|--:|
| – | unlabelled | 1 | 0 | 0 |
| A | train | 3 | 3 | 3 |
| **all** | | 4 | 3 | 3 |

## Findings

### unreadable (2)

- `x.png`: cut short
- `z.png`: gone

### empty labels (1)

- `y.png`: no cell
"""
    )


def test_report_without_findings_and_without_images(tmp_path, records):
    write_prepared(tmp_path / "out", PrepareReport("toy", tmp_path, records))
    assert (tmp_path / "out" / "report.md").read_text().endswith("\n\nNothing was dropped or doubtful.\n")
    empty = PrepareReport("toy", tmp_path, [], [Finding("unreadable", "x.png", "cut short")])
    with pytest.raises(CellsegError, match=r"no usable image found \(1 × unreadable\)"):
        write_prepared(tmp_path / "none", empty)


def test_select_leaves_out_images_of_more_pixels(tmp_path):
    write_index(tmp_path / "index.csv", [record(tmp_path, "a"), record(tmp_path, "b", height=31)])
    asked = Selection(index=str(tmp_path / "index.csv"), max_pixels=30 * 40)
    assert [one.id for one in select(asked)] == ["a"]
    with pytest.raises(CellsegError, match="no image of any split of at most 3 pixels"):
        select(Selection(index=asked.index, max_pixels=3))


def test_select_takes_the_images_that_a_file_names(index, tmp_path):
    text, coco = tmp_path / "part.txt", tmp_path / "part.json"
    text.write_text("# a fold\n5A\n\n3A # twice as good\ngone\n")
    assert [one.id for one in select(Selection(index=index, listed=str(text)))] == ["3A", "5A"]
    coco.write_text('{"images": [{"id": 7, "file_name": "images/6A.png"}], "annotations": []}')
    assert [one.id for one in select(Selection(index=index, listed=str(coco)))] == ["6A"]
    assert [one.id for one in select(Selection(index=index, listed=str(text), limit=1))] == ["3A"]
    text.write_text("gone\n")
    with pytest.raises(CellsegError, match=r"named in .*part.txt; the index has"):
        select(Selection(index=index, listed=str(text)))
    text.write_text("# nothing\n")
    with pytest.raises(CellsegError, match=r"part.txt: names no image"):
        select(Selection(index=index, listed=str(text)))
    with pytest.raises(CellsegError, match=r"none.txt: cannot be read as a list"):
        select(Selection(index=index, listed=str(tmp_path / "none.txt")))


def test_the_diameter_of_an_index_is_the_median_of_its_training_images(tmp_path):
    path = tmp_path / "index.csv"
    sizes = {"a": ("train", 10.0), "b": ("train", 20.0), "c": ("train", None), "d": ("test", 90.0)}
    write_index(path, [record(tmp_path, name, split=split, diameter=size) for name, (split, size) in sizes.items()])
    assert told_diameter(path, "index") == 15
    assert told_diameter(tmp_path / "none.csv", "auto") is None
    write_index(path, [record(tmp_path, "d", split="test", diameter=90.0)])
    with pytest.raises(CellsegError, match=r"index.csv: predict.diameter = 'index' wants labelled images of split"):
        told_diameter(path, "index")
