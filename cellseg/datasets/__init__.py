"""Data sets, their index and the crops made from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellseg.datasets.crops import SampleDataset


def load(index: str | Path, split: str | None = None) -> SampleDataset:
    """Open the images of an index as a torch Dataset.

    Parameters
    ----------
    index : str or Path
        ``index.csv`` written by ``cellseg prepare``.
    split : str, optional
        ``train``, ``val``, ``test`` or ``unlabelled``; all images by default.

    Returns
    -------
    torch.utils.data.Dataset of Sample
        Each item has ``image`` float32 (H, W, 3), ``labels`` int32 (H, W) or None, and its ``record``.
    """
    from cellseg.datasets.crops import load_index

    return load_index(index, split)
