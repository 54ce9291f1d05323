import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from fakes import Fickle, Reader, four_disks, image_of, segmenter

from cellseg.checkpoint import save_weights
from cellseg.config import ModelConfig, NormalizeConfig
from cellseg.core import Record
from cellseg.datasets.index import write_index
from cellseg.images import write_labels
from cellseg.label_free.suggest import choose, doubt, picture_of
from cellseg.models.build import build_model


def test_the_most_doubtful_first_then_doubt_times_distance():
    looks = np.array([[0.0], [0.1], [4.0], [10.0]])
    assert choose([0.2, 0.1, 0.8, 0.9], looks, 1) == [1]
    # After the second image: the first is doubtful (.8) but near (.1), the third .2 × 3.9, the fourth .1 × 9.9.
    assert choose([0.2, 0.1, 0.8, 0.9], looks, 4) == [1, 3, 2, 0]
    assert choose([0.2, 0.1, 0.3, 0.9], looks, 2) == [1, 2]


def test_images_that_look_alike_come_by_doubt_alone():
    assert choose([0.5, 0.1, 0.3], np.ones((3, 2)), 5) == [1, 2, 0]
    assert choose([1.0, 1.0], np.ones((2, 1)), 1) == [0]


@pytest.fixture
def disks(tmp_path):
    """A file in which a Reader reads four disks: no normalisation changes it."""
    path = tmp_path / "disks.npy"
    image = image_of(four_disks())
    np.save(path, image)
    tifffile.imwrite(tmp_path / "disks.tif", image, photometric="rgb")
    return tmp_path / "disks.tif"


def plain(network):
    made = segmenter(network)
    made.config = ModelConfig(representation="distance", normalize=NormalizeConfig(rule="none"))
    return made


def test_doubt_is_what_the_views_disagree_on(disks, monkeypatch):
    for network, agreement in ((Reader(), 1.0), (Fickle(), 6 / 7)):
        made = plain(network)
        monkeypatch.setattr(made, "estimate_diameter", lambda image: 24.0)
        found = doubt(made, "disks", disks, "scales")
        assert (found.cells, found.diameter) == (4, 24.0)
        assert found.agreement == pytest.approx(agreement)
        assert np.isfinite(found.looks).all()
    image, views, sure = picture_of(made, found)
    assert image.shape[:2] == views.labels.shape
    assert sure.tolist() == [False, True, True, True]  # the first is found in 3 of 6 views only


def cellseg(*arguments):
    command = [sys.executable, "-m", "cellseg.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_writes_a_list_and_a_picture(tmp_path):
    config = ModelConfig(size="tiny")
    save_weights(tmp_path / "w.safetensors", build_model(config), config, {"diameter": 24.0})
    records = []
    for number in range(4):
        labels = np.roll(four_disks(64, 8), number, 0)
        path = tmp_path / "images" / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, ((labels > 0) * (60 + 40 * number)).astype(np.uint8))
        records.append(Record(str(number), path, None, "d", "", "g", 64, 64, None, "", None))
    write_labels(tmp_path / "0_label.tif", four_disks(64, 8))
    records[0] = Record("0", records[0].image, tmp_path / "0_label.tif", "d", "", "g", 64, 64, 4, "instances", 16.0)
    write_index(tmp_path / "index.csv", records)
    arguments = ("--model", tmp_path / "w.safetensors", "--device", "cpu", "--out", tmp_path / "out")
    done = cellseg("suggest", tmp_path / "index.csv", "-n", 9, *arguments)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "suggest.csv").read_text().splitlines()
    assert lines[0] == "rank,image,consensus,cells,diameter"
    assert sorted(line.split(",")[1][-5:] for line in lines[1:]) == ["1.tif", "2.tif", "3.tif"]  # not the labelled one
    assert len(done.stdout.splitlines()) == 3
    assert (tmp_path / "out" / "suggest.png").read_bytes()[:4] == b"\x89PNG"


def test_criteria_are_ranked_over_runs(tmp_path):
    for run, sign in (("a", 1), ("b", -1)):
        (tmp_path / run).mkdir()
        looks = [{"step": n, "cycle": n / 10, "flips": sign * n, "val_f1": n / 10} for n in range(3)]
        text = "".join(json.dumps(line) + "\n" for line in [*looks, {"step": 3, "loss": 1.0}])
        (tmp_path / run / "log.jsonl").write_text(text)
    done = cellseg("criteria", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "points.csv")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert "(2 runs, 6 checkpoints)" in done.stdout
    assert rows["cycle"] == ["1.000", "1.000", "0.000"]
    assert rows["flips"][1:] == ["0.000", "0.100"]  # one run ranks it first, the other last: there .2 are lost
    assert rows["scales"] == ["–", "–", "–"]
    points = (tmp_path / "points.csv").read_text().splitlines()
    assert points[0].startswith("run,step,flips,") and len(points) == 7
    assert (tmp_path / "points.png").read_bytes()[:4] == b"\x89PNG"
    done = cellseg("criteria", tmp_path / "none")
    assert done.returncode == 1
    assert "has no look" in done.stderr
