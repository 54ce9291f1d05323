"""A table of cells: where each lies, its size and shape, and how bright it is in every channel of the raw image.

The numbers are scikit-image's (``skimage.measure.regionprops``), in pixels and in the image's own values. Positions
are ``(y, x)`` of pixel centres, the first pixel's at (0, 0): half a pixel less than the outlines' coordinates.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError
from cellseg.files import atomic_path
from cellseg.labels import instance_areas
from cellseg.outputs.cells import CellBlock, Pixels, cell_blocks, find_boxes, with_small_ids

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".parquet")

POSITIONS = ("centroid_y", "centroid_x", "top", "left", "bottom", "right")
SHAPES = {
    "equivalent_diameter": "equivalent_diameter_area",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
    "orientation": "orientation",
}
INTENSITIES = ("mean", "min", "max", "std")

COLUMNS = ("image", "label", "score", "area", *POSITIONS, *SHAPES)
"""Columns of every table; after them, for each channel c of the image, ``intensity_mean_c`` and so on."""


def measure_cells(
    labels: Pixels, image: Pixels, scores: NDArray[np.float64] | None = None, *, name: str = ""
) -> pd.DataFrame:
    """Measure every cell of a label image.

    Parameters
    ----------
    labels : Pixels (H, W)
        Label image of integers, 0 background; ids may be sparse. In memory or read by rectangle.
    image : Pixels (H, W) or (H, W, C)
        Raw image; likewise.
    scores : float64 (N,), optional
        One a cell, in order of ascending id; NaN where not given.
    name : str
        What the column ``image`` says.

    Returns
    -------
    DataFrame
        A row per cell, ids ascending; :data:`COLUMNS`, then ``intensity_{mean,min,max,std}_C`` for channels from 0.
        ``area`` in pixels; ``top, left, bottom, right`` is the bounding box, rows ``top`` to ``bottom - 1``;
        ``equivalent_diameter`` is that of the disk of equal area; ``solidity`` the share of its convex hull that a
        cell fills; ``orientation`` the angle in radians from the y axis to the major axis, −π/2 to π/2. Eccentricity
        is 0 and orientation arbitrary for a single pixel. A cell with a NaN pixel has NaN intensities.

    Raises
    ------
    CellsegError
        If the sizes differ, or there is not one score a cell.
    """
    import pandas as pd

    if tuple(labels.shape) != tuple(image.shape[:2]):
        raise CellsegError(f"{name or 'measure'}: labels are {labels.shape} but the image is {image.shape[:2]}")
    parts = [_measure_block(block, np.asarray(image[block.place])) for block in cell_blocks(labels)]
    if not parts:  # for the columns
        nothing = CellBlock(0, 0, np.zeros((1, 1), np.int32), np.zeros(0, np.int64), np.zeros((0, 4), np.int64))
        parts = [_measure_block(nothing, np.asarray(image[0:1, 0:1]))]
    cells = pd.concat(parts, ignore_index=True).sort_values("label", ignore_index=True)
    if scores is not None and len(scores) != len(cells):
        raise CellsegError(f"{name or 'measure'}: wanted one score for each of {len(cells)} cells, got {len(scores)}")
    cells.insert(0, "image", pd.Series([name] * len(cells), dtype="string"))
    cells.insert(2, "score", np.full(len(cells), np.nan) if scores is None else scores)
    return cells


def _measure_block(block: CellBlock, image: NDArray[Any]) -> pd.DataFrame:
    """Measure the cells of a block in its pixels; positions are those in the whole image."""
    import pandas as pd
    from skimage.measure import regionprops_table

    labels = block.labels
    if len(instance_areas(labels)[0]) > len(block.ids):
        labels = np.where(np.isin(labels, block.ids), labels, 0)
    planes = np.atleast_3d(image)
    planes = planes.view(np.uint8) if planes.dtype == np.bool_ else planes
    wanted = ("area", "centroid", *SHAPES.values(), *(f"intensity_{kind}" for kind in INTENSITIES))
    found = regionprops_table(with_small_ids(labels)[1], planes, properties=wanted)
    columns = {
        "label": block.ids,
        "area": found["area"].astype(np.int64),
        "centroid_y": found["centroid-0"] + block.top,
        "centroid_x": found["centroid-1"] + block.left,
    }
    columns |= dict(zip(POSITIONS[2:], block.boxes.T, strict=True))
    columns |= {ours: found[theirs] for ours, theirs in SHAPES.items()}
    for channel in range(planes.shape[2]):
        for kind in INTENSITIES:
            columns[f"intensity_{kind}_{channel}"] = found[f"intensity_{kind}-{channel}"].astype(np.float64)
    return pd.DataFrame(columns)


def score_cells(labels: Pixels, scores: NDArray[np.float64]) -> pd.DataFrame:
    """Return the columns ``label`` and ``score`` alone; takes labels ``(H, W)``, scores float64 ``(N,)`` by id."""
    import pandas as pd

    return pd.DataFrame({"label": find_boxes(labels)[0], "score": scores})


def check_table_path(path: str | Path) -> str:
    """Return the ending of a table's file in lower case; raises CellsegError if it is not CSV or Parquet."""
    suffix = Path(path).suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise CellsegError(f"{path}: wanted a table ending in {' or '.join(TABLE_SUFFIXES)}")
    return suffix


def write_cells(path: str | Path, cells: pd.DataFrame) -> None:
    """Write a table of cells as CSV or Parquet, by the ending of ``path``, atomically.

    Raises
    ------
    CellsegError
        If the ending is neither, or the file cannot be written.
    """
    suffix = check_table_path(path)
    with atomic_path(path) as temporary:
        if suffix == ".csv":
            cells.to_csv(temporary, index=False)
        else:
            cells.to_parquet(temporary, index=False)


def join_cells(paths: Sequence[Path], out: str | Path) -> None:
    """Write the tables of many images below each other as one, reading one at a time.

    Parameters
    ----------
    paths : sequence of Path
        What :func:`write_cells` wrote, all with the ending of ``out``.
    out : str or Path
        The joined table. It has the columns of all, empty where an image has fewer channels.

    Raises
    ------
    CellsegError
        If a file is missing or no such table, or ``out`` cannot be written.
    """
    suffix = check_table_path(out)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise CellsegError(f"{missing[0]}: no such table of cells; measure the image again")
    try:
        with atomic_path(out) as temporary:
            (_join_csv if suffix == ".csv" else _join_parquet)(paths, temporary)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        if isinstance(error, CellsegError):
            raise
        raise CellsegError(f"{out}: one of the {len(paths)} tables cannot be read ({error}); measure again") from error


def _join_csv(paths: Sequence[Path], out: Path) -> None:
    columns: dict[str, None] = {}
    for path in paths:
        with path.open(encoding="utf-8", newline="") as handle:
            columns |= dict.fromkeys(next(csv.reader(handle), ()))
    with out.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        for path in paths:
            with path.open(encoding="utf-8", newline="") as handle:
                writer.writerows(csv.DictReader(handle))


def _join_parquet(paths: Sequence[Path], out: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.unify_schemas([parquet.read_schema(path).remove_metadata() for path in paths])
    with parquet.ParquetWriter(out, schema) as writer:
        for path in paths:
            table = parquet.read_table(path)
            columns = [
                table[field.name].cast(field.type)
                if field.name in table.column_names
                else pyarrow.nulls(len(table), field.type)
                for field in schema
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))
