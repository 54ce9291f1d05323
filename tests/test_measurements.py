"""Cells whose size, shape and brightness are known by geometry."""

import math

import numpy as np
import pandas as pd
import pytest

from cellseg.core import CellsegError
from cellseg.outputs import FilePixels, check_table_path, join_cells, measure_cells, open_pixels, write_cells
from cellseg.outputs.measurements import COLUMNS
from cellseg.slides.windows import write_tiled


@pytest.fixture
def labels():
    """A rectangle of 4 x 6 pixels at (3, 5), one pixel in the corner, an L of 3 pixels with a large id."""
    labels = np.zeros((20, 30), np.int32)
    labels[3:7, 5:11] = 4
    labels[0, 0] = 2
    labels[15, 20] = labels[16, 20] = labels[16, 21] = 2**31 - 1
    return labels


def test_sizes_and_shapes_are_those_of_geometry(labels):
    cells = measure_cells(labels, np.zeros(labels.shape, np.uint8), np.array([0.1, 0.2, 0.3]), name="a")
    assert list(cells.columns) == [*COLUMNS, *(f"intensity_{kind}_0" for kind in ("mean", "min", "max", "std"))]
    assert cells["image"].tolist() == ["a"] * 3
    assert cells["label"].tolist() == [2, 4, 2**31 - 1]
    assert cells["score"].tolist() == [0.1, 0.2, 0.3]
    assert cells["area"].tolist() == [1, 24, 3]
    box = cells.iloc[1]
    assert box[["top", "left", "bottom", "right"]].tolist() == [3, 5, 7, 11]
    assert (box["centroid_y"], box["centroid_x"]) == (4.5, 7.5)
    assert box["equivalent_diameter"] == pytest.approx(2 * math.sqrt(24 / math.pi))
    # the centres of n pixels in a row have the variance (n² - 1) / 12
    assert box["eccentricity"] == pytest.approx(math.sqrt(1 - (4**2 - 1) / (6**2 - 1)))
    assert abs(box["orientation"]) == pytest.approx(math.pi / 2)  # long along x
    assert box["solidity"] == 1
    assert cells.iloc[0][["centroid_y", "centroid_x", "eccentricity", "solidity"]].tolist() == [0, 0, 0, 1]
    assert cells.iloc[2]["centroid_x"] == pytest.approx(20 + 1 / 3)


def test_a_cell_long_along_y_points_along_y():
    labels = np.zeros((20, 20), np.int32)
    labels[4:14, 8:10] = 1
    assert measure_cells(labels, labels)["orientation"][0] == pytest.approx(0)


def test_every_channel_of_the_raw_image_is_measured(labels):
    image = np.zeros((*labels.shape, 2), np.uint16)
    image[3:7, 5:8] = (1000, 10)
    image[3:7, 8:11] = (3000, 10)
    image[0, 0] = (60_000, 7)
    cells = measure_cells(labels, image)
    assert cells.filter(regex="_0$").values.tolist()[:2] == [[60_000, 60_000, 60_000, 0], [2000, 1000, 3000, 1000]]
    assert cells.filter(regex="_1$").values.tolist() == [[7, 7, 7, 0], [10, 10, 10, 0], [0, 0, 0, 0]]
    assert cells["score"].isna().all()


def test_flags_count_as_0_and_1_and_a_nan_is_not_hidden(labels):
    half = np.zeros(labels.shape, bool)
    half[3:5] = True
    assert measure_cells(labels, half)["intensity_mean_0"].tolist() == [0, 0.5, 0]
    gap = np.ones(labels.shape, np.float32)
    gap[3, 5] = np.nan
    assert measure_cells(labels, gap)["intensity_mean_0"].isna().tolist() == [False, True, False]


def test_an_image_without_cells_has_a_table_without_rows(tmp_path):
    cells = measure_cells(np.zeros((5, 5), np.int32), np.zeros((5, 5, 3), np.uint8), np.zeros(0), name="a")
    assert cells.shape == (0, len(COLUMNS) + 12)
    for suffix in (".csv", ".parquet"):
        write_cells(tmp_path / f"a{suffix}", cells)
        join_cells([tmp_path / f"a{suffix}"], tmp_path / f"all{suffix}")
    assert list(pd.read_csv(tmp_path / "all.csv").columns) == list(cells.columns)
    assert list(pd.read_parquet(tmp_path / "all.parquet").columns) == list(cells.columns)


def test_a_slide_measured_in_blocks_has_the_table_of_the_whole(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.permutation(60).reshape(6, 10), np.ones((5, 7), np.int32)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.3] = 0
    image = rng.integers(0, 4000, (*labels.shape, 2), dtype=np.uint16)
    scores = np.linspace(0, 1, 59)
    whole = measure_cells(labels, image, scores, name="a")
    monkeypatch.setattr("cellseg.outputs.cells.BAND_ROWS", 8)
    monkeypatch.setattr("cellseg.outputs.cells.BLOCK", 16)
    write_tiled(tmp_path / "labels.tif", labels)
    write_tiled(tmp_path / "image.tif", image)
    files = [FilePixels(tmp_path / name, labels.shape) for name in ("labels.tif", "image.tif")]
    assert isinstance(open_pixels(tmp_path / "image.tif"), np.ndarray)
    monkeypatch.setattr("cellseg.slides.windows.SLIDE_PIXELS", 2000)
    assert open_pixels(tmp_path / "image.tif") == files[1]
    by_block = measure_cells(*files, scores, name="a")
    assert len(whole) == 59
    pd.testing.assert_frame_equal(by_block, whole, rtol=1e-12)


def test_sizes_that_differ_and_wrong_counts_are_refused(labels):
    with pytest.raises(CellsegError, match=r"a: labels are \(20, 30\) but the image is \(30, 20\)"):
        measure_cells(labels, np.zeros((30, 20)), name="a")
    with pytest.raises(CellsegError, match="wanted one score for each of 3 cells, got 2"):
        measure_cells(labels, labels, np.zeros(2))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_are_joined_below_each_other(tmp_path, labels, suffix):
    grey = measure_cells(labels, np.full(labels.shape, 0.1, np.float32), np.full(3, 1 / 3), name="001")
    colour = measure_cells(labels, np.full((*labels.shape, 3), 255, np.uint8), name="NA")
    empty = measure_cells(np.zeros_like(labels), np.zeros(labels.shape, np.uint8), name="none")
    paths = [tmp_path / f"{name}.cells{suffix}" for name in ("none", "001", "NA")]
    for path, cells in zip(paths, (empty, grey, colour), strict=True):
        write_cells(path, cells)
    join_cells(paths, tmp_path / f"cells{suffix}")
    if suffix == ".csv":
        options = {"dtype": {"image": str}, "keep_default_na": False, "na_values": [""]}
        joined = pd.read_csv(tmp_path / "cells.csv", float_precision="round_trip", **options)
    else:
        joined = pd.read_parquet(tmp_path / "cells.parquet")
    assert joined["image"].tolist() == ["001"] * 3 + ["NA"] * 3
    assert joined["label"].tolist() == [2, 4, 2**31 - 1] * 2
    assert list(joined.columns) == list(colour.columns)
    assert np.array_equal(joined["equivalent_diameter"], np.tile(grey["equivalent_diameter"], 2))
    assert joined["score"].tolist()[:3] == [1 / 3] * 3
    assert joined["score"].isna().tolist() == [False] * 3 + [True] * 3
    assert joined["intensity_mean_2"].isna().tolist() == [True] * 3 + [False] * 3
    assert joined["intensity_min_0"].tolist() == [np.float32(0.1)] * 3 + [255] * 3


def test_a_table_is_csv_or_parquet_and_must_be_there(tmp_path):
    assert check_table_path("Cells.CSV") == ".csv"
    with pytest.raises(CellsegError, match=r"cells\.xlsx: wanted a table ending in \.csv or \.parquet"):
        check_table_path("cells.xlsx")
    with pytest.raises(CellsegError, match=r"a\.csv: no such table of cells"):
        join_cells([tmp_path / "a.csv"], tmp_path / "out.csv")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(CellsegError, match=r"out\.parquet: one of the 1 tables cannot be read"):
        join_cells([tmp_path / "a.parquet"], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
