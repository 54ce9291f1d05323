import math

import numpy as np
import pytest
import tifffile
import torch
from fakes import Constant, Fickle, Reader, four_disks, image_of, segmenter

from cellseg.config import check_config
from cellseg.core import Record
from cellseg.datasets.index import told_diameter, write_index
from cellseg.images import write_labels
from cellseg.label_free.criteria import CRITERIA, Findings
from cellseg.label_free.judging import Verdict, Watch, decision, validation_of
from cellseg.state import State
from cellseg.train import fit, make_fabric

IMAGE = image_of(four_disks())


def watch(key="flips", images=1, **rest):
    return Watch([IMAGE] * images, [24.0] * images, key, patience=2, **rest)


def test_a_look_has_every_criterion_and_counts_the_cells_of_teacher_and_student():
    verdict = watch().look(segmenter(Reader()), segmenter(Fickle()), {})
    assert set(verdict.numbers) == {*CRITERIA, "cells", "giants", "student_cells"}
    assert (verdict.numbers["cells"], verdict.numbers["student_cells"]) == (4, 3)
    assert verdict.score == verdict.numbers["flips"] == 1
    assert verdict.collapse == ""
    assert watch("").look(segmenter(Reader()), None, {}).score is None


def test_no_cells_are_a_collapse_only_where_the_start_had_some():
    verdict = watch().look(segmenter(Constant(-8.0, 0.0)), None, {"cells": 12.0, "giants": 0.0})
    assert verdict.collapse == "collapse: no cells in the images watched, where the start found 12"
    assert verdict.score == 0
    assert watch().look(segmenter(Constant(-8.0, 0.0)), None, {"cells": 0.0, "giants": 0.0}).collapse == ""
    assert watch().look(segmenter(Constant(-8.0, 0.0)), None, {}).collapse == ""


def test_one_giant_cell_is_a_collapse_unless_the_start_had_it():
    giant = segmenter(Constant(8.0, 5.0))
    text = watch(images=2).look(giant, None, {"cells": 12.0, "giants": 0.0}).collapse
    assert text == "collapse: one giant cell in 100 % of the images watched"
    assert watch().look(giant, None, {"cells": 1.0, "giants": 1.0}).collapse == ""
    assert watch().look(giant, None, {}).collapse == ""


@pytest.mark.parametrize(("before", "after", "gone"), [(0.9, 0.44, True), (0.9, 0.46, False), (0.0, 0.0, False)])
def test_cells_that_no_two_views_share_are_a_collapse(monkeypatch, before, after, gone):
    found = Findings({**dict.fromkeys(CRITERIA, 0.9), "flips": after}, 12, 0.0)
    monkeypatch.setattr("cellseg.label_free.judging.measure", lambda *arguments: found)
    first = {"cells": 12.0, "giants": 0.0, "flips": before}
    text = watch().look(segmenter(Constant(-8.0, 0.0)), None, first).collapse
    assert bool(text) == gone
    assert text.startswith("collapse: flipped images show other cells (agreement 0.44, 0.90") == gone


def test_weights_that_are_no_numbers_are_a_collapse():
    network = Reader()
    network.weight = torch.nn.Parameter(torch.tensor([math.nan]))
    assert watch().look(segmenter(network), None, {}).collapse == "collapse: the weights are not finite"


@pytest.mark.parametrize(("policy", "diameter"), [("index", 20.0), ("auto", None), (30.0, None)])
def test_validation_shows_images_at_the_diameter_at_which_evaluate_does(tmp_path, monkeypatch, policy, diameter):
    tifffile.imwrite(tmp_path / "a.tif", (four_disks() > 0).astype(np.uint8))
    write_labels(tmp_path / "l.tif", four_disks())
    sizes = {"train": (18.0, 22.0), "val": (90.0, 90.0)}
    records = [
        Record(f"{split}{n}", tmp_path / "a.tif", tmp_path / "l.tif", "d", split, "", 96, 96, 4, "instances", size)
        for split, both in sizes.items()
        for n, size in enumerate(both)
    ]
    write_index(tmp_path / "index.csv", records)
    values = {"data": {"val": [{"index": str(tmp_path / "index.csv"), "split": "val"}]}}
    judge = validation_of(check_config(values | {"predict": {"diameter": policy}}))
    shown = []
    reader = segmenter(Reader(), diameter=policy)
    monkeypatch.setattr(reader, "segment", lambda image, diameter: shown.append(diameter) or four_disks())
    assert judge.look(reader, None, {}).score == 1
    assert shown == [diameter] * 2 == [told_diameter(tmp_path / "index.csv", policy)] * 2


class Opinion:
    """A judge whose scores are given, one a look."""

    by, key, with_start = "opinion", "score", True

    def __init__(self, scores, patience=0, least_gain=0.0):
        self.scores, self.patience, self.least_gain, self.looks = list(scores), patience, least_gain, []

    def look(self, segmenter, student, first):
        assert not segmenter.model.training
        score = self.scores[len(self.looks)]
        self.looks.append({name: value.clone() for name, value in segmenter.model.state_dict().items()})
        return Verdict({"score": score}, score, "collapse: so it is said" if score < 0 else "")


def judged(tmp_path, scores, patience=0, steps=4, least_gain=0.0):
    """Train the head of a tiny network to say more and more; return judge, summary and what was handed out."""
    import json

    from cellseg.checkpoint import load_weights

    settings = {"steps": steps, "validate_every": 1, "log_every": 1, "warmup_steps": 0, "save_every": 1}
    run = check_config({"model": {"size": "tiny"}, "train": settings})
    judge = Opinion(scores, patience, least_gain)

    def objective(state: State, micro_step: int):
        return state.student(torch.zeros(1, 3, 32, 32)).mean(), {}, ["a"]

    out = fit(run, tmp_path, make_fabric(run, "cpu"), objective, seed=0, resume=False, judge=judge)
    return judge, json.loads((tmp_path / "summary.json").read_text()), load_weights(out)[0].state_dict()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


def test_the_best_of_all_looks_is_handed_out(tmp_path):
    judge, summary, handed = judged(tmp_path, [0.5, 0.6, 0.8, 0.8, 0.7])
    assert same(handed, judge.looks[2])
    assert (summary["chosen_step"], summary["score"], summary["start_score"]) == (2, 0.8, 0.5)
    assert summary["stopped"] is None
    assert summary["decision"] == "the weights of step 2 are handed out: score 0.800, 0.500 before"


def test_the_start_is_kept_where_nothing_beats_it(tmp_path):
    judge, summary, handed = judged(tmp_path, [0.5, 0.5, 0.4, 0.3, 0.2])
    assert same(handed, judge.looks[0])
    assert not same(handed, judge.looks[1])
    assert summary["decision"] == "no improvement found: the start was kept (score 0.500)"


def test_the_start_is_given_up_for_a_gain_that_counts_later_weights_for_any(tmp_path):
    judge, summary, handed = judged(tmp_path / "little", [0.5, 0.54, 0.55, 0.55, 0.54], least_gain=0.1)
    assert same(handed, judge.looks[0])
    assert summary["decision"] == "no improvement found: the start was kept (score 0.500, and above 0.550 was asked)"
    judge, _, handed = judged(tmp_path / "enough", [0.5, 0.54, 0.56, 0.57, 0.5], least_gain=0.1)
    assert same(handed, judge.looks[3])


def test_only_a_label_free_criterion_must_gain_more():
    assert [watch(key, least_gain=0.1).least_gain for key in ("cycle", "val_f1", "")] == [0.1, 0.0, 0.0]


def test_patience_counts_looks_since_the_best(tmp_path):
    judge, summary, _ = judged(tmp_path, [0.5, 0.6, 0.6, 0.5, 0.9], patience=2)
    assert len(judge.looks) == 4  # the start, the best, and two that were not better
    assert summary["stopped"] == "no better score for 2 looks, at step 3"
    assert (summary["steps"], summary["chosen_step"]) == (3, 1)


def test_a_collapse_names_its_step_and_the_best_before_is_kept(tmp_path):
    judge, summary, handed = judged(tmp_path, [0.5, 0.6, -1.0])
    assert summary["stopped"] == "collapse: so it is said, at step 2"
    assert same(handed, judge.looks[1])
    assert summary["decision"].endswith("; stopped early: collapse: so it is said, at step 2")


def test_a_loss_that_is_no_number_keeps_the_best(tmp_path):
    settings = {"steps": 3, "validate_every": 1, "warmup_steps": 0}
    run = check_config({"model": {"size": "tiny"}, "train": settings})
    judge = Opinion([0.5, 0.6])

    def objective(state: State, micro_step: int):
        factor = math.nan if state.step == 1 else 1.0
        return factor * state.student(torch.zeros(1, 3, 32, 32)).mean(), {}, ["cell7"]

    fit(run, tmp_path, make_fabric(run, "cpu"), objective, seed=0, resume=False, judge=judge)
    assert "loss is nan at step 1, images cell7" in (tmp_path / "summary.json").read_text()
    assert (tmp_path / "best.safetensors").exists()


@pytest.mark.parametrize(("key", "by"), [("cycle", "criterion cycle on 2 unlabelled images"), ("", "last step")])
def test_words(key, by):
    assert Watch([IMAGE] * 2, [24.0] * 2, key, 0).by == by
    assert np.isfinite(len(decision(Watch([IMAGE], [None], key, 0), {"cycle": 0.5}, 0.6, 3, "")))
