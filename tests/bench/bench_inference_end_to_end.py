"""Raw images to cells, ours against Cellpose 3, both trained alike: ``make bench-inference``.

Both networks are trained on DSB2018 for the same processor time (``end_to_end_training.py``; kept in a folder that git
ignores, used again with ``--resume``). Then each tool segments the DSB2018 validation images and LIVECell images
without labels, at the image's own scale, in a process of its own that takes turns with the other's image by image.
Ours is what a user calls, ``cellseg.load(model).segment``; a second row lets it search the scale. F1 is the mean over
images at an IoU of 0.5.

Writes ``bench_inference_end_to_end.csv``, ``.md`` and ``.png``; ends with status 1 if a limit of `broken_limits` is not
kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end_training import train_both
from results import ROOT, Row, options, publish, require_peers, verdict
from turns import Worker

from cellseg.config import Selection
from cellseg.core import Labels, Record
from cellseg.datasets.folder import prepare_folder
from cellseg.datasets.index import select
from cellseg.datasets.livecell import prepare_livecell
from cellseg.images import read_image, read_labels
from cellseg.metrics import match
from cellseg.progress import track
from cellseg.provenance import processor, revision

NAME = "bench_inference_end_to_end"
WORKER = Path(__file__).with_name("end_to_end_worker.py")
FOLDER = ROOT / "experiments" / "runs" / "bench_end_to_end"
DSB, LIVECELL = "DSB2018 validation", "LIVECell, 520×704"
METHODS = {
    ("cellseg", "own scale"): "cellseg",
    ("cellseg", "scale found"): "cellseg, scale found",
    ("cellpose", "own scale"): "cellpose",
}
LEAST_FASTER, LEAST_F1 = 12.0, 0.10
"""How many times as fast as Cellpose, and how much above its F1 on the validation images, ours must be."""
FIELDS = (
    "set", "image", "height", "width", "method", "status", "cpu_s", "wall_s", "f1_50", "cells", "cells_true",
    "training_steps", "training_processor_minutes", "training_revision", "version", "threads", "load", "cpu",
    "revision", "date",
)  # fmt: skip


def images_of(name: str, shared: Path, wanted: int | None) -> list[Record]:
    """Prepare a set and return the images to segment."""
    if name == DSB:
        return select(Selection(index=str(dsb_index(shared)), split="val", limit=wanted))
    out = ROOT / "data" / "prepared" / "livecell"
    if not (out / "index.csv").is_file():
        prepare_livecell(shared / "livecell", out)
    return select(Selection(index=str(out / "index.csv"), split="unlabelled", limit=wanted))


def dsb_index(shared: Path) -> Path:
    out = ROOT / "data" / "prepared" / "dsb2018"
    if not (out / "index.csv").is_file():
        prepare_folder(shared / "dsb2018", out)
    return out / "index.csv"


class Turns:
    """The two tools, asked for one image after the other."""

    def __init__(self, trained: dict[str, dict[str, Any]], peers: Path, threads: int, rounds: int, folder: Path):
        python = {"cellseg": Path(sys.executable), "cellpose": peers}
        self.workers = {name: Worker(WORKER, name, python[name], threads) for name in python}
        self.model = {name: facts["weights"] for name, facts in trained.items()}
        self.rounds, self.folder = rounds, folder

    def show(self, record: Record) -> None:
        """Give both an image, without an alpha channel, and let them load it and their model."""
        pixels = read_image(record.image)
        np.save(self.folder / "image.npy", pixels[..., :3] if pixels.ndim == 3 else pixels)
        for worker in self.workers.values():
            worker.ask(do="load", state={"image": str(self.folder / "image.npy"), "model": self.model})
            worker.ask(do="time", part="prepare", turn_s=0)

    def times(self) -> Iterator[tuple[str, dict, Labels | None]]:
        """Yield each method, the reply with the seconds of its calls, in turns, and the labels."""
        replies: dict[tuple[str, str], dict] = {}
        for number in range(self.rounds):
            order = list(METHODS)
            for key in order[number % len(order) :] + order[: number % len(order)]:
                reply = self.workers[key[0]].ask(do="time", part=key[1], turn_s=0)
                before = replies.setdefault(key, reply)
                if reply is not before and "failed" not in reply and "failed" not in before:
                    before["cpu_s"] += reply["cpu_s"]
                    before["wall_s"] += reply["wall_s"]
        for key, reply in replies.items():
            labels = None
            if "failed" not in reply:
                self.workers[key[0]].ask(do="save", part=key[1], path=str(self.folder / "labels.npy"))
                labels = np.load(self.folder / "labels.npy").astype(np.int32)
            yield METHODS[key], reply, labels

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def measure(name: str, records: list[Record], turns: Turns) -> Iterator[Row]:
    """Segment images in turns; yields a row for each image and method."""
    for record in track(records, name, total=len(records)):
        turns.show(record)
        truth = read_labels(record.labels) if name == DSB and record.labels else None
        facts = {"set": name, "image": record.id, "height": str(record.height), "width": str(record.width)}
        for method, reply, labels in turns.times():
            row = facts | {"method": method, "status": reply.get("failed", "ok"), "load": f"{os.getloadavg()[0]:.1f}"}
            if labels is not None:
                row |= {"cpu_s": f"{min(reply['cpu_s']):.4f}", "wall_s": f"{min(reply['wall_s']):.4f}"}
                row["cells"] = str(np.unique(labels[labels > 0]).size)
            if truth is not None:
                found = match(truth, np.zeros_like(truth) if labels is None else labels, (0.5,))[0]
                row |= {"f1_50": f"{found.f1:.4f}", "cells_true": str(found.n_true)}
            yield row


def means(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """Return of each set and method the means over its images, and how many images failed."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["set"], row["method"]), []).append(row)
    table = {}
    for key, group in found.items():
        table[key] = {"images": float(len(group)), "failed": float(sum(row["status"] != "ok" for row in group))}
        for field in ("cpu_s", "wall_s", "f1_50", "cells"):
            values = [float(row[field]) for row in group if row.get(field)]
            table[key][field] = float(np.mean(values)) if values else float("nan")
    return table


def broken_limits(rows: list[Row]) -> list[str]:
    table, broken = means(rows), []
    for name in dict.fromkeys(row["set"] for row in rows):
        ours, theirs = table[name, "cellseg"], table[name, "cellpose"]
        faster = theirs["cpu_s"] / ours["cpu_s"]
        if not faster >= LEAST_FASTER:
            broken.append(f"{name}: {faster:.1f} times as fast as Cellpose < {LEAST_FASTER:g}")
        if name == DSB and not round(ours["f1_50"] - theirs["f1_50"], 4) >= LEAST_F1:
            broken.append(f"{name}: F1 {ours['f1_50']:.3f}, of Cellpose {theirs['f1_50']:.3f}: not {LEAST_F1:g} above")
    return broken


def markdown(rows: list[Row]) -> str:
    facts, table = rows[0], means(rows)
    trained = {row["method"].partition(",")[0]: row for row in reversed(rows)}
    loads = [float(row["load"]) for row in rows]
    training = [
        f"{name} for {row['training_processor_minutes']} processor minutes, {row['training_steps']} steps of 8 images"
        for name, row in trained.items()
    ]
    versions = ", ".join(f"{name} {row['version']}" for name, row in trained.items())
    lines = [
        "Raw image to cells, ours against Cellpose's own network, trainer and `eval`; both trained from scratch on the",
        "DSB2018 training images at their own scale, side by side with one thread each:",
        f"{'; '.join(training)}.",
        "Weights of the last step, nothing chosen on the images below. Cellpose: rescale 1, everything else default.",
        "Ours: `cellseg.load(model).segment`, at the image's own scale and with its search for the scale.",
        f"Seconds an image with {facts['threads']} thread(s), the least of the calls in turns, mean over images;",
        "× is how many times as fast as Cellpose.",
        f"The machine ({facts['cpu']}) was shared: load {min(loads):g} to {max(loads):g}, so processor seconds count;",
        "wall seconds are what a user of that busy machine waited.",
        f"Made by `make bench-inference` at {facts['revision']} (trained at {facts['training_revision']}),",
        f"{facts['date']}; {versions}.",
    ]
    for name in dict.fromkeys(row["set"] for row in rows):
        theirs = table[name, "cellpose"]
        lines += ["", f"| {name}, {theirs['images']:.0f} images | processor s | × | wall s | × | F1@0.5 | cells |"]
        lines.append("|---|--:|--:|--:|--:|--:|--:|")
        for method in METHODS.values():
            own = table[name, method]
            f1 = "–" if np.isnan(own["f1_50"]) else f"{own['f1_50']:.3f}"
            times = [f"{own[key]:.3f} | {theirs[key] / own[key]:.1f}" for key in ("cpu_s", "wall_s")]
            failed = f" ({own['failed']:.0f} failed)" if own["failed"] else ""
            lines.append(f"| {method}{failed} | {' | '.join(times)} | {f1} | {own['cells']:.1f} |")
    return "\n".join(lines) + "\n"


def picture(rows: list[Row], path: Path) -> None:
    """Draw seconds an image on a logarithmic axis beside F1."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    table, sets = means(rows), list(dict.fromkeys(row["set"] for row in rows))
    colours = dict(zip(METHODS.values(), ("#d1495b", "#edae49", "#30638e"), strict=True))
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.5), layout="constrained", width_ratios=(2, 1))
    for number, (method, colour) in enumerate(colours.items()):
        seconds = [table[name, method]["cpu_s"] for name in sets]
        place = np.arange(len(sets)) + 0.27 * (number - 1)
        bars = axes[0].bar(place, seconds, 0.25, color=colour, label=method, zorder=2)
        axes[0].bar_label(bars, [f"{value:.2g}" for value in seconds])
        if DSB in sets:
            bars = axes[1].bar(number, table[DSB, method]["f1_50"], 0.8, color=colour, zorder=2)
            axes[1].bar_label(bars, fmt="%.3f")
    axes[0].set(yscale="log", ylabel="processor seconds an image", title="time")
    axes[0].margins(y=0.15)
    axes[0].set_xticks(range(len(sets)), sets)
    axes[1].set(ylim=(0, 1), title=f"F1@0.5, {DSB}", xticks=[])
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)


def run(arguments: argparse.Namespace) -> list[Row]:
    index = dsb_index(arguments.shared)
    folder = FOLDER / f"{arguments.minutes:g}min"
    trained = train_both(index, folder, arguments.minutes, arguments.peers, resume=arguments.resume)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        turns = Turns(trained, arguments.peers, arguments.threads, arguments.rounds, Path(temporary))
        version = {name: worker.facts.get("version", "") for name, worker in turns.workers.items()}
        for name, wanted in ((DSB, arguments.images), (LIVECELL, arguments.livecell)):
            records = images_of(name, arguments.shared, wanted)
            list(measure(name, records[:1], turns))  # a warm-up
            rows += measure(name, records, turns)
        turns.close()
    facts = {"threads": str(arguments.threads), "cpu": processor(), "revision": revision()}
    facts["date"] = datetime.now(UTC).date().isoformat()
    for row in rows:
        tool = row["method"].partition(",")[0]
        minutes = f"{trained[tool]['processor_minutes']:.1f}"
        row |= {"training_steps": str(trained[tool]["steps"]), "training_processor_minutes": minutes}
        row |= {"training_revision": trained[tool]["revision"], "version": version[tool]}
    return [dict.fromkeys(FIELDS, "") | row | facts for row in rows]


def main() -> int:
    parser = options("Raw images to cells, ours against Cellpose 3, both trained alike.", rounds=2)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data", help="the real samples")
    parser.add_argument("--minutes", type=float, default=24.0, help="processor minutes of each training")
    parser.add_argument("--images", type=int, help="only so many validation images")
    parser.add_argument("--livecell", type=int, default=8, help="how many LIVECell images")
    parser.add_argument("--resume", action="store_true", help="use the networks that a run before has trained")
    arguments = parser.parse_args()
    if not arguments.shared.is_dir():
        print(f"bench-inference: skipped end to end, the real samples are not in {arguments.shared}", file=sys.stderr)
        return 0
    require_peers(arguments.peers)
    rows = run(arguments)
    publish(NAME, FIELDS, rows, arguments.out, markdown(rows), picture)
    return verdict(broken_limits(rows))


if __name__ == "__main__":
    sys.exit(main())
