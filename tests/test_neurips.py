"""The challenge's folders become an index, and of each folder only what the organisers meant is used."""

import csv
from collections import Counter

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from cellseg.core import CellsegError
from cellseg.datasets.index import read_index
from cellseg.datasets.inspection import unwrap_ids
from cellseg.datasets.neurips import prepare_neurips
from cellseg.datasets.synthetic_neurips import FORMS, draw_slide, write_synthetic_neurips
from cellseg.images import read_image, read_labels
from cellseg.slides import windows

SHAPE = (40, 50)


def put_image(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(2000, dtype=np.uint16).reshape(SHAPE) if array is None else array
    if path.suffix in (".tif", ".tiff"):
        contig = {"planarconfig": "contig"} if array.ndim == 3 else {}
        tifffile.imwrite(path, array, photometric="rgb" if array.shape[2:] == (3,) else "minisblack", **contig)
    else:
        Pillow.fromarray(array).save(path)


def put_labels(path, labels=None):
    """Two cells of 16 and 36 pixels, as the organisers store them."""
    if labels is None:
        labels = np.zeros(SHAPE, np.int16)
        labels[2:6, 2:6], labels[20:26, 30:36] = 3, 7
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, labels, compression="zlib")


def prepare(root, **options):
    index = prepare_neurips(root, root.parent / "out", **options)
    return {record.id: record for record in read_index(index)}


def report_of(root):
    return (root.parent / "out" / "report.md").read_text()


def files_of(root):
    with (root.parent / "out" / "files.csv").open() as handle:
        return {row["id"]: row for row in csv.DictReader(handle)}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "challenge"


LAYOUT = {
    "Training-labeled/images": ("train", "cell_1", True),
    "Tuning/images": ("val", "tuning_cell_1", True),
    "Testing/Public/images": ("test", "test_cell_1", True),
    "Testing/Public/WSI": ("test", "testwsi_cell_1", True),
    "Testing/Hidden/images": ("test", "hidden_cell_1", False),
    "release-part1": ("unlabelled", "part1_cell_1", False),
    "train-unlabeled-part2": ("unlabelled", "part2_cell_1", False),
}


def test_every_part_of_the_archives_is_found_by_name(root):
    for folder, (_, _, labelled) in LAYOUT.items():
        put_image(root / folder / "cell_1.png")
        labels = "WSI-labels" if folder.endswith("WSI") else "labels"
        if labelled:
            put_labels((root / folder).parent / labels / "cell_1_label.tiff")
    # What the test archive ships beside the images is the winner's prediction.
    for folder in ("Public/1st_osilab_seg", "Public/osilab_seg_WSI", "Hidden/osilab_seg"):
        put_labels(root / "Testing" / folder / "cell_1_label.tiff", np.ones(SHAPE, np.int16))
    records = prepare(root)
    assert {(r.split, name, r.has_labels) for name, r in records.items()} == set(LAYOUT.values())
    for record in records.values():
        if record.has_labels:
            assert (record.n_instances, record.label_kind) == (2, "instances")
            assert np.unique(read_labels(record.labels)).tolist() == [0, 3, 7]
    assert "### not truth (3)" in report_of(root)


@pytest.mark.parametrize(
    "folder", ["Train_Labeled/images", "deep/er/Training-labeled/images", "TRAINING-LABELED/images", "images"]
)
def test_older_and_other_places(root, folder):
    put_image(root / folder / "cell_1.png")
    put_labels(root / folder / "../labels/cell_1_label.tiff")
    (record,) = prepare(root).values()
    assert (record.id, record.split, record.n_instances) == ("cell_1", "train", 2)
    assert record.diameter == round((4 + 6) / np.sqrt(np.pi), 2)  # mean of 2 √(16/π) and 2 √(36/π)


def test_the_root_may_be_one_part(root):
    put_image(root / "Tuning" / "images" / "cell_1.png")
    put_labels(root / "Tuning" / "labels" / "cell_1_label.tiff")
    assert list(prepare(root / "Tuning")) == ["tuning_cell_1"]
    put_image(root / "release-part1" / "u.png")
    assert list(prepare(root / "release-part1")) == ["part1_u"]


def test_labels_are_found_by_stem_and_not_by_order(root):
    images = root / "Training-labeled" / "images"
    for name in ("a.png", "b.ome.tif", "c.bmp"):
        put_image(images / name, np.zeros(SHAPE, np.uint8))
    put_labels(images / "../labels/b_label.tiff")
    put_labels(images / "../labels/c_label.tiff", np.ones(SHAPE, np.int16))
    put_labels(images / "../labels/d_label.tiff")
    records = prepare(root)
    assert {n: (r.split, r.n_instances) for n, r in records.items()} == {
        "a": ("unlabelled", None),
        "b": ("train", 2),
        "c": ("train", 1),
    }
    text = report_of(root)
    assert "### labels without image (1)" in text and "labels/d_label.tiff" in text
    assert "### no labels (1)" in text


IMAGES = {
    "grey8.png": np.arange(2000, dtype=np.uint16).reshape(SHAPE).astype(np.uint8),
    "grey16.tif": np.full(SHAPE, 40_000, np.uint16),
    "rgb.bmp": np.arange(6000, dtype=np.uint16).reshape(*SHAPE, 3).astype(np.uint8),
    "rgb.jpg": np.full((*SHAPE, 3), 90, np.uint8),
    "rgba.png": np.full((*SHAPE, 4), 90, np.uint8),
    "two.tiff": np.full((*SHAPE, 2), 900, np.uint16),
}


def test_every_form_of_image_is_listed_as_it_is(root):
    for number, (name, array) in enumerate(IMAGES.items()):
        put_image(root / "release-part1" / f"{number}_{name}", array)
    records, files = prepare(root), files_of(root)
    for number, (name, array) in enumerate(IMAGES.items()):
        found = files[f"part1_{number}_{name.split('.')[0]}"]
        channels = array.shape[2] if array.ndim == 3 else 1
        assert (found["dtype"], int(found["channels"])) == (str(array.dtype), channels)
        assert (int(found["height"]), int(found["width"])) == SHAPE
    assert len(records) == len(IMAGES)
    assert "1 × TIF uint16, 2 channels, 40 x 50" in report_of(root)


@pytest.mark.parametrize("name", ["cut.png", "cut.tif", "cut.jpg", "cut.bmp"])
def test_files_that_were_cut_short_are_named_and_left_out(root, name):
    rng = np.random.default_rng(0)
    put_image(root / "release-part1" / name, rng.integers(0, 255, (90, 90, 3), dtype=np.uint8))
    content = (root / "release-part1" / name).read_bytes()
    (root / "release-part1" / name).write_bytes(content[: len(content) // 2])
    (root / "release-part1" / "empty.png").write_bytes(b"")
    put_image(root / "release-part1" / "whole.png")
    assert list(prepare(root)) == ["part1_whole"]
    text = report_of(root)
    assert "### unreadable image (2)" in text
    assert f"release-part1/{name}" in text and "release-part1/empty.png" in text


def test_ids_that_wrapped_in_16_bits_are_put_right(root):
    ids = np.arange(1, 2001, dtype=np.int32).reshape(SHAPE) * 20  # up to 40,000
    put_image(root / "Training-labeled" / "images" / "cell_1.png")
    put_labels(root / "Training-labeled" / "labels" / "cell_1_label.tiff", ids.astype(np.uint16).view(np.int16))
    (record,) = prepare(root).values()
    np.testing.assert_array_equal(read_labels(record.labels), ids)
    assert record.n_instances == 2000
    wrapped = sum(one > 32_767 for one in range(20, 40_001, 20))
    assert f"### wrapped ids (1)\n\n- `Training-labeled/labels/cell_1_label.tiff`: {wrapped} ids" in report_of(root)


def test_only_16_bit_labels_wrap():
    with pytest.raises(CellsegError, match="a: labels must not be negative, the lowest is -1"):
        unwrap_ids(np.array([[-1, 0]], np.int32), "a")
    labels, n_wrapped = unwrap_ids(np.array([[-1, 0], [-32768, 5]], np.int16), "a")
    assert (labels.tolist(), n_wrapped) == ([[65535, 0], [32768, 5]], 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((9, 9), np.int16), r"labels are \(9, 9\) but the image is \(40, 50\)"),
        (np.full(SHAPE, 0.5, np.float32), "with fractions"),
        (np.zeros((*SHAPE, 3), np.uint8), r"wanted labels of shape \(height, width\)"),
    ],
)
def test_an_image_with_unusable_labels_is_kept_without(root, labels, message):
    import re

    for name in ("cell_1", "cell_2"):
        put_image(root / "Training-labeled" / "images" / f"{name}.png")
    put_labels(root / "Training-labeled" / "labels" / "cell_1_label.tiff", labels)
    put_labels(root / "Training-labeled" / "labels" / "cell_2_label.tiff")
    records = prepare(root)
    assert {n: (r.split, r.label_kind) for n, r in records.items()} == {
        "cell_1": ("unlabelled", ""),
        "cell_2": ("train", "instances"),
    }
    assert "### unusable labels (1)" in report_of(root)
    assert re.search(message, report_of(root))


def test_foreground_masks_are_weak_labels_and_instances_win(root):
    for name in ("a", "b"):
        put_image(root / "images" / f"{name}.png")
        put_image(root / "foreground_masks" / f"{name}.png", np.eye(*SHAPE, dtype=np.uint8) * 255)
    put_labels(root / "labels" / "b_label.tiff")
    records = prepare(root)
    assert {n: (r.label_kind, r.n_instances, r.diameter is None) for n, r in records.items()} == {
        "a": ("foreground", None, True),
        "b": ("instances", 2, False),
    }
    np.testing.assert_array_equal(read_labels(records["a"].labels), np.eye(*SHAPE, dtype=np.int32))


def test_partly_labelled_images_are_marked(root):
    for name in ("cell_1", "cell_2"):
        put_image(root / "Training-labeled" / "images" / f"{name}.png")
        put_labels(root / "Training-labeled" / "labels" / f"{name}_label.tiff")
    put_image(root / "release-part1" / "u.png")
    kinds = {name: record.label_kind for name, record in prepare(root, partial="cell_2").items()}
    assert kinds == {"cell_1": "instances", "cell_2": "partial", "part1_u": ""}
    with pytest.raises(CellsegError, match="--partial names 'u', of which there are no instance labels"):
        prepare(root, partial="u")


def test_what_the_user_knows_of_modalities_counts(root):
    for name in ("a", "b", "c"):
        put_image(root / "release-part1" / f"{name}.png")
    (root / "m.csv").write_text("stem,modality\na,DIC\npart1_b,phase\nz,DIC\n")
    records = prepare(root, modalities=root / "m.csv")
    assert {name: record.group for name, record in records.items()} == {
        "part1_a": "DIC",
        "part1_b": "phase",
        "part1_c": "inferred-01",
    }
    assert "### modality of no image (1)\n\n- `z`" in report_of(root)


def test_two_images_of_one_stem(root):
    put_image(root / "release-part1" / "a.png")
    put_image(root / "release-part1" / "a.tif")
    (record,) = prepare(root).values()
    assert record.image.name == "a.png"
    assert "### repeated stem (1)" in report_of(root)


def test_the_output_may_be_the_root_unless_its_labels_are_the_source(root):
    put_image(root / "Tuning" / "images" / "a.png")
    put_labels(root / "Tuning" / "labels" / "a_label.tiff")
    assert read_index(prepare_neurips(root, root)) == read_index(prepare_neurips(root, root))
    put_image(root.parent / "plain" / "images" / "a.png")
    with pytest.raises(CellsegError, match="choose another output folder"):
        prepare_neurips(root.parent / "plain", root.parent / "plain")


def test_a_folder_of_something_else_is_refused(root):
    put_image(root / "pictures" / "a.png")
    with pytest.raises(CellsegError, match="challenge: wanted Training-labeled/"):
        prepare(root)
    with pytest.raises(CellsegError, match="is not a folder; run 'cellseg download neurips'"):
        prepare(root / "none")
    with pytest.raises(CellsegError, match="--clusters 0"):
        put_image(root / "release-part1" / "a.png")
        prepare(root, clusters=0)


# --- slides ---------------------------------------------------------------------------------------------------------


def test_a_slide_without_windows_is_copied_in_tiles(root, monkeypatch):
    monkeypatch.setattr(windows, "SLIDE_PIXELS", 500 * 600 - 1)
    image, labels = draw_slide(1, "x", (500, 600))
    ids = labels.astype(np.uint16).view(np.int16)
    images = root / "Training-labeled" / "images"
    put_image(images / "png.png", image)
    put_image(images / "raw.tif", image)
    for stem in ("png", "raw"):
        put_labels(images / f"../labels/{stem}_label.tiff", ids)
    records = prepare(root)
    assert records["png"].image == root.parent / "out" / "tiled" / "png.tif"
    assert records["raw"].image == images / "raw.tif"  # uncompressed: windows are read from the file itself
    for record in records.values():
        assert windows.has_windows(record.image) and windows.has_windows(record.labels)
        np.testing.assert_array_equal(read_image(record.image), image)
        np.testing.assert_array_equal(read_labels(record.labels), labels)
        assert record.n_instances == len(np.unique(labels)) - 1
    assert "### tiled copy (1)\n\n- `Training-labeled/images/png.png`: 500 x 600 pixels" in report_of(root)
    assert "2 too large to be held whole" in report_of(root)


# --- the synthetic form ---------------------------------------------------------------------------------------------

COUNTS = {"n_train": 5, "n_weak": 5, "n_tuning": 7, "n_test": 7, "n_unlabelled": 7, "size": (128, 160)}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return write_synthetic_neurips(tmp_path_factory.mktemp("made") / "up", seed=3, slide=(700, 900), **COUNTS)


def test_the_synthetic_form_is_prepared_as_the_real_one(synthetic):
    records = prepare(synthetic, dataset="synthetic_neurips")
    counts = Counter((r.split, r.label_kind) for r in records.values())
    assert counts == {
        ("train", "instances"): 5 + 1,  # and the slide
        ("train", "foreground"): 5,
        ("val", "instances"): 7,
        ("test", "instances"): 7 + 1,
        ("test", ""): 7,
        ("unlabelled", ""): 7 + 1,
    }
    text = report_of(synthetic)
    assert "### unreadable image (1)\n\n- `release-part1/unlabeled_cell_00504.png`" in text
    assert "### not truth (2)" in text
    assert "synthetic" in text and "licence" not in text
    assert {row["label_dtype"] for row in files_of(synthetic).values()} == {"int16", "uint8", ""}


def test_groups_follow_the_looks_of_the_synthetic_images(synthetic):
    with (synthetic / "modalities.csv").open() as handle:
        true = {row["stem"]: FORMS.get(row["modality"], ("brightfield",))[0] for row in csv.DictReader(handle)}
    records = prepare(synthetic, clusters=6)
    together: dict[str, Counter] = {}
    for name, record in records.items():
        together.setdefault(record.group, Counter())[true[name]] += 1
    assert sum(max(found.values()) for found in together.values()) / len(records) >= 0.95
    assert prepare(synthetic, clusters=6) == records
    known = prepare(synthetic, modalities=synthetic / "modalities.csv")
    assert {record.group for record in known.values()} == {*FORMS, "stained slide"}


def test_the_synthetic_form_is_a_function_of_its_seed(synthetic, tmp_path):
    again = write_synthetic_neurips(tmp_path / "again", seed=3, slide=(700, 900), **COUNTS)
    files = [path.relative_to(synthetic) for path in synthetic.rglob("*") if path.is_file()]
    assert len(files) > 60
    assert all((again / name).read_bytes() == (synthetic / name).read_bytes() for name in files)
    fewer = write_synthetic_neurips(tmp_path / "few", seed=3, slide=None, **(COUNTS | {"n_train": 1, "n_weak": 0}))
    name = "Training-labeled/images/cell_00001.tif"
    assert (fewer / name).read_bytes() == (synthetic / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_weak": -1}, "n_weak must be from 0 to 500"),
        ({"size": (20, 90)}, "synthetic images must be at least 64"),
        ({"slide": (20, 90)}, "synthetic slides must be at least 64"),
    ],
)
def test_mistakes_are_named(tmp_path, options, message):
    with pytest.raises(CellsegError, match=message):
        write_synthetic_neurips(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


# --- the real sample ------------------------------------------------------------------------------------------------


def test_the_real_sample(shared_data, tmp_path):
    from skimage.io import imread

    source = shared_data / "neurips2022"
    index = prepare_neurips(source, tmp_path / "out")
    records = {record.id: record for record in read_index(index)}
    assert Counter((r.split, r.label_kind) for r in records.values()) == {
        ("train", "instances"): 3,
        ("unlabelled", ""): 2,
    }
    with (tmp_path / "out" / "files.csv").open() as handle:
        files = {row["id"]: row for row in csv.DictReader(handle)}
    for name, record in records.items():
        path = source / files[name]["file"]
        image = tifffile.imread(path) if path.suffix.startswith(".tif") else imread(path)
        assert (record.height, record.width) == image.shape[:2]
        assert files[name]["dtype"] == str(image.dtype)
        assert int(files[name]["channels"]) == (image.shape[2] if image.ndim == 3 else 1)
        if record.has_labels:
            labels = tifffile.imread(source / "Training-labeled" / "labels" / f"{name}_label.tiff")
            assert files[name]["label_dtype"] == str(labels.dtype) == "int16"
            assert record.n_instances == len(np.unique(labels[labels != 0])) == len(np.unique(labels)) - 1
            np.testing.assert_array_equal(tifffile.imread(record.labels), labels)
    assert "Nothing was dropped or doubtful" in (tmp_path / "out" / "report.md").read_text()


def test_the_real_weak_sample(shared_data, tmp_path):
    source = shared_data / "neurips2022_weak"
    records = read_index(prepare_neurips(source, tmp_path / "out"))
    assert len(records) == len(list((source / "foreground_masks").iterdir())) == 13
    for record in records:
        mask = read_image(source / "foreground_masks" / f"{record.id}.png") > 0
        assert (record.label_kind, record.n_instances, record.split) == ("foreground", None, "train")
        np.testing.assert_array_equal(read_labels(record.labels), mask)
    # Two microscopes, and no group mixes them.
    looks = {(record.group, record.id.split("_")[0]) for record in records}
    assert len(looks) == len({group for group, _ in looks})


# --- the command ----------------------------------------------------------------------------------------------------


def test_an_option_that_would_do_nothing_is_refused(tmp_path):
    from cellseg.cli.data import prepare as command

    for dataset, options, message in [
        ("livecell", {"partial": "a"}, "prepare livecell: --partial has no meaning there"),
        ("folder", {"clusters": 3}, "prepare folder: --clusters has no meaning there"),
        ("neurips", {"val_fraction": 0.1}, "prepare neurips: --val-fraction has no meaning there"),
    ]:
        with pytest.raises(CellsegError, match=message):
            command(dataset, tmp_path / "in", tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
