"""One rule by which images, labels and predictions find each other, dots in their names or not."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from cellseg.cli.predicting import expand
from cellseg.core import CellsegError
from cellseg.datasets.folder import prepare_folder
from cellseg.datasets.index import read_index
from cellseg.images import write_labels
from cellseg.names import file_stem, role_of
from cellseg.pairing import find_pairs

DOTTED = ("2024.01.15_A1", "2024.01.15_A2", "dose0.5_a", "plain")


@pytest.mark.parametrize(("name", "stem"), [
    ("a.tif", "a"), ("a.ome.tif", "a"), ("a.OME.TIFF", "a"), ("a.b.ome.zarr", "a.b"), ("a.omen.tif", "a.omen"),
])  # fmt: skip
def test_a_stem_loses_the_last_suffix_and_ome(name, stem):
    assert file_stem(Path(name)) == stem


@pytest.mark.parametrize(("name", "role"), [
    ("a.tif", "image"), ("masks.tif", "image"), ("a_masks_1.tif", "image"), ("a_cp_masks.png", "labels"),
    ("a_mask.ome.tif", "labels"), ("a_seg.npy", "result"), ("a_cp_outlines.txt", "result"),
])  # fmt: skip
def test_the_end_of_a_stem_says_what_a_file_is(name, role):
    assert role_of(Path(name)) == role


def test_names_with_dots_are_kept_from_the_images_to_the_pairs(tmp_path):
    for name in DOTTED:
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{name}.ome.tif", np.arange(64, dtype=np.uint8).reshape(8, 8))
        write_labels(tmp_path / "labels" / f"{name}_masks.tif", np.ones((8, 8), np.uint8))
    files = expand([tmp_path / "images"])
    assert [name for name, _ in files] == list(DOTTED)
    assert [record.id for record in read_index(prepare_folder(tmp_path, tmp_path / "out"))] == list(DOTTED)
    for name, _ in files:
        write_labels(tmp_path / "pred" / f"{name}.tif", np.ones((8, 8), np.uint8))
    for truth in (tmp_path / "labels", tmp_path / "out" / "index.csv"):
        assert [pair.pred for pair in find_pairs(truth, tmp_path / "pred")] == [
            tmp_path / "pred" / f"{name}.tif" for name in DOTTED
        ]


def test_a_zarr_folder_has_no_suffix_but_zarr(tmp_path):
    for name in ("0.5.ome.zarr", "0.6.zarr", "0.7"):
        zarr.create_array(tmp_path / name, data=np.zeros((8, 8), np.uint8))
    assert [name for name, _ in expand([tmp_path])] == ["0.5", "0.6", "0.7"]
    with pytest.raises(CellsegError, match=r"would both be written as '0\.5'"):
        expand([tmp_path, tmp_path / "0.5.ome.zarr"])


def test_partly_labelled_images_are_named_by_the_whole_stem(tmp_path):
    for name in DOTTED:
        write_labels(tmp_path / "labels" / f"{name}.tif", np.kron([[1, 0], [0, 2]], np.ones((4, 4))).astype(np.uint8))
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", np.arange(64, dtype=np.uint8).reshape(8, 8))
    index = prepare_folder(tmp_path, tmp_path / "out", partial="2024.01.15_A2")
    assert [record.id for record in read_index(index) if record.label_kind == "partial"] == ["2024.01.15_A2"]
    with pytest.raises(CellsegError, match="--partial names '2024'"):
        prepare_folder(tmp_path, tmp_path / "out", partial="2024")
