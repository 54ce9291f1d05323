"""The challenge's rule, against geometry and against an independent re-telling of the organisers' script.

The rule, from which ``script_*`` below was written, sharing no code with cellseg: every cell with a pixel in the
outer 2 rows or columns is removed, truth and prediction independently; the rest is relabelled; a dense table of IoU
is matched by the Hungarian method with cost −(IoU ≥ t) − IoU / (2 min(n, m)); TP are the matched pairs with IoU ≥ t,
FP and FN the cells left over; F1 comes from precision and recall, rounded to 4 decimals, 0 without a match. Images of
25,000,000 px or more are padded with zeros to patches of 2,000 px, cells at the border of a patch are removed, and the
counts of the patches are added. Every expected value here is worked out by hand or by that re-telling when the test
runs; none was stored from a run of cellseg.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

import cellseg.metrics.rules as rules
from cellseg.core import CellsegError, Counts
from cellseg.metrics import match, neurips_f1


def neurips(labels_true, labels_pred, threshold=0.5):
    (result,) = match(np.asarray(labels_true), np.asarray(labels_pred), (threshold,), rule="neurips")
    return result


def triple(counts):
    return counts.tp, counts.fp, counts.fn


def box(shape, top, left, bottom, right):
    labels = np.zeros(shape, np.int32)
    labels[top:bottom, left:right] = 1
    return labels


# ---- the script, told again: dense, cell by cell, in its own order


def script_remove_border(labels):
    labels = labels.copy()
    band = np.ones(labels.shape)
    band[2 : labels.shape[0] - 2, 2 : labels.shape[1] - 2] = 0
    for value in np.unique(labels * band)[1:]:
        labels[labels == value] = 0
    names = np.unique(labels)
    return np.searchsorted(names, labels) if names[0] == 0 else np.searchsorted(names, labels) + 1


def script_true_positives(true, pred, threshold):
    if pred.max() == 0 or true.max() == 0:
        return 0
    table = np.zeros((true.max() + 1, pred.max() + 1))
    np.add.at(table, (true.ravel(), pred.ravel()), 1)
    union = table.sum(0, keepdims=True) + table.sum(1, keepdims=True) - table
    iou = (table / np.maximum(union, 1))[1:, 1:]
    chosen = linear_sum_assignment(-(iou >= threshold).astype(float) - iou / (2 * min(iou.shape)))
    return int((iou[chosen] >= threshold).sum())


def script_f1(true, pred, threshold, large=25_000_000, side=2000):
    if true.size < large:
        patches = [(true, pred)]
    else:
        height, width = (-(-n // side) * side for n in true.shape)
        padded = np.zeros((2, height, width), int)
        padded[0, : true.shape[0], : true.shape[1]], padded[1, : true.shape[0], : true.shape[1]] = true, pred
        patches = [
            padded[:, top : top + side, left : left + side]
            for top in range(0, height, side)
            for left in range(0, width, side)
        ]
    tp = n_true = n_pred = 0
    for patch_true, patch_pred in patches:
        inner_true, inner_pred = script_remove_border(patch_true), script_remove_border(patch_pred)
        tp += script_true_positives(inner_true, inner_pred, threshold)
        n_true += inner_true.max()
        n_pred += inner_pred.max()
    if tp == 0:
        return 0, n_true, n_pred, 0.0
    precision, recall = tp / n_pred, tp / n_true
    return tp, n_true, n_pred, np.round(2 * (precision * recall) / (precision + recall), 4)


def random_pair(rng, shape, cells):
    """Noisy boxes, many of them at the border, and a damaged copy."""
    true = np.zeros(shape, np.int32)
    for index in range(1, cells + 1):
        top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        true[top : top + rng.integers(1, 7), left : left + rng.integers(1, 7)] = index * 3
    pred = np.roll(true, rng.integers(-1, 2, 2), (0, 1))
    return true, np.where(rng.random(shape) < 0.1, rng.integers(0, cells + 1, shape), pred).astype(np.int32)


def test_small_images_agree_with_the_script():
    rng = np.random.default_rng(7)
    scored = 0
    for case in range(500):
        true, pred = random_pair(rng, rng.integers(1, 48, 2), int(rng.integers(0, 25)))
        threshold = (0.5, 0.6, 0.3, 0.75)[case % 4]
        result = neurips(true, pred, threshold)
        tp, n_true, n_pred, f1 = script_f1(true, pred, threshold)
        assert (result.tp, result.n_true, result.n_pred, neurips_f1(result)) == (tp, n_true, n_pred, f1)
        scored += tp
    assert scored > 300


@pytest.mark.parametrize("step", range(2, 20))
def test_plain_counts_agree_with_dense_iou_and_the_hungarian_method(step):
    """120 random pairs at each of 0.10, 0.15, …, 0.95, 2,160 in all, of up to 24 cells; the rule removes nothing."""
    rng = np.random.default_rng(step)
    for _ in range(120):
        true, pred = random_pair(rng, rng.integers(1, 40, 2), int(rng.integers(0, 25)))
        (result,) = match(true, pred, (step / 20,))
        names = [np.unique(labels[labels > 0]) for labels in (true, pred)]
        dense = [np.searchsorted([0, *n], labels) for n, labels in zip(names, (true, pred), strict=True)]
        tp = script_true_positives(*dense, step / 20)
        assert triple(result) == (tp, names[1].size - tp, names[0].size - tp)


@settings(max_examples=60, deadline=None)
@given(arrays(np.int32, (6, 7), elements=st.integers(0, 4)), arrays(np.int32, (6, 7), elements=st.integers(0, 4)))
def test_within_an_empty_margin_of_2_px_both_rules_agree(true, pred):
    assert match(np.pad(true, 2), np.pad(pred, 2), rule="neurips") == match(true, pred)
    assert match(np.pad(true, 2)[1:], np.pad(pred, 2)[1:], rule="neurips") == match(
        np.where(np.isin(true, true[0]), 0, true), np.where(np.isin(pred, pred[0]), 0, pred)
    )


def test_large_images_agree_with_the_script(monkeypatch):
    monkeypatch.setattr(rules, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(rules, "PATCH", 20)
    rng = np.random.default_rng(8)
    for shape in ((40, 60), (50, 33), (21, 79), (20, 50), (1000, 1)):
        for _ in range(10):
            true, pred = random_pair(rng, shape, 60)
            result = neurips(true, pred)
            tp, n_true, n_pred, f1 = script_f1(true, pred, 0.5, large=1000, side=20)
            assert (result.tp, result.n_true, result.n_pred, neurips_f1(result)) == (tp, n_true, n_pred, f1)


# ---- by geometry


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_a_cell_counts_from_the_third_row_on(offset):
    shape = (40, 50)
    inside = offset >= 2
    for labels in (
        box(shape, offset, 20, offset + 9, 29),
        box(shape, 31 - offset, 20, 40 - offset, 29),
        box(shape, 20, offset, 29, offset + 9),
        box(shape, 20, 41 - offset, 29, 50 - offset),
    ):
        assert triple(neurips(labels, labels)) == ((1, 0, 0) if inside else (0, 0, 0))


def test_border_cells_are_removed_from_truth_and_prediction_independently():
    true, pred = box((40, 40), 0, 10, 20, 30), box((40, 40), 3, 10, 20, 30)
    assert triple(match(true, pred, (0.5,))[0]) == (1, 0, 0)
    assert triple(neurips(true, pred)) == (0, 1, 0)
    assert triple(neurips(pred, true)) == (0, 0, 1)


def test_a_cell_with_one_of_two_pieces_on_the_border_is_removed_whole():
    labels = box((40, 40), 10, 10, 20, 20)
    labels[0, 39] = 1
    assert triple(neurips(labels, labels)) == (0, 0, 0)


def test_an_empty_prediction_still_misses_its_cells():
    true = box((40, 40), 10, 10, 20, 20)
    assert triple(neurips(true, np.zeros_like(true))) == (0, 0, 1)
    assert neurips_f1(neurips(true, np.zeros_like(true))) == 0


def test_both_empty_scores_0():
    empty = np.zeros((40, 40), np.uint8)
    assert neurips_f1(neurips(empty, empty)) == 0


def test_f1_is_rounded_to_4_decimals():
    assert neurips_f1(Counts(0.5, tp=1, fp=1, fn=3)) == 0.3333
    assert neurips_f1(Counts(0.5, tp=2, fp=1, fn=0)) == 0.8


def test_predictions_above_32767_survive_a_truth_of_int16():
    true = box((40, 40), 10, 10, 20, 20).astype(np.int16)
    assert triple(neurips(true, true.astype(np.int32) * 40_000)) == (1, 0, 0)


def test_the_oddity_of_tiny_images_without_background_is_kept():
    """The script skips the first of the border's sorted values, taking it for background."""
    labels = np.array([[5, 5, 7]])
    assert script_f1(labels, labels, 0.5) == (1, 1, 1, 1.0)
    assert triple(neurips(labels, labels)) == (1, 0, 0)


def whole_slide():
    """5000 x 5000: one cell inside a patch, one on the seam at 2000, one touching the bottom edge of the image."""
    labels = np.zeros((5000, 5000), np.uint16)
    labels[100:130, 100:130] = 1
    labels[1990:2010, 300:330] = 2
    labels[4970:5000, 300:330] = 3
    return labels


def test_patches_of_a_large_image_have_borders_of_their_own():
    """The cell on the seam vanishes; the one at the image's edge stays, as padding moves the border away."""
    labels = whole_slide()
    assert triple(neurips(labels, labels)) == (2, 0, 0)
    assert triple(neurips(labels[:4999], labels[:4999])) == (2, 0, 0)  # below 25 Mpx: only the image's own border
    assert triple(match(labels, labels, (0.5,))[0]) == (3, 0, 0)


def test_patches_without_a_prediction_count_their_missed_cells():
    """A well-known port adds FN = 0 for such patches and reports 1.0 here."""
    true = whole_slide()
    pred = np.where(true == 1, true, 0)
    result = neurips(true, pred)
    assert triple(result) == (1, 0, 1)
    assert neurips_f1(result) == 0.6667


def test_large_images_of_different_shape_are_refused():
    with pytest.raises(CellsegError, match=r"\(5000, 5000\).*\(5000, 5001\)"):
        neurips(np.zeros((5000, 5000), np.uint8), np.zeros((5000, 5001), np.uint8))


def test_the_neurips_counts_come_per_threshold():
    labels = whole_slide()
    assert [c.threshold for c in match(labels, labels, (0.5, 0.9), rule="neurips")] == [0.5, 0.9]
