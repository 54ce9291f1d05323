"""One bad image among many is named, counted and, by ``--on-error``, left out or fatal."""

import csv

import numpy as np
import pytest
import tifffile
import torch
from fakes import Reader, four_disks, image_of
from typer.testing import CliRunner

from cellseg.cli import app
from cellseg.config import ModelConfig, NormalizeConfig, PredictConfig, check_config
from cellseg.core import CellsegError
from cellseg.datasets.folder import prepare_folder
from cellseg.datasets.index import read_index, select
from cellseg.datasets.left_out import NAME, count_left_out
from cellseg.datasets.unreadable import without_unreadable
from cellseg.images import write_labels
from cellseg.predict import Segmenter


def command(*words):
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=True)


@pytest.fixture
def folder(tmp_path):
    """Three images with labels: the second image is damaged, the labels of the third have another size."""
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    for name in "abc":
        tifffile.imwrite(root / "images" / f"{name}.tif", np.arange(48 * 64, dtype=np.uint16).reshape(48, 64))
        write_labels(root / "labels" / f"{name}.tif", four_disks()[: 48 if name != "c" else 40, :64])
    (root / "images" / "b.tif").write_bytes(b"II*\0 cut short")
    return root


# --- prepare --------------------------------------------------------------------------------------------------------


def test_prepare_stops_by_default_and_leaves_a_list_and_no_index(folder, tmp_path):
    done = command("prepare", "folder", "--root", folder, "--out", tmp_path / "out")
    assert isinstance(done.exception, CellsegError)
    assert str(done.exception).startswith(
        "2 images or label files cannot be used, and no index is written; all are in "
    )
    assert "images/b.tif" in str(done.exception) and "--on-error skip" in str(done.exception)
    assert not (tmp_path / "out" / "index.csv").exists()
    with (tmp_path / "out" / NAME).open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["file"], row["kind"]) for row in rows] == [
        ("images/b.tif", "unreadable"),
        ("images/c.tif", "size mismatch"),
    ]


def test_prepare_that_may_skip_counts_what_it_left_out(folder, tmp_path):
    done = command("prepare", "folder", "--root", folder, "--out", tmp_path / "out", "--on-error", "skip")
    assert done.exit_code == 0, done.output
    assert "2 images or label files cannot be used and are left out" in done.stderr
    assert [record.id for record in read_index(tmp_path / "out")] == ["a"]


def test_the_list_goes_when_all_is_well_again(folder, tmp_path):
    index = prepare_folder(folder, tmp_path / "out")
    assert count_left_out(index)[0] == 2
    for name in "bc":
        (folder / "images" / f"{name}.tif").unlink()
    assert count_left_out(prepare_folder(folder, tmp_path / "out")) == (0, "")
    assert not (tmp_path / "out" / NAME).exists()
    done = command("prepare", "folder", "--root", folder, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output


# --- train ----------------------------------------------------------------------------------------------------------


def test_a_run_says_which_images_it_does_without(folder, tmp_path):
    for name in "bc":
        tifffile.imwrite(folder / "images" / f"{name}.tif", np.zeros((48, 64), np.uint8))
    write_labels(folder / "labels" / "c.tif", four_disks()[:48, :64])
    index = str(prepare_folder(folder, tmp_path / "out"))
    run = check_config({"data": {"train": [{"index": index, "without": ["a"]}], "unlabelled": [{"index": index}]}})
    assert without_unreadable(run) == (run, [])
    (folder / "images" / "b.tif").write_bytes(b"II*\0 cut short")
    tifffile.imwrite(folder / "labels" / "c.tif", np.zeros((5, 6), np.uint8))
    changed, problems = without_unreadable(run)
    assert changed.data.train[0].without == ("a", "b", "c")
    assert [record.id for record in select(changed.data.unlabelled[0])] == ["a"]
    assert len(problems) == 2 and "b.tif: cannot be read" in problems[0]
    assert problems[1].endswith("labels/c.tif: is (5, 6), but the index says (48, 64)")


def test_training_stops_at_an_unreadable_image_by_default(folder, tmp_path):
    tifffile.imwrite(folder / "images" / "b.tif", np.zeros((48, 64), np.uint8))
    index = prepare_folder(folder, tmp_path / "out")
    (folder / "images" / "b.tif").write_bytes(b"II*\0 cut short")
    text = f'[data]\ntrain = [{{ index = "{index}" }}]\n[model]\nsize = "tiny"\n[train]\nsteps = 3\ncrop_size = 32\n'
    (tmp_path / "run.toml").write_text(text + "batch_size = 4\n")
    done = command("train", tmp_path / "run.toml", "--out", tmp_path / "run", "--device", "cpu")
    assert isinstance(done.exception, CellsegError) and "b.tif: cannot be read" in str(done.exception)


# --- predict --------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Two images and a damaged one between them, and a network that reads the cells off."""
    config = ModelConfig(representation="distance", normalize=NormalizeConfig(rule="none"))
    reader = Segmenter(Reader(), config, PredictConfig(), torch.device("cpu"), {"diameter": config.reference_diameter})
    monkeypatch.setattr("cellseg.predict.load", lambda *_, **__: reader)
    found = tmp_path / "images"
    found.mkdir()
    for name in ("a.tif", "c.tif"):
        tifffile.imwrite(found / name, image_of(four_disks()), photometric="rgb")
    (found / "b.tif").write_bytes(b"II*\0 cut short")
    return found


def predict(images, *words):
    return command(
        "predict", images, "--out", images.parent / "out", "--diameter", ModelConfig().reference_diameter, *words
    )


def test_predict_names_and_counts_what_it_leaves_out_and_goes_on(images, tmp_path):
    table = tmp_path / "cells.csv"
    done = predict(images, "--measure", table)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    assert "left out: " in done.stderr and "b.tif: cannot be read" in done.stderr
    assert "2 images, 8 cells; 1 of 3 images left out" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == ["a.tif", "c.tif"]
    assert len(table.read_text().splitlines()) == 1 + 8


def test_predict_stops_where_it_is_told_to(images, tmp_path):
    done = predict(images, "--on-error", "stop")
    assert isinstance(done.exception, CellsegError) and "b.tif: cannot be read" in str(done.exception)
    assert [path.name for path in (tmp_path / "out").glob("*.tif")] == ["a.tif"]


def test_predict_stops_where_results_cannot_be_written_whatever_it_is_told(images, tmp_path):
    (tmp_path / "out").write_text("a file where a folder should be")
    done = predict(images, "--on-error", "skip")
    assert isinstance(done.exception, CellsegError) and "cannot be written" in str(done.exception)
    assert "left out" not in done.stderr


def test_predict_of_nothing_usable_writes_no_table(images, tmp_path):
    for name in ("a.tif", "c.tif"):
        (images / name).unlink()
    done = predict(images, "--measure", tmp_path / "cells.csv")
    assert done.exit_code == 1 and "0 images, 0 cells; 1 of 1 images left out" in done.stderr
    assert not (tmp_path / "cells.csv").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no kernel image\nis available"), "no kernel image is available"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory while the network sees 96 x 96 pixels"),
        (MemoryError(), "out of memory while the network sees 96 x 96 pixels"),
    ],
    ids=["kernel", "cuda", "python"],
)
def test_an_image_that_the_network_fails_on_is_left_out_by_name(images, monkeypatch, error, said):
    (images / "b.tif").unlink()
    look, calls = Reader.forward, []

    def fails_first(self, x):
        calls.append(0)
        if len(calls) == 1:
            raise error
        return look(self, x)

    monkeypatch.setattr(Reader, "forward", fails_first)
    done = predict(images)
    assert done.exit_code == 1 and f"left out: a.tif: {said}" in done.stderr
    assert "1 images, 4 cells; 1 of 2 images left out" in done.stderr


@pytest.mark.parametrize("diameter", ["nan", "inf", "0", "-1"])
def test_a_diameter_that_is_none(images, diameter):
    done = command("predict", images, "--out", images.parent / "out", "--diameter", diameter)
    assert isinstance(done.exception, CellsegError) and "wanted a number of pixels above 0" in str(done.exception)
