"""How much of the truth each representation can hold: encode the true labels, decode them, and count the cells.

No network is involved: this is what a perfect one would score, the ceiling of ``model.representation``. Each set is
shown at its own scale and at the network's, where labels are scaled to the reference diameter and back as
``cellseg predict`` does. Rows of real samples that are not there are kept as the committed CSV has them.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy import spatial

from cellseg.config import ModelConfig, Selection
from cellseg.core import Counts, Labels
from cellseg.datasets.folder import prepare_folder
from cellseg.datasets.index import select
from cellseg.datasets.livecell import prepare_livecell
from cellseg.files import write_text
from cellseg.images import read_labels
from cellseg.instances import representation
from cellseg.labels import median_diameter
from cellseg.metrics import match
from cellseg.progress import track
from cellseg.scale import resize_labels, zoom_for

ROOT = Path(__file__).resolve().parent.parent
NAME = "oracle"
THRESHOLDS = (0.5, 0.75, 0.9)
COLUMNS = [f"F1@{threshold:g}" for threshold in THRESHOLDS]
REPRESENTATIONS = ("flow", "distance", "boundary")
SCALES = ("native", "network")
MIN_SIZE = 10

SYNTHETIC = {
    "round": (12, 0, 0.0, 27, 200, (520, 704)),
    "touching": (13, 0, 0.0, 20, 400, (520, 704)),
    "long": (5, 70, 0.03, 9, 150, (520, 704)),
    "tiny": (3, 0, 0.0, 6, 3000, (520, 704)),
    "large": (90, 0, 0.0, 150, 30, (1040, 1408)),
}
"""Arguments of :func:`draw`: radius, length, bend and spacing in pixels, number of cells, size of the image."""
SEEDS = (0, 1)

REAL = {
    "LIVECell": ("livecell", None),
    "DSB2018 val": ("dsb2018", "val"),
    "NeurIPS 2022": ("neurips2022/Training-labeled", None),
    "CTC DIC-C2DH-HeLa": ("ctc_dic_c2dh_hela", None),
    "CTC Fluo-N2DL-HeLa": ("ctc_fluo_n2dl_hela", None),
    "CTC PhC-C2DL-PSC": ("ctc_phc_c2dl_psc", None),
}
"""Folder and split of each real sample; None takes every image with instance labels."""


def draw(seed: int, radius: int, length: int, bend: float, spacing: int, wanted: int, size: tuple[int, int]) -> Labels:
    """Draw cells as all pixels within ``radius`` of an axis; where two axes are near, the nearer one has the pixel.

    An axis is an arc of ``length`` whose curvature is at most ``bend`` per pixel; a length of 0 makes disks.
    """
    rng = np.random.default_rng(seed)
    steps = np.arange(-length / 2, length / 2 + 1)
    tree, axes = None, np.zeros((0, 2))
    owner = np.zeros(0, np.int32)
    for _ in range(60 * wanted):
        turn = rng.uniform(0, 2 * np.pi) + rng.uniform(-bend, bend) * steps
        axis = rng.uniform((0, 0), size) + np.cumsum(np.stack([np.sin(turn), np.cos(turn)], axis=1), axis=0)
        axis -= np.array([np.sin(turn[0]), np.cos(turn[0])])
        if tree is not None and tree.query(axis)[0].min() < spacing:
            continue
        axes = np.concatenate([axes, axis])
        owner = np.append(owner, np.full(len(axis), owner.max(initial=0) + 1, np.int32))
        tree = spatial.cKDTree(axes)
        if owner[-1] == wanted:
            break
    assert tree is not None
    distance, nearest = tree.query(np.stack(np.indices(size), axis=-1).reshape(-1, 2), workers=1)
    return np.where(distance <= radius, owner[nearest], 0).reshape(size).astype(np.int32)


def real_labels(folder: Path, split: str | None) -> Iterator[Labels]:
    """Read the instance labels of a real sample as ``cellseg prepare`` finds them."""
    with tempfile.TemporaryDirectory() as scratch:
        prepare = prepare_livecell if folder.name == "livecell" else prepare_folder
        with contextlib.redirect_stderr(StringIO()):
            index = prepare(folder, scratch)
        for record in select(Selection(index=str(index), split=split)):
            if record.label_kind == "instances" and record.labels is not None:
                yield read_labels(record.labels)


def round_trip(labels: Labels, name: str, scale: str) -> tuple[tuple[Counts, ...], float, float]:
    """Encode and decode labels at a scale; return the counts at the labels' own scale and both times in ms."""
    module = representation(name)
    zoom = zoom_for(median_diameter(labels), ModelConfig().reference_diameter) if scale == "network" else 1.0
    height, width = labels.shape
    shown = resize_labels(labels, (max(1, round(height * zoom)), max(1, round(width * zoom))))
    began = time.perf_counter()
    target = module.encode(shown)
    encoded = time.perf_counter()
    maps = module.ideal_maps(target)
    if zoom < 1:  # as predict does: maps of shrunken images are enlarged before they are decoded
        maps = np.stack([cv2.resize(map_, (width, height), interpolation=cv2.INTER_LINEAR) for map_ in maps])
    resized = time.perf_counter()
    decoded = module.decode(maps, min_size=round(MIN_SIZE / min(zoom, 1) ** 2))
    done = time.perf_counter()
    counts = match(labels, resize_labels(decoded, labels.shape), THRESHOLDS)
    return counts, 1e3 * (encoded - began), 1e3 * (done - resized)


def rows_of(name: str, kind: str, images: Sequence[Labels]) -> Iterator[dict[str, object]]:
    """Measure one set: a row for each scale and representation, cells pooled over the images."""
    for scale in SCALES:
        for way in REPRESENTATIONS:
            trips = [round_trip(labels, way, scale) for labels in images]
            pooled = [sum(counts[1:], counts[0]) for counts in zip(*(trip[0] for trip in trips), strict=True)]
            yield {
                "set": name,
                "kind": kind,
                "scale": scale,
                "representation": way,
                "images": len(images),
                "cells": pooled[0].n_true,
                **{column: round(counts.f1, 4) for column, counts in zip(COLUMNS, pooled, strict=True)},
                "encode ms": round(float(np.median([trip[1] for trip in trips]))),
                "decode ms": round(float(np.median([trip[2] for trip in trips]))),
                "revision": revision(),
            }


def revision() -> str:
    """Name the last commit of the representations and of this file, with ``+`` where they were changed since."""
    paths = ["cellseg/instances", "experiments/oracle.py"]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words, "--", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return (git("log", "-1", "--format=%h") or "unknown") + ("+" if git("status", "--porcelain") else "")


def measure(shared: Path, old: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Measure every set that is there; return the table and the names of real sets taken from the old one."""
    rows: list[dict[str, object]] = []
    missing = [name for name, (folder, _) in REAL.items() if not (shared / folder).is_dir()]
    sets = [*SYNTHETIC, *(name for name in REAL if name not in missing)]
    for name in track(sets, "measuring", total=len(sets)):
        if name in SYNTHETIC:
            rows += rows_of(name, "synthetic", [draw(seed, *SYNTHETIC[name]) for seed in SEEDS])
        else:
            rows += rows_of(name, "real sample", list(real_labels(shared / REAL[name][0], REAL[name][1])))
    kept = old[old["set"].isin(missing)] if len(old) else old
    table = pd.concat([pd.DataFrame(rows), kept], ignore_index=True)
    order = {name: place for place, name in enumerate([*SYNTHETIC, *REAL])}
    return table.sort_values("set", key=lambda column: column.map(order), kind="stable"), missing


def render(table: pd.DataFrame, missing: Sequence[str]) -> str:
    """Write the table as Markdown with where its numbers come from."""
    shown = table.drop(columns=["kind", "revision"])
    cells = shown.map(lambda value: f"{value:.3f}" if isinstance(value, float) else f"{value}")
    head = ["| " + " | ".join(cells.columns) + " |", "| --- | --- | --- |" + " --: |" * (len(cells.columns) - 3)]
    body = ["| " + " | ".join(row) + " |" for row in cells.itertuples(index=False, name=None)]
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-image", "opencv-python-headless")
    )
    absent = sorted(set(missing) - set(table["set"]))
    kept = sorted(set(missing) & set(table["set"]))
    notes = [
        "The true labels encoded, decoded and scored: the ceiling of a representation, not the score of a network. "
        "Cells are pooled over images; plain rule.",
        f"network: labels scaled to a median diameter of {ModelConfig().reference_diameter:g} px and back, as "
        "predict does; what the scaling alone loses is in it.",
        f"Synthetic sets are disks and bent strips, seeds {', '.join(map(str, SEEDS))}; real sets are small samples, "
        "not comparable with published figures.",
        "ms: median over images of one run on one core of a shared machine; an order of magnitude.",
        f"min_size {MIN_SIZE} (at the network's scale where that is shown). "
        f"Revision {', '.join(sorted(set(table['revision'])))}; "
        f"Python {platform.python_version()}, {packages}.",
        *([f"Kept from an earlier run, samples absent: {', '.join(kept)}."] if kept else []),
        *([f"Not run, samples absent: {', '.join(absent)}."] if absent else []),
        "Made by `python experiments/oracle.py`, a part of `make tables`.",
    ]
    return "\n".join(
        ["# Oracle round trip of every representation", "", *head, *body, "", *(f"- {n}" for n in notes), ""]
    )


def main() -> None:
    """Measure and write ``oracle.csv`` and ``oracle.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real samples"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results", help="folder of the results")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    path = options.out / f"{NAME}.csv"
    table, missing = measure(options.shared, pd.read_csv(path) if path.exists() else pd.DataFrame())
    write_text(path, table.to_csv(index=False))
    write_text(options.out / f"{NAME}.md", render(table, missing))
    print(f"{options.out / NAME}.md")


if __name__ == "__main__":
    main()
