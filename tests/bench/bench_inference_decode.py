"""Targets and decoding on perfect maps, ours against Cellpose, StarDist and InstanSeg: ``make bench-inference``.

No network is involved. Each method makes its own targets of a label image, is given what a perfect network would
answer and decodes it, in a process of its own (``decode_worker.py``) that takes turns with the others (``turns.py``).
Times are the least processor time of a call, which a busy machine disturbs least; the least wall time is in the CSV.
Beside the times stands how much of the labels comes back: F1 at an IoU of 0.5 and 0.9, on the timed images and on
round, long, tiny and large cells.

Writes ``bench_inference_decode.csv``, ``.md`` and ``.png``; ends with status 1 if a limit of `broken_limits` is not
kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from bench_metrics import disks
from results import ROOT, Row, options, publish, require_peers, verdict
from turns import SLOW_S, Part, Worker, take_turns

from cellseg.labels import split_disconnected
from cellseg.metrics import match
from cellseg.provenance import processor, revision

WORKER = Path(__file__).with_name("decode_worker.py")
NAME = "bench_inference_decode"
IMAGES = {
    "300 cells, 520×704": ((520, 704), 300),
    "3,000 cells, 520×704": ((520, 704), 3000),
    "2,000 cells, 2048²": ((2048, 2048), 2000),
}
HUGE = {"40,000 cells, 10,000²": ((10_000, 10_000), 40_000)}
SHAPES = ("round", "long", "tiny", "large")
"""Sets of ``experiments/oracle.py`` that are decoded once."""

OURS = ("cellseg flow", "cellseg flow on tensors", "cellseg distance", "cellseg boundary")
PEERS = ("cellpose", "stardist", "stardist, every 2nd pixel", "instanseg")
LEAN = ("cellseg flow", "cellseg distance", "cellseg boundary", "cellpose")
"""Those that take less than 20 GB at 10,000²; StarDist's distances alone are 13 GB there."""
PARTS = ("targets", "decode", "decode, checked")
LEAST = {"targets": 20, "decode": 10, "decode, checked": 10}
"""How many times as fast as Cellpose the flow representation must be."""
TARGETS_MS = 60
FIELDS = (
    "image", "method", "part", "status", "cpu_ms", "wall_ms", "rounds", "calls", "times_cellpose", "f1_50", "f1_90",
    "version", "threads", "load", "cpu", "revision", "date",
)  # fmt: skip


def labels_of(name: str, folder: Path) -> tuple[Path, np.ndarray]:
    """Draw an image and save it for the workers."""
    known = IMAGES | HUGE
    if name in known:
        labels = disks(*known[name], seed=0)[0]
    else:
        sys.path.insert(0, str(ROOT / "experiments"))
        from oracle import SYNTHETIC, draw

        labels = split_disconnected(draw(0, *SYNTHETIC[name]))  # the rim of the image cuts some in two
    path = folder / f"{name.split(',')[0]}.npy"
    np.save(path, labels)
    return path, labels


def measure(name: str, workers: list[Worker], rounds: int, folder: Path) -> list[Row]:
    """Time every method on one image, then score what each part decoded last."""
    path, labels = labels_of(name, folder)
    parts = take_turns(workers, {"labels": str(path)}, rounds)
    by_method = {worker.method: worker for worker in workers}
    load = f"{os.getloadavg()[0]:.1f}"
    rows = []
    for part in parts:
        if part.name not in PARTS:
            continue
        row = row_of(name, part) | {"load": load, "version": by_method[part.method].facts.get("version", "")}
        if part.status == "ok" and part.name != "targets":
            by_method[part.method].ask(do="save", part=part.name, path=str(folder / "decoded.npy"))
            found = match(labels, np.load(folder / "decoded.npy").astype(np.int32), (0.5, 0.9))
            row |= {"f1_50": f"{found[0].f1:.4f}", "f1_90": f"{found[1].f1:.4f}"}
        rows.append(row)
    for worker in workers:
        if "failed" in worker.facts:
            rows.append({"image": name, "method": worker.method, "part": "decode", "status": worker.facts["failed"]})
    return rows


def row_of(name: str, part: Part) -> Row:
    row = {"image": name, "method": part.method, "part": part.name, "status": part.status, "rounds": str(part.rounds)}
    if part.status == "ok" and part.cpu_s:
        row |= {"cpu_ms": f"{part.cpu_ms:.2f}", "wall_ms": f"{part.wall_ms:.2f}", "calls": str(len(part.cpu_s))}
    return row


def with_ratios(rows: list[Row]) -> list[Row]:
    """Say how many times Cellpose's time on the same part is the row's own."""
    theirs = {(row["image"], row["part"]): row["cpu_ms"] for row in rows if row["method"] == "cellpose" and timed(row)}
    for row in rows:
        if timed(row) and (row["image"], row["part"]) in theirs:
            row["times_cellpose"] = f"{float(theirs[row['image'], row['part']]) / float(row['cpu_ms']):.1f}"
    return rows


def timed(row: Row) -> bool:
    return bool(row.get("cpu_ms"))


def broken_limits(rows: list[Row]) -> list[str]:
    """Compare flow with Cellpose: speed on the timed images, and F1 of the round trip no lower on any."""
    found = {(row["image"], row["method"], row["part"]): row for row in rows}
    broken = []
    for (image, method, part), row in found.items():
        other = found.get((image, "cellpose", part), {})
        if method != "cellseg flow":
            continue
        ratio = float(row.get("times_cellpose") or "nan")
        if image in IMAGES | HUGE and ratio < LEAST[part]:
            broken.append(f"{image}, {part}: {ratio:.1f} times as fast as Cellpose < {LEAST[part]}")
        if part == "targets" and "520×704" in image and float(row["cpu_ms"]) > TARGETS_MS:
            broken.append(f"{image}, targets: {row['cpu_ms']} ms > {TARGETS_MS}")
        broken += [
            f"{image}, {part}: {key} {row[key]} < {other[key]} of Cellpose"
            for key in ("f1_50", "f1_90")
            if row.get(key) and other.get(key) and float(row[key]) < float(other[key])
        ]
    return broken


def shown(row: Row | None, key: str) -> str:
    if row is None or (row["status"] == "ok" and not row.get(key)):
        return "–"
    if row["status"] != "ok":
        return row["status"] if key == "cpu_ms" else "–"
    value = float(row[key])
    if key.startswith("f1"):
        return f"{value:.3f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(rows: list[Row]) -> str:
    facts = rows[0]
    versions = {row["method"].split()[0].rstrip(","): row["version"] for row in rows if row.get("version")}
    lines = [
        "Targets made of labels, and labels decoded from what a perfect network would answer: processor time of a call",
        f"in ms (the least of alternating calls), with {facts['threads']} thread(s) a process, and how many times as",
        f"fast as Cellpose that is; what takes more than {SLOW_S:g} s is called once.",
        "*checked*: cells whose flow does not fit are dropped, as Cellpose does by default.",
        "F1 of the labels decoded at an IoU of 0.5 and 0.9; the smallest cell has 10 pixels for Cellpose as for ours.",
        "InstanSeg's learned pixel classifier is set by hand.",
        f"The machine ({facts['cpu']}) was shared: load {min(loads(rows)):g} to {max(loads(rows)):g}. Made by",
        f"`make bench-inference{'-huge' if rows[0]['image'] in HUGE else ''}` at {facts['revision']}, {facts['date']};",
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.",
    ]
    found = {(row["image"], row["method"], row["part"]): row for row in rows}
    for image in dict.fromkeys(row["image"] for row in rows if row["image"] in IMAGES | HUGE):
        lines += ["", f"| {image} | targets | × | decode | × | decode, checked | × | F1@0.5 | F1@0.9 |"]
        lines.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        for method in dict.fromkeys(row["method"] for row in rows if row["image"] == image):
            own = [found.get((image, method, part)) for part in PARTS]
            cells = [shown(row, key) for row in own for key in ("cpu_ms", "times_cellpose")]
            cells += [shown(own[1], key) for key in ("f1_50", "f1_90")]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    shapes = [name for name in SHAPES if any(row["image"] == name for row in rows)]
    if shapes:
        lines += ["", f"| F1@0.5 / F1@0.9 | {' | '.join(shapes)} |", f"|---|{'--:|' * len(shapes)}"]
        for method, part in dict.fromkeys((row["method"], row["part"]) for row in rows if row["image"] in shapes):
            if part != "targets":
                own = [found.get((name, method, part)) for name in shapes]
                cells = [f"{shown(row, 'f1_50')} / {shown(row, 'f1_90')}" for row in own]
                lines.append(f"| {method}{'' if part == 'decode' else ', checked'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def loads(rows: Iterable[Row]) -> list[float]:
    return [float(row["load"]) for row in rows if row.get("load")]


def picture(rows: list[Row], path: Path) -> None:
    """Bars on a logarithmic axis, ours in warm colours; a row of panels for targets, one for decoding."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    images = [name for name in IMAGES | HUGE if any(row["image"] == name for row in rows)]
    methods = [name for name in (*OURS, *PEERS) if any(row["method"] == name and timed(row) for row in rows)]
    warm, cold = ("#d1495b", "#e07b8a", "#edae49", "#f4cd8b"), ("#1d3e5c", "#30638e", "#5b8fb9", "#8fb8d9")
    colours = dict(zip((*OURS, *PEERS), (*warm, *cold), strict=True))
    figure, axes = pyplot.subplots(2, 1, figsize=(10, 7), sharex=True, layout="constrained")
    width = 0.8 / len(methods)
    for axis, part in zip(axes, ("targets", "decode"), strict=True):
        axis.set(yscale="log", ylabel="processor time (ms)", title=part)
        axis.grid(axis="y", alpha=0.3)
        slowest = max((float(row["cpu_ms"]) for row in rows if timed(row)), default=1.0)
        axis.set_ylim(3, 6 * slowest)
        for row in rows:
            if row["part"] == part and timed(row) and row["image"] in images:
                place = images.index(row["image"]) + (methods.index(row["method"]) - (len(methods) - 1) / 2) * width
                height = float(row["cpu_ms"])
                axis.bar(place, height, 0.9 * width, color=colours[row["method"]], zorder=2)
                text = shown(row, "cpu_ms")
                axis.text(place, height * 1.15, text, rotation=90, ha="center", va="bottom", fontsize=8)
    axes[1].set_xticks(range(len(images)), images)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[method]) for method in methods]
    figure.legend(handles, methods, loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=120)


def run(arguments: argparse.Namespace) -> list[Row]:
    images = list(HUGE) if arguments.huge else [*list(IMAGES)[: arguments.images], *SHAPES]
    wanted = arguments.methods.split(";") if arguments.methods else LEAN if arguments.huge else (*OURS, *PEERS)
    workers = []
    for method in wanted:
        python = Path(sys.executable) if method in OURS else arguments.peers
        workers.append(Worker(WORKER, method, python, arguments.threads))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in images:
            print(f"{name} …", file=sys.stderr, flush=True)
            rounds = 0 if name in SHAPES else arguments.rounds
            rows += measure(name, workers, rounds, Path(folder))
    for worker in workers:
        worker.close()
    facts = {"threads": str(arguments.threads), "cpu": processor(), "revision": revision()}
    facts["date"] = datetime.now(UTC).date().isoformat()
    return [dict.fromkeys(FIELDS, "") | row | facts for row in with_ratios(rows)]


def main() -> int:
    parser = options("Targets and decoding on perfect maps, against other tools.", rounds=15)
    parser.add_argument("--images", type=int, default=len(IMAGES), help="only the first of the timed images")
    parser.add_argument("--methods", help="only these, divided by semicolons")
    parser.add_argument("--huge", action="store_true", help=f"only 10,000², and of the peers Cellpose: {NAME}_huge.md")
    arguments = parser.parse_args()
    require_peers(arguments.peers)
    rows = run(arguments)
    publish(f"{NAME}_huge" if arguments.huge else NAME, FIELDS, rows, arguments.out, markdown(rows), picture)
    return verdict(broken_limits(rows))


if __name__ == "__main__":
    sys.exit(main())
