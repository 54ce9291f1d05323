"""Adaptation as a whole, on disks: what is learned, what is handed out, and that a run which died goes on alike."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from fakes import four_disks

from cellseg import adapt as module
from cellseg.adapt import adapt
from cellseg.checkpoint import load_state, load_weights, save_weights
from cellseg.config import PredictConfig, check_config
from cellseg.core import CellsegError, Record
from cellseg.datasets.crops import CropDataset
from cellseg.datasets.index import read_index, write_index
from cellseg.images import write_labels
from cellseg.label_free.judging import Verdict, Watch
from cellseg.train import train

SIDE = 96


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Three images of four disks: 0 and 1 with their labels, 2 without."""
    folder = tmp_path_factory.mktemp("disks")
    records = []
    for number in range(3):
        labels = np.roll(four_disks(), (3 * number, -2 * number), (0, 1))
        noise = np.random.default_rng(number).normal(0, 6, labels.shape)
        image, truth = folder / f"{number}.tif", folder / f"{number}_label.tif"
        tifffile.imwrite(image, ((labels > 0) * 120 + 40 + noise).clip(0, 255).astype(np.uint8))
        write_labels(truth, labels)
        known = (4, "instances", 24.0) if number < 2 else (None, "", 24.0)
        records.append(Record(str(number), image, truth if number < 2 else None, "disks", "", "g", SIDE, SIDE, *known))
    write_index(folder / "index.csv", records)
    return folder / "index.csv"


@pytest.fixture(scope="module")
def teacher(index, tmp_path_factory):
    """A network that has learned the disks."""
    settings = {"steps": 40, "lr": 5e-3, "warmup_steps": 5, "batch_size": 4, "crop_size": SIDE, "ema": 0.8}
    augment = {"scale_min": 0.9, "scale_max": 1.1, "weak": 0.0}
    data = {"train": [{"index": str(index), "ids": ["0", "1"]}]}
    run = check_config({"data": data, "model": {"size": "tiny"}, "train": settings, "augment": augment})
    out = tmp_path_factory.mktemp("teacher")
    train(run, out, device="cpu")
    return out


def make_run(index, start, *, data=None, train=None, **adapt):
    """Label-free by default: images 1 and 2, of which the labels are not read."""
    settings = {"steps": 4, "batch_size": 2, "crop_size": 64, "ema": 0.5, "lr": 1e-4, "warmup_steps": 0, "log_every": 1,
                "validate_every": 2, "save_every": 2, "init": str(start)}  # fmt: skip
    unlabelled = [{"index": str(index), "ids": ["1", "2"]}]
    return check_config(
        {
            "data": {"unlabelled": unlabelled} | (data or {}),
            "model": {"size": "tiny"},
            "train": settings | (train or {}),
            "adapt": {"batch_size": 2, "round_steps": 2, "diameter": 24.0, "watch": 2} | adapt,
        }
    )


def weights(path):
    return load_weights(path)[0].state_dict()


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def summary(out):
    return json.loads((out / "summary.json").read_text())


def test_pseudo_labels_are_made_each_round_and_watched(index, teacher, tmp_path):
    adapt(make_run(index, teacher), tmp_path, device="cpu")
    for name in ("round-0", "round-1"):
        folder = tmp_path / "pseudo" / name
        assert sorted(path.name for path in (folder / "labels").iterdir()) == ["1.tif", "2.tif"]
        assert tifffile.imread(folder / "labels" / "2.tif").max() == 4
        assert len((folder / "index.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "pseudo" / "round-2").exists()
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4]
    looks = [line for line in lines if "cycle" in line]
    assert [line["step"] for line in looks] == [0, 2, 4]
    assert all(0 <= line[name] <= 1 for line in looks for name in ("flips", "scales", "cycle", "confidence"))
    assert looks[0]["cells"] == 8
    updates = [line for line in lines if "loss" in line]
    assert all(line["pseudo_cells"] == 8 and line["pseudo_kept"] == 1 for line in updates)
    assert all(0 < line["known"] <= 1 and 0 < line["teacher_foreground"] < 1 for line in updates)


@pytest.mark.parametrize(("round_steps", "save_every", "dies"), [(2, 2, 3), (3, 2, 3), (3, 1, 2), (4, 2, 3)])
@pytest.mark.parametrize(
    ("labelled", "method", "first"),
    [(False, "mixed", 0.0), (True, "pseudo", 0.0), (True, "mixed", 0.25)],
    ids=["label-free", "semi-supervised", "labels first"],
)
def test_a_run_that_died_goes_on_bit_for_bit(
    index, teacher, tmp_path, monkeypatch, round_steps, save_every, dies, labelled, method, first
):
    from cellseg import train as loop

    data = {"replay": [{"index": str(index), "ids": ["0"]}]}
    data |= {"train": [{"index": str(index), "ids": ["0"]}]} if labelled else {}
    settings = {"save_every": save_every, "l2sp_alpha": 0.01}
    adaptation = {"round_steps": round_steps, "cutmix": 0.5, "method": method, "labels_first": first}
    run = make_run(index, teacher, data=data, train=settings, **adaptation)
    whole = adapt(run, tmp_path / "whole", device="cpu")
    original = loop.update

    def dying(state, *rest):
        if state.step == dies:
            raise KeyboardInterrupt
        return original(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", dying)
        with pytest.raises(KeyboardInterrupt):
            adapt(run, tmp_path / "parts", device="cpu")
    assert load_state(tmp_path / "parts" / "last.pt")["step"] == dies // save_every * save_every
    parts = adapt(run, tmp_path / "parts", resume=True, device="cpu")
    assert equal(weights(whole), weights(parts))
    last = [load_state(tmp_path / name / "last.pt") for name in ("whole", "parts")]
    assert equal(last[0]["student"], last[1]["student"])
    assert equal(last[0]["averaged"], last[1]["averaged"])
    assert log(tmp_path / "whole") == log(tmp_path / "parts")
    files = [sorted((tmp_path / name / "pseudo").rglob("*.*")) for name in ("whole", "parts")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_without_unlabelled_images_it_is_plain_fine_tuning_bit_for_bit(index, teacher, tmp_path):
    labelled = [{"index": str(index), "ids": ["0"]}]
    data = {"train": labelled, "val": [{"index": str(index), "ids": ["1"]}], "unlabelled": []}
    run = make_run(index, teacher, data=data, train={"l2sp_alpha": 0.0})
    plain, adapted = train(run, tmp_path / "train", device="cpu"), adapt(run, tmp_path / "adapt", device="cpu")
    assert equal(weights(plain), weights(adapted))
    states = [load_state(tmp_path / name / "last.pt") for name in ("train", "adapt")]
    assert equal(states[0]["student"], states[1]["student"])
    assert log(tmp_path / "train") == log(tmp_path / "adapt")
    assert summary(tmp_path / "train")["chosen_step"] == summary(tmp_path / "adapt")["chosen_step"]


def test_watching_does_not_change_what_is_learned(index, teacher, tmp_path):
    data = {"train": [{"index": str(index), "ids": ["0"]}]}
    watched = make_run(index, teacher, data=data, method="none")
    adapt(watched, tmp_path / "watched", device="cpu")
    train(watched, tmp_path / "plain", device="cpu")
    states = [load_state(tmp_path / name / "last.pt")["student"] for name in ("watched", "plain")]
    assert equal(*states)


def test_workers_do_not_change_what_is_learned(index, teacher, tmp_path):
    for workers in (0, 1):
        adapt(make_run(index, teacher, train={"workers": workers}), tmp_path / str(workers), device="cpu")
    assert equal(*(load_state(tmp_path / name / "last.pt")["student"] for name in ("0", "1")))


def seen_by(monkeypatch, run, out):
    """Run and return the ids of each micro-batch and how many crops each forward pass of the student held."""
    ids, sizes = [], []
    original = module.fit

    def fit(run, out, fabric, objective, **rest):
        def listening(state, micro_step):
            hook = state.student.module.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
            result = objective(state, micro_step)
            hook.remove()
            ids.append(list(result[2]))
            return result

        return original(run, out, fabric, listening, **rest)

    monkeypatch.setattr(module, "fit", fit)
    adapt(run, out, device="cpu")
    return ids, sizes


@pytest.mark.parametrize("method", ["pseudo", "mixed", "consistency"])
def test_replay_is_a_share_of_every_batch_in_one_forward_pass(index, teacher, tmp_path, monkeypatch, method):
    data = {"replay": [{"index": str(index), "ids": ["0"]}]}
    run = make_run(index, teacher, data=data, method=method, batch_size=3, replay=0.25)
    ids, sizes = seen_by(monkeypatch, run, tmp_path)
    assert sizes == [4] * 4
    assert all(batch[3] == "0" and set(batch[:3]) == {"1", "2"} for batch in ids)


def test_labelled_taught_and_replayed_crops_share_a_batch(index, teacher, tmp_path, monkeypatch):
    one = [{"index": str(index), "ids": ["0"]}]
    ids, sizes = seen_by(
        monkeypatch, make_run(index, teacher, data={"train": one, "replay": one}, replay=0.5), tmp_path
    )
    assert sizes == [2 + 2 + 4] * 4  # taught, labelled, and as many replayed
    assert ids[0][2:] == ["0"] * 6


def test_of_an_index_that_is_divided_the_training_images_are_replayed_and_others_scored(index, teacher, tmp_path):
    from cellseg.cli.training import _folder_run

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(index.parent / "0.tif", images / "a.tif")
    records = read_index(index)
    divided = tmp_path / "divided.csv"
    write_index(
        divided,
        [replace(record, split=split) for record, split in zip(records, ("train", "test", "train"), strict=True)],
    )
    partial_only = tmp_path / "partial.csv"
    write_index(
        partial_only,
        [replace(one, label_kind="partial") if one.id == "0" else one for one in read_index(divided)[:2]],
    )
    cases = ((divided, "train", ["test"]), (partial_only, "train", ["test"]), (index, None, []))
    for path, split, scored in cases:
        run = _folder_run(images, None, str(path), str(teacher), tmp_path / "out", [])
        assert [(one.name, one.index, one.split) for one in run.data.evaluate] == [
            ("source", str(path), name) for name in scored
        ]
        assert [(one.index, one.split) for one in run.data.replay] == [(str(path), split)]
        assert run.train.regularizer.kind == "none"
    alone = _folder_run(images, None, None, str(teacher), tmp_path / "out", [])
    assert (alone.train.regularizer.kind, alone.train.regularizer.alpha) == ("l2sp", 0.003)


def test_the_shipped_teacher_is_kept_in_mind_by_made_up_images(index, teacher, tmp_path, monkeypatch):
    from cellseg.cli.training import _folder_run
    from cellseg.datasets import made_up

    monkeypatch.setattr(made_up, "EACH", 1)
    monkeypatch.setattr(made_up, "write_synthetic", partial(made_up.write_synthetic, size=(64, 64)))
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(index.parent / "0.tif", images / "a.tif")
    out = tmp_path / "out"
    run = _folder_run(images, None, None, None, out, [])
    assert run.train.regularizer.kind == "none"
    (replayed,) = run.data.replay
    records = read_index(Path(replayed.index))
    assert [record.group for record in records] == ["SynFluo", "SynPhase", "SynSheet", "SynStain"]
    assert all(record.has_labels for record in records)
    written = (out / "made_up" / "index.csv").stat().st_mtime_ns
    assert _folder_run(images, None, "made-up", str(teacher), out, []).data.replay == run.data.replay
    assert (out / "made_up" / "index.csv").stat().st_mtime_ns == written
    run = _folder_run(images, None, "none", None, out, [])
    assert (run.data.replay, run.train.regularizer.kind) == ((), "l2sp")


def test_who_chooses_the_weights_unless_told(index, teacher):
    labelled = [{"index": str(index), "ids": ["0"]}]
    keys = [
        module._usual_key(make_run(index, teacher, data=data))
        for data in ({}, {"train": labelled}, {"train": labelled, "val": labelled}, {"val": labelled})
    ]
    assert keys == ["consensus", "", "val_f1", "val_f1"]


def test_a_replay_that_is_nothing_names_what_it_may_be(tmp_path):
    from cellseg.cli.training import _replayed

    with pytest.raises(CellsegError, match=r"mad-up: no such index; wanted an index\.csv, 'made-up' or"):
        _replayed("mad-up", tmp_path)


def test_replayed_images_have_views_of_their_own(index, teacher, monkeypatch):
    views = []
    monkeypatch.setattr(module, "crops", lambda run, *_: views.append(run.augment) or [])
    one = [{"index": str(index), "ids": ["0"]}]
    run = make_run(index, teacher, data={"train": one, "replay": one}, replay=0.5)
    fabric = module.make_fabric(run, "cpu")
    module._supervised(run, 0, fabric, n_taught=2)
    own = run.augment.model_copy(update={"colour": 1.0})
    module._supervised(run.model_copy(update={"augment_replay": own}), 0, fabric, n_taught=2)
    assert views == [run.augment] * 3 + [own]


def test_no_labels_are_guessed_where_the_truth_is_known(index, teacher, tmp_path, monkeypatch):
    everything = [{"index": str(index)}]
    ids, _ = seen_by(
        monkeypatch, make_run(index, teacher, data={"train": everything, "unlabelled": everything}), tmp_path
    )
    assert all(set(batch[:2]) == {"2"} and set(batch[2:]) <= {"0", "1"} for batch in ids)
    assert [path.name for path in (tmp_path / "pseudo" / "round-0" / "labels").iterdir()] == ["2.tif"]


def test_the_teacher_of_a_round_is_the_average_of_that_moment(index, teacher, tmp_path, monkeypatch):
    from cellseg import rounds

    teachers = []
    original = rounds.write_round

    def write_round(folder, segmenter, *rest):
        teachers.append({name: value.clone() for name, value in segmenter.model.state_dict().items()})
        assert not segmenter.model.training
        return original(folder, segmenter, *rest)

    monkeypatch.setattr(rounds, "write_round", write_round)
    adapt(make_run(index, teacher, train={"steps": 3, "save_every": 2}), tmp_path / "ema", device="cpu")
    assert len(teachers) == 2
    assert equal(teachers[0], weights(teacher))
    assert not equal(teachers[1], teachers[0])
    saved = load_state(tmp_path / "ema" / "last.pt")
    assert saved["step"] == 3
    teachers.clear()
    adapt(make_run(index, teacher, train={"ema": 0.0}, method="pseudo"), tmp_path / "raw", device="cpu")
    assert len(teachers) == 2
    teachers.clear()
    adapt(make_run(index, teacher, teacher="frozen"), tmp_path / "frozen", device="cpu")
    assert len(teachers) == 1


@pytest.mark.parametrize(("made_by", "moved"), [("ema", True), ("frozen", False)])
def test_labels_are_guessed_once_the_true_ones_are_learned(index, teacher, tmp_path, monkeypatch, made_by, moved):
    from cellseg import rounds

    teachers = []
    original = rounds.write_round

    def write_round(folder, segmenter, *rest):
        teachers.append({name: value.clone() for name, value in segmenter.model.state_dict().items()})
        return original(folder, segmenter, *rest)

    monkeypatch.setattr(rounds, "write_round", write_round)
    data = {"train": [{"index": str(index), "ids": ["0"]}]}
    adapt(make_run(index, teacher, data=data, labels_first=0.5, teacher=made_by), tmp_path, device="cpu")
    assert [path.name for path in (tmp_path / "pseudo").iterdir()] == ["round-0"]
    assert [("pseudo_cells" in line) for line in log(tmp_path) if "loss" in line] == [False, False, True, True]
    assert len(teachers) == 1
    assert equal(teachers[0], weights(teacher)) != moved


def test_without_labels_none_go_first(index, teacher, tmp_path):
    adapt(make_run(index, teacher, labels_first=0.5), tmp_path / "asked", device="cpu")
    adapt(make_run(index, teacher), tmp_path / "usual", device="cpu")
    assert equal(weights(tmp_path / "asked"), weights(tmp_path / "usual"))


def test_a_network_that_collapses_stops_and_the_start_is_kept(index, teacher, tmp_path):
    settings = {"lr": 0.1 * 1000, "steps": 40, "validate_every": 1, "optimizer": "sgd", "clip_norm": None, "ema": 0.5}
    out = adapt(make_run(index, teacher, train=settings), tmp_path, device="cpu")
    found = summary(tmp_path)
    assert "step" in found["stopped"]
    assert any(word in found["stopped"] for word in ("collapse", "loss is nan", "loss is inf"))
    assert found["steps"] < 40
    assert found["decision"].startswith("no improvement found: the start was kept")
    assert found["chosen_step"] == 0
    assert equal(weights(out), weights(teacher))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    adapt(make_run(index, teacher, train=settings), tmp_path, resume=True, device="cpu")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_an_adaptation_goes_on_only_as_what_it_was(index, teacher, tmp_path, monkeypatch):
    adapt(make_run(index, teacher), tmp_path, device="cpu")
    monkeypatch.setattr(module, "load", None)  # refused before anything is loaded
    with pytest.raises(CellsegError, match=r"other settings \(adapt\.agreement, predict\.tta\)"):
        changed = make_run(index, teacher, agreement=0.5).model_copy(update={"predict": PredictConfig(tta=True)})
        adapt(changed, tmp_path, resume=True, device="cpu")
    monkeypatch.undo()
    with pytest.raises(CellsegError, match="cannot be resumed with seed 1"):
        adapt(make_run(index, teacher), tmp_path, seed=1, resume=True, device="cpu")


@pytest.mark.parametrize("method", ["mixed", "consistency"])
def test_all_sources_and_workers_share_the_memory_for_images(index, teacher, tmp_path, monkeypatch, method):
    shares, make = [], CropDataset.__init__

    def noted(self, *parts, cache_mb, **words):
        shares.append(cache_mb)
        make(self, *parts, cache_mb=cache_mb, **words)

    monkeypatch.setattr(CropDataset, "__init__", noted)
    one = [{"index": str(index), "ids": ["0"]}]
    data = {"train": one, "replay": one, "cache_mb": 60}
    run = make_run(index, teacher, data=data, train={"steps": 1, "workers": 2}, method=method)
    adapt(run, tmp_path, device="cpu")
    assert shares == [10, 10, 10]


def blank(teacher, folder):
    """A copy of a network that finds no cell."""
    network, config, about = load_weights(teacher)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    save_weights(folder / "best.safetensors", network, config, about)
    return folder


def test_a_start_that_finds_nothing_is_kept_and_the_run_says_so(index, teacher, tmp_path):
    start = blank(teacher, tmp_path / "blank")
    out = adapt(make_run(index, start), tmp_path / "run", device="cpu")
    found = summary(tmp_path / "run")
    assert found["stopped"].startswith("no cell in any of 2 unlabelled images")
    assert found["decision"].startswith("no improvement found")
    assert equal(weights(out), weights(start))
    with pytest.raises(CellsegError, match="no cell in any of 2 unlabelled images"):
        adapt(make_run(index, start, watch=0), tmp_path / "unwatched", device="cpu")


def test_labels_left_by_another_run_are_not_taken_for_ones_own(index, teacher, tmp_path):
    run = make_run(index, teacher)
    adapt(run, tmp_path / "clean", device="cpu")
    shutil.copytree(tmp_path / "clean" / "pseudo", tmp_path / "again" / "pseudo")
    for path in (tmp_path / "again" / "pseudo").rglob("labels/*.tif"):
        write_labels(path, np.zeros((SIDE, SIDE), np.int32))
    adapt(run, tmp_path / "again", device="cpu")
    assert equal(*(load_state(tmp_path / name / "last.pt")["student"] for name in ("clean", "again")))


def test_labelled_images_decide_where_there_are_some_and_rank_the_criteria(index, teacher, tmp_path):
    data = {"val": [{"index": str(index), "ids": ["0"]}]}
    adapt(make_run(index, teacher, data=data), tmp_path / "auto", device="cpu")
    found = summary(tmp_path / "auto")
    assert found["chosen_by"] == "validation F1"
    assert found["val_f1"] >= found["start_score"]
    assert set(found["criteria_vs_val_f1"]) == {"flips", "scales", "cycle", "confidence", "consensus"}
    assert all("val_f1" in line for line in log(tmp_path / "auto") if "cycle" in line)
    adapt(make_run(index, teacher, data=data, criterion="flips"), tmp_path / "flips", device="cpu")
    found = summary(tmp_path / "flips")
    assert found["chosen_by"] == "criterion flips on 2 unlabelled images"
    assert found["val_f1"] is None
    looks = [line for line in log(tmp_path / "flips") if "flips" in line]
    best = max(looks, key=lambda line: line["flips"])  # the earliest of equals
    assert (found["chosen_step"], found["score"]) == (best["step"], best["flips"])


def test_where_labels_say_nothing_the_maps_of_the_teacher_are_learned(index, teacher):
    """One crop: its left half labelled background, its right half open."""
    run = make_run(index, teacher, method="mixed", confidence=0.0, consistency_weight=0.5)
    start = module.load(str(teacher), device="cpu")
    weak, target = torch.rand(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    weight = torch.zeros(1, 2, 64, 64)
    weight[..., :32] = 1
    fabric = module.make_fabric(run, "cpu")

    class OneRound:
        def __init__(self):
            self.fabric, self.numbers = fabric, {"pseudo_cells": 4.0}

        def batch(self, state, micro_step):
            return module.Crops(weak, weak, target, weight, ("0",))

    averaged = module.EmaTeacher(start.model, 0.5)
    state = module.State(None, None, averaged, None)
    lesson = module._pseudo(run, OneRound(), module._teacher(run, start, fabric), 0)(state, 0)
    with torch.no_grad(), fabric.autocast():
        maps = averaged(weak).float()
    assert not lesson.target[..., :32].any()
    torch.testing.assert_close(lesson.target[:, :1, :, 32:], torch.sigmoid(maps[:, :1, :, 32:]))
    assert (lesson.weight[..., :32] == 1).all() and (lesson.weight[..., 32:] == 0.5).all()
    assert lesson.numbers["known"] == 0.5 and lesson.numbers["pseudo_cells"] == 4
    alone = module._pseudo(run, OneRound(), None, 0)(state, 0)
    assert torch.equal(alone.target, target) and torch.equal(alone.weight, weight)


def test_adapted_weights_remember_the_scales_of_the_images_and_a_kept_start_its_own(index, teacher, tmp_path):
    from cellseg.scale import ZOOMS

    adapt(make_run(index, teacher, criterion="last"), tmp_path / "first", device="cpu")
    prior = load_weights(tmp_path / "first")[2]["scale_prior"]
    assert len(prior) == len(ZOOMS) - 2 and max(prior) > 0
    before = (tmp_path / "first" / "best.safetensors").read_bytes()
    adapt(make_run(index, teacher, criterion="last"), tmp_path / "first", resume=True, device="cpu")
    assert (tmp_path / "first" / "best.safetensors").read_bytes() == before
    wild = {"lr": 100.0, "steps": 40, "validate_every": 1, "optimizer": "sgd", "clip_norm": None}
    adapt(make_run(index, tmp_path / "first", train=wild), tmp_path / "second", device="cpu")
    about = load_weights(tmp_path / "second")[2]
    assert about["step"] == 0 and about["scale_prior"] == prior


def test_the_last_step_may_be_asked_for(index, teacher, tmp_path):
    out = adapt(make_run(index, teacher, criterion="last"), tmp_path, device="cpu")
    averaged = load_state(tmp_path / "last.pt")["averaged"]
    assert all(torch.equal(value, averaged[f"model.{name}"]) for name, value in weights(out).items())
    assert summary(tmp_path)["decision"] == "the weights of step 4, the last that were usable, are handed out"


def test_wise_mixes_once_what_is_handed_out_with_the_start(index, teacher, tmp_path):
    run = make_run(index, teacher, criterion="last", wise=0.25)
    out = adapt(run, tmp_path, device="cpu")
    start, end, mixed = weights(teacher), weights(tmp_path / "unmixed.safetensors"), weights(out)
    assert not equal(start, end)
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * end[name])
    assert summary(tmp_path)["wise"]["weight"] == 0.25
    assert 0 <= summary(tmp_path)["wise"]["cycle"] <= 1
    told = summary(tmp_path)
    assert told["distance"] == pytest.approx(0.25 * told["wise"]["unmixed_distance"])
    assert 0 < min(told["distances"].values()) <= told["distance"] <= max(told["distances"].values())
    adapt(run, tmp_path, resume=True, device="cpu")
    assert equal(weights(out), mixed) and summary(tmp_path) == told
    (tmp_path / "unmixed.safetensors").replace(out)  # killed between the summary and the weights
    adapt(run, tmp_path, resume=True, device="cpu")
    again = summary(tmp_path)
    assert equal(weights(out), mixed)
    assert (again["distance"], again["distances"]) == (told["distance"], told["distances"])


def test_a_mixture_no_better_than_the_start_is_refused(index, teacher, tmp_path, monkeypatch):
    scores = iter([0.5, 0.6, 0.7, 0.4])  # the start, two looks, the mixture
    monkeypatch.setattr(Watch, "look", lambda *_: Verdict({"cycle": (score := next(scores))}, score))
    out = adapt(make_run(index, teacher, criterion="cycle", wise=0.25), tmp_path, device="cpu")
    assert equal(weights(out), weights(tmp_path / "unmixed.safetensors"))
    assert "handed out unmixed" in summary(tmp_path)["wise"]["refused"]


def test_nothing_to_learn_from_is_said(index, teacher, tmp_path):
    with pytest.raises(CellsegError, match="learns from labelled images only"):
        adapt(make_run(index, teacher, method="none"), tmp_path, device="cpu")
    with pytest.raises(CellsegError, match="no unlabelled images"):
        adapt(make_run(index, teacher, data={"unlabelled": []}), tmp_path, device="cpu")
    with pytest.raises(CellsegError, match="wants images to watch"):
        make_run(index, teacher, watch=0, criterion="cycle")


def test_the_frozen_encoder_stays_and_only_weight_decay_may_hold_the_rest(index, teacher, tmp_path):
    settings = {"freeze_encoder": True, "weight_decay": 0.1, "lr": 1e-2}
    adapt(make_run(index, teacher, train=settings), tmp_path, device="cpu")
    network, start = load_weights(teacher)[0], weights(teacher)
    frozen = {id(parameter) for part in network.encoder() for parameter in part.parameters()}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in frozen}
    after = load_state(tmp_path / "last.pt")["student"]
    assert names
    assert all(torch.equal(after[name], start[name]) for name in names)
    assert any(not torch.equal(after[name], start[name]) for name in set(start) - names)
