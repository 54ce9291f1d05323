"""The shipped teacher: in the package, small, without a trace of the machine, and as good as its card says."""

import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

import cellseg
from cellseg.checkpoint import load_weights, resolve_weights, save_weights
from cellseg.config import ModelConfig, PredictConfig, load_config
from cellseg.core import CellsegError
from cellseg.decoding import rule_of
from cellseg.models.build import build_model
from cellseg.report.start import find_weights
from cellseg.weights import find_shipped

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import score_teacher  # noqa: E402
import ship_teacher  # noqa: E402 (a script of the repository, no module of the package)


def test_the_name_means_the_shipped_file_whatever_lies_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").mkdir()
    assert resolve_weights("teacher") == find_shipped("teacher") == find_weights(tmp_path, "teacher")
    with pytest.raises(CellsegError, match="wanted a finished run"):
        resolve_weights("./teacher")
    assert find_shipped("student") is None


def test_a_package_without_its_data_says_so(monkeypatch):
    monkeypatch.setattr("cellseg.checkpoint.find_shipped", lambda name: None)
    with pytest.raises(CellsegError, match="install cellseg again"):
        resolve_weights("teacher")


def test_the_file_is_small_and_holds_no_name_of_a_file():
    path = find_shipped("teacher")
    assert path.stat().st_size <= ship_teacher.LARGEST_MB * 1e6
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert set(metadata) == {"format", "model", "about", "sha256"}
    assert set(json.loads(metadata["about"])) <= set(ship_teacher.KEPT)
    assert "/" not in metadata["about"]


def test_it_finds_bright_disks_and_nothing_in_an_empty_image():
    """Sixteen disks of radius 9 on a grid, on a noisy background."""
    rows, columns = np.mgrid[:192, :192]
    disks = (rows % 48 - 24) ** 2 + (columns % 48 - 24) ** 2 <= 81
    image = (40 + 150 * disks + np.random.default_rng(0).normal(0, 4, disks.shape)).astype(np.float32)
    model = cellseg.load("teacher", device="cpu")
    labels = model.segment(image, diameter=19)
    assert labels.max() == 16
    assert (labels[24::48, 24::48] > 0).all()  # one at each centre
    assert np.mean((labels > 0) == disks) > 0.95
    assert model.segment(np.full((64, 64), 7, np.uint8), diameter=19).max() == 0


def test_the_card_says_what_the_table_and_the_file_hold():
    card = score_teacher.CARD.read_text(encoding="utf-8")
    assert score_teacher.score_table(pd.read_csv(score_teacher.SCORES)) in card
    assert score_teacher.checksum(score_teacher.WEIGHTS) in card
    assert score_teacher.words(rule_of(PredictConfig(), load_weights("teacher")[2])) in card
    assert f"{sum(value.numel() for value in load_weights('teacher')[0].parameters()):,} parameters" in card


def test_rows_by_the_teachers_rule_have_the_rule_that_it_carries():
    carried = load_weights("teacher")[2]["decoding"]
    row = tomllib.loads((ROOT / "experiments" / "rows" / "parts" / "rule.toml").read_text(encoding="utf-8"))["predict"]
    assert row == {"min_size": PredictConfig().min_size, **carried}
    told = re.search(r"^RULE \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    assert {told[0]: float(told[1]), told[2]: float(told[3])} == {
        "--foreground": carried["foreground"],
        "--min-score": carried["min_score"],
    }


def test_the_demo_starts_from_it():
    run = load_config(ROOT / "experiments" / "demo_student.toml")
    assert run.train.init == "teacher"
    assert run.model == load_weights("teacher")[1]


def a_run(folder, dataset, **train):
    """Write the configuration of a run that was trained on an index of a data set."""
    index = folder / "index.csv"
    index.parent.mkdir(parents=True)
    (folder / "a.tif").touch()
    columns = "id,image,labels,dataset,split,group,height,width,n_instances,label_kind,diameter,well"
    index.write_text(f"{columns}\na,a.tif,a.tif,{dataset},train,,8,8,1,instances,5,\n")
    values = {"data": {"train": [{"index": str(index)}]}, "train": train}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_weights_with_images_that_may_not_be_published_in_their_past_are_refused(tmp_path):
    first = a_run(tmp_path / "first", "dsb2018")
    second = a_run(tmp_path / "second", "synthetic", init=str(first))
    past = ship_teacher.history(second)
    assert [run for run, _ in past] == [first, second]
    ship_teacher.check_past(past)
    third = a_run(tmp_path / "third", "dsb2018", init=str(a_run(tmp_path / "bad", "livecell")))
    with pytest.raises(CellsegError, match=r"bad: used .*index.csv with livecell"):
        ship_teacher.check_past(ship_teacher.history(third))
    with pytest.raises(CellsegError, match="cannot be known"):
        ship_teacher.history(a_run(tmp_path / "fourth", "dsb2018", init=str(tmp_path / "gone")))


def test_what_is_shipped_is_what_predictions_depend_on(tmp_path, monkeypatch):
    config = ModelConfig(size="tiny")
    model = build_model(config)
    about = {"diameter": 9.0, "step": 3, "init": "somewhere/else", "scale_prior": [1.0]}
    save_weights(tmp_path / "run" / "best.safetensors", model, config, about)
    monkeypatch.setattr(ship_teacher, "WEIGHTS", tmp_path / "teacher.safetensors")
    ship_teacher.ship(tmp_path / "run")
    shipped, same, kept = load_weights(tmp_path / "teacher.safetensors")
    assert same == config
    assert kept == {"diameter": 9.0, "step": 3, "scale_prior": [1.0]}
    assert all(bool((value == model.state_dict()[name]).all()) for name, value in shipped.state_dict().items())


def test_scores_are_renewed_and_the_rest_of_the_card_stays(tmp_path, monkeypatch):
    config = ModelConfig(size="tiny")
    weights = tmp_path / "teacher.safetensors"
    save_weights(weights, build_model(config), config, {"diameter": 9.0})
    monkeypatch.setattr(score_teacher, "WEIGHTS", weights)
    score_teacher.set_rule({"foreground": 0.4, "min_score": 0.7})
    assert load_weights(weights)[2] == {"diameter": 9.0, "decoding": {"foreground": 0.4, "min_score": 0.7}}
    before = weights.stat().st_mtime_ns
    score_teacher.set_rule({})
    score_teacher.set_rule({"foreground": 0.4})
    with pytest.raises(CellsegError, match=r"min_score 7: .*less than or equal to 1; the weights stay"):
        score_teacher.set_rule({"min_score": 7})
    assert weights.stat().st_mtime_ns == before
    table = pd.read_csv(score_teacher.SCORES)
    card = score_teacher.refreshed("# Card\n\nSHA-256 `-`.\n\n## Scores\n\nold\n\n## Limits\n\n* None.\n", table)
    assert f"SHA-256 `{score_teacher.checksum(weights)}`" in card
    assert "from a\nprobability of 0.4, and cells of a mean below 0.7 are dropped" in card
    assert score_teacher.score_table(table) in card and "old" not in card
    assert card.endswith("\n\n## Limits\n\n* None.\n")
    assert score_teacher.refreshed(card, table) == card
