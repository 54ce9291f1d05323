"""Cells as GeoJSON that QuPath opens by dragging the file onto the image.

One feature a cell, in the form QuPath writes and reads since 0.4 (its ``QuPathTypeAdapters.java`` and
``ROITypeAdapters.java``): ``properties`` hold ``objectType``, ``name``, ``classification`` and ``measurements``, a
mapping of names to numbers. Coordinates are pixels of the full-size image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError
from cellseg.files import atomic_path
from cellseg.outputs.cells import Pixels
from cellseg.outputs.measurements import POSITIONS
from cellseg.outputs.polygons import Polygon, cell_polygons

if TYPE_CHECKING:
    import pandas as pd

ObjectType = Literal["detection", "annotation", "cell"]
"""What QuPath makes of a feature. Detections are light and meant for thousands of cells; annotations can be edited."""

SUFFIX = ".geojson"

_LEFT_OUT = frozenset({"label", "image", *POSITIONS})  # QuPath shows positions itself, by another convention


def write_geojson(
    path: str | Path,
    labels: Pixels,
    *,
    object_type: ObjectType = "detection",
    classification: str | None = None,
    measurements: pd.DataFrame | None = None,
) -> int:
    """Write the cells of a label image as a GeoJSON FeatureCollection, atomically, one cell a line.

    Parameters
    ----------
    path : str or Path
        Final file; QuPath knows ``.geojson``.
    labels : Pixels (H, W)
        Label image of integers, 0 background.
    object_type : {"detection", "annotation", "cell"}
        What QuPath makes of each.
    classification : str, optional
        Name of the class that all cells get; none by default.
    measurements : DataFrame, optional
        A row per cell with a column ``label``, as :func:`cellseg.outputs.measurements.measure_cells` makes them; its
        other numbers become QuPath's measurements. Positions, which QuPath shows itself, are left out, and so is
        NaN, which JSON does not have.

    Returns
    -------
    int
        Number of cells; an image without any gives a collection of no features.

    Raises
    ------
    CellsegError
        If the object type is unknown, a cell has no row of measurements, or the file cannot be written.

    Notes
    -----
    The outlines run along pixel edges (:mod:`cellseg.outputs.polygons`), an outline before its holes and with a
    positive area as RFC 7946 §3.1.6 wants; a cell in pieces is a MultiPolygon. The cell's id is its ``name``.
    """
    if object_type not in get_args(ObjectType):
        raise CellsegError(f"unknown object type '{object_type}'; known: {', '.join(get_args(ObjectType))}")
    import msgspec

    shared: dict[str, Any] = {"objectType": object_type}
    if classification is not None:
        shared["classification"] = {"name": classification}
    measured = None if measurements is None else _by_label(measurements)
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        handle.write(b'{"type":"FeatureCollection","features":[')
        for label, polygons in cell_polygons(labels):
            properties = {**shared, "name": str(label)}
            if measured is not None:
                properties["measurements"] = measured.of(label)
                if properties["measurements"] is None:
                    raise CellsegError(f"{path}: the measurements have no row of cell {label}; measure these labels")
            feature = {"type": "Feature", "geometry": geometry(polygons), "properties": properties}
            handle.write((b",\n" if count else b"\n") + msgspec.json.encode(feature))
            count += 1
        handle.write(b"\n]}\n")
    return count


def geometry(polygons: Iterable[Polygon]) -> dict[str, Any]:
    """Turn the polygons of a cell into a GeoJSON geometry: a Polygon, or a MultiPolygon of several; rings closed."""
    coordinates = [[np.concatenate([ring, ring[:1]]).tolist() for ring in polygon] for polygon in polygons]
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


@dataclass(frozen=True)
class _Measured:
    """Measurements by id, in arrays, since a dictionary for each of a million cells would fill the memory."""

    names: list[str]
    order: NDArray[np.int64]
    ids: NDArray[np.int64]
    values: NDArray[np.float64]

    def of(self, label: int) -> dict[str, float] | None:
        """Return the finite measurements of a cell in seven digits; None where it has no row."""
        place = int(np.searchsorted(self.ids, label))
        if place == len(self.ids) or self.ids[place] != label:
            return None
        row = self.values[self.order[place]].tolist()
        return {
            name: float(f"{value:.7g}") for name, value in zip(self.names, row, strict=True) if math.isfinite(value)
        }


def _by_label(measurements: pd.DataFrame) -> _Measured:
    numbers = measurements.select_dtypes("number")
    names = [str(name) for name in numbers.columns if name not in _LEFT_OUT]
    ids = measurements["label"].to_numpy(np.int64)
    order = np.argsort(ids)
    return _Measured(names, order, ids[order], numbers[names].to_numpy(np.float64))
