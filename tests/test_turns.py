"""Benchmarks take turns, say what a method could not do, and compare what was measured."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parent / "bench"

WORKER = """
import sys, time
sys.path.insert(0, {bench!r})
from turns_worker import serve

def works(state):
    def slow():
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
        return [2]
    return {{"quick": lambda: state["number"] * [1], "slow": slow}}

def fails(state):
    return {{"quick": lambda: 1 / 0, "dies": lambda: sys.exit(3), "after": lambda: 1}}

def absent(state):
    import no_such_package

serve({{name: ("numpy", make) for name, make in dict(works=works, fails=fails, absent=absent).items()}})
"""


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        import bench_inference_decode
        import turns

        yield turns, bench_inference_decode
    finally:
        sys.path.remove(str(BENCH))


def test_methods_take_turns_and_say_what_they_cannot(bench, tmp_path, monkeypatch):
    turns, _ = bench
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    monkeypatch.setattr(turns, "SLOW_S", 0.02)
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(bench=str(BENCH)))
    workers = [turns.Worker(script, name, Path(sys.executable), 1) for name in ("works", "fails", "absent")]
    try:
        parts = turns.take_turns(workers, {"number": 3}, rounds=4)
        found = {(part.method, part.name): part for part in parts}
        quick, slow = found["works", "quick"], found["works", "slow"]
        assert (quick.status, quick.rounds, len(quick.cpu_s)) == ("ok", 4, 4)  # the warm-up is not counted
        assert (slow.status, slow.rounds, len(slow.cpu_s)) == ("ok", 0, 1)  # its warm-up is its time
        assert quick.cpu_ms < slow.cpu_ms
        assert found["fails", "quick"].status == "ZeroDivisionError: division by zero"
        assert found["fails", "dies"].status == "process ended with status 3"
        assert found["fails", "after"].status == "ended before"
        assert workers[2].facts == {"failed": "not installed (no_such_package)"}
        workers[0].ask(do="save", part="quick", path=str(tmp_path / "result.npy"))
        assert np.load(tmp_path / "result.npy").tolist() == [1, 1, 1]
    finally:
        for worker in workers:
            worker.close()


def rows_of(decode, ours_ms, theirs_ms, ours_f1="1.0000", theirs_f1="1.0000"):
    image = "300 cells, 520×704"
    rows = [
        {"image": image, "method": method, "part": part, "status": "ok", "cpu_ms": ms}
        | ({} if part == "targets" else {"f1_50": f1, "f1_90": f1})
        for method, ms, f1 in (("cellseg flow", ours_ms, ours_f1), ("cellpose", theirs_ms, theirs_f1))
        for part in ("targets", "decode")
    ]
    rows.append({"image": image, "method": "instanseg", "part": "decode", "status": "not installed (instanseg)"})
    facts = {"threads": "2", "cpu": "a processor", "revision": "abc1234", "date": "2026-01-01", "load": "1.5"}
    return [dict.fromkeys(decode.FIELDS, "") | row | facts for row in decode.with_ratios(rows)]


def test_ratios_are_to_the_same_part_of_cellpose(bench):
    _, decode = bench
    rows = rows_of(decode, "10.0", "205.0")
    assert [row["times_cellpose"] for row in rows] == ["20.5", "20.5", "1.0", "1.0", ""]
    assert decode.broken_limits(rows) == []
    assert "| cellseg flow | 10 | 20.5 | 10 | 20.5 | – | – | 1.000 | 1.000 |" in decode.markdown(rows)
    assert "| instanseg | – | – | not installed (instanseg) | – | – | – | – | – |" in decode.markdown(rows)


@pytest.mark.parametrize(
    ("values", "broken"),
    [
        (("10.0", "150.0"), ["targets: 15.0 times as fast as Cellpose < 20"]),
        (("61.0", "2000.0"), ["targets: 61.0 ms > 60"]),
        (("1.0", "90.0", "0.9989", "0.9990"), ["f1_50 0.9989 < 0.9990", "f1_90 0.9989 < 0.9990"]),
    ],
    ids=["slow", "above 60 ms", "worse"],
)
def test_limits_that_are_not_kept_are_named(bench, values, broken):
    _, decode = bench
    found = decode.broken_limits(rows_of(decode, *values))
    assert len(found) == len(broken)
    assert all(part in line for part, line in zip(broken, found, strict=True))
