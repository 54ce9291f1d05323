"""``cellseg predict --format … --measure …``: files beside the label images, and one table of all."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import roifile
import tifffile
import torch
from fakes import Reader, four_disks, image_of
from typer.testing import CliRunner

from cellseg.cli import app
from cellseg.cli.predicting import expand
from cellseg.config import ModelConfig, NormalizeConfig, PredictConfig
from cellseg.core import CellsegError
from cellseg.images import read_labels
from cellseg.predict import Segmenter


@pytest.fixture
def images(tmp_path, monkeypatch):
    """One image with four disks and one without any, and a network that reads them off."""
    config = ModelConfig(representation="distance", normalize=NormalizeConfig(rule="none"))
    reader = Segmenter(Reader(), config, PredictConfig(), torch.device("cpu"), {"diameter": config.reference_diameter})
    monkeypatch.setattr("cellseg.predict.load", lambda *_, **__: reader)
    folder = tmp_path / "images"
    folder.mkdir()
    tifffile.imwrite(folder / "full.tif", image_of(four_disks()), photometric="rgb")
    tifffile.imwrite(folder / "none.tif", image_of(np.zeros((40, 50), np.int32)), photometric="rgb")
    return folder


def predict(images, *options):
    """Run the command with what shows the cells as large as they are."""
    arguments = ["predict", images, "--out", images.parent / "out", "--diameter", ModelConfig().reference_diameter]
    return CliRunner().invoke(app, [*map(str, arguments), *map(str, options)], catch_exceptions=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_outlines_and_tables_of_a_folder(images, tmp_path, suffix):
    table = tmp_path / f"cells.{suffix}"
    done = predict(images, "--format", "geojson,roi,png", "--measure", table)
    assert done.exit_code == 0, done.output
    out = tmp_path / "out"
    endings = [f"cells.{suffix}", "geojson", "overlay.png", "rois.zip", "scores.csv", "tif"]
    assert names(out) == [f"{name}.{ending}" for name in ("full", "none") for ending in endings]
    assert np.array_equal(read_labels(out / "full.tif"), four_disks())
    features = json.loads((out / "full.geojson").read_text())["features"]
    assert [feature["properties"]["name"] for feature in features] == ["1", "2", "3", "4"]
    assert [roi.name for roi in roifile.roiread(out / "full.rois.zip")] == ["000001", "000002", "000003", "000004"]
    cells = pd.read_csv(table) if suffix == "csv" else pd.read_parquet(table)
    assert cells["image"].tolist() == ["full"] * 4  # the other has no cell
    assert cells["area"].tolist() == np.bincount(four_disks().ravel())[1:].tolist()
    scores = pd.read_csv(out / "full.scores.csv")["score"]
    assert scores.tolist() == [float(f"{score:.9g}") for score in cells["score"]]
    assert features[0]["properties"]["measurements"]["score"] == pytest.approx(scores[0], rel=1e-6)
    raw = tifffile.imread(images / "full.tif")
    assert cells["intensity_max_1"][0] == raw[..., 1][four_disks() == 1].max()
    assert str(table) in done.output


def test_outlines_alone_and_one_format_at_a_time(images, tmp_path):
    done = predict(images / "full.tif", "--format", "tif", "--format", "geojson", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert names(tmp_path / "out") == ["full.geojson", "full.scores.csv", "full.tif"]


def test_what_cellpose_leaves_beside_images_is_not_segmented(images, tmp_path):
    for ending in ("masks.tif", "cp_masks.png", "flows.tif", "outlines.png"):
        (images / f"full_{ending}").write_bytes((images / "full.tif").read_bytes())
    np.save(images / "full_seg.npy", np.zeros(3))
    done = predict(images)
    assert done.exit_code == 0, done.output
    assert "images: 4 of 6 files are labels or results by the ends of their names and left out: full_cp" in done.stderr
    assert names(tmp_path / "out") == ["full.scores.csv", "full.tif", "none.scores.csv", "none.tif"]
    assert [name for name, _ in expand([images / "full_masks.tif"])] == ["full_masks"]  # as it was named itself
    for name in ("full", "none"):
        (images / f"{name}.tif").unlink()
    with pytest.raises(CellsegError, match="no image found"):
        expand([images])


def test_labels_and_scores_alone_by_default(images, tmp_path):
    assert predict(images).exit_code == 0
    assert names(tmp_path / "out") == ["full.scores.csv", "full.tif", "none.scores.csv", "none.tif"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "svg"], "unknown format 'svg'"),
        (["--format", "geojson,"], "unknown format ''"),
        (["--measure", "cells.xlsx"], "cells.xlsx: wanted a table ending in .csv or .parquet"),
    ],
)
def test_a_wrong_wish_is_refused_before_the_work(images, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("cellseg.predict.load", None)
    done = predict(images, *options)
    assert isinstance(done.exception, CellsegError)
    assert re.search(re.escape(message), str(done.exception))
    assert not (tmp_path / "out").exists()
