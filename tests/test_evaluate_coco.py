"""A folder against a COCO file: what is counted, what is named, and the command a user runs."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cellseg.confidences import write_confidences
from cellseg.core import CellsegError
from cellseg.datasets.coco import decode_polygons, paint, read_coco
from cellseg.evaluate_coco import evaluate_coco, score_table, write_report
from cellseg.images import write_labels

ROOT = Path(__file__).parent.parent
SHAPE = (40, 60)
BOXES = ((2, 2, 10), (2, 20, 10), (20, 2, 10), (20, 20, 10))


def polygon(top, left, size):
    return [left, top, left + size, top, left + size, top + size, left, top + size]


def write_truth(path, names=("a", "b"), boxes=BOXES, as_dict=False, **changes):
    """Write a COCO file whose images all hold the same squares."""
    images = [
        {"id": 10 * number, "file_name": f"{name}.tif", "height": SHAPE[0], "width": SHAPE[1]}
        for number, name in enumerate(names, start=1)
    ]
    annotations = [
        {
            "id": 100 * image["id"] + number, "image_id": image["id"], "category_id": 1, "iscrowd": 0,
            "area": box[2] ** 2, "segmentation": [polygon(*box)],
        }
        for image in images for number, box in enumerate(boxes)
    ]  # fmt: skip
    listed = {str(one["id"]): one for one in annotations} if as_dict else annotations
    content = {"images": images, "annotations": listed, "categories": [{"id": 1, "name": "cell"}], **changes}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def labels_of(boxes):
    labels = np.zeros(SHAPE, np.int32)
    for number, (top, left, size) in enumerate(boxes, start=1):
        labels[top : top + size, left : left + size] = number
    return labels


@pytest.fixture
def pred(tmp_path):
    for name in ("a", "b"):
        write_labels(tmp_path / "pred" / f"{name}.tif", labels_of(BOXES))
    return tmp_path / "pred"


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path / "truth.json")


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_perfect_folder(tmp_path, pred, as_dict):
    report = evaluate_coco(write_truth(tmp_path / "t.json", as_dict=as_dict), pred)
    assert (report.scores.ap, report.scores.ap50, report.scores.ap_small) == pytest.approx((1, 1, 1), abs=1e-12)
    assert report.scores.afnr == 0
    assert (report.scores.n_images, report.scores.n_annotations, report.scores.n_predictions) == (2, 8, 8)
    assert report.problems == report.notes == ()
    assert report.score_source.startswith("constant 1")


@pytest.mark.parametrize("what", ["missing", "misshaped", "unreadable", "unreadable scores"])
def test_what_cannot_be_used_counts_as_no_detections_and_is_named(truth, pred, what):
    if what == "missing":
        (pred / "b.tif").unlink()
    elif what == "misshaped":
        write_labels(pred / "b.tif", np.ones((40, 61), np.int32))
    elif what == "unreadable":
        (pred / "b.tif").write_bytes(b"II*\0 not an image")
    else:
        (pred / "b.scores.csv").write_text("label,score\n1,0.5\n", encoding="utf-8")
    report = evaluate_coco(truth, pred)
    assert len(report.problems) == 1
    assert report.problems[0].startswith(f"b: {what.split()[0]}")
    assert report.problems[0].endswith("; counted as no detections")
    assert str(pred) not in report.problems[0]
    assert report.scores.afnr == pytest.approx(0.5, abs=1e-12)
    assert report.scores.ap == pytest.approx(51 / 101, abs=1e-12)
    assert (report.scores.n_images, report.scores.n_annotations, report.scores.n_predictions) == (2, 8, 4)


def test_score_files_rank_the_cells(truth, pred):
    """Of two images with four cells each, one false cell an image: what it costs depends on its score."""
    boxes = (*BOXES[:3], (20, 40, 10))  # the fourth is false
    # 6 of 8 are found, so recalls up to .75 count: at precision 1 where the six come first, at 6/8 where they do not.
    wanted = {0.1: 76 / 101, 0.9: 76 / 101 * 6 / 8}
    for false_score, ap in wanted.items():
        for name in ("a", "b"):
            labels = labels_of(boxes)
            write_labels(pred / f"{name}.tif", labels)
            write_confidences(pred / f"{name}.tif", labels, np.array([0.5, 0.6, 0.7, false_score]))
        report = evaluate_coco(truth, pred)
        assert report.score_source == "files (*.scores.csv)"
        assert report.scores.ap == pytest.approx(ap, abs=1e-12)
        assert report.scores.afnr == pytest.approx(0.25, abs=1e-12)
    (pred / "a.scores.csv").unlink()
    assert evaluate_coco(truth, pred).score_source == "mixed: files for 1 of 2 images, constant 1 for the others"


def test_no_usable_prediction_at_all(truth, tmp_path):
    (tmp_path / "none").mkdir()
    report = evaluate_coco(truth, tmp_path / "none")
    assert (report.scores.ap, report.scores.afnr, len(report.problems)) == (0, 1, 2)
    assert report.score_source == "none: no usable prediction"


def test_names_are_paired_as_for_folders(tmp_path, truth, pred):
    (pred / "a.tif").rename(pred / "a_masks.tif")
    assert evaluate_coco(truth, pred).problems == ()


def test_one_file_under_two_ids_is_scored_under_both(tmp_path, pred):
    report = evaluate_coco(write_truth(tmp_path / "t.json", names=("a", "a")), pred)
    assert (report.scores.n_images, report.scores.n_annotations, report.scores.n_predictions) == (2, 8, 8)
    assert report.scores.ap == pytest.approx(1, abs=1e-12)


def test_the_area_of_the_file_decides_and_without_one_the_pixels(tmp_path, pred):
    truth = write_truth(tmp_path / "t.json")
    content = json.loads(truth.read_text())
    for annotation in content["annotations"]:
        annotation["area"] = 500
    truth.write_text(json.dumps(content))
    scores = evaluate_coco(truth, pred).scores
    assert math.isnan(scores.ap_small)
    assert scores.ap_medium == pytest.approx(1, abs=1e-12)
    for annotation in content["annotations"]:
        del annotation["area"]
    truth.write_text(json.dumps(content))
    scores = evaluate_coco(truth, pred).scores
    assert math.isnan(scores.ap_medium)
    assert scores.ap_small == pytest.approx(1, abs=1e-12)


def test_unusable_annotations_are_left_out_and_noted(tmp_path, pred):
    truth = write_truth(tmp_path / "t.json")
    content = json.loads(truth.read_text())
    content["annotations"][0]["segmentation"] = {"counts": [1, 2], "size": [40, 60]}
    truth.write_text(json.dumps(content))
    report = evaluate_coco(truth, pred)
    assert report.notes == ("a: 1 annotations without usable polygons are left out",)
    assert report.scores.n_annotations == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": []}, "lists no image"),
        ({"images": [{"id": 10, "file_name": "a.tif"}]}, "image a has no width and height"),
        (
            {"images": [{"id": 10, "file_name": f"{name}.tif", "height": 40, "width": 60} for name in "ab"]},
            "id 10 names two images, a and b",
        ),
    ],
)
def test_a_file_that_cannot_be_scored_against_is_refused(tmp_path, pred, changes, said):
    with pytest.raises(CellsegError, match=said):
        evaluate_coco(write_truth(tmp_path / "t.json", **changes), pred)


def test_the_report_is_written_with_every_digit(truth, pred, tmp_path):
    import pandas as pd

    (pred / "b.tif").unlink()
    report = evaluate_coco(truth, pred)
    written = pd.read_csv(write_report(report, tmp_path / "out" / "coco.csv"), float_precision="round_trip")
    pd.testing.assert_frame_equal(written, score_table(report), check_exact=True)
    assert written.loc[0, "n_unusable"] == 1


# ---- the command


def cellseg(*arguments):
    command = [sys.executable, "-m", "cellseg.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_the_command_prints_the_table_writes_it_and_names_what_is_missing(truth, pred, tmp_path):
    done = cellseg("evaluate", truth, pred, "--out", tmp_path / "coco.csv")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    table = {line[:22].strip(): line[22:] for line in done.stdout.splitlines()[1:]}
    assert table["AP (IoU .50:.05:.95)"] == table["AP50"] == table["AP75"] == "1.0000"
    assert table["APl (from 961 px)"] == "nan"
    assert (table["AFNR"], table["images"], table["annotations"], table["predictions"]) == ("0.0000", "2", "8", "8")
    assert table["score source"].startswith("constant 1")
    header = (tmp_path / "coco.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == (
        "ap,ap50,ap75,ap_small,ap_medium,ap_large,afnr,n_images,n_annotations,n_predictions,n_unusable,score_source"
    )
    (pred / "b.tif").unlink()
    done = cellseg("evaluate", truth, pred)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["b: missing; counted as no detections"]
    assert "0.5000" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{truth}"], "give the folder of predicted label images as well"),
        (["{truth}", "{pred}", "--split", "test"], "leave --rule and --split away"),
        (["{none}.json", "{pred}"], "cannot be read"),
        (["{truth}", "{none}"], "wanted a folder of predicted label images"),
    ],
)
def test_a_mistake_is_one_clear_line(truth, pred, tmp_path, arguments, said):
    done = cellseg("evaluate", *(one.format(truth=truth, pred=pred, none=tmp_path / "none") for one in arguments))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


@pytest.mark.realdata
def test_the_best_label_image_of_real_annotations_is_not_perfect(shared_data, tmp_path):
    """Painted truth loses overlaps only: nothing at IoU .5 and .75, a little above; the file's own areas are used."""
    path = shared_data / "livecell" / "annotations" / "LIVECell" / "livecell_coco_test.json"
    file = read_coco(path)
    for image in file.images:
        polygons = [decode_polygons(one) for one in file.annotations[image.id]]
        write_labels(tmp_path / f"{image.stem}.tif", paint(polygons, image.height, image.width).labels)
    report = evaluate_coco(path, tmp_path)
    assert (report.scores.n_images, report.scores.n_annotations, report.problems, report.notes) == (8, 2018, (), ())
    assert report.scores.ap50 == pytest.approx(1, abs=1e-12)
    assert 0.95 < report.scores.ap < 1
