"""Time and memory of `match` against other tools: ``make bench-metrics``.

Every method runs in a process of its own (``match_worker.py``), in its own environment, on one thread and the same
memory-mapped arrays: pairs of int32 label images of disks, ids consecutive in raster order. In each round the methods
take turns, in an order that rotates; a turn calls a method for 50 ms, at least once, at one threshold and then at ten.
The warm-up before the first round is not counted, but what takes more than 10 s in it is not called again: that call
is its time, and rounds are 0. Times are medians of processor time over all calls, so that what else the machine does
falls on no method. Memory is the growth of the peak of resident memory during one call in a fresh process, after a
call on a tiny pair.

Writes ``bench_metrics.csv``, ``.md`` and ``.png``, and exits with status 1 if a limit of `broken_limits` is not kept.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cellseg.files import write_text
from cellseg.provenance import processor, revision

ROOT = Path(__file__).resolve().parents[2]
CASES = (
    ("300 cells, 704×520", (520, 704), 300, 40),
    ("3,000 cells, 704×520", (520, 704), 3000, 11),
    ("2,000 cells, 2048²", (2048, 2048), 2000, 11),
    ("40,000 cells, 10,000²", (10_000, 10_000), 40_000, 11),
)
"""Name, shape, cells and rounds."""

THRESHOLDS = {"1": (0.5,), "10": tuple(step / 20 for step in range(10, 20))}
PEERS = {
    "cellpose": "cellpose average_precision",
    "stardist": "stardist matching",
    "organisers": "challenge's rule, dense",
    "pycocotools": "pycocotools COCOeval",
}
NAMES = {"cellseg": "cellseg match", **PEERS, "read": "reading both arrays"}
TURN_S, SLOW_S, TIMEOUT_S = 0.05, 10.0, 60.0
SINGLE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def disks(shape: tuple[int, int], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two int32 label images: `count` disks on a jittered grid, and the same ones shifted and resized a little."""
    rng = np.random.default_rng(seed)
    pitch = (shape[0] * shape[1] / count) ** 0.5
    rows, columns = int(np.ceil(shape[0] / pitch)), int(np.ceil(shape[1] / pitch))
    places = np.stack(np.divmod(np.arange(rows * columns), columns), 1) * pitch + pitch / 2
    centres = places[(places < shape).all(1)][:count]
    true, pred = (
        draw(shape, centres + rng.normal(0, pitch * 0.05, centres.shape), pitch * rng.uniform(0.36, 0.44, len(centres)))
        for _ in range(2)
    )
    return true, pred


def draw(shape: tuple[int, int], centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Disks with consecutive ids, as the peers want them: those covered by others leave no gap."""
    labels = np.zeros(shape, np.int32)
    for index, ((y, x), radius) in enumerate(zip(centres, radii, strict=True), 1):
        top, left = max(0, int(y - radius)), max(0, int(x - radius))
        block = labels[top : int(y + radius) + 2, left : int(x + radius) + 2]
        rows, columns = np.ogrid[top : top + block.shape[0], left : left + block.shape[1]]
        block[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = index
    present = np.bincount(labels.reshape(-1), minlength=1) > 0
    present[0] = False
    return np.cumsum(present).astype(np.int32)[labels]


class Worker:
    """A process that runs one method on a pair of label images, asked through its standard input."""

    def __init__(self, method: str, python: Path, paths: list[str]):
        self.command = [str(python), str(Path(__file__).with_name("match_worker.py")), method]
        self.paths = paths
        self.start()

    def start(self) -> None:
        environment = os.environ | dict.fromkeys(SINGLE_THREAD, "1")
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.facts = self._reply()
        self.ask(do="load", paths=self.paths)

    def ask(self, timeout_s: float | None = None, **request: object) -> dict:
        """Send a request; the answer is {"failed": "timeout"}, and the process a new one, if it takes too long."""
        self.process.stdin.write((json.dumps(request) + "\n").encode())
        self.process.stdin.flush()
        if timeout_s is not None and not select.select([self.process.stdout], [], [], timeout_s)[0]:
            self.close()
            self.start()
            return {"failed": "timeout"}
        return self._reply()

    def _reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.command[-1]}: the worker ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Timing:
    """What was measured of one method on one pair at one or ten thresholds."""

    method: str
    thresholds: str
    status: str = "ok"
    slow: bool = False
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    rounds: int = 0
    tp: list[int] = field(default_factory=list)
    extra_mb: float | None = None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        return 1000 * statistics.median(self.cpu_s)

    def turn(self, worker: Worker, warm_up: bool = False) -> None:
        request = {"do": "time", "thresholds": THRESHOLDS[self.thresholds], "turn_s": 0 if warm_up else TURN_S}
        reply = worker.ask(TIMEOUT_S, **request)
        if "failed" in reply:
            self.status = f"> {TIMEOUT_S:.0f} s" if reply["failed"] == "timeout" else reply["failed"]
            return
        self.tp = reply["tp"]
        self.slow = warm_up and sum(reply["cpu_s"]) > SLOW_S
        if self.slow or not warm_up:
            self.cpu_s += reply["cpu_s"]
            self.wall_s += reply["wall_s"]
            self.rounds += not warm_up


def measure(paths: list[str], tiny: list[str], rounds: int, pythons: dict[str, Path]) -> list[Timing]:
    """Time every method in alternating rounds, then its memory."""
    workers = {method: Worker(method, python, paths) for method, python in pythons.items()}
    timings = [Timing(m, t, facts=w.facts) for m, w in workers.items() for t in THRESHOLDS if (m, t) != ("read", "10")]
    for worker in workers.values():
        worker.ask(do="settle")
    for timing in timings:
        warm_up(timing, timings, workers[timing.method])
    for number in range(rounds):
        start = number % len(timings)
        for timing in timings[start:] + timings[:start]:
            if timing.status == "ok" and not timing.slow:
                timing.turn(workers[timing.method])
    for worker in workers.values():
        worker.close()
    for timing in timings:
        if timing.status == "ok":
            timing.extra_mb = memory_mb(timing, pythons[timing.method], paths, tiny)
    return timings


def warm_up(timing: Timing, timings: list[Timing], worker: Worker) -> None:
    """Call once; a method that failed at one threshold is taken to fail at ten, which is more work."""
    failed = [other.status for other in timings if other.method == timing.method and other.status != "ok"]
    if failed:
        timing.status = failed[0]
    else:
        timing.turn(worker, warm_up=True)


def memory_mb(timing: Timing, python: Path, paths: list[str], tiny: list[str]) -> float:
    worker = Worker(timing.method, python, tiny)
    thresholds = THRESHOLDS[timing.thresholds]
    worker.ask(do="time", thresholds=thresholds, turn_s=0)
    worker.ask(do="load", paths=paths)
    reply = worker.ask(do="memory", thresholds=thresholds)
    worker.close()
    return reply.get("extra_mb", float("nan"))


def save(folder: Path, name: str, pair: tuple[np.ndarray, np.ndarray]) -> list[str]:
    paths = [str(folder / f"{name}_{side}.npy") for side in ("true", "pred")]
    for path, labels in zip(paths, pair, strict=True):
        np.save(path, labels)
    return paths


def rows(name: str, timings: list[Timing], shared: dict[str, str]) -> Iterator[dict[str, str]]:
    """The rows of the CSV of one pair, with the ratios to ours and to reading."""
    ours = {timing.thresholds: timing for timing in timings if timing.method == "cellseg"}
    (read,) = (timing for timing in timings if timing.method == "read")
    for timing in timings:
        ok = timing.status == "ok"
        yield {
            "pair": name,
            "method": timing.method,
            "thresholds": "" if timing.method == "read" else timing.thresholds,
            "status": timing.status,
            "ms": f"{timing.ms:.3f}" if ok else "",
            "ms_least": f"{1000 * min(timing.cpu_s):.3f}" if ok else "",
            "wall_ms": f"{1000 * statistics.median(timing.wall_s):.3f}" if ok else "",
            "times_cellseg": f"{timing.ms / ours[timing.thresholds].ms:.2f}" if ok else "",
            "times_read": f"{timing.ms / read.ms:.2f}" if ok else "",
            "extra_mb": f"{timing.extra_mb:.1f}" if ok else "",
            "tp": " ".join(map(str, timing.tp)),
            "rounds": str(timing.rounds),
            "calls": str(len(timing.cpu_s)),
            **timing.facts,
            **shared,
        }


def broken_limits(table: list[dict[str, str]]) -> list[str]:
    """One answer of all; no slower than a peer, 30 times faster at 3,000 cells, 4 at ten; a slide: 20 reads, 100 MB."""
    answers: dict[tuple[str, str], set[str]] = {}
    for row in table:
        if row["status"] == "ok":
            answers.setdefault((row["pair"], row["thresholds"]), set()).add(row["tp"])
    broken = [f"{' at '.join(key)}: the methods' TP differ" for key, found in answers.items() if len(found) > 1]
    for row in table:
        least = {"3,000": 30.0}.get(row["pair"].split(" ")[0], 1.0) if row["thresholds"] == "1" else 4.0
        if row["method"] in PEERS and row["status"] == "ok" and float(row["times_cellseg"]) < least:
            broken.append(f"{row['pair']}: {row['method']} at {row['thresholds']}: {row['times_cellseg']} < {least:g}")
        if row["method"] == "cellseg" and row["pair"] == CASES[-1][0]:
            if float(row["times_read"]) > 20:
                broken.append(f"{row['pair']}: {row['times_read']} times reading both arrays > 20")
            if float(row["extra_mb"]) > 100:
                broken.append(f"{row['pair']}: {row['extra_mb']} MB beyond the arrays > 100")
    return broken


def markdown(table: list[dict[str, str]]) -> str:
    def cell(row: dict[str, str] | None, key: str) -> str:
        if row is None or row["status"] != "ok":
            return "–" if row is None or key != "ms" else row["status"]
        return f"{float(row[key]):.3g}" if float(row[key]) < 1000 else f"{float(row[key]):,.0f}"

    lines = [
        "Matching two label images at one IoU threshold (0.5) and at ten (0.50 to 0.95): medians of processor time,",
        "ratios to `cellseg`, and memory beyond the arrays. One thread, alternating rounds; made by",
        "`make bench-metrics`; rounds, versions and the load of the machine are in `bench_metrics.csv`.",
        "",
        "| pair | method | ms at 0.5 | ratio | ms at ten | ratio | MB at 0.5 | MB at ten |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    found = {(row["pair"], row["method"], row["thresholds"]): row for row in table}
    for pair in dict.fromkeys(row["pair"] for row in table):
        for method, name in NAMES.items():
            one, ten = found.get((pair, method, "1")) or found.get((pair, method, "")), found.get((pair, method, "10"))
            if one is not None:
                times = [cell(row, key) for row in (one, ten) for key in ("ms", "times_cellseg")]
                name = f"**{name}**" if method == "cellseg" else name
                memory = [cell(row, "extra_mb") for row in (one, ten)]
                lines.append(f"| {pair} | {name} | {' | '.join(times + memory)} |")
    return "\n".join(lines) + "\n"


def picture(table: list[dict[str, str]], path: Path) -> None:
    """Bars on a logarithmic axis, ours in colour; what has no time has its reason instead."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pairs, methods = list(dict.fromkeys(row["pair"] for row in table)), ["cellseg", *PEERS]
    colours = dict(zip(methods, ("#d1495b", "#30638e", "#5b8fb9", "#8fb8d9", "#c3d7e8"), strict=True))
    figure, axes = pyplot.subplots(2, 1, figsize=(10, 8), sharex=True, sharey=True, layout="constrained")
    for axis, thresholds in zip(axes, THRESHOLDS, strict=True):
        axis.set_yscale("log")
        axis.set_ylim(0.03, 3e6)
        axis.set_title(f"IoU threshold{' 0.5' if thresholds == '1' else 's 0.50, 0.55, …, 0.95'}", loc="left")
        axis.set_ylabel("processor time (ms)")
        axis.grid(axis="y", alpha=0.3)
        for row in table:
            centre = pairs.index(row["pair"])
            if row["method"] == "read":
                axis.hlines(float(row["ms"]), centre - 0.45, centre + 0.45, "black", linestyles="dotted", zorder=3)
            elif row["thresholds"] == thresholds and row["method"] in methods:
                place = centre + (methods.index(row["method"]) - 2) * 0.17
                height = float(row["ms"]) if row["status"] == "ok" else 0.04
                axis.bar(place, height, 0.16, color=colours[row["method"]], zorder=2)
                text = f"{height:.3g}" if height < 1000 else f"{height:,.0f}"
                weight = "bold" if row["method"] == "cellseg" else "normal"
                text = text if row["status"] == "ok" else row["status"]
                axis.text(place, height * 1.25, text, rotation=90, ha="center", va="bottom", fontsize=8, weight=weight)
    axes[1].set_xticks(range(len(pairs)), pairs)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[method]) for method in methods]
    handles.append(pyplot.Line2D([], [], color="black", linestyle="dotted"))
    figure.legend(handles, [NAMES[m] for m in methods] + [NAMES["read"]], loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time and memory of cellseg.metrics.match against other tools.")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-bench/bin/python", help="Python with the peers")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/results", help="folder of the three files")
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first of the pairs")
    parser.add_argument("--rounds", type=int, default=1000, help="at most this many rounds")
    arguments = parser.parse_args()
    if not arguments.peers.is_file():
        print(f"{arguments.peers} is missing; make it by 'make bench-env'", file=sys.stderr)
        return 1
    here = Path(sys.executable)
    pythons = {"cellseg": here, **dict.fromkeys(PEERS, arguments.peers), "read": here}
    shared = {"cpu": processor(), "revision": revision()}
    table: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        tiny = save(Path(folder), "tiny", disks((64, 64), 9, seed=0))
        for name, shape, count, rounds in CASES[: arguments.cases]:
            print(f"{name} …", file=sys.stderr, flush=True)
            paths = save(Path(folder), "pair", disks(shape, count, seed=0))
            before = os.getloadavg()[0]
            timings = measure(paths, tiny, min(rounds, arguments.rounds), pythons)
            load = {"load_before": f"{before:.1f}", "load_after": f"{os.getloadavg()[0]:.1f}"}
            table += rows(name, timings, shared | load)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "bench_metrics.csv", buffer.getvalue())
    write_text(arguments.out / "bench_metrics.md", markdown(table))
    picture(table, arguments.out / "bench_metrics.png")
    print(markdown(table), end="")
    broken = broken_limits(table)
    print("\n".join(["Limits not kept:", *broken] if broken else ["All limits kept."]), file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
