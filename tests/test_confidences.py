"""Confidences: means known by counting, a round trip, and every way a score file can be wrong."""

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from cellseg.confidences import mean_inside, read_confidences, scores_path, write_confidences
from cellseg.config import ModelConfig, PredictConfig
from cellseg.core import CellsegError
from cellseg.images import find_images, read_labels
from cellseg.instances import flow
from cellseg.orders import Wish
from cellseg.predict import Segmenter
from cellseg.predict_images import predict_images


@pytest.fixture
def labels():
    image = np.zeros((6, 8), np.int32)
    image[1, 1:4], image[4, 2:4] = 7, 3
    return image


def test_mean_inside_averages_each_cell_in_order_of_id(labels):
    values = np.arange(48, dtype=np.float32).reshape(6, 8)
    assert mean_inside(labels, values).tolist() == [(34 + 35) / 2, (9 + 10 + 11) / 3]  # ids 3 and 7
    assert mean_inside(np.zeros((2, 2), np.int32), np.ones((2, 2), np.float32)).tolist() == []
    with pytest.raises(CellsegError, match=r"shape \(6, 8\), got \(2, 2\)"):
        mean_inside(labels, np.ones((2, 2), np.float32))


def test_written_scores_are_read_back_and_are_no_image(labels, tmp_path):
    path = write_confidences(tmp_path / "a.b.tif", labels, np.array([0.25, 0.125]))
    assert path == scores_path(tmp_path / "a.b.tif") == tmp_path / "a.b.scores.csv"
    assert path.read_text(encoding="utf-8") == "label,score\n3,0.25\n7,0.125\n"
    assert read_confidences(tmp_path / "a.b.tif", labels).tolist() == [0.25, 0.125]
    assert find_images(tmp_path) == []
    assert read_confidences(tmp_path / "other.tif", labels) is None


def test_an_image_without_cells_has_a_file_without_rows(tmp_path):
    empty = np.zeros((3, 3), np.int32)
    write_confidences(tmp_path / "a.tif", empty, np.zeros(0))
    assert read_confidences(tmp_path / "a.tif", empty).shape == (0,)


def test_one_score_a_cell_is_written(labels, tmp_path):
    with pytest.raises(CellsegError, match="one score for each of 2 cells"):
        write_confidences(tmp_path / "a.tif", labels, np.ones(3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "wanted the columns label,score"),
        ("id,score\n3,1\n7,1\n", "found id,score"),
        ("label,score\n3,1\n", "one finite score for each of the 2 cells of a.tif"),
        ("label,score\n3,1\n7,1\n9,1\n", "found 3 rows"),
        ("label,score\n3,1\n7,1\n7,1\n", "found 3 rows"),
        ("label,score\n3,1\n8,1\n", "do not fit"),
        ("label,score\n3,1\n7,nan\n", "one finite score"),
        ("label,score\n3,1\n7,high\n", "not a table of label,score"),
        ("label,score\n3,1\n7\n", "not a table of label,score"),
        (b"\xff\xfe\x00", "not a table of label,score"),
    ],
)
def test_a_file_that_does_not_fit_the_labels_is_refused(labels, tmp_path, text, said):
    (tmp_path / "a.scores.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CellsegError, match=r"a\.scores\.csv: ") as error:
        read_confidences(tmp_path / "a.tif", labels)
    assert said in str(error.value)


class Fixed(nn.Module):
    """Answers with the maps of two disks, one sure (logit 8) and one less so (logit 2)."""

    def __init__(self):
        super().__init__()
        rows, columns = np.indices((64, 64))
        self.labels = np.zeros((64, 64), np.int32)
        self.labels[(rows - 16) ** 2 + (columns - 16) ** 2 <= 100] = 1
        self.labels[(rows - 44) ** 2 + (columns - 44) ** 2 <= 100] = 2
        maps = flow.ideal_maps(flow.encode(self.labels))
        maps[0][self.labels == 2] = 2
        self.maps = torch.from_numpy(maps)[None]

    def forward(self, x):
        return nn.functional.interpolate(self.maps, size=x.shape[-2:])


@pytest.fixture
def segmenter():
    return Segmenter(Fixed(), ModelConfig(size="tiny"), PredictConfig(), torch.device("cpu"), {})


@pytest.mark.parametrize("zoom", [1.0, 0.5, 2.0])
def test_a_cell_scores_its_mean_foreground_probability(segmenter, zoom):
    image, diameter = np.eye(64, dtype=np.uint8), segmenter.config.reference_diameter / zoom
    labels, scores = segmenter.segment_with_scores(image, diameter=diameter)
    assert np.array_equal(labels, segmenter.segment(image, diameter=diameter))
    inside = [labels[16, 16], labels[44, 44]]
    assert sorted(inside) == [1, 2]
    sure, less = scores[inside[0] - 1], scores[inside[1] - 1]
    edge = 0 if zoom >= 1 else 0.12  # enlarged maps blur the rim
    assert sure == pytest.approx(1 / (1 + np.exp(-8)), abs=1e-6 + edge)
    assert less == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6 + edge)


def test_predicted_folders_hold_the_scores_beside_the_labels(segmenter, tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((64, 64), np.uint8))
    diameter = segmenter.config.reference_diameter
    (found,) = predict_images(segmenter, [("x", tmp_path / "x.tif")], tmp_path / "out", Wish(diameter))
    assert (found.name, found.labels) == ("x", tmp_path / "out" / "x.tif")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.scores.csv", "x.tif"]
    labels = read_labels(found.labels)
    assert np.array_equal(labels, segmenter.segment(np.zeros((64, 64), np.uint8), diameter=diameter))
    scores = read_confidences(found.labels, labels)
    assert scores == pytest.approx(found.scores, abs=1e-8)
    expected = segmenter.segment_with_scores(np.zeros((64, 64), np.uint8), diameter=diameter)[1]
    assert scores == pytest.approx(expected, abs=1e-8)


def test_a_crash_before_the_labels_leaves_no_label_image(segmenter, tmp_path, monkeypatch):
    from cellseg import predict_images as module

    def crash(*_):
        raise KeyboardInterrupt

    tifffile.imwrite(tmp_path / "x.tif", np.zeros((64, 64), np.uint8))
    monkeypatch.setattr(module, "write_labels", crash)
    with pytest.raises(KeyboardInterrupt):
        list(predict_images(segmenter, [("x", tmp_path / "x.tif")], tmp_path / "out", Wish()))
    assert find_images(tmp_path / "out") == []
