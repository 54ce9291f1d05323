"""Commands after an adaptation, with a network that was never trained: evaluate, report, and the end of adapt."""

import json
import shutil
import sys

import numpy as np
import pytest
import tifffile
from report_runs import SUMMARY, squares, write_images, write_weights

from cellseg.config import check_config
from cellseg.core import Record
from cellseg.datasets.index import write_index
from cellseg.images import write_labels
from cellseg.report.runs import lacks_target, read_methods
from cellseg.report.start import with_start
from cellseg.report.views import compare_cells, make_views


@pytest.fixture
def user_run(tmp_path):
    """A finished adaptation of a network that was never trained, to two images without labels."""
    (tmp_path / "own").mkdir()
    records = []
    for name in ("x", "y"):
        path = tmp_path / "own" / f"{name}.tif"
        tifffile.imwrite(path, ((squares(4) > 0) * 200 + 20).astype(np.uint8))
        records.append(Record(name, path, None, "own", "", "", 64, 80, None, "", None))
    write_index(tmp_path / "own" / "index.csv", records)
    write_weights(tmp_path / "teach")
    run = tmp_path / "mine"
    write_weights(run, 1.5)
    values = {
        "model": {"size": "tiny"},
        "train": {"init": str(tmp_path / "teach" / "best.safetensors")},
        "data": {"unlabelled": [{"index": str(tmp_path / "own" / "index.csv")}]},
        "predict": {"diameter": 24.0},
    }
    (run / "config.json").write_text(check_config(values).model_dump_json())
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    return run


def command(monkeypatch, capsys, *arguments):
    """Run the command line in this process; return its exit status, stdout and stderr."""
    from cellseg.cli import main

    monkeypatch.setattr(sys, "argv", ["cellseg", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    return stopped.value.code, said.out, said.err


def test_evaluate_says_what_to_do_with_a_run_that_names_nothing_to_score(user_run, monkeypatch, capsys):
    code, _, err = command(monkeypatch, capsys, "evaluate", user_run)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert f"cellseg report {user_run}" in err
    assert f"cellseg predict IMAGES --model {user_run} --out PRED" in err


def test_a_run_without_labels_is_reported_before_and_after(user_run, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "report", user_run, "--device", "cpu")
    assert (code, out, err) == (0, f"{user_run / 'report.html'}\n", "")
    text = (user_run / "report.html").read_text(encoding="utf-8")
    assert "In 2 images without labels teach found" in text
    assert "Nothing was scored: without true labels nobody knows" in text
    assert "<p>The weights of step 10 are handed out: cycle 0.600, 0.500 before.</p>" in text
    assert text.count('<article class="view"') == 2
    assert "true cell" not in text.split("<main")[1]
    assert "head: .500</title>" in text
    made = [user_run / place / "predictions" / "unlabelled" / "x.tif" for place in ("", "start")]
    times = [path.stat().st_mtime_ns for path in made]
    assert command(monkeypatch, capsys, "report", user_run, "--device", "cpu")[0] == 0
    assert [path.stat().st_mtime_ns for path in made] == times  # segmented once


def test_where_only_the_source_is_scored_the_users_images_are_shown_too(user_run, monkeypatch, capsys):
    source = user_run.parent / "source"
    source.mkdir()
    index = write_images(source, ("a",))
    values = json.loads((user_run / "config.json").read_text())
    values["data"] |= {"replay": [{"index": str(index)}], "evaluate": [{"name": "source", "index": str(index)}]}
    (user_run / "config.json").write_text(json.dumps(values))
    assert command(monkeypatch, capsys, "report", user_run, "--device", "cpu")[0] == 0  # nothing is scored yet
    assert "Nothing was scored: without true labels nobody knows" in (user_run / "report.html").read_text("utf-8")
    assert command(monkeypatch, capsys, "evaluate", user_run, "--device", "cpu")[0] == 0
    assert command(monkeypatch, capsys, "report", user_run, "--device", "cpu")[0] == 0
    text = (user_run / "report.html").read_text(encoding="utf-8")
    assert "On 1 source image mean F1@0.5" in text
    assert "In 2 images without labels teach found" in text
    assert "Of the images that it was adapted to none was scored" in text
    assert text.count('<article class="view"') == 3
    assert command(monkeypatch, capsys, "report", user_run, "--set", "source", "--device", "cpu")[0] == 0
    assert "In 2 images without labels" not in (user_run / "report.html").read_text(encoding="utf-8")


def test_an_index_may_hold_both_sides(user_run):
    values = json.loads((user_run / "config.json").read_text())
    both = [{"index": values["data"]["unlabelled"][0]["index"]}]
    scored = [both[0] | {"name": name} for name in ("source", "target")]
    assert lacks_target(check_config(values))
    assert not lacks_target(check_config(values | {"data": values["data"] | {"replay": both, "evaluate": scored}}))
    assert not lacks_target(check_config(values | {"data": values["data"] | {"evaluate": scored}}))


def test_images_without_labels_are_shown_also_where_an_index_is_to_tell_the_scale(user_run, monkeypatch, capsys):
    values = json.loads((user_run / "config.json").read_text())
    (user_run / "config.json").write_text(json.dumps(values | {"predict": {"diameter": "index"}}))
    assert command(monkeypatch, capsys, "report", user_run, "--device", "cpu")[0] == 0
    assert (user_run / "predictions" / "unlabelled" / "x.tif").is_file()


def test_cells_of_the_first_and_last_method_are_compared(user_run):
    for place, found in (("", {"x": 2, "y": 0}), ("start", {"x": 4, "y": 0})):
        folder = user_run / place / "predictions" / "unlabelled"
        for name, count in found.items():
            write_labels(folder / f"{name}.tif", squares(count))
    records = (user_run.parent / "own" / "index.csv").read_text().replace("x.tif", "../../../own/x.tif")
    (user_run / "predictions" / "unlabelled" / "index.csv").write_text(records.replace("y.tif", "../../../own/y.tif"))
    methods = with_start(read_methods([user_run]))
    counts = [(each.image, each.counts, each.agreement) for each in compare_cells(methods)]
    assert counts == [("x", (4, 2), pytest.approx(2 / 3)), ("y", (0, 0), 1.0)]
    views, notes = make_views(methods, ["unlabelled"], 2)
    assert notes == []
    assert [(view.rank, view.n_true, view.truth) for view in views] == [
        ("changed most", None, ""),
        ("changed least", None, ""),
    ]


def test_seeds_without_labels_are_reported_together(user_run, monkeypatch, capsys):
    seeds = user_run.parent / "seeds"
    for name in ("s0", "s1"):
        shutil.copytree(user_run, seeds / name)
    code, _, err = command(monkeypatch, capsys, "report", seeds, "--device", "cpu")
    assert (code, err) == (0, "")
    text = (seeds / "report.html").read_text(encoding="utf-8")
    assert "In 2 images without labels teach found" in text
    assert "Seed 1: the weights of step 10 are handed out" in text


def test_a_start_that_is_gone_is_said_and_the_rest_is_shown(user_run, monkeypatch, capsys):
    (user_run.parent / "teach" / "best.safetensors").unlink()
    code, _, err = command(monkeypatch, capsys, "report", user_run, "--device", "cpu")
    assert code == 0
    assert err.startswith("the start is not shown: ")
    assert "In 2 images without labels mine finds" in (user_run / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def scored_run(user_run):
    """The same with a set of images to score."""
    (user_run.parent / "images").mkdir()
    index = write_images(user_run.parent / "images", ("a", "b", "c"))
    values = json.loads((user_run / "config.json").read_text())
    values["data"]["evaluate"] = [{"name": "target", "index": str(index)}]
    (user_run / "config.json").write_text(json.dumps(values))
    return user_run


def test_evaluate_scores_the_start_once(scored_run, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "evaluate", scored_run, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "gained and lost against teach; images: 3 of target" in out
    kept = scored_run / "start" / "scores" / "target.csv"
    before = kept.stat().st_mtime_ns
    assert command(monkeypatch, capsys, "evaluate", scored_run, "--device", "cpu")[0] == 0
    assert kept.stat().st_mtime_ns == before
    summary = json.loads((scored_run / "summary.json").read_text())
    assert summary["scorings"] == {"target": 2}
    from cellseg.compare import find_tables

    assert find_tables(str(scored_run)) == [scored_run / "scores" / "target.csv"]


def test_the_end_of_adapt_scores_what_is_not_scored_and_prints_to_stderr(scored_run, monkeypatch, capsys):
    from cellseg.cli.runs import Scoring, conclude

    conclude(scored_run, Scoring(device="cpu"), evaluate=False)
    said = capsys.readouterr()
    assert said.out == ""
    assert not (scored_run / "scores").exists()
    assert said.err.splitlines()[-1] == f"before and after on the sets it names: cellseg evaluate {scored_run}"
    for _ in range(2):
        conclude(scored_run, Scoring(device="cpu"), evaluate=True)
        said = capsys.readouterr()
        assert said.out == ""
        assert "gained and lost against teach" in said.err
    assert json.loads((scored_run / "summary.json").read_text())["scorings"] == {"target": 1}
    monkeypatch.setenv("RANK", "1")
    conclude(scored_run, Scoring(device="cpu"), evaluate=True)
    assert capsys.readouterr().err == ""


def test_a_set_that_cannot_be_scored_does_not_hide_what_was_done(scored_run, capsys):
    from cellseg.cli.runs import Scoring, conclude

    (scored_run.parent / "images" / "index.csv").unlink()
    conclude(scored_run, Scoring(device="cpu"), evaluate=True)
    err = capsys.readouterr().err
    assert "the run is finished, but its sets could not be scored: " in err
    assert "The weights of step 10 are handed out" in err
