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
from cellseg.outputs.polygons import with_small_ids

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".parquet")

POSITIONS = {
    "centroid_y": "centroid-0",
    "centroid_x": "centroid-1",
    "top": "bbox-0",
    "left": "bbox-1",
    "bottom": "bbox-2",
    "right": "bbox-3",
}
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
    labels: NDArray[Any], image: NDArray[Any], scores: NDArray[np.float64] | None = None, *, name: str = ""
) -> pd.DataFrame:
    """Measure every cell of a label image.

    Parameters
    ----------
    labels : int (H, W)
        Label image, 0 background; ids may be sparse.
    image : ndarray (H, W) or (H, W, C)
        Raw image.
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
    from skimage.measure import regionprops_table

    if labels.shape != image.shape[:2]:
        raise CellsegError(f"{name or 'measure'}: labels are {labels.shape} but the image is {image.shape[:2]}")
    ids, dense = with_small_ids(labels)
    if scores is not None and len(scores) != len(ids):
        raise CellsegError(f"{name or 'measure'}: wanted one score for each of {len(ids)} cells, got {len(scores)}")
    planes = np.atleast_3d(image)
    planes = planes.view(np.uint8) if planes.dtype == np.bool_ else planes
    wanted = ("area", "centroid", "bbox", *SHAPES.values(), *(f"intensity_{kind}" for kind in INTENSITIES))
    found = regionprops_table(dense, planes, properties=wanted)
    columns = {
        "image": pd.Series([name] * len(ids), dtype="string"),
        "label": ids,
        "score": np.full(len(ids), np.nan) if scores is None else scores,
        "area": found["area"].astype(np.int64),
    }
    columns |= {ours: found[theirs] for ours, theirs in (POSITIONS | SHAPES).items()}
    for channel in range(planes.shape[2]):
        for kind in INTENSITIES:
            columns[f"intensity_{kind}_{channel}"] = found[f"intensity_{kind}-{channel}"].astype(np.float64)
    return pd.DataFrame(columns)


def score_cells(labels: NDArray[Any], scores: NDArray[np.float64]) -> pd.DataFrame:
    """Return the columns ``label`` and ``score`` alone; takes labels int ``(H, W)``, scores float64 ``(N,)`` by id."""
    import pandas as pd

    return pd.DataFrame({"label": instance_areas(labels)[0], "score": scores})


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
