import json
from pathlib import Path

import numpy as np
import pytest

from cellseg.core import CellsegError, Record
from cellseg.datasets.index import read_index
from cellseg.datasets.livecell import cell_line, prepare_livecell, split_by_well
from cellseg.images import read_labels

HEIGHT, WIDTH = 40, 60


def image(root, name, shape=(HEIGHT, WIDTH), folder="livecell_train_val_images", suffix=".tif"):
    """Write a grey image where the official zip would put it (`folder` empty: flat) and return its stem."""
    import tifffile
    from PIL import Image

    path = root / "images" / folder / name.split("_")[0] / f"{name}{suffix}" if folder else root / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(shape, 128, np.uint8)
    if suffix == ".tif":
        tifffile.imwrite(path, pixels, compression="lzw", predictor=2, rowsperstrip=11)
    else:
        Image.fromarray(pixels).save(path)
    return name


def box(y, x, size=4):
    return [[float(v) for v in (x, y, x + size, y, x + size, y + size, x, y + size)]]


def grid(count, first=0):
    """Disjoint boxes."""
    return [box(4 + 6 * (i // 8), 2 + 7 * (i % 8)) for i in range(first, first + count)]


def coco(root, split, entries, folder="annotations/LIVECell", as_dict=False, name=None):
    """Write an annotation file from [(file name, polygons), ...]; ids are sparse and shared as in the real one."""
    images, annotations, next_id = [], [], 500_000
    for file_name, cells in entries:
        image_id = next_id
        images.append({"id": image_id, "width": WIDTH, "height": HEIGHT, "file_name": file_name})
        for offset, polygons in enumerate(cells, 1):
            annotations.append({"id": image_id + offset, "image_id": image_id, "segmentation": polygons})
        next_id += 1000
    content = {"images": images, "annotations": {a["id"]: a for a in annotations} if as_dict else annotations}
    return write(root / folder / (name or f"livecell_coco_{split}.json"), content)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    write(path, content)


def prepared(root, out=None, **options):
    """Prepare and return the records by id and the text of the report."""
    index = prepare_livecell(root, out or root.parent / "out", **options)
    return {r.id: r for r in read_index(index)}, index.with_name("report.md").read_text()


A, B, C = "A172_Phase_A7_1_00d00h00m_1", "SkBr3_Phase_H3_2_01d20h00m_4", "BV2_Phase_C4_2_02d20h00m_4"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "livecell"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("folder", ["livecell_train_val_images", ""])
def test_official_and_flat_folders_list_and_dict(root, folder, as_dict):
    for name in (A, B):
        image(root, name, folder=folder)
    where = "annotations/LIVECell" if folder else "."
    coco(root, "train", [(f"{A}.tif", grid(12))], folder=where, as_dict=as_dict)
    coco(root, "val", [(f"{B}.png", grid(20))], folder=where, as_dict=as_dict)
    records, report = prepared(root)
    assert {n: (r.split, r.group, r.well, r.n_instances) for n, r in records.items()} == {
        A: ("train", "A172", "A7", 12),
        B: ("val", "SkBr3", "H3", 20),
    }
    first = records[A]
    assert (first.dataset, first.height, first.width, first.label_kind) == ("livecell", HEIGHT, WIDTH, "instances")
    assert first.diameter == pytest.approx(2 * np.sqrt(16 / np.pi))
    labels = read_labels(records[B].labels)
    assert np.bincount(labels.ravel()).tolist() == [HEIGHT * WIDTH - 20 * 16] + [16] * 20
    assert "Nothing was dropped" in report
    assert "overlap policy: larger first, smaller on top" in report


def test_png_images_match_by_stem(root):
    image(root, A, folder="", suffix=".png")
    coco(root, "train", [(f"{A}.tif", grid(10))])
    assert prepared(root)[0][A].n_instances == 10


def test_images_without_annotations_are_unlabelled(root):
    for name, folder in ((A, "livecell_train_val_images"), (B, "livecell_test_images"), (C, "livecell_test_images")):
        image(root, name, folder=folder)
    coco(root, "test", [(f"{C}.tif", [])])
    records, report = prepared(root)
    assert {n: (r.split, r.has_labels, r.label_kind) for n, r in records.items()} == {
        A: ("unlabelled", False, ""),
        B: ("unlabelled", False, ""),
        C: ("test", False, ""),
    }
    assert f"`{B}`: kept as unlabelled: do not adapt to it" in report
    assert f"`{C}`: listed without a single annotation" in report


def test_files_of_single_cell_lines_stand_in_for_a_missing_main_file(root):
    for name in (A, B, C):
        image(root, name)
    coco(root, "train", [(f"{A}.tif", grid(10))])
    coco(root, "train", [(f"{A}.tif", grid(3))], folder="annotations/LIVECell_single_cells/a172", name="train.json")
    coco(root, "val", [(f"{B}.tif", grid(11))], folder="annotations/LIVECell_single_cells/skbr3", name="val.json")
    coco(root, "val", [(f"{C}.tif", grid(12))], folder=".", name="livecell_bv2_val.json", as_dict=True)
    coco(root, "train", [(f"{C}.tif", grid(9))], folder="annotations/split", name="0_train2percent.json")
    records, _ = prepared(root)
    assert {n: (r.split, r.n_instances) for n, r in records.items()} == {
        A: ("train", 10),
        B: ("val", 11),
        C: ("val", 12),
    }


def test_overlaps_are_counted_and_lose_no_instance(root):
    image(root, A)
    cells = [*grid(8), box(3, 1, 20), box(30, 30, 6), box(33, 33, 6)]
    coco(root, "train", [(f"{A}.tif", cells)])
    records, report = prepared(root)
    labels = read_labels(records[A].labels)
    assert records[A].n_instances == 11
    assert np.bincount(labels.ravel(), minlength=12).all()
    # The 20-px box covers columns 1-20: all of the boxes at columns 2, 9 and 16; the two 6-px boxes share 3 x 3 pixels.
    assert f"contested pixels: {3 * 16 + 9} of {8 * 16 - 48 + 400 + 72 - 9} foreground pixels" in report


def test_cell_in_two_pieces_stays_one(root):
    image(root, A)
    coco(root, "train", [(f"{A}.tif", [*grid(9), [*box(30, 2), *box(30, 20)]])])
    labels = read_labels(prepared(root)[0][A].labels)
    assert labels.max() == 10
    assert labels[31, 3] == labels[31, 21] == 10


def test_covered_empty_invalid_and_double_annotations_are_named(root):
    image(root, A)
    sliver = [[50.0, 30.0, 50.04, 30.0, 50.04, 30.04]]
    cells = [*grid(10), grid(1)[0], sliver, [[1.0, 2.0, float("nan"), 4.0, 5.0, 6.0]], [[1.0, 2.0, 3.0, 4.0]]]
    coco(root, "train", [(f"{A}.tif", cells)])
    records, report = prepared(root)
    assert records[A].n_instances == 10
    assert f"`{A}`: annotation 500001 lies wholly under smaller ones" in report
    assert f"`{A}`: annotation 500011 has IoU > 0.8 with another" in report
    assert f"`{A}`: annotation 500012 covers no pixel" in report
    assert f"`{A}`: annotation 500013, 500014 is not a finite polygon" in report
    assert "annotations without a pixel: 4" in report


def test_points_outside_are_clipped_and_named(root):
    image(root, A)
    coco(root, "train", [(f"{A}.tif", [*grid(10), box(30, 50, 20)])])
    records, report = prepared(root)
    assert int((read_labels(records[A].labels) == 11).sum()) == 100
    assert "annotation 500011 has points outside the image; clipped" in report


def test_few_labels_are_odd(root):
    for name, cells in ((A, 9), (B, 10)):
        image(root, name)
        coco(root, {A: "train", B: "val"}[name], [(f"{name}.tif", grid(cells))])
    report = prepared(root)[1]
    assert "### few labels (1)" in report
    assert f"`{A}`: only 9 annotated cells" in report


def test_more_instances_than_uint8_holds(root):
    image(root, A)
    cells = [box(y, x, 1) for y in range(0, 40, 2) for x in range(0, 60, 2)]
    coco(root, "train", [(f"{A}.tif", cells)])
    record = prepared(root)[0][A]
    assert record.n_instances == read_labels(record.labels).max() == 600


def test_repeated_image_id_and_annotations(root):
    image(root, A)
    path = coco(root, "train", [(f"{A}.tif", grid(12))])

    def repeat(content):
        content["images"] *= 2
        content["annotations"] *= 2

    edit(path, repeat)
    records, report = prepared(root)
    assert records[A].n_instances == 12
    assert "id 500000 occurs 2 times in livecell_coco_train.json" in report
    assert f"`{A}`: 12 repeat another's id and polygon" in report
    assert "covered" not in report


def test_repeated_file_name_keeps_the_entry_with_most_cells(root):
    image(root, A)
    coco(root, "train", [(f"{A}.tif", grid(10)), (f"{A}.tif", grid(14))])
    records, report = prepared(root)
    assert records[A].n_instances == 14
    assert "2 ids in livecell_coco_train.json; id 501000 with 14 cells is used" in report


def test_image_in_train_and_val_stays_out_of_train(root):
    image(root, A)
    coco(root, "train", [(f"{A}.tif", grid(10))])
    coco(root, "val", [(f"{A}.tif", grid(11))])
    records, report = prepared(root)
    assert (records[A].split, records[A].n_instances) == ("val", 11)
    assert "### image in two splits (1)" in report
    assert f"`{A}`: kept in val; ignored in livecell_coco_train.json (train)" in report


def test_same_well_in_two_splits_is_reported(root):
    other = A.replace("00m_1", "00m_2")
    for name in (A, other, B):
        image(root, name)
    coco(root, "train", [(f"{A}.tif", grid(10)), (f"{B}.tif", grid(10))])
    coco(root, "val", [(f"{other}.tif", grid(10))])
    report = prepared(root)[1]
    assert "### well in two splits (1)" in report
    assert "`A172 A7`: 1 in train, 1 in val" in report


def test_missing_file_unknown_id_and_wrong_size_are_named(root):
    image(root, A, shape=(HEIGHT, WIDTH + 1))
    image(root, B)
    path = coco(root, "train", [(f"{A}.tif", grid(10)), (f"{B}.tif", grid(10)), (f"{C}.tif", grid(10))])
    edit(path, lambda content: content["annotations"].append({"id": 1, "image_id": 77, "segmentation": box(1, 1)}))
    records, report = prepared(root)
    assert sorted(records) == [A, B]
    assert not records[A].has_labels
    assert f"`{A}`: annotated as (40, 60), the file is (40, 61); left unlabelled" in report
    assert f"`{C}`: listed in livecell_coco_train.json but not found" in report
    assert "1 annotations name image ids it does not list, such as 77" in report


def test_unreadable_image_is_named_and_left_out(root):
    image(root, A)
    (root / "images" / f"{B}.tif").write_bytes(b"II*\0 not a TIFF")
    coco(root, "train", [(f"{A}.tif", grid(10)), (f"{B}.tif", grid(10))])
    records, report = prepared(root)
    assert list(records) == [A]
    assert "### unreadable image (1)" in report


def test_truncated_annotations_stop_the_run(root):
    image(root, A)
    path = coco(root, "test", [(f"{A}.tif", grid(10))])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CellsegError, match=r"livecell_coco_test\.json: is truncated"):
        prepared(root)


@pytest.mark.parametrize("name", [f"../../{A}.tif", f"/etc/{A}.tif", f"..\\..\\{A}.png"])
def test_a_path_in_file_name_leads_nowhere(root, tmp_path, name):
    image(root, A)
    coco(root, "train", [(name, grid(10))])
    records, _ = prepared(root)
    assert records[A].labels == tmp_path / "out" / "labels" / f"{A}.tif"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["livecell", "out"]


def test_repeated_image_file_is_named(root):
    image(root, A)
    image(root, A, folder="livecell_test_images", suffix=".png")
    coco(root, "train", [(f"{A}.tif", grid(10))])
    records, report = prepared(root)
    assert records[A].image.suffix == ".tif"
    assert "### repeated image file (1)" in report


@pytest.mark.parametrize("where", [".", "prepared"])
def test_preparing_inside_the_data_folder_twice_changes_nothing(root, where):
    image(root, A, folder="")
    coco(root, "train", [(f"{A}.tif", grid(10))], folder=".")
    first = prepared(root, root / where)
    assert prepared(root, root / where) == first
    assert list(first[0]) == [A]


def test_folders_without_images_or_annotations(root, tmp_path):
    with pytest.raises(CellsegError, match="found none"):
        prepared(root)
    with pytest.raises(CellsegError, match="not a folder"):
        prepared(tmp_path / "gone")
    image(root, A)
    records, report = prepared(root)
    assert records[A].split == "unlabelled"
    assert "### no annotations (1)" in report
    with pytest.raises(CellsegError, match="'json' or 'well'"):
        prepared(root, split_by="random")


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("A172_Phase_C7_1_00d20h00m_4", ("A172", "C7")),
        ("skbr3_Phase_H3_2_02d12h00m_1", ("SkBr3", "H3")),
        ("HUH7_Phase_A10_2_01d20h00m_3", ("Huh7", "A10")),
        ("HeLa_Phase_A1_2_01d20h00m_3", ("HeLa", "A1")),
        ("mcf7_other", ("MCF7", "")),
        ("picture", ("unknown", "")),
    ],
)
def test_cell_line_and_well_come_from_the_name(stem, expected):
    assert cell_line(stem) == expected


def test_unknown_cell_line_is_named_once(root):
    for crop in (1, 2):
        image(root, f"HeLa_Phase_A1_1_00d00h00m_{crop}")
    assert "`HeLa`: 2 images; known are A172" in prepared(root)[1]


def record(line, well, crop, labelled=True):
    name = f"{line}_Phase_{well}_1_00d00h00m_{crop}"
    labels, split = (Path("labels") / name, "train") if labelled else (None, "unlabelled")
    return Record(name, Path(name), labels, "livecell", split, line, 1, 1, None, "", None, well)


def test_split_by_well_never_cuts_a_well_and_is_stable():
    wells = {"A172": 10, "BV2": 3, "MCF7": 2, "Huh7": 1}
    records = [record(line, f"A{w}", crop) for line, n in wells.items() for w in range(n) for crop in range(4)]
    records += [record("A172", "A0", 9, labelled=False)]
    divided = split_by_well(records, seed=3)
    assert [r.id for r in divided] == [r.id for r in records]
    assert divided[-1].split == "unlabelled"
    split = {(r.group, r.well): r.split for r in divided[:-1]}
    assert all(split[r.group, r.well] == r.split for r in divided[:-1])
    counts = {line: [list(s for (g, _), s in split.items() if g == line).count(k) for k in ("train", "val", "test")]
              for line in wells}  # fmt: skip
    assert counts == {"A172": [6, 2, 2], "BV2": [1, 1, 1], "MCF7": [1, 0, 1], "Huh7": [1, 0, 0]}
    assert split_by_well(records, seed=3) == divided
    by_id = {r.id: r.split for r in split_by_well(records[::-1], seed=3)}
    assert by_id == {r.id: r.split for r in divided}
    assert any(split_by_well(records, seed=s) != divided for s in range(4, 9))


def test_prepare_by_well_reports_no_leak(root):
    entries = []
    for well in ("A1", "A2", "A3"):
        entries += [(image(root, f"BV2_Phase_{well}_1_00d00h00m_{crop}") + ".tif", grid(10)) for crop in (1, 2)]
    coco(root, "train", entries[0::2])
    coco(root, "val", entries[1::2])
    assert "### well in two splits (3)" in prepared(root)[1]
    records, report = prepared(root, split_by="well", seed=1)
    assert "well in two splits" not in report
    assert "split: by well, seed 1" in report
    assert sorted(r.split for r in records.values()) == ["test", "test", "train", "train", "val", "val"]


@pytest.mark.realdata
def test_real_sample_keeps_every_annotation(shared_data, tmp_path):
    folder = shared_data / "livecell"
    index = prepare_livecell(folder, tmp_path / "out")
    records = {r.id: r for r in read_index(index)}
    labelled = [r for r in records.values() if r.has_labels]
    assert sorted(r.split for r in labelled) == ["test"] * 8 + ["val"] * 5
    assert sum(r.split == "unlabelled" for r in records.values()) == len(records) - 13 == 48
    assert all(not r.has_labels for r in records.values() if r.split == "unlabelled")
    for split in ("val", "test"):
        content = json.loads((folder / f"annotations/LIVECell/livecell_coco_{split}.json").read_text())
        for entry in content["images"]:
            found = records[Path(entry["file_name"]).stem]
            count = sum(a["image_id"] == entry["id"] for a in content["annotations"])
            ids = np.unique(read_labels(found.labels))
            assert (found.n_instances, ids.tolist()) == (count, list(range(count + 1)))
    report = index.with_name("report.md").read_text()
    assert "contested pixels: 30311 of 1755303 foreground pixels (1.73 %)" in report
    assert "Nothing was dropped" in report
