"""Speed and memory of networks with random weights, ours against Cellpose's own: ``make bench-inference``.

Each runs on the same image in a process of its own (``network_worker.py``), which takes turns with the others
(``turns.py``): the network alone on all of it at once, and as the tool predicts, window by window. Megapixels a second
are of the least processor time times the threads, as if these were never kept waiting; the wall time is in the CSV.

Writes ``bench_inference_networks.csv``, ``.md`` and ``.png``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from network_worker import NETWORKS
from results import Row, options, publish, require_peers
from turns import Worker, take_turns

from cellseg.provenance import processor, revision

WORKER = Path(__file__).with_name("network_worker.py")
NAME = "bench_inference_networks"
SHAPES = ((520, 704), (1024, 1024))
PARTS = ("in one piece", "as predicted")
DEFAULT = "half_unet small"
FIELDS = (
    "image", "method", "part", "status", "parameters", "cpu_ms", "wall_ms", "calls", "mpx_s", "times_cellpose",
    "peak_mb", "version", "threads", "load", "cpu", "revision", "date",
)  # fmt: skip


def measure(shape: tuple[int, int], workers: list[Worker], rounds: int, folder: Path, threads: int) -> list[Row]:
    """Let the networks take turns on an image of a shape."""
    parts = take_turns(workers, {"shape": list(shape)}, rounds)
    said = {worker.method: facts_of(worker, folder) for worker in workers}
    rows = []
    for part in parts:
        if part.name not in PARTS:
            continue
        row = {"image": f"{shape[0]}×{shape[1]}", "method": part.method, "part": part.name, "status": part.status}
        row |= said[part.method] | {"load": f"{os.getloadavg()[0]:.1f}"}
        if part.status == "ok" and part.cpu_s:
            speed = shape[0] * shape[1] / 1e3 / part.cpu_ms * threads
            row |= {"cpu_ms": f"{part.cpu_ms:.1f}", "wall_ms": f"{part.wall_ms:.1f}", "calls": str(len(part.cpu_s))}
            row["mpx_s"] = f"{speed:.3f}"
        rows.append(row)
    theirs = {row["part"]: float(row["cpu_ms"]) for row in rows if row["method"] == "cellpose" and "cpu_ms" in row}
    for row in rows:
        if "cpu_ms" in row and row["part"] in theirs:
            row["times_cellpose"] = f"{theirs[row['part']] / float(row['cpu_ms']):.1f}"
    return rows


def facts_of(worker: Worker, folder: Path) -> Row:
    """Ask for the numbers that are not times."""
    facts = {"version": worker.facts.get("version", "")}
    for part, field, form in (("memory", "peak_mb", ".0f"), ("parameters", "parameters", ".0f")):
        path = folder / "number.npy"
        if "failed" not in worker.ask(do="save", part=part, path=str(path)):
            facts[field] = format(float(np.load(path)[0]), form)
    return facts


def markdown(rows: list[Row]) -> str:
    facts = rows[0]
    loads = [float(row["load"]) for row in rows]
    versions = {"cellpose" if row["method"] == "cellpose" else "cellseg": row["version"] for row in rows}
    lines = [
        "Networks with random weights on one image: megapixels a second, and how many times as fast as Cellpose's own",
        "(which cellpose runs through MKL-DNN in float32; ours run in bfloat16, channels last). *Alone* is the network",
        "on all of the image at once, *as predicted* what the tool does with it: windows, batches, blending. Memory is",
        "the peak of the latter beyond the process with its model. Megapixels are per second of the least processor",
        f"time of alternating calls, times {facts['threads']} thread(s).",
        f"The machine ({facts['cpu']}) was shared: load {min(loads):g} to {max(loads):g}. Made by",
        f"`make bench-inference` at {facts['revision']}, {facts['date']};",
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.",
    ]
    found = {(row["image"], row["method"], row["part"]): row for row in rows}
    for image in dict.fromkeys(row["image"] for row in rows):
        lines += ["", f"| {image} | parameters (M) | alone (Mpx/s) | × | as predicted (Mpx/s) | × | memory (MB) |"]
        lines.append("|---|--:|--:|--:|--:|--:|--:|")
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [found.get((image, method, part), {}) for part in PARTS]
            cells = [row.get(key) or row.get("status", "–") for row in own for key in ("mpx_s", "times_cellpose")]
            name = f"**{method}**" if method == DEFAULT else method
            parameters = float(own[0].get("parameters", "nan")) / 1e6
            lines.append(f"| {name} | {parameters:.2f} | {' | '.join(cells)} | {own[0].get('peak_mb', '–')} |")
    return "\n".join(lines) + "\n"


def picture(rows: list[Row], path: Path) -> None:
    """Draw speed and memory side by side, ours in warm colours."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["part"] == "as predicted" and row.get("mpx_s")]
    images, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("image", "method"))
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    panels = ((axes[0], "mpx_s", "megapixels a second"), (axes[1], "peak_mb", "peak memory (MB)"))
    for axis, field, title in panels:
        for number, image in enumerate(images):
            own = [row for row in rows if row["image"] == image]
            place = [methods.index(row["method"]) + 0.38 * (number - (len(images) - 1) / 2) for row in own]
            colours = ["#30638e" if row["method"] == "cellpose" else "#d1495b" for row in own]
            values = [float(row[field] or "nan") for row in own]
            bars = axis.barh(place, values, 0.35, color=colours, alpha=1 - 0.4 * number, label=image, zorder=2)
            axis.bar_label(bars, [f"{value:.3g}  ({image})" for value in values], padding=3, fontsize=8)
        axis.set(title=f"{title}, as predicted", yticks=range(len(methods)))
        axis.set_yticklabels(methods)
        axis.margins(x=0.35)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = options("Networks with random weights, ours against Cellpose's own.", rounds=9)
    parser.add_argument("--images", type=int, default=len(SHAPES), help="only the first of the image sizes")
    arguments = parser.parse_args()
    require_peers(arguments.peers)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES[: arguments.images]:
            print(f"{shape[0]}×{shape[1]} …", file=sys.stderr, flush=True)
            python = {name: Path(sys.executable) for name in NETWORKS} | {"cellpose": arguments.peers}
            workers = [Worker(WORKER, name, python[name], arguments.threads) for name in python]
            rows += measure(shape, workers, arguments.rounds, Path(folder), arguments.threads)
            for worker in workers:
                worker.close()
    facts = {"threads": str(arguments.threads), "cpu": processor(), "revision": revision()}
    facts["date"] = datetime.now(UTC).date().isoformat()
    rows = [dict.fromkeys(FIELDS, "") | row | facts for row in rows]
    publish(NAME, FIELDS, rows, arguments.out, markdown(rows), picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
