"""Cells as ImageJ ROIs in a zip file, which Fiji's ROI Manager opens as it is.

A cell of one piece without holes is a traced polygon, as ImageJ's own wand makes it; any other is a composite.
Coordinates are pixel corners: ImageJ takes pixel (0, 0) for the square from (0, 0) to (1, 1), see its
``PolygonFiller.java``. The file format is ``RoiDecoder.java``'s, written by roifile.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cellseg.files import atomic_path
from cellseg.outputs.cells import Pixels
from cellseg.outputs.polygons import Polygon, Ring, cell_polygons

if TYPE_CHECKING:
    from roifile import ImagejRoi

SUFFIX = ".rois.zip"

_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0  # commands of java.awt.geom.PathIterator


def write_rois(path: str | Path, labels: Pixels) -> int:
    """Write the cells of a label image as a zip of ImageJ ROIs, atomically.

    Parameters
    ----------
    path : str or Path
        Final file, ending in ``.zip``.
    labels : Pixels (H, W)
        Label image of integers, 0 background.

    Returns
    -------
    int
        Number of cells. Each ROI is named after its id, six digits or more so that names sort. An image without cells
        gives an empty zip, which ImageJ does not open.

    Raises
    ------
    CellsegError
        If the file cannot be written.
    """
    import zipfile

    count = 0
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for label, polygons in cell_polygons(labels):
            name = f"{label:06d}"
            entry = zipfile.ZipInfo(f"{name}.roi")  # of a fixed date, so that the same cells give the same file
            archive.writestr(entry, to_roi(polygons, name).tobytes(), zipfile.ZIP_DEFLATED)
            count += 1
    return count


def to_roi(polygons: list[Polygon], name: str) -> ImagejRoi:
    """Turn the polygons of a cell into an ImageJ ROI.

    Corners beyond 60,535 px, ImageJ's largest whole number, are written as 32-bit floats, which are exact to 2²⁴.
    """
    from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

    if len(polygons) == 1 and len(polygons[0]) == 1:
        roi = ImagejRoi.frompoints(polygons[0][0], name=name)
        roi.roitype = ROI_TYPE.TRACED
        roi.options &= ROI_OPTIONS.SUB_PIXEL_RESOLUTION
    else:
        path = np.concatenate([_commands(ring) for polygon in polygons for ring in polygon])
        roi = ImagejRoi(roitype=ROI_TYPE.RECT, name=name, shape_roi_size=len(path), multi_coordinates=path)
    corners = np.concatenate([polygon[0] for polygon in polygons])
    (roi.left, roi.top), (roi.right, roi.bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return roi


def _commands(ring: Ring) -> NDArray[np.float32]:
    path = np.full((len(ring), 3), _LINE, np.float32)
    path[0, 0] = _MOVE
    path[:, 1:] = ring
    return np.append(path.ravel(), np.float32(_CLOSE))
