import gc
import json
import math
import multiprocessing
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from cellseg.adapt import adapt, ramp
from cellseg.batches import crops, gather, loader
from cellseg.checkpoint import load_state, load_weights
from cellseg.config import Selection, check_config, read_run
from cellseg.core import CellsegError, Record
from cellseg.datasets.index import read_index, write_index
from cellseg.images import write_labels
from cellseg.losses import representation_loss
from cellseg.metrics import match
from cellseg.predict import load
from cellseg.train import learning_rate, train


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two small images of disks, one of them also usable without its labels."""
    folder = tmp_path_factory.mktemp("disks")
    rows, columns = np.indices((96, 96))
    records = []
    for number in range(2):
        rng = np.random.default_rng(number)
        labels = np.zeros((96, 96), np.int32)
        for cell, (y, x) in enumerate([(20, 20), (22, 64), (60, 30), (70, 74)], start=1):
            y, x = y + rng.integers(-3, 4), x + rng.integers(-3, 4)
            labels[(rows - y) ** 2 + (columns - x) ** 2 <= 12**2] = cell
        image = (labels > 0) * 120 + 40 + rng.normal(0, 6, labels.shape)
        tifffile.imwrite(folder / f"{number}.tif", image.clip(0, 255).astype(np.uint8))
        write_labels(folder / f"{number}_label.tif", labels)
        image_file, label_file = folder / f"{number}.tif", folder / f"{number}_label.tif"
        facts = ("disks", "train", "g", 96, 96, 4, "instances", 24.0)
        records.append(Record(str(number), image_file, label_file, *facts))
    write_index(folder / "index.csv", records)
    return folder / "index.csv"


def make_run(index, **changes):
    values = {
        "data": {"train": [{"index": str(index)}]},
        "model": {"size": "tiny"},
        "train": {"steps": 4, "batch_size": 2, "crop_size": 64, "ema": 0.9, "log_every": 1, "save_every": 2}
        | changes.pop("train", {}),
        **changes,
    }
    return check_config(values)


def weights(path):
    return load_weights(path)[0].state_dict()


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def teacher(index, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher")
    train(make_run(index), out, device="cpu")
    return out


def stop_after(monkeypatch, step):
    """Let the loop die after a step, as a killed process would."""
    from cellseg import train as module

    original = module.update

    def dying(state, *rest):
        if state.step == step:
            raise KeyboardInterrupt
        return original(state, *rest)

    monkeypatch.setattr(module, "update", dying)


@pytest.mark.parametrize("kind", ["train", "adapt"])
def test_two_and_two_steps_are_four_bit_for_bit(index, teacher, tmp_path, monkeypatch, kind):
    changes = {}
    if kind == "adapt":
        one = [{"index": str(index), "limit": 1}]
        changes = {
            "train": {"init": str(teacher), "l2sp_alpha": 0.01},
            "data": {"unlabelled": [{"index": str(index)}], "train": one},
            "adapt": {"method": "consistency", "batch_size": 1, "ramp_steps": 0, "confidence": 0.0, "watch": 0},
        }
    run, go = make_run(index, **changes), {"train": train, "adapt": adapt}[kind]
    whole = go(run, tmp_path / "whole", device="cpu")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            go(run, tmp_path / "parts", device="cpu")
    saved = load_state(tmp_path / "parts" / "last.pt")
    assert saved["step"] == 2
    parts = go(run, tmp_path / "parts", resume=True, device="cpu")
    assert equal(weights(whole), weights(parts))
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert all(summary[name] > spent > 0 for name, spent in saved["spent"].items())


def test_who_may_read_the_log_may_read_the_weights(teacher):
    assert (teacher / "best.safetensors").stat().st_mode == (teacher / "log.jsonl").stat().st_mode


def test_workers_do_not_change_the_result(index, teacher, tmp_path):
    again = train(make_run(index, train={"workers": 1}), tmp_path / "w", device="cpu")
    assert equal(weights(teacher), weights(again))


def test_no_garbage_is_collected_from_memory_shared_with_workers(index):
    batches = loader(crops(run := make_run(index, train={"workers": 1}), gather(run.data.train), seed=0), run)
    before = gc.get_freeze_count()
    batches(0)
    assert gc.get_freeze_count() > before
    del batches
    assert gc.get_freeze_count() == before == 0


def test_alpha_zero_is_plain_fine_tuning_and_a_large_alpha_stays(index, teacher, tmp_path):
    distances = {}
    for alpha in (0.0, 1.0):
        fine = {
            "init": str(teacher),
            "l2sp_alpha": alpha,
            "weight_decay": 0.0,
            "optimizer": "sgd",
            "lr": 0.05,
            "ema": 0.0,
        }
        train(make_run(index, train=fine), tmp_path / str(alpha), device="cpu")
        distances[alpha] = json.loads((tmp_path / str(alpha) / "summary.json").read_text())["distance"]
    assert 0 < distances[1.0] < distances[0.0]


def test_the_anchor_survives_resume(index, teacher, tmp_path):
    train(make_run(index, train={"init": str(teacher), "l2sp_alpha": 0.1}), tmp_path / "run", device="cpu")
    saved = load_state(tmp_path / "run" / "last.pt")["anchor"]
    start = [value for name, value in weights(teacher).items() if not name.endswith("num_batches_tracked")]
    assert len(saved) == len(start)
    assert all(torch.equal(a, b) for a, b in zip(saved.values(), start, strict=True))


def test_a_loss_that_is_not_finite_stops_with_step_and_images(index, tmp_path, monkeypatch):
    from cellseg import train as module

    monkeypatch.setattr(module, "representation_loss", lambda maps, *_: (maps.sum() * math.nan, {}))
    with pytest.raises(CellsegError, match="loss is nan at step 0, images 0, 1"):
        train(make_run(index), tmp_path / "nan", device="cpu")
    assert not (tmp_path / "nan" / "best.safetensors").exists()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: you tried"), MemoryError()],
    ids=["cuda", "cpu", "python"],
)
def test_memory_that_ends_says_at_which_step_and_what_needs_less(index, tmp_path, monkeypatch, error):
    from cellseg import train as module

    def greedy(maps, *rest):
        if len(maps) > 1 and (tmp_path / "run" / "last.pt").exists():
            raise error
        return representation_loss(maps, *rest)

    monkeypatch.setattr(module, "representation_loss", greedy)
    with pytest.raises(CellsegError, match=r"of memory at step 2; lower train\.batch_size and raise train\.accumulate"):
        train(make_run(index), tmp_path / "run", device="cpu")
    smaller = make_run(index, train={"batch_size": 1, "accumulate": 2})
    train(smaller, tmp_path / "run", resume=True, device="cpu")
    assert load_state(tmp_path / "run" / "last.pt")["step"] == 4


def test_a_process_that_prepares_crops_and_dies_is_one_line(index, tmp_path, monkeypatch):
    from cellseg import train as module

    def killing(maps, *rest):
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        return representation_loss(maps, *rest)

    monkeypatch.setattr(module, "representation_loss", killing)
    with pytest.raises(CellsegError, match=r"prepares crops died at step \d.*lower train\.workers or data\.cache_mb"):
        train(make_run(index, train={"workers": 1}), tmp_path / "run", device="cpu")


def test_fewer_crops_at_once_are_the_same_crops_an_update(index):
    whole, halves = (make_run(index, train=words) for words in ({}, {"batch_size": 1, "accumulate": 2}))
    source, part = (crops(run, gather(run.data.train), seed=0) for run in (whole, halves))
    for step in range(2):
        assert torch.equal(source[step].weak, torch.cat([part[2 * step].weak, part[2 * step + 1].weak]))


def test_a_run_folder_is_not_overwritten(index, teacher):
    with pytest.raises(CellsegError, match="holds a run already"):
        train(make_run(index), teacher, device="cpu")


def test_resuming_a_finished_run_changes_nothing(index, teacher):
    before = {path.name: path.read_bytes() for path in teacher.iterdir() if path.is_file()}
    train(make_run(index), teacher, resume=True, device="cpu")
    assert {path.name: path.read_bytes() for path in teacher.iterdir() if path.is_file()} == before


def test_a_run_goes_on_only_as_what_it_was(index, teacher, tmp_path):
    before = {path.name: path.read_bytes() for path in teacher.iterdir() if path.is_file()}
    with pytest.raises(CellsegError, match=r"other settings \(train\.lr\); wanted those of its config\.json"):
        train(make_run(index, train={"lr": 1e-5}), teacher, resume=True, device="cpu")
    with pytest.raises(CellsegError, match="cannot be resumed with seed 7, it was begun with seed 0"):
        train(make_run(index), teacher, seed=7, resume=True, device="cpu")
    assert {path.name: path.read_bytes() for path in teacher.iterdir() if path.is_file()} == before
    run = tmp_path / "run"
    shutil.copytree(teacher, run)
    train(make_run(index, train={"steps": 5}), run, resume=True, device="cpu")
    assert load_state(run / "last.pt")["step"] == 5
    assert read_run(run / "config.json").train.steps == 5
    (run / "summary.json").unlink()  # the seed is in the state too
    with pytest.raises(CellsegError, match="begun with seed 0"):
        train(make_run(index, train={"steps": 6}), run, seed=1, resume=True, device="cpu")


def test_another_model_is_refused(index, teacher, tmp_path):
    run = make_run(index, train={"init": str(teacher)}, model={"size": "small"})
    with pytest.raises(CellsegError, match="its model is"):
        train(run, tmp_path / "x", device="cpu")


def test_adaptation_needs_a_start(index, tmp_path):
    run = make_run(index, data={"unlabelled": [{"index": str(index)}]})
    with pytest.raises(CellsegError, match=r"train\.init is not set"):
        adapt(run, tmp_path / "x", device="cpu")


def test_learning_rate_warms_up_and_falls_to_one_percent(index):
    run = make_run(index, train={"steps": 1000, "lr": 1.0, "warmup_steps": 10})
    assert learning_rate(run, 0) == pytest.approx(0.1, rel=1e-3)
    assert learning_rate(run, 500) == pytest.approx(0.505)
    assert learning_rate(run, 1000) == pytest.approx(0.01)


def test_ramp(index):
    run = make_run(index, adapt={"ramp_steps": 100, "consistency_weight": 2.0})
    assert ramp(run, 0) == pytest.approx(2 * math.exp(-5))
    assert ramp(run, 100) == ramp(run, 900) == 2.0


def test_one_image_is_overfitted_and_found_again(index, tmp_path):
    settings = {
        "steps": 40,
        "lr": 5e-3,
        "warmup_steps": 5,
        "batch_size": 4,
        "crop_size": 96,
        "ema": 0.8,
        "save_every": 40,
    }
    augment = {"scale_min": 0.9, "scale_max": 1.1, "weak": 0.0}
    data = {"train": [{"index": str(index), "limit": 1}]}
    out = train(make_run(index, train=settings, augment=augment, data=data), tmp_path / "one", device="cpu")
    segmenter = load(out, device="cpu")
    labels = segmenter.segment(tifffile.imread(index.parent / "0.tif"), diameter=24.0)
    truth = tifffile.imread(index.parent / "0_label.tif")
    assert match(truth, labels, thresholds=(0.5,))[0].f1 >= 0.9
    doubled = np.kron(tifffile.imread(index.parent / "0.tif"), np.ones((2, 2), np.uint8))
    large = segmenter.segment(doubled, diameter=48.0)
    assert large.shape == (192, 192)
    assert match(np.kron(truth, np.ones((2, 2), truth.dtype)), large, thresholds=(0.5,))[0].f1 >= 0.9
    flipped = load(out, device="cpu", settings=segmenter.settings.model_copy(update={"tta": True}))
    assert (
        match(truth, flipped.segment(tifffile.imread(index.parent / "0.tif"), diameter=24.0), thresholds=(0.5,))[0].f1
        >= 0.9
    )
    assert load(out).segment(np.zeros((40, 50), np.uint8)).shape == (40, 50)


def test_weak_labels_are_trained_on_and_never_scored_against(index, tmp_path):
    records = read_index(index)
    kinds = ("instances", "foreground", "partial")
    weak = [replace(records[0], id=kind, label_kind=kind) for kind in kinds]
    write_index(tmp_path / "index.csv", weak)
    chosen = [Selection(index=str(tmp_path / "index.csv"))]
    assert [r.id for r in gather(chosen, weak=True)] == list(kinds)
    assert [r.id for r in gather(chosen)] == ["instances"]
    assert [r.id for r in gather(chosen, labelled=False)] == list(kinds)
    run = make_run(tmp_path / "index.csv", train={"batch_size": 3, "steps": 2})
    train(run, tmp_path / "run", device="cpu")
    assert all("loss" in json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())
