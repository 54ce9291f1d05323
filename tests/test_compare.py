"""Methods compared by their score tables: exact differences, honest notes, and clear mistakes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellseg.compare import COLUMNS, compare_methods, find_tables, list_notes, read_methods
from cellseg.core import CellsegError
from cellseg.metrics import scores as score_tables
from cellseg.metrics.scores import write_scores

ROOT = Path(__file__).parent.parent
BASE = {f"i{n:02}": 0.25 + 0.5 * (n % 3) / 2 for n in range(12)}
"""F1 of twelve images: 0.25, 0.5, 0.75, and so on."""


def save(path, f1, *, groups=("",), **columns):
    """Write a score table at IoU 0.5 and 0.75 (where F1 is half as large) and return its path as text."""
    rows = [
        (image, groups[n % len(groups)], "test", "toy", "strict", t, 5, 1, 2, 7, 6, 4.0, value * factor, "ok")
        for n, (image, value) in enumerate(f1.items())
        for t, factor in ((0.5, 1.0), (0.75, 0.5))
    ]
    write_scores(pd.DataFrame(rows, columns=list(score_tables.COLUMNS)).assign(**columns), path)
    return str(path)


def plus(step):
    return {image: value + step for image, value in BASE.items()}


def compared(*arguments, **options):
    return compare_methods(read_methods(arguments), **options)


@pytest.fixture
def two(tmp_path):
    return save(tmp_path / "a.csv", BASE), save(tmp_path / "b.csv", plus(0.125))


# ---- figures known in closed form


def test_a_constant_difference_is_its_own_interval(two):
    table = compared(*two, draws=999)
    assert tuple(table.columns) == COLUMNS
    (row,) = table.to_dict("records")
    assert (row["method"], row["baseline"], row["group"], row["n_images"]) == ("b", "a", "all", 12)
    assert (row["mean_baseline"], row["mean"], row["difference"]) == (0.5, 0.625, 0.125)
    assert (row["low"], row["high"]) == (pytest.approx(0.125), pytest.approx(0.125))
    assert (row["p_value"], row["p_holm"]) == (2 / 1000, 2 / 1000)


def test_the_mean_over_thresholds(two):
    (row,) = compared(*two, thresholds=(0.5, 0.75)).to_dict("records")
    assert (row["mean_baseline"], row["difference"]) == (0.375, 0.125 * 0.75)


def test_other_metrics_come_from_the_counts(tmp_path):
    arguments = save(tmp_path / "a.csv", BASE), save(tmp_path / "b.csv", BASE, tp=7, fn=0)
    ap, pq = (compared(*arguments, metric=metric)["difference"].item() for metric in ("ap", "pq"))
    assert ap == pytest.approx(7 / 8 - 5 / 8)
    assert pq == pytest.approx(4 / 7.5 - 4 / 6.5)


def test_no_difference_has_p_1(tmp_path):
    (row,) = compared(save(tmp_path / "a.csv", BASE), save(tmp_path / "b.csv", BASE)).to_dict("records")
    assert (row["difference"], row["low"], row["high"], row["p_value"], row["p_holm"]) == (0, 0, 0, 1, 1)


def test_holm_counts_the_methods_and_groups_test_nothing(tmp_path):
    better = {image: value + (0.25 if n % 2 else 0.5) for n, (image, value) in enumerate(BASE.items())}
    table = compared(
        save(tmp_path / "a.csv", BASE, groups=("x", "y")),
        save(tmp_path / "b.csv", better),
        save(tmp_path / "c.csv", BASE),
        draws=999,
    )
    assert table[["method", "group", "n_images"]].to_numpy().tolist() == [
        ["b", "x", 6], ["b", "y", 6], ["b", "all", 12], ["c", "x", 6], ["c", "y", 6], ["c", "all", 12],
    ]  # fmt: skip
    assert table["difference"].tolist() == pytest.approx([0.5, 0.25, 0.375, 0, 0, 0])
    assert table.loc[:1, ["low", "high"]].to_numpy().ravel().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25])
    tests = table[table["group"] == "all"]
    assert tests["p_value"].tolist() == [0.002, 1]
    assert tests["p_holm"].tolist() == [0.004, 1]
    assert table.loc[table["group"] != "all", ["p_value", "p_holm"]].isna().all(axis=None)


def test_seeds_of_a_method_are_averaged_and_widen_the_interval(tmp_path):
    for seed, step in enumerate((0.0, 0.125, 0.25)):
        save(tmp_path / "runs" / "mine" / f"s{seed}" / "scores" / "target.csv", plus(step))
    base = save(tmp_path / "plain.csv", BASE)
    (row,) = compared(base, f"mine={tmp_path}/runs/mine/s*/scores/target.csv").to_dict("records")
    assert (row["method"], row["n_seeds"], row["n_seeds_baseline"]) == ("mine", 3, 1)
    assert row["difference"] == pytest.approx(0.125)
    assert (row["low"], row["high"]) == (pytest.approx(0), pytest.approx(0.25))  # 1 draw in 27 has one seed alone


def test_one_image_has_no_interval(tmp_path):
    first = {"i": 0.5}, {"i": 0.75}
    methods = read_methods([save(tmp_path / "a.csv", first[0]), save(tmp_path / "b.csv", first[1])])
    table = compare_methods(methods)
    (row,) = table.to_dict("records")
    assert row["difference"] == 0.25
    assert all(math.isnan(row[name]) for name in ("low", "high", "p_value", "p_holm"))
    notes = list_notes(methods, table)
    assert any("no interval" in note for note in notes)
    assert any(note.startswith("One seed of a, b:") for note in notes)


def test_notes_say_what_is_not_covered(tmp_path):
    few = dict(list(BASE.items())[:4])
    for seed in range(2):
        save(tmp_path / "a" / f"{seed}.csv", few)
        save(tmp_path / "b" / f"{seed}.csv", few, groups=("x",), status="missing")
    methods = read_methods([str(tmp_path / "a"), str(tmp_path / "b")])
    notes = list_notes(methods, compare_methods(methods))
    assert [note.split()[0] for note in notes[:2]] == ["2", "4"]  # seeds, images
    assert notes[2] == f"{tmp_path / 'b' / '0.csv'}: 4 images have no usable prediction and score 0: i00, i01, i02, …."


# ---- which tables are meant


def test_tables_of_a_folder_a_run_a_list_and_a_pattern(tmp_path):
    for seed in (0, 2, 10):
        for name in ("source", "target"):
            save(tmp_path / "run" / f"s{seed}" / "scores" / f"{name}.csv", BASE)
        save(tmp_path / "plain" / f"{seed}.parquet", BASE)
    (tmp_path / "plain" / "notes.txt").write_text("no table")
    run = [tmp_path / "run" / f"s{seed}" / "scores" / "target.csv" for seed in (0, 2, 10)]
    assert find_tables(str(tmp_path / "run"), "target") == run
    assert find_tables(f"{tmp_path}/run/s*/scores/target.csv") == run
    assert find_tables(f"{tmp_path}/run/s*", "target") == run
    assert find_tables(f"{run[0]},{run[1]}") == run[:2]
    assert find_tables(str(tmp_path / "plain")) == [tmp_path / "plain" / f"{seed}.parquet" for seed in (0, 2, 10)]
    with pytest.raises(CellsegError, match=r"sets source, target; choose one with --set"):
        find_tables(str(tmp_path / "run"))
    with pytest.raises(CellsegError, match=r"no scores of the set 'val', only of source, target"):
        find_tables(str(tmp_path / "run"), "val")
    with pytest.raises(CellsegError, match="given twice"):
        find_tables(f"{run[0]},{run[0]}")


def test_patterns_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    save(tmp_path / "runs" / "s0" / "a.csv", BASE)
    monkeypatch.chdir(tmp_path)
    assert find_tables("runs/s*/a.csv") == [Path("runs/s0/a.csv")]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("a.csv", "b.csv", ["a", "b"]),
        ("plain/s0/target.csv", "l2sp/s0/target.csv", ["plain", "l2sp"]),
        ("x/plain.csv", "y/l2sp.csv", ["x/plain", "y/l2sp"]),
        ("one=a.csv", "two=b.csv", ["one", "two"]),
    ],
)
def test_methods_are_called_by_what_tells_them_apart(first, second, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argument in (first, second):
        save(Path(argument.split("=")[-1]), BASE)
    assert [method.name for method in read_methods([first, second])] == names


# ---- mistakes


def mistake(kind, folder):
    a, b = save(folder / "a.csv", BASE), folder / "b.csv"
    fewer = {image: value for image, value in BASE.items() if image not in ("i01", "i05")}
    if kind == "one method":
        return [a], "at least two methods"
    if kind == "no file":
        return [a, str(b)], r"b\.csv: no such score table"
    if kind == "empty name":
        return [a, "mine="], "NAME=WHERE"
    if kind == "fewer images":
        return [a, save(b, fewer)], r"b\.csv: lacks 2 of the images of .*a\.csv \(i01, i05\)"
    if kind == "more images":
        return [save(b, fewer), a], r"b\.csv: lacks 2 of the images of .*a\.csv \(i01, i05\)"
    if kind == "other rule":
        return [a, save(b, BASE, rule="neurips")], r"b\.csv: scored by rule neurips, but .*a\.csv by strict"
    if kind == "other truth":
        return [a, save(b, BASE, n_true=9)], r"image i00 has 9 true cells here and 7 there"
    if kind == "one name":
        return [f"m={a}", f"m={save(b, BASE)}"], "different names"
    if kind == "no table":
        b.write_text("a,b\n1,2\n")
        return [a, str(b)], r"b\.csv: not a score table"
    paths = [save(folder / f"s{seed}" / "a.csv", BASE) for seed in range(2)]
    return [a, *paths], r"look like seeds of one method: quote the pattern, '.*/s\*/a\.csv'"


@pytest.mark.parametrize(
    "kind",
    [
        "one method", "no file", "empty name", "fewer images", "more images", "other rule", "other truth", "one name",
        "no table", "loose seeds",
    ],
)  # fmt: skip
def test_mistakes_are_named(kind, tmp_path):
    arguments, said = mistake(kind, tmp_path)
    with pytest.raises(CellsegError, match=said):
        read_methods(arguments)


def test_a_threshold_that_is_not_there_names_the_table(two):
    with pytest.raises(CellsegError, match=r"a\.csv: wanted scores at IoU 0\.9 .* has 0\.5, 0\.75"):
        compared(*two, thresholds=(0.9,))


# ---- the command


def cellseg(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "cellseg.cli", "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_the_command_shows_and_writes(two, tmp_path):
    done = cellseg(*two, "--out", tmp_path / "c.csv", "--draws", "999")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    (line,) = [line.split() for line in done.stdout.splitlines() if line.startswith(" all")]
    assert line == ["all", "12", "0.500", "0.625", "+0.125", "+0.125", "to", "+0.125", "0.0020", "0.0020"]
    table = pd.read_csv(tmp_path / "c.csv")
    assert table[["difference", "p_holm", "metric", "threshold", "draws", "seed", "rule"]].to_numpy().tolist() == [
        [0.125, 0.002, "f1", 0.5, 999, 0, "strict"]
    ]


def test_json_is_the_same_by_seed(tmp_path):
    rng = np.random.default_rng(0)
    noisy = {image: value + rng.normal(0, 0.1) for image, value in BASE.items()}
    arguments = save(tmp_path / "a.csv", BASE), save(tmp_path / "b.csv", noisy, groups=("x", "y"))
    first, again, other = (cellseg(*arguments, "--json", "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again
    one, two = json.loads(first), json.loads(other)
    assert one["rows"][-1]["difference"] == two["rows"][-1]["difference"]
    assert one["rows"][-1]["low"] != two["rows"][-1]["low"]
    assert [method["name"] for method in one["methods"]] == ["a", "b"]


def test_a_mistake_is_one_line_and_status_1(two, tmp_path):
    done = cellseg(two[0], tmp_path / "none.csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    done = cellseg(*two, "--out", tmp_path / "c.txt")
    assert done.returncode == 1
    assert "c.txt: a table is written as .csv or .parquet" in done.stderr
