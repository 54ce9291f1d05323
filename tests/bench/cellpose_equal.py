"""Our Cellpose network against cellpose 3.x at full size: ``make cellpose-equal``.

Cellpose runs in the environment of the peers (``make bench-env``) through ``cellpose_worker.py``. Both read one weights
file, of random weights, as no pretrained ones may be shipped; then our network is trained for a few steps, exported,
and both run the exported file. Writes ``cellpose_equal.md`` and exits with status 1 if a limit is not kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tifffile
import torch

from cellseg.checkpoint import load_weights
from cellseg.config import PredictConfig, check_config
from cellseg.core import Record
from cellseg.datasets.index import write_index
from cellseg.files import write_text
from cellseg.images import normalize, write_labels
from cellseg.instances import flow
from cellseg.models.cellpose_files import cellpose_state, read_cellpose, write_cellpose
from cellseg.predict import Segmenter
from cellseg.train import train

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1e-4
TO_OURS = [2, 0, 1]
STEPS = 4


@dataclass
class Row:
    """One comparison of maps: largest difference, size of the maps, and the limit, if there is one."""

    what: str
    difference: float
    scale: float
    limit: float | None = LIMIT

    @property
    def kept(self) -> bool:
        return self.limit is None or self.difference <= self.limit

    def line(self) -> str:
        limit = "for information" if self.limit is None else f"{self.limit:g}, {'kept' if self.kept else 'NOT KEPT'}"
        return f"| {self.what} | {self.difference:.1e} | {self.scale:.2f} | {limit} |"


def row(what: str, ours: np.ndarray, theirs: np.ndarray, limit: float | None = LIMIT) -> Row:
    theirs = theirs[..., TO_OURS, :, :]
    return Row(what, float(np.abs(ours - theirs).max()), float(theirs.std()), limit)


def worker(*arguments: str | Path) -> None:
    python = ROOT / ".venv-bench" / "bin" / "python"
    if not python.exists():
        sys.exit("cellpose_equal: no .venv-bench; run 'make bench-env' first")
    subprocess.run([python, ROOT / "tests" / "bench" / "cellpose_worker.py", *arguments], check=True)


def disks() -> tuple[np.ndarray, np.ndarray]:
    """A grey image of disks 29 px wide, and their labels."""
    rows, columns = np.indices((190, 200))
    labels = np.zeros(rows.shape, np.int32)
    for cell, (y, x) in enumerate([(y, x) for y in range(25, 180, 40) for x in range(25, 190, 40)], start=1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= 14**2] = cell
    noise = np.random.default_rng(0).normal(0, 6, labels.shape)
    return ((labels > 0) * 120 + 60 + noise).clip(0, 255).astype(np.uint8), labels


def inputs(folder: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    grey, labels = disks()
    given = {
        "batch": rng.random((2, 2, 64, 96), np.float32),
        "image": rng.random((150, 171, 2), np.float32),
        "grey": grey,
        "large": np.tile(grey, (2, 2)),
        "labels": labels,
    }
    np.savez(folder / "in.npz", **given)
    return given


def compare(weights: Path, given: dict[str, np.ndarray], said: dict[str, np.ndarray], name: str) -> list[Row]:
    """Compare all maps of one weights file."""
    two, _, _ = read_cellpose(weights, channels=(1, 2))
    grey, config, about = read_cellpose(weights)
    segmenter = Segmenter(grey, config, PredictConfig(min_size=10), torch.device("cpu"), about)
    normal, large = (normalize(given[key], config.normalize) for key in ("grey", "large"))
    with torch.inference_mode():
        image = torch.from_numpy(given["image"].transpose(2, 0, 1)[None])
        whole = two(_three(image))[0].numpy()
        rows = [
            row("network, a batch", two.full_maps(_three(torch.from_numpy(given["batch"]))).numpy(), said["batch"]),
            row("`run_net` with its border", whole, said["whole"]),
            row("`run_net` with MKL-DNN", whole, said["whole_mkldnn"]),
            row("`CellposeModel.eval` of a raw grey image", _maps(grey, normal), said["grey"]),
            row("the same as `cellseg predict` runs it, in bfloat16", segmenter.maps(normal), said["grey"], None),
            row("an image of 9 of its tiles, here in one", _maps(grey, large), said["large"], None),
        ]
    for each in rows:
        each.what = f"{name}: {each.what}"
    return rows


def _three(two: torch.Tensor) -> torch.Tensor:
    return torch.cat([two, torch.full_like(two[:, :1], 7.0)], dim=1)


def _maps(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    maps: np.ndarray = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].numpy()
    return maps


def adapted(start: Path, given: dict[str, np.ndarray], folder: Path) -> Path:
    """Train a few steps from a Cellpose file and export what came out."""
    tifffile.imwrite(folder / "0.tif", given["grey"])
    write_labels(folder / "0_label.tif", given["labels"])
    facts = ("disks", "train", "g", *given["labels"].shape, int(given["labels"].max()), "instances", 29.0)
    write_index(folder / "index.csv", [Record("0", folder / "0.tif", folder / "0_label.tif", *facts)])
    run = check_config(
        {
            "model": {"network": "cellpose"},
            "train": {"init": str(start), "steps": STEPS, "batch_size": 2, "crop_size": 64, "warmup_steps": 0}
            | {"l2sp_alpha": 0.001, "ema": 0.5},
            "data": {"train": [{"index": str(folder / "index.csv")}]},
        }
    )
    model, _, about = load_weights(train(run, folder / "run", device="cpu"))
    write_cellpose(folder / "adapted", model, about)
    return folder / "adapted"


def same_files(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> int:
    """Number of tensors, all equal by name, order, type and bit."""
    assert list(first) == list(second)
    assert all(first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first)
    return len(first)


def document(rows: list[Row], facts: dict[str, str], notes: list[str]) -> str:
    lines = [
        f'Our network (`network = "cellpose"`) against cellpose {facts["cellpose"]}, full size '
        f"({facts['size']} weights, 32-64-128-256), float32 on a CPU.",
        "Weights and batch-norm statistics are random, as no pretrained weights were at hand: what is shown is that "
        "both compute the same from the same file.",
        f"PyTorch {torch.__version__}; {datetime.now(UTC).strftime('%Y-%m-%d')}; made by `make cellpose-equal`.",
        "",
        "| maps | largest difference | standard deviation of the maps | limit |",
        "|---|--:|--:|---|",
        *(each.line() for each in rows),
        "",
        *(f"- {note}" for note in notes),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given, start = inputs(folder), folder / "random"
        worker("weights", start)
        worker("run", start, folder / "in.npz", folder / "start.npz")
        said = dict(np.load(folder / "start.npz"))
        rows = compare(start, given, said, "imported")
        model, _, about = read_cellpose(start)
        tensors = same_files(cellpose_state(model, about), torch.load(start, weights_only=True))
        after = adapted(start, given, folder)
        worker("run", after, folder / "in.npz", folder / "after.npz")
        said_after = dict(np.load(folder / "after.npz"))
        rows += compare(after, given, said_after, "trained here, exported")
    inside = given["labels"] > 0
    cosine = (flow.encode(given["labels"])[1:] * said["flows"]).sum(axis=0)[inside].mean()
    diameters = ", ".join(f"{value:g}" for value in said_after["diameters"])
    notes = [
        f"Export of the imported file: {tensors} tensors, equal by name, order, type and bit.",
        f"{STEPS} training steps moved the maps of the batch by up to "
        f"{np.abs(said_after['batch'] - said['batch']).max():.2f}; Cellpose read diam_mean, diam_labels = {diameters} "
        "from the exported file.",
        f"Targets: mean cosine between our flow and Cellpose's over {int(inside.sum()):,} pixels of "
        f"{int(given['labels'].max())} disks: {cosine:.3f}.",
    ]
    size = sum(parameter.numel() for parameter in model.parameters())
    text = document(rows, {"cellpose": str(said["cellpose"]), "size": f"{size:,}"}, notes)
    write_text(out / "cellpose_equal.md", text)
    print(text, end="")
    if not all(each.kept for each in rows):
        sys.exit("cellpose_equal: a limit was not kept")


if __name__ == "__main__":
    main()
