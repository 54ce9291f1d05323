"""The Data Science Bowl as it is published: one mask a nucleus, run lengths for the test images."""

import csv
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.core import CellsegError
from cellseg.datasets.dsb2018 import decode_runs, group_of, merge_masks, prepare_dsb2018
from cellseg.datasets.index import read_index
from cellseg.images import read_image, read_labels


def encode(mask):
    """Run lengths as the competition writes them: from 1, down the columns."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(int)
    edges = np.flatnonzero(np.diff(flat))
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True))


def write_sample(folder, name, image, labels, *, masks=True):
    """Write an image, and its nuclei as masks, in the order of their ids."""
    (folder / name / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / name / "images" / f"{name}.png"), image)
    if masks:
        (folder / name / "masks").mkdir()
        for number in np.unique(labels[labels > 0]):
            mask = np.where(labels == number, 255, 0).astype(np.uint8)
            cv2.imwrite(str(folder / name / "masks" / f"{number:03}.png"), mask)


LABELS = np.zeros((24, 32), np.int32)
LABELS[2:8, 3:9], LABELS[12:20, 10:20], LABELS[15:18, 22:31] = 1, 2, 3
DARK = np.where(LABELS > 0, 200, 8).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    """Three training images (fluorescence, stained and grey on white), two test images, one of them ignored."""
    root = tmp_path / "dsb2018"
    stain = np.dstack([DARK // 2 + 120, 255 - DARK // 2, 240 - DARK // 4])
    for name, image in (("a", np.dstack([DARK] * 3 + [np.full_like(DARK, 255)])), ("b", stain), ("c", 255 - DARK)):
        write_sample(root / "stage1_train", name, image, LABELS)
    lines = ["ImageId,EncodedPixels,Height,Width,Usage"]
    for name, usage in (("d", "Private"), ("e", "Ignored")):
        write_sample(root / "stage1_test", name, DARK, LABELS, masks=False)
        lines += [f"{name},{encode(number == LABELS)},24,32,{usage}" for number in (3, 1, 2)]
    (root / "stage1_solution.csv").write_text("\n".join(lines) + "\n")
    return root


def same_cells(labels, truth):
    """Whether two label images hold the same cells, whatever their ids."""
    pairs = np.unique(np.stack([labels.ravel(), truth.ravel()]), axis=1)
    return pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


def test_masks_and_run_lengths_become_label_images(root, tmp_path):
    records = {record.id: record for record in read_index(prepare_dsb2018(root, tmp_path / "out"))}
    assert {name: (one.split, one.group) for name, one in records.items()} == {
        "a": ("train", "fluorescence"),
        "b": ("train", "stained"),
        "c": ("train", "brightfield_grey"),
        "d": ("test", "fluorescence"),
        "e": ("unlabelled", "fluorescence"),
    }
    for name in "abcd":
        assert same_cells(read_labels(records[name].labels), LABELS)
        assert records[name].n_instances == 3
        assert records[name].label_kind == "instances"
    assert records["a"].image == root / "stage1_train/a/images/a.png"
    assert records["a"].diameter == pytest.approx(2 * np.sqrt(36 / np.pi), abs=0.01)
    assert "`stage1_test/e`: no mask; moved to 'unlabelled'" in (tmp_path / "out/report.md").read_text()


def test_the_images_that_chose_the_teacher_are_validation_images(root, tmp_path):
    name = "03398329ced0c23b9ac3fac84dd53a87d9ffe4d9d10f1b5fe8df8fac12380776"
    write_sample(root / "stage1_train", name, DARK, LABELS)
    records = read_index(prepare_dsb2018(root, tmp_path / "out"))
    assert [record.id for record in records if record.split == "val"] == [name]


def test_an_archive_with_a_folder_of_its_own_is_read_too(root, tmp_path):
    (root / "inner").mkdir()
    (root / "stage1_train").rename(root / "inner" / "stage1_train")
    (root / "inner").rename(root / "stage1_train")
    (root / "stage1_train" / "__MACOSX" / "a" / "images").mkdir(parents=True)
    (root / "stage1_train" / "__MACOSX" / "a" / "images" / "._a.png").write_bytes(b"no image")
    records = read_index(prepare_dsb2018(root, tmp_path / "out"))
    assert [record.id for record in records if record.split == "train"] == ["a", "b", "c"]


def test_without_test_images_the_solution_is_not_wanted(root, tmp_path):
    shutil.rmtree(root / "stage1_test")
    (root / "stage1_solution.csv").unlink()
    assert {record.split for record in read_index(prepare_dsb2018(root, tmp_path / "out"))} == {"train"}


def test_what_cannot_be_used_is_left_out_and_named(root, tmp_path):
    (root / "stage1_train/a/masks/001.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    cv2.imwrite(str(root / "stage1_train/b/masks/002.png"), np.full((24, 31), 255, np.uint8))
    cv2.imwrite(str(root / "stage1_train/c/masks/004.png"), np.zeros((24, 32), np.uint8))
    index = prepare_dsb2018(root, tmp_path / "out")
    assert [record.id for record in read_index(index)] == ["c", "d", "e"]
    rows = list(csv.DictReader((tmp_path / "out/left_out.csv").open()))
    assert len(rows) == 2
    report = index.with_name("report.md").read_text()
    assert "a mask is (24, 31) but the image (24, 32); left out" in report
    assert "1 of 4 masks are empty or covered by others; left out" in report


def test_a_truth_of_another_size_is_left_out(root, tmp_path):
    solution = root / "stage1_solution.csv"
    solution.write_text(solution.read_text().replace("24,32", "32,24"))
    index = prepare_dsb2018(root, tmp_path / "out")
    assert "d" not in [record.id for record in read_index(index)]
    assert "the truth is 32 × 24 but the image 24 × 32; left out" in index.with_name("report.md").read_text()


def test_images_known_to_be_badly_labelled_are_left_out_without_stopping_anyone(root, tmp_path):
    name = "7b38c9173ebe69b4c6ba7e703c0c27f39305d9b2910f46405993d2ea7a963b80"
    write_sample(root / "stage1_train", name, DARK, LABELS)
    index = prepare_dsb2018(root, tmp_path / "out")
    assert name not in [record.id for record in read_index(index)]
    assert f"`{name}`: no nucleus is annotated; left out" in index.with_name("report.md").read_text()
    assert not index.with_name("left_out.csv").exists()


@pytest.mark.parametrize(
    ("image", "group"),
    [
        (np.zeros((4, 4), bool), "fluorescence"),
        (np.ones((4, 4), bool), "brightfield_grey"),
        (np.full((4, 4), 60_000, np.uint16), "brightfield_grey"),
        (np.full((4, 4, 3), (60_000, 30_000, 60_000), np.uint16), "stained"),
        (np.full((4, 4, 4), (9, 9, 9, 255), np.uint8), "fluorescence"),
    ],
)
def test_the_group_is_told_at_any_depth(image, group):
    assert group_of(image) == group


def test_a_smaller_nucleus_lies_on_top():
    small, large = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    small[2:4, 2:4], large[1:5, 1:5] = True, True
    for masks in ([small, large], [large, small]):
        labels = merge_masks(masks, (6, 6))
        assert labels.dtype == np.int32
        assert (labels[small] == labels[2, 2]).all()
        assert sorted(Counter(labels.ravel().tolist()).values()) == [4, 12, 20]


@given(st.integers(1, 7), st.integers(1, 7), st.randoms(use_true_random=False))
def test_run_lengths_are_those_of_the_competition(height, width, random):
    mask = np.array([random.random() < 0.5 for _ in range(height * width)]).reshape(height, width)
    np.testing.assert_array_equal(decode_runs(encode(mask), (height, width)), mask)


def test_the_first_pixels_run_down_the_first_column():
    assert np.argwhere(decode_runs("1 2 6 1", (4, 3))).tolist() == [[0, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    "text", ["1", "0 3", "1 0", "1 13", "-4 2", "a b", "1.5 2", "9" * 30 + " 1", f"{2**62} {2**62}"]
)
def test_wrong_run_lengths_are_refused(text):
    with pytest.raises(CellsegError, match="run lengths '"):
        decode_runs(text, (4, 3))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.copytree(root / "stage1_train/a", root / "stage1_train/b/a"), "'a' is there twice"),
        (lambda root: shutil.rmtree(root / "stage1_train"), "wanted stage1_train/<id>/images/<id>.png"),
        (lambda root: (root / "stage1_solution.csv").unlink(), "it holds the truth of the images in stage1_test"),
        (lambda root: (root / "stage1_solution.csv").write_text("a,b\n1,2\n"), "wanted columns ImageId, Encoded"),
        (lambda root: (root / "stage1_solution.csv").write_bytes(b"\xff\xfe\x00\x81"), "wanted columns ImageId"),
        (lambda root: (root / "stage1_solution.csv").write_text(""), "wanted columns ImageId"),
    ],
)
def test_errors_say_what_was_wanted(root, tmp_path, spoil, message):
    spoil(root)
    with pytest.raises(CellsegError, match=message):
        prepare_dsb2018(root, tmp_path / "out")


def test_the_real_sample_comes_back(shared_data, tmp_path):
    """Its merged form, taken apart as the set is published, is merged to the same cells, splits and groups."""
    source = shared_data / "dsb2018"
    rows = list(csv.DictReader((source / "index.csv").open()))
    chosen = [row for number, row in enumerate(rows) if number % 50 == 0 or (row["split"] == "val" and number % 7 == 0)]
    for row in chosen:
        name = row["image"].removesuffix(".png")
        labels = read_labels(source / "labels" / f"{name}.tif")
        image = cv2.imread(str(source / "images" / row["image"]), cv2.IMREAD_UNCHANGED)
        write_sample(tmp_path / "dsb2018/stage1_train", name, image, labels)
    records = {record.id: record for record in read_index(prepare_dsb2018(tmp_path / "dsb2018", tmp_path / "out"))}
    for row in chosen:
        record = records[row["image"].removesuffix(".png")]
        assert same_cells(read_labels(record.labels), read_labels(source / "labels" / f"{record.id}.tif"))
        assert (record.group, record.n_instances) == (row["group"], int(row["n_instances"]))
        assert record.split == ("val" if row["split"] == "val" else "train")
        np.testing.assert_array_equal(read_image(record.image), read_image(source / "images" / row["image"]))
