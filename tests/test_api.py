"""The few lines with which a notebook begins."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile
from fakes import Reader, four_disks, image_of

import cellseg
from cellseg.config import ModelConfig, NormalizeConfig


@pytest.fixture
def weights(monkeypatch):
    """A network that reads the labels off the image, under the name of a weights file."""
    from cellseg import predict

    known = {"run": (Reader(), ModelConfig(representation="distance", normalize=NormalizeConfig(rule="none")))}
    monkeypatch.setattr(predict, "load_weights", lambda model: (*known[model], {"diameter": 24.0}))
    return "run"


def test_five_lines_segment_an_image(weights, tmp_path):
    truth = four_disks()
    tifffile.imwrite(tmp_path / "cells.tif", image_of(truth), photometric="rgb")
    diameter = ModelConfig().reference_diameter  # shown as large as it is

    from cellseg.images import read_image

    image = read_image(tmp_path / "cells.tif")
    model = cellseg.load(weights, device="cpu")
    labels = model.segment(image, diameter=diameter)

    assert labels.dtype == np.int32
    assert np.array_equal(labels, truth)
    assert np.array_equal(cellseg.segment(image, model=weights, diameter=diameter), truth)


def test_import_is_light_and_knows_what_it_offers():
    code = "import sys, cellseg; print(*dir(cellseg), *sys.modules)"
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"load", "segment"} <= set(words)
    assert not {"torch", "numpy", "pandas", "skimage"} & set(words)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segmnt'"):
        cellseg.segmnt  # noqa: B018
