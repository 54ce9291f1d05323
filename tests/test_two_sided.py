"""Both sides of an adaptation: the start beside the result, on the page and in the terminal."""

import json
import os

import numpy as np
import pytest
from report_runs import SUMMARY, write_images, write_run, write_weights

from cellseg.checkpoint import load_weights
from cellseg.metrics.scores import read_scores, write_scores
from cellseg.report.changes import list_losses, measure_change
from cellseg.report.curves import draw_bars, make_charts, sparkline
from cellseg.report.distances import furthest, mean_distance, measure_distance
from cellseg.report.looks import compare_looks, judge_criteria, make_scatters
from cellseg.report.page import write_page
from cellseg.report.runs import read_folder, read_methods
from cellseg.report.start import find_scores, find_weights, name_of, with_start
from cellseg.report.views import add_losses, make_views
from cellseg.report.words import say_decisions

IDS = ("a", "b", "c")


def looks(*pairs, **constant):
    return [{"step": 10 * place, "cycle": cycle, "val_f1": f1, **constant} for place, (cycle, f1) in enumerate(pairs)]


@pytest.fixture
def runs(tmp_path):
    """A start that finds 4, 2, 4 of four squares; three looks later 4, 4, 1, with the last layer half as long again."""
    (tmp_path / "images").mkdir()
    index = write_images(tmp_path / "images", IDS, group="round")
    start = write_run(tmp_path / "teach" / "s0", index, {"a": 4, "b": 2, "c": 4})
    log = looks((0.5, 0.3), (0.6, 0.7), (0.7, 0.6), cells=40.0)
    made = {"init": str(start), "log": log, "summary": SUMMARY}
    end = write_run(tmp_path / "learn" / "s0", index, {"a": 4, "b": 4, "c": 1}, **made)
    write_weights(start)
    write_weights(end, 1.5)
    return start, end


# ---- the start


def test_scores_of_the_start_come_from_its_own_run(runs):
    assert find_scores(read_folder(runs[1]), "target") == runs[0]
    methods = with_start(read_methods([runs[1]]))
    assert [method.name for method in methods] == ["teach", "learn"]
    assert methods[0].first.folder == runs[0]
    assert with_start(methods) == methods


@pytest.mark.parametrize("spoilt", ["older", "settings", "images", "rule", "truth", "gone"])
def test_scores_of_something_else_are_passed_over(runs, tmp_path, spoilt):
    start, end = runs
    table = start / "scores" / "target.csv"
    if spoilt == "older":
        os.utime(table, (0, 0))
    elif spoilt == "settings":
        config = json.loads((start / "config.json").read_text())
        (start / "config.json").write_text(json.dumps(config | {"predict": config["predict"] | {"tta": True}}))
    elif spoilt == "images":
        (tmp_path / "others").mkdir()
        other = write_images(tmp_path / "others", IDS, group="round")
        write_run(start, other, {"a": 4, "b": 2, "c": 4})
    elif spoilt == "gone":
        (start / "best.safetensors").unlink()
    else:
        scores = read_scores(table)
        write_scores(scores.assign(**({"rule": "neurips"} if spoilt == "rule" else {"n_true": 9})), table)
    assert find_scores(read_folder(end), "target") is None
    assert [method.name for method in with_start(read_methods([end]))] == ["learn"]


def test_another_index_is_other_conditions_only_where_it_gives_the_scale(runs):
    for diameter, home in ((12.0, runs[0]), ("index", None)):
        for folder, index in ((runs[0], "one.csv"), (runs[1], "two.csv")):
            values = json.loads((folder / "config.json").read_text())
            values["data"]["evaluate"] = [{"name": "target", "index": index}]
            values["predict"]["diameter"] = diameter
            (folder / "config.json").write_text(json.dumps(values))
        assert find_scores(read_folder(runs[1]), "target") == home


def test_scores_kept_within_the_run_are_used_while_newer_than_the_weights(runs, tmp_path):
    start, end = runs
    kept = write_run(end / "start", tmp_path / "images" / "index.csv", {"a": 4, "b": 1, "c": 4})
    os.utime(start / "scores" / "target.csv", (0, 0))
    assert find_scores(read_folder(end), "target") == kept
    assert mean_of(with_start(read_methods([end]))[0]) == pytest.approx((1 + 2 / 5 + 1) / 3)
    (start / "best.safetensors").touch()
    assert find_scores(read_folder(end), "target") is None
    (start / "best.safetensors").unlink()  # nobody can score them anew: what is kept is what there is
    assert find_scores(read_folder(end), "target") == kept


def mean_of(method):
    return measure_change(method, method, "target").before


def test_seeds_of_one_start_share_it(runs, tmp_path):
    index = tmp_path / "images" / "index.csv"
    write_run(tmp_path / "learn" / "s1", index, {"a": 4, "b": 4, "c": 4}, init=str(runs[0]))
    methods = with_start(read_methods([tmp_path / "learn"]))
    assert [len(method.runs) for method in methods] == [1, 2]
    assert measure_change(*methods, "target").after == pytest.approx(((1 + 1 + 2 / 5) / 3 + 1) / 2)


def test_a_start_is_found_beside_a_run_that_moved(runs, tmp_path):
    assert find_weights(runs[1], "some/where/teach/s0") == runs[0] / "best.safetensors"
    assert find_weights(runs[1], "some/where/teach/s0/best.safetensors") == runs[0] / "best.safetensors"
    assert find_weights(runs[1], "some/where/else") is None
    names = [name_of(text) for text in ("r/teach/s0", "r/teach/s0/best.safetensors", "r/x/best.safetensors", "m/cyto3")]
    assert names == ["teach", "teach", "x", "cyto3"]


# ---- figures


def test_both_measures_and_their_intervals(runs, tmp_path):
    start, end = read_methods(list(runs))
    for measure in ("F1@0.5", "F1@[.5:.9]"):  # squares fit or do not: every threshold says the same
        change = measure_change(start, end, "target", measure)
        assert (change.before, change.after) == pytest.approx(((1 + 4 / 6 + 1) / 3, (1 + 1 + 2 / 5) / 3))
        assert change.spreads[0] == pytest.approx((4 / 6, 1))
        assert change.difference.low == pytest.approx(2 / 5 - 1)  # the one image that lost, drawn every time
        assert change.difference.high == pytest.approx(1 / 3)
        assert not change.is_settled
    write_run(runs[1], tmp_path / "images" / "index.csv", {"a": 0, "b": 0, "c": 0})
    fell = measure_change(start, read_methods([runs[1]])[0], "target")
    assert fell.is_settled
    assert fell.spreads[1] == (0, 0)


def test_one_image_has_no_interval_and_settles_nothing(tmp_path):
    (tmp_path / "images").mkdir()
    index = write_images(tmp_path / "images", ("a",))
    pair = [write_run(tmp_path / name / "s0", index, {"a": found}) for name, found in (("one", 4), ("two", 0))]
    change = measure_change(*read_methods(pair), "target")
    assert change.difference.mean == -1
    assert np.isnan([change.difference.low, change.difference.high, *change.spreads[0], *change.spreads[1]]).all()
    assert not change.is_settled


def test_a_table_without_the_thresholds_of_a_span_has_no_such_change(runs):
    table = runs[0] / "scores" / "target.csv"
    scores = read_scores(table)
    write_scores(scores[scores["threshold"] == 0.5], table)
    start, end = read_methods(list(runs))
    assert measure_change(start, end, "target", "F1@[.5:.9]") is None
    assert measure_change(start, end, "target").n_images == 3


def test_only_images_that_lost_are_losses_and_they_are_shown(runs, tmp_path):
    methods = read_methods(list(runs))
    (loss,) = list_losses(methods, "target")
    assert (loss.image, loss.before, loss.after) == ("c", 1, pytest.approx(2 / 5))
    write_run(runs[1], tmp_path / "images" / "index.csv", {"a": 3, "b": 1, "c": 1})
    methods = read_methods(list(runs))
    assert [loss.image for loss in list_losses(methods, "target")] == ["c", "b", "a"]  # −.6, −.27, −.14
    assert [loss.image for loss in list_losses(methods, "target", 1)] == ["c"]
    assert list_losses(methods[:1], "target") == []
    views, _ = make_views(methods, ["target"], 1)
    assert [(view.rank, view.image) for view in views] == [("worst", "b"), ("largest loss", "c")]
    assert add_losses([("worst", "x")], ["y", "x"]) == [("worst and loss no. 2", "x"), ("largest loss", "y")]


def test_distance_is_of_the_weights_handed_out_layer_by_layer(runs):
    distance = measure_distance(read_folder(runs[1]))
    weights = dict(load_weights(runs[0])[0].named_parameters())
    squares = {name: float(value.detach().square().sum()) for name, value in weights.items()}
    head = sum(value for name, value in squares.items() if name.startswith("head"))
    assert distance.layers["head"] == pytest.approx(0.5)
    assert {value for name, value in distance.layers.items() if name != "head"} == {0.0}
    assert distance.whole == pytest.approx(0.5 * (head / sum(squares.values())) ** 0.5)
    assert furthest(distance, 1) == [("head", pytest.approx(0.5))]
    assert mean_distance(read_methods([runs[1]])[0]).layers["head"] == pytest.approx(0.5)
    assert measure_distance(read_folder(runs[0])) is None  # from scratch


# ---- what could be seen without labels


def test_the_start_is_compared_with_what_was_handed_out(runs):
    method = read_methods([runs[1]])[0]
    found = {row.key: (row.start, row.end, row.decided) for row in compare_looks(method)}
    assert found == {"cycle": (0.5, 0.6, True), "cells": (40, 40, False), "val_f1": (0.3, 0.7, False)}
    (runs[1] / "summary.json").write_text(json.dumps(SUMMARY | {"wise": {"weight": 0.5, "cycle": 0.9}}))
    mixed = compare_looks(read_methods([runs[1]])[0])
    assert [(row.key, row.end) for row in mixed] == [("cycle", 0.9)]


def test_criteria_are_judged_where_there_was_a_validation_f1(runs):
    method = read_methods([runs[1]])[0]
    trust = judge_criteria(method)["cycle"]  # ranks 1, 2, 3 against 1, 3, 2
    assert (trust.rho, trust.cost, trust.count) == (pytest.approx(0.5), pytest.approx(0.1), 3)
    (chart,) = make_scatters([method])
    assert (chart["left"], chart["right"], chart["low"], chart["high"]) == ("0.50", "0.70", "0.30", "0.70")
    assert [(dot["x"], dot["y"], dot["handed_out"]) for dot in chart["dots"]] == [
        ("0.0%", "100.0%", False),
        ("50.0%", "0.0%", True),
        ("100.0%", "25.0%", False),
    ]
    lines = [{"step": 0, "cycle": 0.5}, {"step": 10, "cycle": 0.6}, {"step": 20, "cycle": 0.7}]
    (runs[1] / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert make_scatters(read_methods([runs[1]])) == []


def test_decisions_name_their_seed_and_what_was_mixed(runs, tmp_path):
    assert say_decisions(read_methods([runs[1]])[0]) == [f"T{SUMMARY['decision'][1:]}"]
    write_run(tmp_path / "learn" / "s1", tmp_path / "images" / "index.csv", dict.fromkeys(IDS, 4), init=str(runs[0]))
    (tmp_path / "learn" / "s1" / "summary.json").write_text('{"chosen_by": "last step", "chosen_step": 7}')
    assert say_decisions(read_methods([tmp_path / "learn"])[0]) == [
        f"Seed 0: {SUMMARY['decision']}",
        "Seed 1: the weights of step 7 are handed out, chosen by: last step",
    ]
    assert say_decisions(read_methods([runs[0]])[0]) == []


def test_charts_mark_what_was_handed_out_and_draw_the_criteria(runs):
    charts = {chart["title"]: chart for chart in make_charts(read_methods([runs[1]]))}
    assert list(charts) == ["Validation F1@0.5", "Criterion cycle", "Cells"]
    assert charts["Criterion cycle"]["marks"] == [{"method": 0, "x": "50", "step": 10}]
    assert charts["Criterion cycle"]["lines"][0]["path"] == "M0 50L50 40L100 30"


def test_bars_and_sparklines():
    bars = draw_bars([[0.5, None], [1.0, 0.25]])
    assert [(bar["layer"], bar["method"], bar["x"], bar["width"], bar["height"]) for bar in bars] == [
        (0, 0, "5", "20", "50"),
        (1, 0, "55", "20", "100"),
        (1, 1, "75", "20", "25"),
    ]
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█"
    assert (sparkline([]), sparkline([3, 3])) == ("", "▁▁")


# ---- the page and the terminal


def test_one_adaptation_alone_is_shown_beside_its_start(runs, tmp_path):
    text = write_page([runs[1]], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h1>teach → learn</h1>" in text
    assert "On 3 target images mean F1@0.5 went from .889 to .800." in text
    assert "<p>The weights of step 10 are handed out: cycle 0.600, 0.500 before.</p>" in text
    assert '<th scope="row">F1@[.5:.9]</th>' in text
    assert "cycle <b>decided</b>" in text
    assert "head: .500</title>" in text
    assert "its choice costs .100" in text
    lost = text.split('id="lost"')[1].split("</ul>")[0]
    assert [name in lost for name in (">a</a>", ">b</a>", ">c</a>")] == [False, False, True]
    assert "cellseg report learn/s0</code>" in text


def test_a_start_that_was_not_scored_is_said(runs, tmp_path):
    os.utime(runs[0] / "scores" / "target.csv", (0, 0))
    text = write_page([runs[1]], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "learn started from teach, whose scores on these images are not there" in text


def test_the_terminal_shows_the_same(runs, capsys, monkeypatch):
    from cellseg.cli.two_sided import show_adaptation

    monkeypatch.setenv("COLUMNS", "80")
    show_adaptation(runs[1])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[2:-1])) <= 80
    rows = [" ".join(line.split()) for line in lines]
    assert "target F1@0.5 0.889 0.800 -0.089" in rows
    assert "0.667 to 1.000 0.400 to 1.000 -0.600 to +0.333" in rows
    assert "1.000 to 0.400 target: c" in rows
    assert "cycle (decided) 0.500 0.600 0.50 0.100" in rows
    assert any(row.startswith("distance from the start: ") and row.endswith("furthest: head 0.500") for row in rows)
    assert rows[-1] == f"T{SUMMARY['decision'][1:]}."
