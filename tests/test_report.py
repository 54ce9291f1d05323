import base64
import io
import json
import math

import numpy as np
import pytest
import tifffile
from PIL import Image
from report_runs import squares, write_images, write_run

from cellseg.core import CellsegError
from cellseg.metrics.statistics import Difference
from cellseg.outputs.overlays import TRUE_COLOUR, draw_outlines
from cellseg.report.changes import Change, mean_f1, measure_change
from cellseg.report.curves import draw_path, make_charts, place_dots, plain, round_up, thin_out
from cellseg.report.drawing import encode_image, trace_outlines
from cellseg.report.picture import write_picture_of_runs
from cellseg.report.runs import differing, flatten, list_evaluations, read_methods, read_records
from cellseg.report.views import make_views, pick_images
from cellseg.report.words import (
    counted,
    joined,
    number,
    say_caveats,
    say_change,
    say_origin,
)

IDS = ("a", "b", "c")


@pytest.fixture
def index(tmp_path):
    (tmp_path / "images").mkdir()
    return write_images(tmp_path / "images", IDS, group="round")


@pytest.fixture
def runs(tmp_path, index):
    """A teacher that finds 0, 0, 1 of four cells and a student that finds 2, 3, 4 of them."""
    teacher = write_run(tmp_path / "teach" / "s0", index, {"a": 0, "b": 0, "c": 1})
    log = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0, "distance": 0.1}, {"step": 30, "distance": 0.2}]
    student = write_run(
        tmp_path / "learn" / "s0", index, {"a": 2, "b": 3, "c": 4}, init=str(teacher), log=log, summary={"steps": 30}
    )
    return [teacher, student]


# ---- reading


def test_seeds_of_one_run_are_one_method(tmp_path, index, runs):
    write_run(tmp_path / "learn" / "s1", index, {"a": 4, "b": 4, "c": 4})
    methods = read_methods([runs[0], tmp_path / "learn"])
    assert [(method.name, [run.seed for run in method.runs]) for method in methods] == [
        ("teach", [0]),
        ("learn", [0, 1]),
    ]
    assert mean_f1(methods[1], "target") == pytest.approx(((4 / 6 + 6 / 7 + 1) / 3 + 1) / 2)
    assert list_evaluations(methods) == ["target"]


def test_target_comes_first(tmp_path, index):
    folder = tmp_path / "run"
    for name in ("source", "target", "other"):
        write_run(folder, index, dict.fromkeys(IDS, 4), name=name)
    assert list_evaluations(read_methods([folder])) == ["target", "other", "source"]


def test_a_run_without_scores_says_what_to_do(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(CellsegError, match="holds no scores; make them with 'cellseg evaluate"):
        read_methods([tmp_path / "run"])
    with pytest.raises(CellsegError, match="no such run folder"):
        read_methods([tmp_path / "nothing"])


def test_the_same_run_twice_is_a_mistake(runs):
    with pytest.raises(CellsegError, match="named twice"):
        read_methods([runs[0], runs[0].parent])


def test_what_is_missing_is_forgiven(runs):
    for name in ("config.json", "summary.json", "log.jsonl"):
        (runs[1] / name).unlink()
    run = read_methods([runs[1]])[0].first
    assert (run.config, run.summary, list(run.log)) == (None, {}, [])


def test_a_torn_log_line_is_left_out(runs):
    (runs[1] / "log.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert list(read_methods([runs[1]])[0].first.log) == [{"step": 1, "loss": 2}]


def test_a_broken_summary_is_named(runs):
    (runs[1] / "summary.json").write_text("{")
    with pytest.raises(CellsegError, match=r"summary\.json: cannot be read as JSON"):
        read_methods([runs[1]])


def test_two_methods_of_one_name_are_told_apart(tmp_path, index):
    for parent in ("x", "y"):
        write_run(tmp_path / parent / "same" / "s0", index, dict.fromkeys(IDS, 4))
    methods = read_methods([tmp_path / "x" / "same" / "s0", tmp_path / "y" / "same" / "s0"])
    assert [method.name for method in methods] == ["x/same", "y/same"]


def test_records_come_from_the_run_and_else_are_named_missing(runs):
    run = read_methods(runs)[1].first
    assert list(read_records(run, "target")) == list(IDS)
    with pytest.raises(CellsegError, match="the images of 'other' are not known"):
        read_records(run, "other")


def test_flatten_and_differing():
    first, second = flatten({"a": {"b": 1, "c": {}}, "d": [1]}), flatten({"a": {"b": 2}, "d": [1]})
    assert first == {"a.b": 1, "a.c": {}, "d": [1]}
    assert differing([first, second]) == ["a.b", "a.c"]
    assert differing([]) == []


# ---- words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.3261, ".326"), (1.0, "1.000"), (0.0, ".000"), (-0.5, "−.500"), (-0.0001, ".000"), (math.nan, "–"), (None, "–")],
)
def test_numbers_are_written_as_in_papers(value, text):
    assert number(value) == text


def test_signed_numbers_counts_and_lists():
    assert (number(0.25, 2, signed=True), number(0.0, signed=True)) == ("+.25", ".000")
    assert (counted(1, "image"), counted(1200, "image")) == ("1 image", "1,200 images")
    assert (joined([]), joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])) == (
        "",
        "a",
        "a and b",
        "a, b and c",
    )


def test_the_change_is_measured_over_the_same_images(runs):
    teacher, student = read_methods(runs)
    change = measure_change(teacher, student, "target")
    before, after = (0 + 0 + 2 / 5) / 3, (4 / 6 + 6 / 7 + 1) / 3
    assert (change.before, change.after) == pytest.approx((before, after))
    assert change.difference.mean == pytest.approx(after - before)
    assert say_change([change], "teach")[0] == f"On 3 target images mean F1@0.5 rose from .133 to {number(after)}."
    assert "Only 3 target images: the means are rough." in say_caveats([teacher, student], ["target"], [change])


def test_runs_scored_on_other_images_are_not_compared(tmp_path, runs):
    (tmp_path / "more").mkdir()
    other = write_run(tmp_path / "other" / "s0", write_images(tmp_path / "more", ("z",)), {"z": 4})
    methods = read_methods([runs[0], other])
    assert measure_change(*methods, "target") is None
    assert any(text.startswith("other was not compared on target") for text in say_caveats(methods, ["target"], []))


@pytest.mark.parametrize(("low", "high", "verb"), [(0.1, 0.3, "rose"), (-0.1, 0.3, "went"), (0.0, 0.3, "went")])
def test_a_change_within_the_interval_neither_rises_nor_falls(low, high, verb):
    change = Change("target", "student", 20, 0.5, 0.7, Difference(0.2, low, high, 0.5))
    sentence, interval = say_change([change], "teacher")
    assert sentence == f"On 20 target images mean F1@0.5 {verb} from .500 to .700."
    assert ("leave open" in interval) == (verb == "went")


def test_a_fall_is_called_a_fall_and_several_runs_are_named():
    fall = Change("source", "one", 64, 0.805, 0.236, Difference(-0.569, -0.6, -0.5, 0.0))
    two = Change("source", "two", 64, 0.805, 0.508, Difference(-0.297, -0.4, -0.2, 0.0))
    assert say_change([fall], "teacher")[0] == "On 64 source images mean F1@0.5 fell from .805 to .236."
    sentence, interval = say_change([fall, two], "teacher")
    assert sentence == "On 64 source images mean F1@0.5 is .805 for teacher, .236 for one and .508 for two."
    assert interval == "one −.569, 95 % interval −.600 to −.500; two −.297, 95 % interval −.400 to −.200"


def test_origin_names_images_and_start(runs):
    assert say_origin(read_methods(runs)) == (
        "teach was trained on 3 labelled images (made: round). "
        "learn started from teach and was adapted to 3 labelled images (made: round)."
    )


def test_a_run_alone_says_where_it_started(runs):
    assert (
        say_origin(read_methods(runs[1:]))
        == "learn started from teach and was adapted to 3 labelled images (made: round)."
    )


def test_origin_without_the_index_still_says_what_was_asked_for(runs, index):
    index.unlink()
    assert say_origin(read_methods(runs[:1])) == "teach was trained on labelled images (images)."


def test_unlabelled_images_count_only_where_they_were_learned_from(runs):
    values = json.loads((runs[1] / "config.json").read_text())
    values["data"]["unlabelled"] = values["data"]["train"]
    (runs[1] / "config.json").write_text(json.dumps(values))
    assert "unlabelled" not in say_origin(read_methods(runs))
    (runs[1] / "log.jsonl").write_text('{"step": 1, "loss": 2, "consistency": 0.5}\n')
    assert say_origin(read_methods(runs)).endswith("was adapted to 3 labelled and 3 unlabelled images (made: round).")


def test_unusable_predictions_are_said(runs):
    (runs[1] / "predictions" / "target" / "a.tif").unlink()
    from cellseg.evaluate import evaluate, write_scores

    folder = runs[1] / "predictions" / "target"
    write_scores(evaluate(folder / "index.csv", folder), runs[1] / "scores" / "target.csv")
    methods = read_methods(runs)
    assert "learn, target: 1 prediction missing or unusable, scored 0." in say_caveats(methods, ["target"], [])
    views, notes = make_views(methods, ["target"], 1)
    assert notes == []
    assert (views[0].image, views[0].panels[1].path, views[0].panels[1].f1) == ("a", "", 0.0)


# ---- curves


def test_charts_show_only_what_was_logged(runs):
    charts = make_charts(read_methods(runs))
    assert [chart["title"] for chart in charts] == ["Loss", "Distance from the start"]
    assert charts[0]["lines"] == [{"method": 1, "path": "M50 0L100 50"}]  # 2.0 and 1.0 of 2, steps 10 and 20 of 20
    assert (charts[0]["top"], charts[0]["steps"], charts[0]["ends"][0]["last"]) == ("2", "20", "1.00")
    assert charts[0]["spoken"] == "Loss: learn seed 0 from 2.00 at step 10 to 1.00 at step 20."


@pytest.mark.parametrize(
    ("value", "top"), [(2.6, 3), (0.17, 0.2), (1.0, 1), (7.2e-5, 8e-5), (95, 100), (0, 1), (-1, 1)]
)
def test_axes_end_on_round_numbers(value, top):
    assert round_up(value) == top


def test_long_curves_are_averaged_and_paths_are_clipped():
    thin = thin_out([(step, 2.0 * (step % 2)) for step in range(1000)], most=100)
    assert len(thin) == 100
    assert thin[0] == (4.5, 1.0)
    assert draw_path([(0, 0), (0.5, 2), (1, 0.25)]) == "M0 100L50 0L100 75"
    assert (plain(0.5), plain(12.345), plain(1234.5)) == (".500", "12.35", "1,234")


def test_dots_of_one_score_lie_above_and_below_each_other():
    assert place_dots([0.9, 0.5, 0.5, 0.5]) == [("50.0%", "0"), ("50.0%", "-5"), ("50.0%", "5"), ("90.0%", "0")]


# ---- pictures


def test_outlines_go_through_the_border_pixels():
    assert trace_outlines(squares(2)) == "M4 4l0 11 11 0 0-11zM44 4l0 11 11 0 0-11z"
    assert trace_outlines(np.zeros((5, 5), np.int32)) == ""


def test_outlines_of_large_ids_single_pixels_and_pieces():
    labels = np.zeros((9, 9), np.int32)
    labels[2, 3] = 2**31 - 1
    labels[6:8, 0:2] = labels[6:8, 6:8] = 5
    assert sorted(trace_outlines(labels).split("M")[1:]) == ["0 6l0 1 1 0 0-1z", "3 2h0z", "6 6l0 1 1 0 0-1z"]


def decoded(uri):
    kind, data = uri.split(",", 1)
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_large_images_are_made_small_and_16_bits_are_stretched():
    image = np.full((500, 4000), 30_000, np.uint16)
    image[:, 2000:] = 30_100
    shown = decoded(encode_image(image))
    assert shown.shape == (125, 1000, 3)
    assert shown[:, :450].max() <= 5
    assert shown[:, 550:].min() >= 250


def test_colour_is_shown_as_it_is():
    image = np.zeros((32, 32, 3), np.uint8)
    image[...] = (180, 90, 150)
    assert np.abs(decoded(encode_image(image)).astype(int) - (180, 90, 150)).max() <= 6


def test_worst_median_and_best_are_chosen():
    import pandas as pd

    values = pd.Series({"e": 0.5, "a": 0.5, "b": 0.1, "c": 0.9, "d": 0.7})
    assert pick_images(values, 3) == [("worst", "b"), ("median", "e"), ("best", "c")]
    assert pick_images(values, 1) == [("worst", "b")]
    assert pick_images(values[:1], 3) == [("worst", "e")]
    assert [name for name, _ in pick_images(values, 5)] == ["worst", "rank 2 of 5", "median", "rank 4 of 5", "best"]
    assert pick_images(None, 3) == pick_images(values, 0) == []


def test_views_hold_every_outline(runs):
    views, notes = make_views(read_methods(runs), ["target"], 3)
    assert notes == []
    assert [(view.rank, view.image, view.n_true) for view in views] == [
        ("worst", "a", 4),
        ("median", "b", 4),
        ("best", "c", 4),
    ]
    assert [panel.n_pred for panel in views[0].panels] == [0, 2]
    assert views[0].panels[1].path == trace_outlines(squares(2))
    assert [panel.f1 for panel in views[2].panels] == pytest.approx([0.4, 1.0])


def test_pictures_that_are_gone_are_named_and_the_rest_is_shown(runs, index):
    (index.parent / "b.tif").write_bytes(b"no image")
    views, notes = make_views(read_methods(runs), ["target"], 3)
    assert [view.image for view in views] == ["a", "c"]
    assert len(notes) == 1
    assert notes[0].startswith("b is not shown: ")
    (index.parent / "b.tif").unlink()
    views, notes = make_views(read_methods(runs), ["target"], 3)
    assert views == []
    assert notes[0].startswith("No image of target is shown: ")


def test_a_page_does_not_outgrow_its_size(runs, monkeypatch):
    monkeypatch.setattr("cellseg.report.views.MAX_BYTES", 10)
    views, notes = make_views(read_methods(runs), ["target"], 1)
    assert (views, notes) == ([], ["a is not shown: the page would grow beyond 5 MB"])


def test_png_outlines_are_drawn_on_border_pixels():
    drawn = draw_outlines(np.zeros((64, 80, 3), np.float32), squares(1), TRUE_COLOUR)
    assert int((drawn[..., 1] > 0.5).sum()) == 4 * 11


def test_a_png_of_runs_is_written(tmp_path, runs, index):
    values = json.loads((runs[1] / "config.json").read_text())
    values["data"]["evaluate"] = [{"name": "target", "index": str(index), "split": "test"}]
    (runs[1] / "config.json").write_text(json.dumps(values))
    write_picture_of_runs(runs, tmp_path / "out.png", images=2)
    assert Image.open(tmp_path / "out.png").size[0] > 1000  # four columns: image, truth and two runs
    with pytest.raises(CellsegError, match="no evaluation set 'other'"):
        write_picture_of_runs(runs, tmp_path / "out.png", evaluation="other")


def test_two_channel_tiffs_can_be_shown(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.random.default_rng(0).integers(0, 99, (20, 30, 2), np.uint16))
    from cellseg.images import read_image

    assert decoded(encode_image(read_image(tmp_path / "x.tif"))).shape == (20, 30, 3)
