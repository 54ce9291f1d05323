"""Made-up images to be replayed where the ones that a model learned from cannot be had."""

from __future__ import annotations

from pathlib import Path

from cellseg.datasets.livecell import prepare_livecell
from cellseg.datasets.synthetic import write_synthetic

SEED = 101
"""Of one of the made-up sets that the shipped teacher learned from."""

EACH = 40
"""Images of each kind."""


def prepare_made_up(folder: Path) -> Path:
    """Write and prepare made-up images of every kind that the shipped teacher knows; return their index.

    Fluorescence, phase contrast, sheets of flat cells and stained tissue, images of 256 × 320 pixels, all for training.
    What is there already is taken as it is.
    """
    index = folder / "index.csv"
    if not index.exists():
        lines = ("SynFluo", "SynPhase", "SynSheet", "SynStain")
        root = write_synthetic(
            folder / "files", seed=SEED, lines=lines, n_train=EACH, n_val=0, n_test=0, n_unlabelled=0
        )
        prepare_livecell(root, folder, dataset="synthetic")
    return index
