"""Cells in the forms that others read: outlines for QuPath and Fiji, pictures for people, and tables of measurements.

Labels ``a.tif`` get ``a.geojson``, ``a.rois.zip``, ``a.overlay.png`` and ``a.cells.csv`` (or ``.parquet``) beside them.
All of them are made from a label image and the raw image, so the labels of any method will do.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError
from cellseg.outputs import geojson, overlays, rois
from cellseg.outputs.cells import FilePixels, Pixels, open_pixels
from cellseg.outputs.geojson import write_geojson
from cellseg.outputs.measurements import check_table_path, join_cells, measure_cells, score_cells, write_cells
from cellseg.outputs.overlays import write_overlay
from cellseg.outputs.polygons import cell_polygons
from cellseg.outputs.rois import write_rois

__all__ = [
    "OUTLINE_FORMATS",
    "FilePixels",
    "Pixels",
    "cell_polygons",
    "cells_path",
    "check_table_path",
    "join_cells",
    "measure_cells",
    "open_pixels",
    "write_cells",
    "write_geojson",
    "write_outputs",
    "write_overlay",
    "write_rois",
]

OUTLINE_FORMATS = {"geojson": geojson.SUFFIX, "roi": rois.SUFFIX, "png": overlays.SUFFIX}
"""Formats of outlines, each with the ending of its files."""


def cells_path(labels_path: str | Path, suffix: str) -> Path:
    """Return the table of a label image: ``folder/a.tif`` has ``folder/a.cells.csv`` for the suffix ``.csv``."""
    return Path(labels_path).with_suffix(f".cells{suffix}")


def write_outputs(
    labels_path: str | Path,
    labels: Pixels,
    *,
    formats: Collection[str] = (),
    table_suffix: str | None = None,
    image: Pixels | None = None,
    scores: NDArray[np.float64] | None = None,
) -> list[Path]:
    """Write what is wanted of one label image beside it; each file is whole or absent.

    Parameters
    ----------
    labels_path : str or Path
        The label image, which need not exist.
    labels : Pixels (H, W)
        Its content, in memory or read by rectangle.
    formats : collection of str
        Of :data:`OUTLINE_FORMATS`.
    table_suffix : {".csv", ".parquet"}, optional
        Write measurements; with ``geojson`` they are in that file too.
    image : Pixels (H, W) or (H, W, C), optional
        Raw image, likewise; needed for the table and the picture.
    scores : float64 (N,), optional
        One a cell, in order of ascending id.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    CellsegError
        If a format is unknown, the image is missing or of another size, or a file cannot be written.
    """
    unknown = sorted(set(formats) - set(OUTLINE_FORMATS))
    if unknown:
        raise CellsegError(f"unknown format '{unknown[0]}'; known: {', '.join(OUTLINE_FORMATS)}")
    labels_path = Path(labels_path)
    written = []
    if image is None and (table_suffix is not None or "png" in formats):
        raise CellsegError(f"{labels_path}: wanted the raw image, to measure cells in it or to draw on it")
    cells = None if scores is None else score_cells(labels, scores)
    if image is not None and table_suffix is not None:
        cells = measure_cells(labels, image, scores, name=labels_path.stem)
        written.append(cells_path(labels_path, table_suffix))
        write_cells(written[-1], cells)
    if "geojson" in formats:
        written.append(labels_path.with_suffix(geojson.SUFFIX))
        write_geojson(written[-1], labels, measurements=cells)
    if "roi" in formats:
        written.append(labels_path.with_suffix(rois.SUFFIX))
        write_rois(written[-1], labels)
    if image is not None and "png" in formats:
        written.append(labels_path.with_suffix(overlays.SUFFIX))
        write_overlay(written[-1], labels, image)
    return written
