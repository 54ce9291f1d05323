"""Time and peak memory of ``cellseg predict`` on slides: ``python tests/bench/bench_inference_slides.py --model RUN``.

Slides of bright disks on an uneven, noisy background are written as OME-Zarr (20,000² pixels hold about 150,000 cells),
then segmented by ``cellseg predict`` in one process, and with ``--workers`` one and two of one thread each (Dask). The
peak of the memory of all processes together is never more than what is told: the system keeps the peak of each (VmHWM),
and they are added, although they need not come at once and share their libraries. The time of an image of 64² is start-
up and is taken off; processor seconds depend less on what else the machine does. Every result is read again: each id
from 1 to the largest must be there and have a score, and two workers must make what one makes, bit for bit. Writes
``bench_inference_slides.csv`` and ``.md``; ends with status 1 where a slide takes more than 2.5 GB in one process or
with one worker, ids are missing or results differ.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import zarr

from cellseg.confidences import read_scores
from cellseg.files import write_text
from cellseg.provenance import describe
from cellseg.slides.blocks import BLOCK

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"
PITCH, DIAMETER, CHUNK, LIMIT_MB = 51.6, 24.0, 1024, 2500.0
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait for another sleep: on a machine with other work they would count as processor time."""


def write_slide(path: Path, side: int) -> int:
    """Write a slide chunk by chunk; return how many cells it has. The same side gives the same pixels."""
    across = int(side / PITCH)
    rng = np.random.default_rng(side)
    jitter, radius = rng.uniform(-12, 12, (2, across, across)), rng.uniform(9, 14, (across, across))
    brightness = rng.uniform(60, 150, (across, across))
    lattice = (np.arange(across) + 0.5) * PITCH
    down, right = lattice[:, None] + jitter[0], lattice + jitter[1]
    group = zarr.create_group(path)
    array = group.create_array("0", shape=(side, side), chunks=(min(CHUNK, side),) * 2, dtype=np.uint8)
    for top in range(0, side, CHUNK):
        for left in range(0, side, CHUNK):
            height, width = min(CHUNK, side - top), min(CHUNK, side - left)
            chunk = background(np.random.default_rng([side, top, left]), (top, left), (height, width))
            rows = range(max(0, int(top / PITCH) - 1), min(across, int((top + height) / PITCH) + 2))
            columns = range(max(0, int(left / PITCH) - 1), min(across, int((left + width) / PITCH) + 2))
            for row, column in ((row, column) for row in rows for column in columns):
                place = down[row, column] - top, right[row, column] - left
                add_disk(chunk, place, radius[row, column], brightness[row, column])
            array[top : top + height, left : left + width] = np.clip(chunk, 0, 255).astype(np.uint8)
    scales = {"axes": [{"name": name, "type": "space"} for name in "yx"], "datasets": [{"path": "0"}]}
    scales["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1.0, 1.0]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [scales]}
    return across**2


def background(rng: np.random.Generator, corner: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    rows = np.arange(corner[0], corner[0] + shape[0], dtype=np.float32)[:, None]
    columns = np.arange(corner[1], corner[1] + shape[1], dtype=np.float32)
    return 25 + 8 * np.sin(rows / 700) * np.cos(columns / 900) + rng.normal(0, 4, shape).astype(np.float32)


def add_disk(chunk: np.ndarray, place: tuple[float, float], radius: float, brightness: float) -> None:
    """Add a disk with a soft edge, as far as it lies in the chunk."""
    reach = int(radius) + 3
    top, left = max(0, int(place[0]) - reach), max(0, int(place[1]) - reach)
    part = chunk[top : max(0, int(place[0]) + reach), left : max(0, int(place[1]) + reach)]
    if part.size:
        rows, columns = np.arange(part.shape[0])[:, None] + top, np.arange(part.shape[1]) + left
        distance = np.hypot(rows - place[0], columns - place[1])
        part += brightness * np.clip(radius + 0.5 - distance, 0, 1)


def segment(image: Path, out: Path, model: str, block: int, workers: int) -> tuple[float, float, float]:
    """Run ``cellseg predict`` on an image; return seconds, processor seconds and the peak of all memory in MB."""
    command = [sys.executable, "-m", "cellseg.cli", "predict", image, "--out", out, "--model", model]
    options = ["--diameter", DIAMETER, "--block", block, "--format", "zarr", "--device", "cpu"]
    if workers:
        options += ["--workers", workers]
    threads = {"OMP_NUM_THREADS": "1"} if workers else {}
    words = [str(word) for word in (*command, *options)]
    began, peaks = time.perf_counter(), dict[int, float]()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ | threads | PASSIVE)
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG if workers else 0)
        if ended:
            break
        peaks |= {one: max(peak_mb(one), peaks.get(one, 0)) for one in family(process.pid)}
        time.sleep(0.5)
    if status:
        raise SystemExit(f"{image.name}: cellseg predict ended with status {os.waitstatus_to_exitcode(status)}")
    seconds, processor = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    return seconds, processor, max(sum(peaks.values()), usage.ru_maxrss * 1.024e-3)


def family(process: int) -> list[int]:
    """List a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, new = [], [process]
    while new:
        found += new
        new = [child for one in new for child in children.get(one, [])]
    return found


def peak_mb(process: int) -> float:
    """Return the most memory that a process has held so far, in MB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1.024e-3


def count_ids(out: Path, name: str) -> tuple[int, bool]:
    """Return how many cells were found, and whether every id up to the largest is there and has a score."""
    labels = zarr.open_array(out / f"{name}.zarr" / "labels" / "cells" / "0", mode="r")
    found = np.zeros(int(read_scores(out / f"{name}.zarr")[0].max(initial=0)) + 1, bool)
    for top in range(0, labels.shape[0], CHUNK):
        band = labels[top : top + CHUNK]
        if int(band.max(initial=0)) >= len(found):
            return len(found) - 1, False
        found[band] = True
    return len(found) - 1, bool(found[1:].all()) and len(read_scores(out / f"{name}.zarr")[0]) == len(found) - 1


def is_same(one: Path, other: Path) -> bool:
    """Whether two label images are equal, and their scores."""
    first, second = (zarr.open_array(path / "labels" / "cells" / "0", mode="r") for path in (one, other))
    bands = range(0, first.shape[0], CHUNK)
    same = all(np.array_equal(first[top : top + CHUNK], second[top : top + CHUNK]) for top in bands)
    return same and np.array_equal(read_scores(one)[1], read_scores(other)[1])


def measure(sides: list[int], folder: Path, model: str, block: int, ways: list[int]) -> list[dict[str, str]]:
    write_slide(folder / "start.zarr", 64)
    startup = {
        workers: segment(folder / "start.zarr", folder / f"out{workers}", model, block, workers) for workers in ways
    }
    rows = []
    for side in sides:
        image = folder / f"{side}.zarr"
        cells = write_slide(image, side)
        for workers in ways:
            out = folder / f"out{workers}"
            seconds, processor, peak = segment(image, out, model, block, workers)
            found, unique = count_ids(out, str(side))
            first = next(way for way in ways if (way > 0) == (workers > 0))  # of as many threads
            same = is_same(folder / f"out{first}" / f"{side}.zarr", out / f"{side}.zarr")
            mpx = side * side / 1e6
            rows.append(
                {
                    "side": f"{side:,}",
                    "workers": str(workers) if workers else "none",
                    "cells": f"{cells:,}",
                    "found": f"{found:,}",
                    "ids": ("unique" if unique else "NOT UNIQUE") + ("" if same else ", ANOTHER RESULT"),
                    "seconds": f"{seconds:.1f}",
                    "seconds_per_mpx": f"{(seconds - startup[workers][0]) / mpx:.3f}",
                    "processor_seconds": f"{processor:.1f}",
                    "processor_seconds_per_mpx": f"{(processor - startup[workers][1]) / mpx:.3f}",
                    "peak_mb": f"{peak:.0f}",
                }
            )
            print(" | ".join(rows[-1].values()), flush=True)
    return rows


def gains(rows: list[dict[str, str]]) -> list[str]:
    """Say how much faster two workers are than one."""
    lines = []
    for side in dict.fromkeys(row["side"] for row in rows):
        one, two = (
            next((row for row in rows if row["side"] == side and row["workers"] == n), None) for n in ("1", "2")
        )
        if one is not None and two is not None:
            ratios = [float(one[key]) / float(two[key]) for key in ("seconds", "seconds_per_mpx")]
            lines += [
                f"{side}²: two workers are {ratios[0]:.2f} times as fast as one, {ratios[1]:.2f} without start-up."
            ]
    return lines


def write(rows: list[dict[str, str]], facts: dict[str, str], out: Path) -> None:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, [*rows[0], *facts], lineterminator="\n")
    table.writeheader()
    table.writerows({**row, **facts} for row in rows)
    write_text(out / "bench_inference_slides.csv", buffer.getvalue())
    lines = [
        f"`cellseg predict --block {facts['block']} --format zarr` on OME-Zarr slides, in one process or with "
        "Dask workers of one thread each; time per Mpx without start-up, peak memory of all processes together.",
        "",
        "| side (px) | workers | cells | found | ids | s | s per Mpx | processor s | per Mpx | peak (MB) |",
        "|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|",
        *(f"| {' | '.join(row.values())} |" for row in rows),
        "",
        *gains(rows),
        "",
        f"Network of {facts['parameters']} parameters; load average {facts['load']}, PyTorch {facts['torch']}, "
        f"{facts['cpu']}, revision {facts['revision']}, {facts['date']}; made by `{facts['command']}`.",
    ]
    text = "\n".join(lines) + "\n"
    write_text(out / "bench_inference_slides.md", text)
    print(text, end="")


def main() -> int:
    """Write, segment, check and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="experiments/runs/demo_teacher/s0", help="weights file or run folder")
    parser.add_argument("--sides", type=int, nargs="+", default=[5_000, 20_000])
    parser.add_argument("--block", type=int, default=BLOCK)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="0 is one process without Dask")
    parser.add_argument("--folder", type=Path, help="where the slides lie for a moment; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the .csv and .md")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(arguments.sides, Path(folder), arguments.model, arguments.block, arguments.workers)
    from cellseg.predict import load

    facts = describe() | {
        "block": str(arguments.block),
        "parameters": f"{load(arguments.model, device='cpu').n_parameters:,}",
        "load": f"{before:.1f} to {os.getloadavg()[0]:.1f}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    write(rows, facts, arguments.out)
    worst = max((float(row["peak_mb"]) for row in rows if row["workers"] in ("none", "1")), default=0.0)
    print(f"peak of one {worst:.0f} MB, limit {LIMIT_MB:.0f} MB")
    return int(worst > LIMIT_MB or any(row["ids"] != "unique" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
