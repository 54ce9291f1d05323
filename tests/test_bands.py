"""Label images read and scored by bands of rows: the same as whole, and never more than a band at a time."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import tifffile

from cellseg.core import CellsegError
from cellseg.evaluate import evaluate, find_pairs, score_pairs
from cellseg.images import read_labels
from cellseg.metrics import match, overlap, rules
from cellseg.metrics.overlap import overlap_bands
from cellseg.metrics.rules import band_rows, match_neurips_bands
from cellseg.slides import bands as module
from cellseg.slides.bands import open_labels

HEIGHT, WIDTH = 101, 67
LAYOUTS = ({}, {"tile": (32, 16)}, {"tile": (16, 48)}, {"rowsperstrip": 7}, {"rowsperstrip": HEIGHT})


@pytest.fixture
def slides(monkeypatch):
    """Every image is large, and read eight rows at a time."""
    monkeypatch.setattr(module, "LARGE_PIXELS", 1)
    monkeypatch.setattr(module, "BAND_ROWS", 8)
    monkeypatch.setattr("cellseg.evaluate.BAND_ROWS", 8)


def pair(seed=0):
    """Random boxes, many over several bands, and a shifted and damaged copy with ids above 65,535."""
    rng = np.random.default_rng(seed)
    true = np.zeros((HEIGHT, WIDTH), np.uint32)
    for index in range(1, 80):
        top, left = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        true[top : top + rng.integers(2, 20), left : left + rng.integers(2, 12)] = index
    pred = np.roll(true, 1, 0) * 1000
    pred[rng.random(pred.shape) < 0.05] = 3
    return true, pred


def bands(true, pred, rows):
    return [(true[top : top + rows], pred[top : top + rows]) for top in range(0, len(true), rows)]


# ---- the same as whole


@pytest.mark.parametrize("rows", [1, 7, 50, 200])
def test_bands_give_the_table_of_the_whole(rows, monkeypatch):
    true, pred = pair()
    whole = overlap(true, pred)
    monkeypatch.setattr(
        sys.modules["cellseg.metrics.overlap"], "HELD_PAIRS", 20
    )  # the package has a function of this name
    table = overlap_bands(bands(true, pred, rows))
    for name in ("ids_true", "ids_pred", "area_true", "area_pred", "pair_true", "pair_pred", "intersection"):
        np.testing.assert_array_equal(getattr(table, name), getattr(whole, name))
    assert whole.n_true > 40


def test_no_bands_are_no_cells():
    assert (overlap_bands([]).n_true, overlap_bands([]).n_pred) == (0, 0)


def test_bands_of_different_shape_are_refused():
    with pytest.raises(CellsegError, match=r"\(2, 3\).*\(2, 4\)"):
        overlap_bands([(np.zeros((2, 3), int), np.zeros((2, 4), int))])


@pytest.mark.parametrize("large", [True, False])
def test_the_neurips_rule_from_bands(large, monkeypatch):
    monkeypatch.setattr(rules, "LARGE_PIXELS", 1000 if large else 10**9)
    monkeypatch.setattr(rules, "PATCH", 20)
    true, pred = pair()
    rows = band_rows(true.shape)
    assert rows == (20 if large else HEIGHT)
    counts = match_neurips_bands(bands(true, pred, rows), true.shape)
    assert counts == match(true, pred, rule="neurips")
    assert counts[0].tp > 5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_every_layout_reads_as_whole(layout, compression, slides, tmp_path):
    true, _ = pair()
    for dtype, byteorder in itertools.product((np.uint8, np.int16, np.uint32, np.float32), "<>"):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, true.astype(dtype), compression=compression, byteorder=byteorder, **layout)
        source = open_labels(path)
        assert source.labels is None
        read = list(source.bands(13))
        assert [len(band) for band in read] == [13] * 7 + [10]
        assert {band.dtype for band in read} == {np.dtype(np.int32)}
        np.testing.assert_array_equal(np.concatenate(read), read_labels(path))


@pytest.mark.parametrize("rule", ["strict", "neurips"])
def test_files_cut_differently_score_as_whole(rule, slides, tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(rules, "PATCH", 20)
    true, pred = pair()
    for folder in ("true", "pred"):
        (tmp_path / folder).mkdir()
    for name, layout in zip("abcde", LAYOUTS, strict=True):
        tifffile.imwrite(tmp_path / "true" / f"{name}.tif", true, compression="zlib", **LAYOUTS[1])
        tifffile.imwrite(tmp_path / "pred" / f"{name}.tif", pred, compression="lzw", **layout)
    scores = evaluate(tmp_path / "true", tmp_path / "pred", rule=rule)
    expected = match(true, pred, rule="neurips" if rule == "neurips" else "plain")
    for _, rows in scores.groupby("image"):
        assert rows["tp"].tolist() == [count.tp for count in expected]
        assert rows["fp"].tolist() == [count.fp for count in expected]
        assert rows["fn"].tolist() == [count.fn for count in expected]
        assert rows["iou_sum"].tolist() == [count.iou_sum for count in expected]


def test_details_from_bands_equal_those_of_the_whole(tmp_path, monkeypatch):
    true, pred = pair()
    for folder, labels in (("true", true), ("pred", pred)):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", labels, compression="zlib", tile=(16, 16))
    pairs = find_pairs(tmp_path / "true", tmp_path / "pred")
    whole = score_pairs(pairs)[1]
    monkeypatch.setattr(module, "LARGE_PIXELS", 1)
    monkeypatch.setattr("cellseg.evaluate.BAND_ROWS", 8)
    assert score_pairs(pairs)[1].equals(whole)


# ---- never more than a band


@pytest.mark.parametrize(("rule", "rows"), [("strict", 8), ("neurips", 20)])
def test_no_band_is_higher_than_it_needs_to_be(rule, rows, slides, tmp_path, monkeypatch):
    """The largest arrays that reach the counting are one band, ``rows`` rows of int32."""
    monkeypatch.setattr(rules, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(rules, "PATCH", 20)
    true, pred = pair()
    for folder, labels in (("true", true), ("pred", pred)):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", labels, compression="zlib", tile=(16, 16))
    sizes = []
    read = module.LabelFile.bands

    def watched(self, *arguments):
        for band in read(self, *arguments):
            base = band if band.base is None else band.base
            sizes.append(base.nbytes)
            yield band

    windows = []
    read_window = module.read_label_window

    def watched_window(path, rows, columns):
        windows.append(rows.stop - rows.start)
        return read_window(path, rows, columns)

    monkeypatch.setattr(module.LabelFile, "bands", watched)
    monkeypatch.setattr(module, "read_label_window", watched_window)
    monkeypatch.setattr(module, "read_labels", None)
    evaluate(tmp_path / "true", tmp_path / "pred", rule=rule)
    assert max(sizes) == rows * WIDTH * 4
    assert sum(sizes) == 2 * HEIGHT * WIDTH * 4
    assert max(windows) == 8


# ---- what cannot be read in bands


def test_a_large_file_in_one_strip_is_decoded_whole_and_said(slides, tmp_path, monkeypatch):
    monkeypatch.setattr("cellseg.slides.windows.MAX_SEGMENT_BYTES", 1000)
    true, _ = pair()
    tifffile.imwrite(tmp_path / "a.tif", true, compression="zlib", rowsperstrip=HEIGHT)
    with pytest.warns(UserWarning, match=r"a\.tif: cannot be read in parts.*tiled"):
        source = open_labels(tmp_path / "a.tif")
    assert source.labels is not None
    np.testing.assert_array_equal(np.concatenate(list(source.bands(13))), true)


def test_small_images_and_npy_are_read_whole(tmp_path):
    true, _ = pair()
    tifffile.imwrite(tmp_path / "a.tif", true)
    np.save(tmp_path / "a.npy", true)
    for name in ("a.tif", "a.npy"):
        source = open_labels(tmp_path / name)
        assert source.shape == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(source.labels, true)


def test_a_prediction_damaged_halfway_scores_0_and_is_named(slides, tmp_path):
    true, _ = pair()
    for folder in ("true", "pred"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", true, compression="zlib", tile=(16, 16))
    path = tmp_path / "pred" / "a.tif"
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = b"\xff" * size
    path.write_bytes(content)
    scores = evaluate(tmp_path / "true", tmp_path / "pred", thresholds=(0.5,))
    cells = len(np.unique(true)) - 1
    assert scores[["tp", "fp", "fn"]].to_numpy().tolist() == [[0, 0, cells]]
    assert scores["status"].iloc[0].startswith("unreadable: a.tif: cannot be read")
    with pytest.raises(CellsegError, match=r"pred.a\.tif: cannot be read"):
        evaluate(tmp_path / "pred", tmp_path / "true")


def test_negative_ids_in_a_late_band_are_found(slides, tmp_path):
    true = pair()[0].astype(np.int32)
    true[-1, -1] = -7
    tifffile.imwrite(tmp_path / "a.tif", true, compression="zlib", rowsperstrip=5)
    with pytest.raises(CellsegError, match=r"a\.tif: labels must not be negative, the lowest is -7"):
        list(open_labels(tmp_path / "a.tif").bands(13))
