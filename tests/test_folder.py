import csv
import math
import threading
import time
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from cellseg import memory
from cellseg.core import CellsegError, Record
from cellseg.datasets import inspection
from cellseg.datasets.folder import prepare_folder
from cellseg.datasets.index import read_index
from cellseg.datasets.rows import split_validation
from cellseg.images import read_image, read_labels
from cellseg.labels import median_diameter, split_disconnected
from cellseg.slides import windows

SHAPE = (20, 30)
TWO_CELLS = np.zeros(SHAPE, np.uint16)
TWO_CELLS[2:6, 2:6], TWO_CELLS[10:16, 10:16] = 4, 900
DIAMETER = round((4 + 6) / math.sqrt(math.pi), 2)  # mean of 2 √(16/π) and 2 √(36/π)


def put(path: Path, array=None):
    """Write an image (a ramp by default) in the format its ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(600, dtype=np.uint16).reshape(SHAPE) if array is None else array
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(array))
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        tifffile.imwrite(path, array)


def prepare(root: Path, **options) -> list[Record]:
    return read_index(prepare_folder(root, root.parent / "out", **options))


def report_of(root: Path) -> str:
    return (root.parent / "out" / "report.md").read_text()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "my cells"


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/x.tif", "labels/x.tif"),
        ("images/x.png", "labels/x.tif"),
        ("images/x.tif", "masks/x.tif"),
        ("images/x.png", "masks/x.npy"),
        ("images/x.png", "labels/x_label.tiff"),
        ("images/x.png", "labels/x_labels.png"),
        ("images/x.ome.tif", "labels/x.ome.tif"),
        ("x.tif", "x_masks.tif"),
        ("x.tif", "x_masks.png"),
        ("x.png", "x_cp_masks.png"),
        ("x_img.png", "x_masks.png"),
        ("x.tif", "x_mask.tif"),
        ("x.tif", "x_label.tif"),
        ("images/x.tif", "images/x_masks.tif"),
    ],
)
def test_layouts(root, image, labels):
    put(root / image)
    put(root / labels, TWO_CELLS)
    assert prepare(root) == [
        Record(
            id="x",
            image=root / image,
            labels=root / labels,
            dataset="my cells",
            split="train",
            group="",
            height=20,
            width=30,
            n_instances=2,
            label_kind="instances",
            diameter=DIAMETER,
        )
    ]
    assert "Nothing was dropped" in report_of(root)


def test_images_alone_are_unlabelled_whatever_split_is_asked(root):
    put(root / "b.tif")
    put(root / "a.0.5mM.png")
    records = prepare(root, split="test")
    assert [(r.id, r.split, r.labels, r.label_kind, r.n_instances, r.diameter) for r in records] == [
        ("a.0.5mM", "unlabelled", None, "", None, None),
        ("b", "unlabelled", None, "", None, None),
    ]


def test_labels_are_matched_by_stem_with_its_case_and_not_by_order(root):
    for stem in ("a", "b", "B1"):
        put(root / "images" / f"{stem}.png")
    put(root / "labels" / "b.tif", TWO_CELLS)
    put(root / "labels" / "b1.tif", TWO_CELLS)
    put(root / "labels" / "zebra_label.tif", TWO_CELLS)
    assert {r.id: r.split for r in prepare(root)} == {"B1": "unlabelled", "a": "unlabelled", "b": "train"}
    assert "### labels without image (2)" in report_of(root)
    assert "`labels/b1.tif`: no image of this stem ('B1' differs in case)" in report_of(root)


def test_an_image_named_like_a_label_file_is_matched_exactly_first(root):
    for stem in ("x", "x_mask"):
        put(root / "images" / f"{stem}.png")
        put(root / "labels" / f"{stem}.tif", TWO_CELLS)
    assert {r.id: r.labels.name for r in prepare(root)} == {"x": "x.tif", "x_mask": "x_mask.tif"}


def test_sub_folders_give_the_split_and_prefix_the_id(root):
    for split in ("train", "test"):
        put(root / split / "images" / "x.tif")
        put(root / split / "masks" / "x.tif", TWO_CELLS)
    put(root / "unlabelled" / "x.tif")
    assert [(r.id, r.split) for r in prepare(root)] == [
        ("train_x", "train"),
        ("test_x", "test"),
        ("unlabelled_x", "unlabelled"),
    ]


def test_foreground_masks_count_no_cells(root):
    put(root / "images" / "x.png")
    put(root / "images" / "y.png")
    put(root / "foreground_masks" / "x.png", (TWO_CELLS > 0).astype(np.uint8) * 255)
    put(root / "foreground_masks" / "y.png", (TWO_CELLS > 0).astype(np.uint8) * 255)
    put(root / "labels" / "y.png", TWO_CELLS)
    x, y = prepare(root)
    assert (x.label_kind, x.n_instances, x.diameter, x.split) == ("foreground", None, None, "train")
    assert (y.label_kind, y.n_instances, y.labels.parent.name) == ("instances", 2, "labels")


def test_binary_masks_are_recognised_when_no_file_tells_cells_apart(root):
    put(root / "images" / "x.png")
    put(root / "images" / "y.png")
    put(root / "masks" / "x.png", (TWO_CELLS > 0).astype(np.uint8) * 255)
    put(root / "masks" / "y.png", np.zeros(SHAPE, np.uint8))
    assert [r.label_kind for r in prepare(root)] == ["foreground", "foreground"]
    assert "binary labels" in report_of(root)
    put(root / "masks" / "y.png", TWO_CELLS)
    assert [(r.label_kind, r.n_instances) for r in prepare(root)] == [("instances", 1), ("instances", 2)]


def test_single_cells_are_no_binary_masks(root):
    put(root / "images" / "x.png")
    put(root / "masks" / "x.png", (TWO_CELLS == 4).astype(np.uint8))
    assert [(r.label_kind, r.n_instances) for r in prepare(root)] == [("instances", 1)]


def test_what_is_doubtful_is_kept_and_what_is_wrong_is_left_out_and_both_are_named(root):
    for stem in ("good", "empty", "large", "broken", "negative", "flat", "many"):
        put(root / "images" / f"{stem}.tif")
        put(root / "labels" / f"{stem}.tif", TWO_CELLS)
    put(root / "labels" / "empty.tif", TWO_CELLS * 0)
    put(root / "labels" / "large.tif", np.ones((40, 60), np.uint16))
    (root / "images" / "broken.tif").write_bytes((root / "images" / "good.tif").read_bytes()[:-9])
    put(root / "labels" / "negative.tif", -TWO_CELLS.astype(np.int16))
    put(root / "images" / "flat.tif", np.full(SHAPE, 7, np.uint8))
    tifffile.imwrite(root / "images" / "many.tif", np.ones((5, *SHAPE), np.uint8), metadata={"axes": "CYX"}, ome=True)
    (root / "images" / "movie.czi").touch()
    (root / "images" / "notes.txt").touch()
    assert {r.id: r.n_instances for r in prepare(root)} == {"good": 2, "empty": 0, "flat": 2, "many": 2}
    report = report_of(root)
    assert "### unreadable (2)" in report and "### size mismatch (1)" in report
    assert "`images/large.tif`: labels are (40, 60) but the image is (20, 30); left out" in report
    assert "must not be negative, the lowest is -900" in report
    assert "`images/empty.tif`: no cell is labelled; kept" in report
    assert "`images/flat.tif`: every pixel is 7; kept" in report
    assert "`images/many.tif`: 5 channels" in report
    assert "`images/movie.czi`: not a TIFF" in report and "notes.txt" not in report


def test_results_of_cellpose_beside_the_images_are_neither_images_nor_labels(root):
    put(root / "x.tif")
    put(root / "x_cp_masks.tif", TWO_CELLS)
    put(root / "x_flows.tif")
    put(root / "x_seg.npy", np.zeros(3))
    assert [(r.id, r.n_instances) for r in prepare(root)] == [("x", 2)]
    assert "### result file (2)" in report_of(root)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["images/x.tif", "images/x.png"], r"'images/x.png' and 'images/x.tif' share the stem 'x'"),
        (["x.tif", "x_img.tif"], r"share the stem 'x'"),
        (["images/x.tif", "labels/x.tif", "masks/x.tif"], r"'labels/x.tif' and 'masks/x.tif' are both labels of 'x'"),
        (["x.tif", "x_masks.tif", "x_cp_masks.png"], r"are both labels of 'x'"),
        (["labels/x.tif"], r"no images found"),
        (["sub/x.tif"], r"no images found"),
    ],
)
def test_ambiguous_and_empty_folders_are_errors(root, files, message):
    for name in files:
        put(root / name, TWO_CELLS)
    with pytest.raises(CellsegError, match=message):
        prepare(root)


def test_bad_arguments(root):
    put(root / "x.tif")
    with pytest.raises(CellsegError, match="no such folder"):
        prepare(root / "none")
    with pytest.raises(CellsegError, match="split 'validation': wanted one of train, val, test"):
        prepare(root, split="validation")
    for wrong in (-0.1, 1.0):
        with pytest.raises(CellsegError, match="val_fraction"):
            prepare(root, val_fraction=wrong)


# --- source index ---------------------------------------------------------------------------------------------------


def write_source(root: Path, text: str):
    for stem in ("a", "b", "c"):
        put(root / "images" / f"{stem}.png")
    put(root / "labels" / "a.tif", TWO_CELLS)
    put(root / "labels" / "b.tif", TWO_CELLS)
    (root / "index.csv").write_text(text)


def test_source_index_gives_order_split_group_and_well(root):
    write_source(root, "image,split,group,n_instances,well\nb.png,test,fluo,2,W1\na.png,,phase,3,\nc.png,val,,,\n")
    assert [(r.id, r.split, r.group, r.well, r.n_instances) for r in prepare(root)] == [
        ("b", "test", "fluo", "W1", 2),
        ("a", "train", "phase", "", 2),
        ("c", "unlabelled", "", "", None),
    ]
    report = report_of(root)
    assert "`images/a.png`: index.csv says 3 cells, the label file holds 2" in report
    assert "`images/c.png`: in split 'val' without labels" in report
    assert [r.split for r in prepare(root, split="val")] == ["val", "val", "unlabelled"]


def test_images_that_the_source_index_does_not_list_are_left_out(root):
    write_source(root, "image\nb.png\n")
    assert [r.id for r in prepare(root)] == ["b"]
    assert "### not in index.csv (2)" in report_of(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\na.png\n", r"index\.csv: column 'image' is missing"),
        ("image\nnone.png\n", r"index\.csv:2: there is no image 'none.png'"),
        ("image\na.png\na.png\n", r"index\.csv:3: image 'a.png' is listed twice"),
        ("image,split\na.png,training\n", r"index\.csv:2: split = 'training'"),
        ("image,n_instances\na.png,some\n", r"index\.csv:2: n_instances = 'some'"),
    ],
)
def test_a_wrong_source_index_is_an_error_with_its_line(root, text, message):
    write_source(root, text)
    with pytest.raises(CellsegError, match=message):
        prepare(root)


def test_preparing_in_place_never_overwrites_a_source_index_and_may_be_repeated(root):
    write_source(root, "image\nb.png\n")
    with pytest.raises(CellsegError, match="would be overwritten"):
        prepare_folder(root, root)
    (root / "index.csv").unlink()
    first = read_index(prepare_folder(root, root))
    assert len(first) == 3 and read_index(prepare_folder(root, root)) == first
    assert (root / "index.csv").read_text().splitlines()[1].startswith("a,images/a.png,labels/a.tif,")


# --- validation split -----------------------------------------------------------------------------------------------


def rows(wells: str, groups: str | None = None) -> list[Record]:
    """One record for each letter: its well (``.`` for none) and its group."""
    path = Path("/nowhere/x.tif")
    return [
        Record(f"{n:02}", path, path, "toy", "train", group, 9, 9, 1, "instances", 5.0, "" if well == "." else well)
        for n, (well, group) in enumerate(zip(wells, groups or "A" * len(wells), strict=True))
    ]


def val_ids(records) -> set[str]:
    return {r.id for r in records if r.split == "val"}


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 1), (0.2, 2), (0.25, 2), (0.5, 5), (0.99, 9)])
def test_share_of_images_but_at_least_one_and_never_all(fraction, expected):
    assert len(val_ids(split_validation(rows("." * 10), fraction, 0))) == expected


def test_split_depends_on_the_seed_and_not_on_the_order():
    records = rows("." * 40)
    chosen = val_ids(split_validation(records, 0.25, 7))
    assert chosen == val_ids(split_validation(records[::-1], 0.25, 7))
    assert chosen != val_ids(split_validation(records, 0.25, 8))
    assert [r.id for r in split_validation(records, 0.25, 7)] == [r.id for r in records]


def test_wells_stay_whole_even_across_groups():
    records = rows("PPQQRRSSPQRS", "AAAAAAAABBBB")
    for seed in range(5):
        got = split_validation(records, 0.25, seed)
        assert all(len({r.split for r in got if r.well == well}) == 1 for well in "PQRS")
        assert len({r.well for r in got if r.split == "val"}) == 1


def test_every_group_gives_its_share_and_a_lone_image_stays_in_training():
    got = split_validation(rows("." * 9, "AAAABBBBC"), 0.25, 0)
    assert Counter(r.group for r in got if r.split == "val") == {"A": 1, "B": 1}


def test_prepare_with_validation_says_how(root):
    for n in range(8):
        put(root / "images" / f"{n}.png")
        put(root / "labels" / f"{n}.tif", TWO_CELLS)
    put(root / "images" / "unlabelled.png")
    assert Counter(r.split for r in prepare(root, val_fraction=0.25)) == {"train": 6, "val": 2, "unlabelled": 1}
    assert "validation: 0.25 of the training units of every group, seed 0" in report_of(root)


def test_prepare_says_when_nothing_can_be_split_off(root):
    put(root / "x.png")
    put(root / "x_masks.png", TWO_CELLS)
    assert [r.split for r in prepare(root, val_fraction=0.5)] == ["train"]
    assert "### no validation images (1)" in report_of(root)


# --- real files -----------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name",
    ["dsb2018", "ctc_dic_c2dh_hela", "ctc_fluo_n2dl_hela", "ctc_phc_c2dl_psc", "stardist_img2d", "omnipose_test_files"],
)
def test_real_sets_agree_with_their_own_index(shared_data, tmp_path, name):
    records = read_index(prepare_folder(shared_data / name, tmp_path))
    with (shared_data / name / "index.csv").open() as handle:
        source = list(csv.DictReader(handle))
    assert [(r.image.name, r.split, r.group, str(r.n_instances or "")) for r in records] == [
        (row["image"], row["split"], row["group"], row["n_instances"]) for row in source
    ]
    assert "Nothing was dropped" in (tmp_path / "report.md").read_text()
    if name == "dsb2018":
        assert Counter(r.split for r in records) == {"train": 600, "val": 64, "test": 35}


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "split", "kind", "count"),
    [
        ("neurips2022_weak", "train", "foreground", 13),
        ("neurips2022/Training-labeled", "train", "instances", 3),
        ("neurips2022/release-part1", "unlabelled", "", 2),
        ("unlabelled_misc", "unlabelled", "", 12),
    ],
)
def test_real_sets_without_an_index(shared_data, tmp_path, name, split, kind, count):
    records = read_index(prepare_folder(shared_data / name, tmp_path))
    assert Counter((r.split, r.label_kind) for r in records) == {(split, kind): count}


def test_labels_of_another_folder_are_found_by_stem(tmp_path):
    import tifffile

    from cellseg.datasets.folder import prepare_folder
    from cellseg.datasets.index import read_index
    from cellseg.images import write_labels

    (tmp_path / "images").mkdir()
    for name in "ab":
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", np.zeros((8, 9), np.uint8))
    write_labels(tmp_path / "mine" / "b_masks.tif", np.eye(8, 9, dtype=np.int32))
    records = read_index(prepare_folder(tmp_path / "images", tmp_path / "out", labels=tmp_path / "mine"))
    assert (records[0].id, records[0].n_instances, records[0].label_kind) == ("a", None, "")
    assert records[1].n_instances == 1
    assert records[1].has_labels
    with pytest.raises(CellsegError, match="no such folder of label images"):
        prepare_folder(tmp_path / "images", tmp_path / "out", labels=tmp_path / "none")


# --- partly labelled images -----------------------------------------------------------------------------------------


def test_images_are_marked_as_partly_labelled_by_name_or_by_list(root):
    for name in ("a", "b", "c"):
        put(root / "images" / f"{name}.png")
    for name in ("a", "b"):
        put(root / "labels" / f"{name}.tif", TWO_CELLS)

    def kinds(partial):
        return {r.id: (r.label_kind, r.n_instances) for r in prepare(root, partial=partial)}

    assert kinds("b") == {"a": ("instances", 2), "b": ("partial", 2), "c": ("", None)}
    (root / "some.txt").write_text("# smears\na\n\nb  # one of many\n")
    assert kinds(root / "some.txt") == {"a": ("partial", 2), "b": ("partial", 2), "c": ("", None)}
    with pytest.raises(CellsegError, match="--partial names 'c', 'd', of which there are no instance labels"):
        prepare(root, partial="a, c,d")


def test_a_slide_without_windows_is_copied_in_tiles_and_other_files_are_not(root, monkeypatch):
    monkeypatch.setattr(windows, "SLIDE_PIXELS", 599)
    for name in ("a.png", "b.tif"):
        put(root / "images" / name)
    put(root / "labels" / "a.png", TWO_CELLS)
    put(root / "labels" / "b.tif", TWO_CELLS)
    a, b = prepare(root)
    out = root.parent / "out"
    assert (a.image, a.labels) == (out / "tiled" / "a.tif", out / "tiled" / "a_labels.tif")
    assert (b.image, b.labels) == (root / "images" / "b.tif", root / "labels" / "b.tif")
    np.testing.assert_array_equal(read_image(a.image), np.arange(600, dtype=np.uint16).reshape(SHAPE))
    np.testing.assert_array_equal(read_labels(a.labels), TWO_CELLS)
    assert "### tiled copy (2)" in report_of(root)


def test_a_slide_with_windows_may_be_larger_than_the_memory(root, monkeypatch):
    monkeypatch.setattr(windows, "SLIDE_PIXELS", 599)
    monkeypatch.setattr(windows, "_BAND_ROWS", 6)
    monkeypatch.setattr(inspection, "_BAND_ROWS", 7)  # a cell lies in two bands
    for stem, ending in (("a", ".tif"), ("b", ".npy")):
        windows.write_tiled(root / "images" / f"{stem}.tif", np.arange(600, dtype=np.uint16).reshape(SHAPE))
        put(root / "labels" / f"{stem}{ending}", TWO_CELLS)
    windows.write_tiled(root / "labels" / "a.tif", TWO_CELLS)
    monkeypatch.setattr(memory, "free_bytes", lambda: 0)
    for record in prepare(root):
        assert (record.height, record.width) == SHAPE
        assert (record.n_instances, record.diameter, record.label_kind) == (2, DIAMETER, "instances")
    assert "Nothing was dropped or doubtful." in report_of(root)


def test_a_slide_in_which_one_pixel_differs_is_not_constant(root, monkeypatch):
    monkeypatch.setattr(windows, "SLIDE_PIXELS", 599)
    monkeypatch.setattr(inspection, "THUMBNAIL", 4)
    flat = np.full(SHAPE, 7, np.uint8)
    windows.write_tiled(root / "images" / "flat.tif", flat)
    flat[5, 5] = 8
    windows.write_tiled(root / "images" / "nearly.tif", flat)
    prepare(root)
    assert "### constant image (1)\n\n- `images/flat.tif`: every pixel is 7; kept" in report_of(root)


def test_one_slide_at_a_time_is_decoded_whole(root, monkeypatch):
    monkeypatch.setattr(windows, "SLIDE_PIXELS", 599)
    for stem in "abcd":
        put(root / "images" / f"{stem}.png")
        put(root / "labels" / f"{stem}.png", TWO_CELLS)
    busy, most = threading.Semaphore(1), []

    def alone(read):
        def read_alone(path):
            most.append(busy.acquire(blocking=False))
            time.sleep(0.01)
            if most[-1]:
                busy.release()
            return read(path)

        return read_alone

    monkeypatch.setattr(inspection, "read_image", alone(inspection.read_image))
    monkeypatch.setattr(inspection, "read_labels", alone(inspection.read_labels))
    prepare(root)
    assert most == [True] * 8


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_pieces_of_a_single_id_are_counted_across_bands(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(inspection, "_BAND_ROWS", rows)
    labels = (np.random.default_rng(rows).random((23, 31)) < 0.3).astype(np.uint8)
    put(tmp_path / "a.tif", labels)
    found = inspection.inspect_labels(tmp_path / "a.tif", tmp_path / "copy.tif")
    assert found.n_pieces == split_disconnected(labels).max() > 10
    assert found.diameters.tolist() == [median_diameter(labels)]
