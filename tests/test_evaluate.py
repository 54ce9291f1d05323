"""Folders in, scores out: pairing by name, what a bad prediction costs, and what the averages are."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile

from cellseg.core import CellsegError, Record
from cellseg.datasets.index import write_index
from cellseg.evaluate import evaluate, list_problems, read_scores, summarize, write_scores
from cellseg.images import write_labels
from cellseg.metrics.scores import COLUMNS, aggregate, image_values

SHAPE = (32, 48)


def cells(*columns, height=8, width=8, top=10):
    """Label image with one cell per left column given."""
    labels = np.zeros(SHAPE, np.uint16)
    for index, left in enumerate(columns, 1):
        labels[top : top + height, left : left + width] = index
    return labels


def save(folder, **images):
    folder.mkdir(exist_ok=True)
    for name, labels in images.items():
        tifffile.imwrite(folder / f"{name}.tif", labels)
    return folder


def at(scores, threshold=0.5):
    rows = scores[scores["threshold"] == threshold].set_index("image")
    return {name: (row.tp, row.fp, row.fn, row.f1, row.status) for name, row in rows.iterrows()}


# ---- counting


def test_a_row_per_image_and_threshold(tmp_path):
    truth = save(tmp_path / "truth", a=cells(4, 20), b=cells(4))
    pred = save(tmp_path / "pred", a=cells(4), b=cells(4))
    scores = evaluate(truth, pred)
    assert tuple(scores.columns) == COLUMNS
    assert len(scores) == 2 * 10
    assert scores["image"].unique().tolist() == ["a", "b"]
    assert at(scores) == {"a": (1, 0, 1, 2 / 3, "ok"), "b": (1, 0, 0, 1.0, "ok")}
    first = scores.iloc[0]
    assert (first["n_true"], first["n_pred"], first["iou_sum"], first["rule"]) == (2, 1, 1.0, "strict")
    assert list_problems(scores) == []


def test_thresholds_are_those_asked_for(tmp_path):
    truth, pred = save(tmp_path / "truth", a=cells(4, width=10)), save(tmp_path / "pred", a=cells(4, width=6))
    scores = evaluate(truth, pred, thresholds=np.arange(0.5, 0.7, 0.05))
    assert scores["threshold"].tolist() == [0.5, 0.55, 0.6, 0.65]
    assert scores["tp"].tolist() == [1, 1, 1, 0]


def test_what_cannot_be_used_scores_0_and_is_named(tmp_path):
    two = cells(4, 20)
    truth = save(
        tmp_path / "truth", fine=two, lost=two, broken=two, small=two, colour=two, negative=two, nothing=two * 0
    )
    pred = save(
        tmp_path / "pred",
        fine=two,
        small=two[:20],
        colour=np.stack([two] * 3, -1).astype(np.uint8),
        negative=two.astype(np.int16) - 5,
    )
    (pred / "broken.tif").write_bytes((pred / "fine.tif").read_bytes()[:200])
    scores = evaluate(truth, pred)
    found = at(scores)
    assert found["fine"] == (2, 0, 0, 1.0, "ok")
    for name in ("lost", "broken", "small", "colour", "negative"):
        assert found[name][:4] == (0, 0, 2, 0.0), name
    assert found["nothing"] == (0, 0, 0, 0.0, "missing")
    assert found["lost"][4] == "missing"
    assert found["small"][4] == "misshaped: small.tif is (20, 48) but the truth is (32, 48)"
    assert all(found[name][4].startswith("unreadable: ") for name in ("broken", "colour", "negative"))
    assert str(tmp_path) not in "".join(scores["status"])
    assert [line.split(":")[0] for line in list_problems(scores)] == [
        *("broken", "colour", "lost", "negative", "nothing", "small"),
    ]
    assert aggregate(scores, "f1", (0.5,), "mean") == pytest.approx(1 / 7)
    assert aggregate(scores, "ap", (0.5,), "mean") == pytest.approx(1 / 7)
    assert aggregate(scores, "f1", (0.5,), "pooled") == 4 / (4 + 10)


def test_both_empty_is_1_under_strict_and_0_under_neurips(tmp_path):
    truth, pred = save(tmp_path / "truth", a=cells()), save(tmp_path / "pred", a=cells())
    assert at(evaluate(truth, pred)) == {"a": (0, 0, 0, 1.0, "empty")}
    assert at(evaluate(truth, pred, rule="neurips")) == {"a": (0, 0, 0, 0.0, "empty")}
    assert aggregate(evaluate(truth, pred), "pq", (0.5,), "mean") == 1
    assert aggregate(evaluate(truth, pred, rule="neurips"), "pq", (0.5,), "pooled") == 0


def test_the_neurips_rule_removes_border_cells_and_rounds(tmp_path):
    truth = save(tmp_path / "truth", a=cells(0, 12, 24, 36), b=cells(12))
    pred = save(tmp_path / "pred", a=cells(12))
    scores = evaluate(truth, pred, rule="neurips")
    assert at(scores) == {"a": (1, 0, 2, 0.5, "ok"), "b": (0, 0, 1, 0.0, "missing")}
    three = evaluate(
        save(tmp_path / "t3", a=cells(3, 12, 21, 30, 38, width=6)),
        save(tmp_path / "p3", a=cells(3, width=6)),
        rule="neurips",
    )
    assert at(three)["a"][3] == 0.3333


def test_workers_do_not_change_the_scores(tmp_path):
    rng = np.random.default_rng(0)
    images = {f"i{n}": rng.integers(0, 5, SHAPE).astype(np.uint16) for n in range(5)}
    truth, pred = save(tmp_path / "truth", **images), save(tmp_path / "pred", **dict(list(images.items())[:4]))
    pd.testing.assert_frame_equal(evaluate(truth, pred, workers=2), evaluate(truth, pred))


@pytest.mark.parametrize("rule", ["plain", "organisers"])
def test_an_unknown_rule_is_refused(tmp_path, rule):
    with pytest.raises(CellsegError, match="strict, neurips"):
        evaluate(tmp_path, tmp_path, rule=rule)


# ---- pairing


@pytest.mark.parametrize("ending", ["", "_masks", "_cp_masks", "_label", "_labels", "_mask"])
@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".png", ".ome.tif"])
def test_predictions_are_found_under_the_usual_names(tmp_path, ending, suffix):
    truth = save(tmp_path / "truth", cell_00001_label=cells(4))
    (tmp_path / "pred").mkdir()
    write_labels(tmp_path / "pred" / "any.tif", cells(4))  # the reader tells files by their first bytes
    (tmp_path / "pred" / "any.tif").rename(tmp_path / "pred" / f"cell_00001{ending}{suffix}")
    assert at(evaluate(truth, tmp_path / "pred")) == {"cell_00001": (1, 0, 0, 1.0, "ok")}


def test_a_prediction_beside_its_image_is_the_one_that_says_so(tmp_path):
    truth = save(tmp_path / "truth", a=cells(4, 20))
    pred = save(tmp_path / "pred", a=cells(30), a_cp_masks=cells(4, 20))
    assert at(evaluate(truth, pred))["a"][:3] == (2, 0, 0)
    assert at(evaluate(pred, truth))["a"][:3] == (2, 0, 0)


def test_where_names_say_labels_nothing_else_of_a_folder_is_truth(tmp_path):
    names = {"a": cells(30), "a_masks": cells(4), "a_flows": cells(30), "b": cells(30)}
    truth, pred = save(tmp_path / "truth", **names), save(tmp_path / "pred", a=cells(4))
    with pytest.warns(UserWarning, match=r"2 files are not labels by their names.*: a_flows\.tif, b\.tif$"):
        assert at(evaluate(truth, pred)) == {"a": (1, 0, 0, 1.0, "ok")}
    mixed = save(tmp_path / "mixed", a=cells(4), b_mask=cells(4))  # no image beside its labels: all are labels
    assert list(at(evaluate(mixed, mixed))) == ["a", "b"]


def test_two_possible_predictions_are_an_error(tmp_path):
    truth = save(tmp_path / "truth", a=cells(4))
    pred = save(tmp_path / "pred", a_masks=cells(4), a_label=cells(4))
    with pytest.raises(CellsegError, match=r"'a'.*a_label\.tif, a_masks\.tif"):
        evaluate(truth, pred)


def test_folders_that_are_not_there(tmp_path):
    truth = save(tmp_path / "truth", a=cells(4))
    with pytest.raises(CellsegError, match="nowhere"):
        evaluate(truth, tmp_path / "nowhere")
    with pytest.raises(CellsegError, match="nowhere"):
        evaluate(tmp_path / "nowhere", truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CellsegError, match="no image file"):
        evaluate(tmp_path / "empty", truth)
    assert at(evaluate(truth, tmp_path / "empty"))["a"] == (0, 0, 1, 0.0, "missing")
    with pytest.raises(CellsegError, match="index"):
        evaluate(truth, truth, split="test")


def test_a_truth_that_cannot_be_read_stops(tmp_path):
    truth = save(tmp_path / "truth", a=cells(4))
    (truth / "a.tif").write_bytes(b"II*\0broken")
    with pytest.raises(CellsegError, match=r"a\.tif"):
        evaluate(truth, truth)


@pytest.fixture
def index(tmp_path):
    """Three labelled images of two groups and splits, one unlabelled, one with a foreground mask only."""
    folder = save(tmp_path / "data", a=cells(4), a_mask=cells(4, 20), c=cells(4), d=cells(4), e=cells(4))
    rows = (("a", "x", "test", "instances"), ("a_mask", "y", "test", "instances"), ("c", "x", "train", "instances"))
    rows += (("d", "x", "test", ""), ("e", "y", "test", "foreground"))
    write_index(
        folder / "index.csv",
        [
            Record(
                i,
                folder / f"{i}.tif",
                folder / f"{i}.tif" if kind else None,
                "toy",
                split,
                group,
                32,
                48,
                None,
                kind,
                None,
            )
            for i, group, split, kind in rows
        ],
    )
    return folder / "index.csv"


def test_an_index_drives_the_loop_by_record_id(index, tmp_path):
    """Ids that differ only in a label ending are paired by their exact names."""
    pred = save(tmp_path / "pred", a=cells(4), a_mask=cells(4))
    with pytest.warns(UserWarning, match="2 images have no instance labels"):
        scores = evaluate(index, pred, split="test")
    assert at(scores) == {"a": (1, 0, 0, 1.0, "ok"), "a_mask": (1, 0, 1, 2 / 3, "ok")}
    assert scores[["image", "group", "split", "dataset"]].drop_duplicates().to_numpy().tolist() == [
        ["a", "x", "test", "toy"],
        ["a_mask", "y", "test", "toy"],
    ]


def test_groups_of_an_index(index, tmp_path):
    pred = save(tmp_path / "pred", a=cells(4))
    with pytest.warns(UserWarning, match="1 images"):
        assert set(at(evaluate(index, pred, groups=["x"]))) == {"a", "c"}
    with pytest.raises(CellsegError, match="'z'"):
        evaluate(index, pred, groups=["z"])


def test_the_folder_of_an_index_means_the_index(index, tmp_path):
    pred = save(tmp_path / "pred", c=cells(4))
    assert at(evaluate(index.parent, pred, split="train")) == {"c": (1, 0, 0, 1.0, "ok")}


# ---- tables of scores


def table(*rows):
    """Score table from (image, group, threshold, tp, fp, fn) rows, all of rule strict and IoU 1."""
    return pd.DataFrame(
        [
            dict(
                zip(
                    COLUMNS,
                    (
                        image,
                        group,
                        "test",
                        "toy",
                        "strict",
                        t,
                        tp,
                        fp,
                        fn,
                        tp + fn,
                        tp + fp,
                        float(tp),
                        2 * tp / (2 * tp + fp + fn),
                        "ok",
                    ),
                    strict=True,
                )
            )
            for image, group, t, tp, fp, fn in rows
        ]
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_come_back_as_written(tmp_path, suffix):
    truth = save(tmp_path / "truth", a=cells(4, 20, 36), NA=cells(4))
    scores = evaluate(truth, save(tmp_path / "pred", a=cells(5, 21)))
    path = write_scores(scores, tmp_path / "deep" / f"scores{suffix}")
    pd.testing.assert_frame_equal(read_scores(path), scores)
    assert [p.name for p in path.parent.iterdir()] == [f"scores{suffix}"]


def test_what_is_not_a_score_table_is_refused(tmp_path):
    with pytest.raises(CellsegError, match="no such score table"):
        read_scores(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("image,f1\na,1\n")
    with pytest.raises(CellsegError, match="no column group"):
        read_scores(tmp_path / "other.csv")
    scores = table(("a", "x", 0.5, 1, 0, 0))
    write_scores(pd.concat([scores, scores]), tmp_path / "twice.csv")
    with pytest.raises(CellsegError, match="image a appears twice"):
        read_scores(tmp_path / "twice.csv")
    write_scores(scores.assign(tp="many"), tmp_path / "words.csv")
    with pytest.raises(CellsegError, match="column tp"):
        read_scores(tmp_path / "words.csv")
    mixed = pd.concat([scores, table(("b", "x", 0.5, 1, 0, 0)).assign(rule="neurips")])
    write_scores(mixed, tmp_path / "mixed.csv")
    with pytest.raises(CellsegError, match="neurips, strict"):
        read_scores(tmp_path / "mixed.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(CellsegError, match=r"empty\.csv"):
        read_scores(tmp_path / "empty.csv")


def test_mean_median_and_pooled_are_three_things():
    scores = table(("a", "x", 0.5, 1, 0, 0), ("b", "x", 0.5, 1, 1, 1), ("c", "y", 0.5, 0, 8, 9))
    assert aggregate(scores, "f1", (0.5,), "mean") == 0.5
    assert aggregate(scores, "f1", (0.5,), "median") == 0.5
    assert aggregate(scores, "f1", (0.5,), "pooled") == 4 / (4 + 9 + 10)
    assert aggregate(scores, "ap", (0.5,), "mean") == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert aggregate(scores, "ap", (0.5,), "median") == pytest.approx(1 / 3)
    assert aggregate(scores, "recall", (0.5,), "pooled") == 2 / 12
    assert aggregate(scores, "precision", (0.5,), "pooled") == 2 / 11
    assert aggregate(scores, "pq", (0.5,), "mean") == 0.5
    assert aggregate(scores, "sq", (0.5,), "mean") == 1
    assert np.isnan(aggregate(scores[:0], "f1", (0.5,), "mean"))


def test_a_prediction_without_cells_has_precision_0():
    assert aggregate(table(("a", "x", 0.5, 0, 0, 3)), "precision", (0.5,), "mean") == 0


def test_the_mean_over_thresholds_is_taken_per_image():
    scores = table(
        ("a", "x", 0.5, 1, 0, 0), ("a", "x", 0.75, 0, 1, 1), ("b", "x", 0.5, 1, 0, 0), ("b", "x", 0.75, 1, 0, 0)
    )
    assert image_values(scores, "f1", (0.5, 0.75)).to_dict() == {"a": 0.5, "b": 1.0}
    assert aggregate(scores, "f1", (0.5, 0.75), "median") == 0.75
    assert aggregate(scores, "f1", (0.5, 0.75), "pooled") == (1 + 0.5) / 2
    with pytest.raises(CellsegError, match=r"0\.6.*has 0\.5, 0\.75"):
        aggregate(scores, "f1", (0.6,), "mean")


@pytest.mark.parametrize(("metric", "statistic"), [("iou", "mean"), ("f1", "mode")])
def test_unknown_metrics_and_statistics_are_refused(metric, statistic):
    with pytest.raises(CellsegError, match=metric if statistic == "mean" else statistic):
        aggregate(table(("a", "x", 0.5, 1, 0, 0)), metric, (0.5,), statistic)


def test_summarize_has_a_row_per_group_and_one_for_all():
    steps = [i / 20 for i in range(10, 20)]
    rows = [("a", "x", t, int(t < 0.7), 0, int(t >= 0.7)) for t in steps]  # 1 at 4 of 10 thresholds
    rows += [("b", "x", t, 1, 0, 0) for t in steps] + [("c", "y", t, 0, 1, 3) for t in steps]
    summary = summarize(table(*rows)).set_index("group")
    assert summary.index.tolist() == ["x", "y", "all"]
    assert summary["n_images"].tolist() == [2, 1, 3]
    assert summary.loc["all", ["n_true", "n_pred", "n_empty", "n_failed"]].tolist() == [5, 3, 0, 0]
    assert summary.loc["all", "f1_mean"] == pytest.approx(2 / 3)
    assert summary.loc["all", "f1_median"] == 1
    assert summary.loc["all", "f1_pooled"] == 4 / (4 + 1 + 3)
    assert summary.loc["x", "f1_mean_50_95"] == pytest.approx((0.4 + 1) / 2)
    assert summary.loc["x", "f1_mean_50_90"] == pytest.approx((4 / 9 + 1) / 2)
    assert summary.loc["y", "pq_mean"] == 0
    assert summary["rule"].tolist() == ["strict"] * 3


def test_summarize_without_all_thresholds_or_groups():
    summary = summarize(table(("a", "", 0.5, 1, 0, 0)))
    assert summary["group"].tolist() == ["all"]
    assert not [name for name in summary if name.endswith(("_50_95", "_50_90"))]
    with pytest.raises(CellsegError, match="'stain'"):
        summarize(table(("a", "", 0.5, 1, 0, 0)), by="stain")


def test_evaluate_imports_neither_torch_nor_its_floor_mates():
    code = (
        "import sys, cellseg.evaluate; print(sorted({'torch', 'cellseg.train', 'cellseg.predict', 'cellseg.tables',"
        " 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.realdata
def test_real_truth_scores_1_against_itself(shared_data):
    labels = shared_data / "ctc_dic_c2dh_hela" / "labels"
    scores = evaluate(labels, labels, thresholds=(0.5, 0.95))
    assert (scores["f1"] == 1).all()
    assert scores["n_true"].min() > 0
