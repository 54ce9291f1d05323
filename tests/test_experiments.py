"""The experiments as files: every row can be run, every table is made from what is committed, nothing is run twice."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from cellseg.adapt import adapt
from cellseg.checkpoint import load_weights, save_weights
from cellseg.cli import training
from cellseg.config import ModelConfig, RunConfig, check_config, load_config
from cellseg.core import CellsegError, Record
from cellseg.datasets.index import write_index
from cellseg.images import write_labels
from cellseg.metrics.scores import COLUMNS, read_scores, write_scores
from cellseg.models.build import build_model
from cellseg.tables import read_table, render_table
from cellseg.train import train

ROOT = Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(ROOT))

import archive  # noqa: E402 (a script of the repository, no module of the package)
import figures  # noqa: E402
import run_all  # noqa: E402

ROWS = sorted((ROOT / "rows").glob("*.toml"))
RUN_FILES = [*sorted(ROOT.glob("*.toml")), *ROWS]
SETS = (
    "dsb2018",
    "livecell",
    "ctc_phc_c2dl_psc",
    "ctc_dic_c2dh_hela",
    "ctc_fluo_n2dl_hela",
    "neurips2022_weak",
    "synthetic_replay",
    "synthetic_stain",
)


# ---- run files


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_every_run_file_asks_something_and_is_valid(path):
    if path.stem != "base":
        assert path.read_text(encoding="utf-8").startswith("# Question: "), "the first line says what is asked"
    load_config(path)


def test_names_of_runs_are_unique_for_they_share_a_folder():
    names = [path.stem for path in RUN_FILES]
    assert len(set(names)) == len(names)


def test_every_row_is_in_a_table_or_starts_another_and_every_table_names_rows():
    tabled = run_all.rows_in_order()
    assert all(run_all.run_file(row) for row in tabled)
    starts = {Path(load_config(path).train.init or "").parent.name for path in ROWS}
    assert {path.stem for path in ROWS} <= set(tabled) | starts
    assert {path.stem for path in (ROOT / "tables").glob("rows_*.toml")} == set(run_all.ORDER)
    with pytest.raises(CellsegError, match="no such row"):
        run_all.run_file("n5_nothing")


@pytest.mark.parametrize("row", ["n0_default", "n5_default", "n5_default_replay"])
def test_the_rows_of_the_command_as_it_is_have_its_settings(row, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_replayed", lambda *_: {"replay": [{"index": "of_the_source.csv"}]})
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/a.tif", np.zeros((64, 64), np.uint8))
    write_labels(tmp_path / "labels/a.tif", np.eye(64, dtype=np.int32))
    labels = tmp_path / "labels" if row.startswith("n5") else None
    made = training._folder_run(tmp_path / "images", labels, None, None, tmp_path / "out", [])
    asked = load_config(ROOT / "rows" / f"{row}.toml")
    for part in ("model", "augment", "augment_replay", "train", "adapt"):
        assert getattr(asked, part) == getattr(made, part)
    assert (asked.data.balance, asked.data.diameter) == (made.data.balance, made.data.diameter)


def write_disks(folder):
    """One image of four disks, its labels and its foreground."""
    folder.mkdir()
    rows, columns = np.indices((96, 96))
    labels = np.zeros((96, 96), np.int32)
    for cell, (y, x) in enumerate([(20, 20), (22, 64), (60, 30), (70, 74)], start=1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= 12**2] = cell
    tifffile.imwrite(folder / "image.tif", ((labels > 0) * 120 + 40).astype(np.uint8))
    write_labels(folder / "labels.tif", labels)
    write_labels(folder / "mask.tif", (labels > 0).astype(np.int32))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny index under the name of every set, and a teacher with batch norm."""
    folder = write_disks(tmp_path_factory.mktemp("world") / "disks")
    for name in SETS:
        records = []
        for split in ("train", "val", "test", "unlabelled"):
            for group in ("fluorescence", "stained"):
                labels = {"unlabelled": None}.get(split, folder / "labels.tif")
                kind, count = ("instances", 4) if labels else ("", None)
                if name == "neurips2022_weak":
                    labels, kind, count = folder / "mask.tif", "foreground", None
                facts = (name, split, group, 96, 96, count, kind, 24.0 if kind == "instances" else None)
                records.append(Record(f"{split}_{group}", folder / "image.tif", labels, *facts))
        write_index(folder / name / "index.csv", records)
    batch = ModelConfig(norm="batch")
    save_weights(folder / "batch.safetensors", build_model(batch), batch, {"diameter": 24.0})
    return folder


def shrunk(config, world):
    """Return a run file's configuration on the tiny sets, with two small steps."""
    text = config.model_dump_json().replace("data/prepared/", f"{world}/")
    text = text.replace("experiments/runs/batch_teacher/s0", str(world / "batch.safetensors"))
    text = text.replace("experiments/runs/adapt_teacher_fluorescence/s0", "teacher")
    values = json.loads(text)
    values["train"] |= {"steps": 2, "batch_size": 1, "crop_size": 64, "validate_every": 2, "log_every": 1}
    values["adapt"] |= {"batch_size": 1, "round_steps": 1, "watch": min(1, config.adapt.watch)}
    values["predict"] |= {"diameter": 24.0, "tile": 128}
    return RunConfig.model_validate_json(json.dumps(values))


@pytest.mark.slow
@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_every_row_makes_two_steps(path, world, tmp_path):
    config = load_config(path)
    go = train if config.train.init is None else adapt
    weights = go(shrunk(config, world), tmp_path / "run", device="cpu")
    model, made, about = load_weights(weights)
    assert made == config.model
    assert about["step"] in (0, 2)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["regularizer"] == config.train.regularizer.kind
    assert summary["steps"] == 2
    if config.train.freeze_encoder:
        start = load_weights("teacher")[0].state_dict()
        assert all(np.array_equal(model.state_dict()[key], start[key]) for key in start if key.startswith("stem"))


# ---- the archive


def scored(folder, name, images, rule="strict"):
    """Write a score table; each image is (id, n_true, n_pred, tp at .5, status), one cell fewer found at .9 and .95."""
    rows = []
    for image, n_true, n_pred, tp, status in images:
        for step in range(10, 20):
            hit = max(0, tp - (step >= 18))
            f1 = 2 * hit / (n_true + n_pred) if n_true + n_pred else float(status in ("ok", "empty"))
            f1 = round(f1, 4) if rule == "neurips" else f1
            numbers = (step / 20, hit, n_pred - hit, n_true - hit, n_true, n_pred, 0.75 * hit, f1, status)
            rows.append((image, "g", "test", "toy", rule, *numbers))
    frame = pd.DataFrame(rows, columns=[*COLUMNS])
    return write_scores(frame, folder / "scores" / f"{name}.csv")


def test_what_is_archived_comes_back_as_it_was(tmp_path):
    run = tmp_path / "runs" / "a"
    images = [("p", 4, 3, 3, "ok"), ("q", 7, 0, 0, "missing"), ("r", 0, 0, 0, "empty")]
    paths = [
        scored(run / "s0", "target", images),
        scored(run / "s0/start", "target", [(*one[:2], 0, 0, one[4]) for one in images]),
    ]
    paths.append(scored(run / "s1", "target", [("p", 4, 9, 4, "ok"), ("q", 7, 7, 1, "ok"), ("r", 0, 2, 0, "ok")]))
    paths.append(scored(run / "s1", "other", [("p", 6, 5, 3, "ok")], rule="neurips"))
    (tmp_path / "kept" / "runs").mkdir(parents=True)
    write_scores(archive.counts_of([run / "s0", run / "s1"]), tmp_path / "kept" / "runs" / "a.csv")
    archive.unpack(tmp_path / "kept", tmp_path / "back")
    for path in paths:
        before = read_scores(path).drop(columns="iou_sum")
        after = read_scores(tmp_path / "back" / path.relative_to(tmp_path / "runs")).drop(columns="iou_sum")
        before["status"] = before["status"].replace("empty", "ok")  # the same to every mean
        pd.testing.assert_frame_equal(before, after)


def test_seeds_of_different_images_are_refused(tmp_path):
    scored(tmp_path / "a/s0", "target", [("p", 4, 3, 3, "ok")])
    scored(tmp_path / "a/s1", "target", [("q", 4, 3, 3, "ok")])
    with pytest.raises(CellsegError, match="scored on different images of target"):
        archive.counts_of([tmp_path / "a/s0", tmp_path / "a/s1"])


def test_summaries_and_logs_are_kept_and_those_of_absent_runs_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "tabled_runs", lambda: ["a"])
    runs, results = tmp_path / "runs", tmp_path / "results"
    scored(runs / "a/s0", "target", [("p", 4, 3, 3, "ok")])
    summary = {"minutes": 2.5, "distance": 0.125, "made_with": {"revision": "abc", "command": "x"}, "other": 1}
    (runs / "a/s0/summary.json").write_text(json.dumps(summary))
    steps = [{"step": 10, "distance": 0.1}, {"step": 50, "distance": 0.2}, {"step": 60, "val_f1": 0.3}]
    (runs / "a/s0/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    results.mkdir()
    (results / "runs.csv").write_text("run,seed,minutes,revision\nb,1,9,old\na,0,7,old\n")
    archive.pack(runs, results)
    kept = pd.read_csv(results / "runs.csv", keep_default_na=False).to_dict("records")
    assert [(row["run"], row["minutes"], row["revision"]) for row in kept] == [("a", 2.5, "abc"), ("b", 9, "old")]
    assert pd.read_csv(results / "steps.csv")["step"].tolist() == [50, 60]
    archive.unpack(results, tmp_path / "back")
    assert json.loads((tmp_path / "back/a/s0/summary.json").read_text()) == {"minutes": 2.5, "distance": 0.125}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    archive.unpack(ROOT / "results", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "tables").glob("*.toml")), ids=lambda path: path.stem)
def test_every_committed_table_is_made_from_the_committed_counts_byte_for_byte(path, unpacked, tmp_path):
    for made in render_table(path, unpacked, tmp_path):
        assert made.read_bytes() == (ROOT / "results" / made.name).read_bytes(), made.name


# ---- the driver


@pytest.fixture
def tiny(world):
    """Run files that differ in what is done after training."""
    data = {"data": {"train": [{"index": str(world / "livecell/index.csv"), "split": "train"}]}}
    settings = {"init": str(world / "batch.safetensors"), "steps": 2, "batch_size": 1, "crop_size": 64, "log_every": 1}
    base = data | {"model": {"norm": "batch"}, "train": settings, "adapt": {"criterion": "last"}}
    return check_config(base), check_config(base | {"adapt": {"criterion": "last", "wise": 0.25}})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["declared", "never_worse", "source_test"])
def test_every_list_is_written_again_from_what_is_kept_byte_for_byte(name, unpacked, tmp_path, monkeypatch):
    script = importlib.import_module(name)
    link = lambda _, folder: [(folder / run.name).symlink_to(run) for run in unpacked.iterdir()]  # noqa: E731
    monkeypatch.setattr(script, "unpack", link, raising=False)
    committed = ROOT / "results" / name
    shutil.copy(committed.with_suffix(".csv"), tmp_path)
    monkeypatch.setattr(script, "OUT", tmp_path / name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    script.main()
    for suffix in (".md", ".csv"):
        assert (tmp_path / f"{name}{suffix}").read_bytes() == committed.with_suffix(suffix).read_bytes()


@pytest.mark.slow
def test_wise_takes_the_training_of_the_same_run_without_it(tiny, tmp_path, monkeypatch):
    plain, wise = tiny
    monkeypatch.setattr(run_all, "RUNS", tmp_path)
    adapt(plain, tmp_path / "plain/s0", device="cpu")
    own = adapt(wise, tmp_path / "elsewhere/own", device="cpu")
    run_all.borrow_training(wise, tmp_path / "wise/s0", 0)
    state = (tmp_path / "wise/s0/last.pt").read_bytes()
    borrowed = adapt(wise, tmp_path / "wise/s0", resume=True, device="cpu")
    assert (tmp_path / "wise/s0/last.pt").read_bytes() == state  # no step was made
    assert load_config_of(tmp_path / "wise/s0") == wise
    for (name, value), other in zip(weights(own).items(), weights(borrowed).values(), strict=True):
        assert np.array_equal(value, other), name
    run_all.borrow_training(plain, tmp_path / "other/s0", 0)
    assert not (tmp_path / "other").exists()  # what has nothing done afterwards is trained


@pytest.mark.slow
def test_more_views_take_the_training_of_the_same_run_without_them(tiny, tmp_path, monkeypatch):
    plain = tiny[0]
    views = plain.model_copy(update={"predict": plain.predict.model_copy(update={"tta": True})})
    monkeypatch.setattr(run_all, "RUNS", tmp_path)
    whole = adapt(plain, tmp_path / "plain/s0", device="cpu")
    run_all.borrow_training(views, tmp_path / "views/s0", 0)
    borrowed = adapt(views, tmp_path / "views/s0", resume=True, device="cpu")
    assert load_config_of(tmp_path / "views/s0") == views
    assert all(np.array_equal(value, weights(borrowed)[name]) for name, value in weights(whole).items())
    watched = views.model_copy(update={"data": views.data.model_copy(update={"val": views.data.train})})
    run_all.borrow_training(watched, tmp_path / "watched/s0", 0)
    assert not (tmp_path / "watched").exists()  # validation would have seen other labels


def load_config_of(folder):
    return RunConfig.model_validate_json((folder / "config.json").read_text())


def weights(path):
    return load_weights(path)[0].state_dict()


def test_rows_are_begun_only_while_they_fit(monkeypatch, capsys):
    clock, done = [0.0], []

    def finish(row, seed):
        clock[0] += 1000.0
        done.append((row, seed))

    monkeypatch.setattr(run_all, "finish", finish)
    monkeypatch.setattr(run_all, "is_scored", lambda folder: folder.parts[-2:] in {("a", "s0"), ("b", "s1")})
    monkeypatch.setattr(run_all.time, "monotonic", lambda: clock[0])
    assert run_all.run_rows(["a", "b", "c", "d"], hours=2.0) == []
    # a and b have two seeds to make; c would end after 7,000 s of 7,200; d would not
    assert done == [(row, seed) for row, seeds in (("a", (1, 2)), ("b", (0, 2)), ("c", (0, 1, 2))) for seed in seeds]
    assert "1 rows are left, from d on" in capsys.readouterr().out
    done.clear()
    assert run_all.run_rows(["a", "b"], hours=99.0, seeds=[0, 2]) == []
    assert done == [("a", 2), ("b", 0), ("b", 2)]


def test_a_failed_run_is_named_and_the_next_is_made(monkeypatch, capsys):
    def finish(row, seed):
        if (row, seed) == ("a", 1):
            raise CellsegError("no index")

    monkeypatch.setattr(run_all, "finish", finish)
    monkeypatch.setattr(run_all, "is_scored", lambda folder: False)
    assert run_all.run_rows(["a"], hours=1.0) == ["a seed 1"]
    assert "error: a seed 1: no index" in capsys.readouterr().err


def test_a_row_made_again_is_compared_with_the_committed_one(tmp_path, monkeypatch, capsys):
    """Committed F1 .5, .6, .7: mean .6, deviation .1; the 95 % interval of the difference is ± 4.303 · .1 · √(2/3)."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    for seed in range(3):
        scored(runs / f"a/s{seed}", "target", [("p", 10, 10, 5 + seed, "ok")])
    write_scores(archive.counts_of(sorted((runs / "a").glob("s*"))), results / "runs" / "a.csv")
    shutil.rmtree(runs)
    monkeypatch.setattr(run_all, "RUNS", runs)
    monkeypatch.setattr(run_all, "RESULTS", results)
    found = {}

    def finish(row, seed, prefix):
        scored(runs / f"{prefix}{row}/s{seed}", "target", [("p", 10, 10, found["tp"], "ok")])
        return runs / f"{prefix}{row}/s{seed}"

    monkeypatch.setattr(run_all, "finish", finish)
    for tp, agreed in ((9, True), (10, False)):  # .3 and .4 from .6, and half the interval is .351
        found["tp"] = tp
        assert run_all.rerun("a") is agreed
    out = capsys.readouterr().out
    assert "F1@.5 0.9000, committed 0.6000 ± 0.3513 (95 %): within" in out
    assert "OUTSIDE" in out
    with pytest.raises(CellsegError, match="not among the committed results"):
        run_all.rerun("b")


def test_hashes_tell_indices_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(name)
    one, other = (check_config({"data": {"train": [{"index": str(tmp_path / f"{name}.csv")}]}}) for name in "ab")
    assert run_all.index_hash(one) == run_all.digest(b"a") != run_all.index_hash(other)
    assert len(run_all.digest(b"")) == 12


def test_tables_show_nothing_that_the_archive_has_not():
    for table in (ROOT / "tables").glob("*.toml"):
        assert not {column.metric for column in read_table(table).column} & {"pq", "sq"}, table.stem


# ---- figures


def test_the_frontier_has_the_rows_that_were_run_and_only_lines_of_two_points(tmp_path):
    assert figures.frontier_points(tmp_path) == {}
    assert not figures.draw_frontier(tmp_path)
    rows = [("Plain fine-tuning", 0.5, 0.6), ("L2-SP, α = .01", 0.4, 0.8), ("L2-SP, α = .1", "—", "—")]
    pd.DataFrame(rows, columns=["Method", figures.TARGET, figures.SOURCE]).to_csv(tmp_path / "rows_five.csv")
    assert figures.frontier_points(tmp_path) == {"L2-SP, α": [(0.6, 0.5, ""), (0.8, 0.4, ".01")]}
    assert figures.draw_frontier(tmp_path)
    assert (tmp_path / "frontier.png").stat().st_size > 5000


def test_every_point_of_the_frontier_is_a_row_of_its_table():
    rows = {row.name for row in read_table(ROOT / "tables" / "rows_five.toml").row}
    assert {row for line in figures.FRONTIER.values() for row, _ in line} <= rows


def test_steps_are_drawn_from_the_archive(tmp_path):
    assert not figures.draw_steps(tmp_path)
    lines = [("n0_mixed", 0, 50, 0.1, ""), ("n0_mixed", 0, 100, "", 0.4), ("other", 0, 50, 0.1, "")]
    pd.DataFrame(lines, columns=["run", "seed", "step", "distance", "val_f1"]).to_csv(tmp_path / "steps.csv")
    assert figures.draw_steps(tmp_path)
    assert (tmp_path / "steps.png").stat().st_size > 5000
