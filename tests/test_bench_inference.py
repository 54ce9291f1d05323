"""What the benchmarks of inference make of their measurements: means, ratios, limits; no network, no peer."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parent / "bench"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        import bench_inference_end_to_end
        import bench_inference_networks
        import end_to_end_training

        yield bench_inference_end_to_end, bench_inference_networks, end_to_end_training
    finally:
        sys.path.remove(str(BENCH))


def rows_of(bench, cpu_s, f1):
    """Two images a set, whose times differ by a factor of three."""
    facts = dict.fromkeys(bench.FIELDS, "") | {"status": "ok", "threads": "2", "cpu": "a processor", "load": "1.5"}
    facts |= {"training_steps": "100", "training_processor_minutes": "7.0", "version": "3", "cells": "10"}
    rows = []
    for name in (bench.DSB, bench.LIVECELL):
        for share in (0.5, 1.5):
            for method in bench.METHODS.values():
                row = facts | {"set": name, "method": method, "cpu_s": f"{cpu_s[method] * share:.4f}", "wall_s": "1"}
                rows.append(row | ({"f1_50": f"{f1[method] * share:.4f}"} if name == bench.DSB else {}))
    return rows


SECONDS = {"cellseg": 0.25, "cellseg, scale found": 1.0, "cellpose": 3.0}
F1 = {"cellseg": 0.6, "cellseg, scale found": 0.62, "cellpose": 0.5}


def test_seconds_and_f1_are_means_over_images_and_both_limits_are_met_exactly(bench):
    rows = rows_of(bench[0], SECONDS, F1)
    table = bench[0].means(rows)[bench[0].DSB, "cellseg"]
    assert (table["images"], table["failed"], table["cpu_s"], table["f1_50"]) == (2, 0, 0.25, pytest.approx(0.6))
    assert bench[0].broken_limits(rows) == []
    text = bench[0].markdown(rows)
    assert "| cellseg | 0.250 | 12.0 | 1.000 | 1.0 | 0.600 | 10.0 |" in text
    assert "| cellseg, scale found | 1.000 | 3.0 | 1.000 | 1.0 | – | 10.0 |" in text  # LIVECell has no truth here


def test_a_limit_that_is_not_kept_is_named(bench):
    slow = bench[0].broken_limits(rows_of(bench[0], SECONDS | {"cellseg": 0.3}, F1))
    assert [line.split(":")[0] for line in slow] == [bench[0].DSB, bench[0].LIVECELL]
    assert "10.0 times as fast as Cellpose < 12" in slow[0]
    low = bench[0].broken_limits(rows_of(bench[0], SECONDS, F1 | {"cellpose": 0.51}))
    assert low == [f"{bench[0].DSB}: F1 0.600, of Cellpose 0.510: not 0.1 above"]


def test_an_image_that_failed_counts_as_nothing_found_and_is_said(bench):
    rows = rows_of(bench[0], SECONDS, F1)
    broken = next(row for row in rows if row["method"] == "cellpose")
    broken |= {"status": "process ended", "cpu_s": "", "wall_s": "", "f1_50": "0.0000"}
    table = bench[0].means(rows)[bench[0].DSB, "cellpose"]
    assert table["failed"] == 1 and table["f1_50"] == pytest.approx(0.375) and table["cpu_s"] == 4.5
    assert "| cellpose (1 failed) |" in bench[0].markdown(rows)


def test_the_pictures_can_be_drawn(bench, tmp_path):
    bench[0].picture(rows_of(bench[0], SECONDS, F1), tmp_path / "end.png")
    facts = {"image": "4×4", "part": "as predicted", "mpx_s": "2.0", "peak_mb": "10"}
    bench[1].picture([facts | {"method": name} for name in ("half_unet small", "cellpose")], tmp_path / "networks.png")
    assert (tmp_path / "end.png").stat().st_size > 5000 and (tmp_path / "networks.png").stat().st_size > 5000


def test_ours_is_timed_then_trained_for_as_many_steps_as_the_minutes_allow(bench, tmp_path, monkeypatch):
    asked = []

    def run(index, out, steps):
        asked.append((out.name, steps))
        out.mkdir()
        return {"steps": steps, "processor_minutes": steps / 80}

    monkeypatch.setattr(bench[2], "_run", run)
    (tmp_path / "cellpose").write_bytes(b"")
    (tmp_path / "cellpose.json").write_text('{"steps": 5, "processor_minutes": 3.0}')
    trained = bench[2].train_both(Path("index.csv"), tmp_path, 3.0, Path("python"), resume=True)
    assert asked == [("timed", 40), ("cellseg", 240)]  # 40 steps took half a minute
    for tool, steps in (("cellseg", 240), ("cellpose", 5)):
        revision = trained["cellseg"]["revision"]
        facts = {"weights": str(tmp_path / tool), "revision": revision}
        assert revision and trained[tool] == {"steps": steps, "processor_minutes": 3.0} | facts
    assert not (tmp_path / "timed").exists()


def test_tools_take_turns_on_the_same_pixels_and_the_first_of_equals_changes(bench, tmp_path, monkeypatch):
    import tifffile

    from cellseg.core import Record

    asked = []

    class Tool:
        def __init__(self, script, method, python, threads):
            self.method = method

        def ask(self, **request):
            asked.append((self.method, request["do"], request.get("part")))
            if request["do"] == "load":
                self.pixels = np.load(request["state"]["image"])
            if request["do"] == "save":
                np.save(request["path"], (self.pixels[..., 0] > 5).astype(np.uint16))
            return {"cpu_s": [float(len(asked))], "wall_s": [1.0]}

    monkeypatch.setattr(bench[0], "Worker", Tool)
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[4:12, 3:9] = 200
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    tifffile.imwrite(tmp_path / "a_label.tif", (pixels[..., 0] > 0).astype(np.uint16))
    record = Record("a", tmp_path / "a.tif", tmp_path / "a_label.tif", "d", "val", "g", 20, 30, 1, "instances", 8.0)
    weights = {name: {"weights": name} for name in ("cellseg", "cellpose")}
    turns = bench[0].Turns(weights, Path("python"), 2, 2, tmp_path)
    rows = list(bench[0].measure(bench[0].DSB, [record], turns))
    assert [row["method"] for row in rows] == list(bench[0].METHODS.values())
    assert {row["f1_50"] for row in rows} == {"1.0000"} and {row["cells"] for row in rows} == {"1"}
    timed = [(method, part) for method, do, part in asked if do == "time" and part != "prepare"]
    order = list(bench[0].METHODS)
    assert timed == order + order[1:] + order[:1]
