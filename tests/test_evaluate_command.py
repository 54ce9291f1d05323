"""``cellseg evaluate`` as somebody uses it who has two folders and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
from skimage.io import imsave

from cellseg import evaluate as evaluate_module
from cellseg.core import CellsegError
from cellseg.evaluate import DETAIL_COLUMNS, evaluate, find_pairs, score_pairs

SHAPE = (40, 60)


def cells(*columns, top=10):
    labels = np.zeros(SHAPE, np.uint8)
    for index, left in enumerate(columns, 1):
        labels[top : top + 8, left : left + 8] = index
    return labels


def cellseg(*arguments, **environment):
    command = [sys.executable, "-m", "cellseg.cli", "evaluate", *map(str, arguments)]
    settings = {"env": {"PATH": "/usr/bin:/bin", **environment}} if environment else {}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **settings)


@pytest.fixture
def folders(tmp_path):
    """Truth as PNG; predictions under the names of Cellpose, StarDist and NeurIPS, one of three cells found in c."""
    for name in ("truth", "pred"):
        (tmp_path / name).mkdir()
    for name in "abc":
        imsave(tmp_path / "truth" / f"{name}.png", cells(4, 20, 40), check_contrast=False)
    imsave(tmp_path / "pred" / "a_cp_masks.png", cells(4, 20, 40), check_contrast=False)
    imsave(tmp_path / "pred" / "a.png", cells(4) + 100, check_contrast=False)  # Cellpose keeps the image beside it
    tifffile.imwrite(tmp_path / "pred" / "b.tif", cells(4, 20, 40))
    tifffile.imwrite(tmp_path / "pred" / "c_label.tiff", cells(4))
    return tmp_path / "truth", tmp_path / "pred"


def test_the_table_names_mean_median_and_pooled(folders):
    done = cellseg(*folders, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines[2:])) <= 80  # the line above the table holds the paths, unbroken
    names = next(line.split() for line in lines if "median" in line)
    assert names == ["group", "images", "cells", "mean", "median", "pooled", "mean", "mean", "mean"]
    row = next(line.split() for line in lines if line.startswith(" all"))
    f1 = 2 * 1 / (2 * 1 + 2)
    assert row[:6] == ["all", "3", "9", f"{(2 + f1) / 3:.3f}", "1.000", f"{2 * 7 / (2 * 7 + 2):.3f}"]
    assert row[7] == f"{(2 + 1 / 3) / 3:.3f}"


def test_json_is_all_there_is_on_stdout(folders):
    (folders[1] / "b.tif").unlink()
    done = cellseg(*folders, "--json", "--thresholds", "0.5,0.75")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["b: missing; scored 0"]
    content = json.loads(done.stdout)
    assert content["rule"] == "strict"
    assert content["thresholds"] == [0.5, 0.75]
    assert content["problems"] == [{"image": "b", "status": "missing"}]
    (group,) = content["groups"]
    assert (group["group"], group["n_images"], group["n_failed"], group["f1_mean"]) == ("all", 3, 1, 0.5)
    assert [(row["threshold"], row["tp"], row["fn"]) for row in content["by_threshold"]] == [(0.5, 4, 5), (0.75, 4, 5)]


def test_scores_and_details_are_written(folders, tmp_path):
    done = cellseg(*folders, "--out", tmp_path / "scores.parquet", "--details", tmp_path / "details.csv")
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "scores.parquet")) == 3 * 10
    details = pd.read_csv(tmp_path / "details.csv").set_index("image")
    assert tuple(details.reset_index().columns) == DETAIL_COLUMNS
    columns = ["aji", "seg", "dice", "splits", "merges", "misses", "spurious"]
    assert details.loc["a", columns].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert details.loc["c", columns].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 4, 0, 0, 2, 0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "scores.xlsx"], "scores.xlsx: a table is written as .csv or .parquet"),
        (["--details", "d.txt"], "d.txt: a table is written"),
        (["--details", "d.csv", "--rule", "neurips"], "use --rule strict"),
        (["--thresholds", "0.5;0.7"], "0.5:0.9, not '0.5;0.7'"),
    ],
)
def test_mistakes_are_found_before_the_work(options, said, folders, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cellseg", "evaluate", *map(str, folders), *options])
    monkeypatch.setattr("cellseg.evaluate.score_pair", None)
    from cellseg.cli import main

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err


def test_one_folder_is_not_enough_and_a_run_takes_no_options(folders, tmp_path, monkeypatch, capsys):
    from cellseg.cli import main

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for arguments, said in (
        ([folders[0]], "cellseg evaluate TRUTH PRED"),
        ([tmp_path / "run", "--json"], "--json go with TRUTH and PRED"),
    ):
        monkeypatch.setattr(sys, "argv", ["cellseg", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        assert said in capsys.readouterr().err


# ---- what a newcomer trips over


def test_predictions_that_go_with_no_image_are_named(folders):
    for name in "defg":
        tifffile.imwrite(folders[1] / f"{name}_masks.tif", cells(4))
    with pytest.warns(
        UserWarning, match=r"4 files go with no true image .*: d_masks\.tif, e_masks\.tif, f_masks\.tif, …"
    ):
        scores = evaluate(*folders)
    assert scores["image"].unique().tolist() == ["a", "b", "c"]


def test_folders_without_a_name_in_common_are_an_error(folders):
    for path in list(folders[1].iterdir()):
        path.rename(path.with_name(f"result_{path.name}"))
    with pytest.raises(
        CellsegError, match=r"wanted e\.g\. a\.tif or a_masks\.tif, found result_a\.png.*paired by name"
    ):
        evaluate(*folders)


def test_many_problems_are_counted(folders, capsys):
    from cellseg.cli.screen import MOST_PROBLEMS, say_problems

    scores = pd.DataFrame({"image": [f"i{n:03}" for n in range(MOST_PROBLEMS + 5)], "status": "missing"})
    say_problems(scores)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == MOST_PROBLEMS + 1
    assert lines[-1].startswith("… and 5 more")


# ---- processes


def test_automatic_workers_start_only_for_work_that_is_worth_it(folders, monkeypatch):
    pairs = find_pairs(*folders)
    alone = score_pairs(pairs, workers=1)
    monkeypatch.setattr(evaluate_module, "_cores", lambda: 2)
    monkeypatch.setattr(evaluate_module, "ProcessPoolExecutor", None)
    quick = score_pairs(pairs, workers=None)
    monkeypatch.undo()
    monkeypatch.setattr(evaluate_module, "_cores", lambda: 2)
    monkeypatch.setattr(evaluate_module, "POOL_PAYS_S", 0.0)
    pooled = score_pairs([*pairs, *pairs], workers=None)
    for scores in (quick, (pooled[0].iloc[:30], pooled[1].iloc[:3])):
        pd.testing.assert_frame_equal(scores[0], alone[0])
        pd.testing.assert_frame_equal(scores[1], alone[1])
