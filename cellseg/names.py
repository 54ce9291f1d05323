"""What the name of a file says: what the image is called, and whether the file is that image, its labels or a result.

Images, labels and predictions find each other by :func:`file_stem`, but for the NeurIPS 2022 challenge, whose names end
at their first dot (:mod:`cellseg.datasets.neurips`).
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

Role = Literal["image", "labels", "result"]

LABEL_ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label")
"""Endings of a label file's stem after the stem of its image."""

RESULT_ENDINGS = ("_cp_flows", "_flows", "_cp_outlines", "_outlines", "_dP", "_cellprob", "_seg")
"""Endings of files that Cellpose leaves beside images; they are neither image nor labels."""


def file_stem(path: PurePath) -> str:
    """Return a name without its last suffix and an ``.ome`` before it: ``dose0.5_a.ome.tif`` has ``dose0.5_a``."""
    stem = path.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def role_of(path: PurePath) -> Role:
    """Say what a file is in a folder where images, labels and results lie side by side, as Cellpose leaves them."""
    stem = file_stem(path)
    if stem.endswith(RESULT_ENDINGS):
        return "result"
    return "labels" if stem.endswith(LABEL_ENDINGS) else "image"
