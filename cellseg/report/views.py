"""Images of the page: chosen by score, made small, with every outline as a vector path of its own.

Outlines run through the centres of the cells' border pixels, so that neighbours stay apart, and are simplified
by less than a pixel. What this gives up: a whole slide is shown whole, and its cells are then specks.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellseg.config import NormalizeConfig
from cellseg.core import CellsegError, Labels, Record
from cellseg.images import normalize, read_image, read_labels, to_three_channels
from cellseg.labels import count_instances, instance_areas
from cellseg.metrics.scores import image_values
from cellseg.report.runs import Method, read_records

if TYPE_CHECKING:
    import pandas as pd

MAX_SIDE = 1000
"""Longest side of an image in the page, in pixels."""

MAX_BYTES = 4_200_000
"""Of all images and outlines together, so that a page stays below 5 MB."""

DISPLAY = NormalizeConfig(low=0.5, high=99.8)
"""Grey values shown as black and white: milder than what a network is fed."""

TOLERANCE = 0.6
"""How far a simplified outline may lie from the traced one, in pixels of the page."""


@dataclass(frozen=True)
class Panel:
    """The cells one method found in an image.

    Attributes
    ----------
    method : int
        Position of the method in the report.
    path : str
        Outlines as SVG path data in pixels of the image.
    n_pred : int
        Number of cells.
    f1 : float
        F1 at IoU 0.5 of this image; NaN where it was not scored.
    """

    method: int
    path: str
    n_pred: int
    f1: float


@dataclass(frozen=True)
class View:
    """One image with its outlines.

    Attributes
    ----------
    image, group, evaluation, rank : str
        Which image it is, and why it is shown (``worst``, ``median``, ``best`` or its rank).
    width, height : int
        Size of the file in pixels; the coordinates of all paths.
    uri : str
        The picture itself, as a data URI.
    truth : str
        Outlines of the true cells.
    n_true : int
        Number of true cells.
    panels : tuple of Panel
        One for each method; without outlines where it has no usable prediction.
    """

    image: str
    group: str
    evaluation: str
    rank: str
    width: int
    height: int
    uri: str
    truth: str
    n_true: int
    panels: tuple[Panel, ...]

    @property
    def size(self) -> int:
        """Bytes it adds to the page."""
        return len(self.uri) + len(self.truth) + sum(len(panel.path) for panel in self.panels)


def make_views(methods: Sequence[Method], evaluations: Sequence[str], count: int) -> tuple[list[View], list[str]]:
    """Choose and read the images of a report: of every evaluation set the worst, the best and some between.

    Parameters
    ----------
    methods : sequence of Method
        The last one's scores choose.
    evaluations : sequence of str
        Evaluation sets.
    count : int
        Images of each set; 0 for none.

    Returns
    -------
    views : list of View
        Set by set, the worst first, and together no more than :data:`MAX_BYTES`.
    notes : list of str
        What could not be shown and why; a report without pictures is still a report.
    """
    views: list[View] = []
    notes: list[str] = []
    room = MAX_BYTES
    wanted = {name: pick_images(_values(methods[-1], name), count) for name in evaluations}
    records = {name: _records(methods, name, notes) for name in evaluations}
    for place in range(count):
        for name in evaluations:
            if place >= len(wanted[name]) or not records[name]:
                continue
            rank, image = wanted[name][place]
            try:
                view = make_view(methods, name, records[name][image], rank)
            except (CellsegError, KeyError) as error:
                notes.append(f"{image} is not shown: {error}")
                continue
            if view.size <= room:
                views.append(view)
                room -= view.size
            else:
                notes.append(f"{image} is not shown: the page would grow beyond 5 MB")
    views.sort(key=lambda view: evaluations.index(view.evaluation))
    return views, notes


def _values(method: Method, evaluation: str) -> pd.Series[float] | None:
    scores = method.first.scores.get(evaluation)
    return None if scores is None else image_values(scores, "f1", (0.5,))


def _records(methods: Sequence[Method], evaluation: str, notes: list[str]) -> Mapping[str, Record]:
    try:
        return read_records(methods[-1].first, evaluation)
    except CellsegError as error:
        notes.append(f"No image of {evaluation} is shown: {error}")
        return {}


def pick_images(values: pd.Series[float] | None, count: int) -> list[tuple[str, str]]:
    """Choose images spread evenly from the worst to the best.

    Parameters
    ----------
    values : Series of float, or None
        Score by image; equal ones are taken in the order of their names.
    count : int
        How many at most.

    Returns
    -------
    list of (str, str)
        What to call it, ``worst`` first, and the image.
    """
    if values is None or values.empty or count < 1:
        return []
    order = sorted(values.index, key=lambda image: (values[image], image))
    last = len(order) - 1
    count = min(count, len(order))
    places = [last * step // max(1, count - 1) for step in range(count)]
    names = {last // 2: "median", last: "best", 0: "worst"}
    return [(names.get(place, f"rank {place + 1} of {len(order)}"), order[place]) for place in places]


def make_view(methods: Sequence[Method], evaluation: str, record: Record, rank: str) -> View:
    """Read one image, its truth and every method's prediction; one that is not usable has no outlines.

    Raises
    ------
    CellsegError
        If the image or its truth cannot be read.
    """
    if record.labels is None:
        raise CellsegError(f"{record.image}: has no labels")
    image = read_image(record.image)
    labels_true = read_labels(record.labels)
    height, width = image.shape[:2]
    tolerance = TOLERANCE * max(1.0, max(height, width) / MAX_SIDE)
    panels = []
    for place, method in enumerate(methods):
        values = _values(method, evaluation)
        labels = _prediction(method.first.folder / "predictions" / evaluation / f"{record.id}.tif", (height, width))
        path = "" if labels is None else trace_outlines(labels, tolerance)
        f1 = math.nan if values is None else float(values.get(record.id, math.nan))
        panels.append(Panel(place, path, 0 if labels is None else count_instances(labels), f1))
    return View(
        image=record.id,
        group=record.group,
        evaluation=evaluation,
        rank=rank,
        width=width,
        height=height,
        uri=encode_image(image),
        truth=trace_outlines(labels_true, tolerance),
        n_true=count_instances(labels_true),
        panels=tuple(panels),
    )


def _prediction(path: Path, shape: tuple[int, int]) -> Labels | None:
    try:
        labels = read_labels(path)
    except CellsegError:  # the score table names it, with its status
        return None
    return labels if labels.shape == shape else None


def encode_image(image: NDArray[Any], max_side: int = MAX_SIDE) -> str:
    """Return an image as a data URI, small enough for a page.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C)
        Raw values. Colour of 8 bits is shown as it is; all else from the 0.5th to the 99.8th percentile.
    max_side : int
        Longest side in pixels; larger images are averaged down by area.

    Returns
    -------
    str
        ``data:image/webp;base64,…``
    """
    import cv2
    from PIL import Image as Pillow

    is_colour = image.ndim == 3 and image.shape[2] in (3, 4) and image.dtype == np.uint8
    if is_colour and not _is_grey(image):
        shown: NDArray[Any] = to_three_channels(image) / np.float32(255)
    else:
        shown = normalize(image, DISPLAY)
    shrink = max_side / max(shown.shape[:2])
    if shrink < 1:
        size = (max(1, round(shown.shape[1] * shrink)), max(1, round(shown.shape[0] * shrink)))
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    pixels = np.round(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels[..., 0] if _is_grey(shown) else pixels).save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _is_grey(image: NDArray[Any]) -> bool:
    return bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())


def trace_outlines(labels: Labels, tolerance: float = TOLERANCE) -> str:
    """Return the outlines of all cells as SVG path data.

    Parameters
    ----------
    labels : int32 (H, W)
        Cells; each piece of a cell has its own outline, holes have none.
    tolerance : float
        How far the simplified outline may lie from the traced one, in pixels.

    Returns
    -------
    str
        Whole numbers, (x, y) of pixel centres counted from 0; empty without cells.

    Notes
    -----
    Border following by Suzuki and Abe (Computer Vision, Graphics, and Image Processing 30, 1985) and
    simplification by Douglas and Peucker (Cartographica 10, 1973), both as in OpenCV.
    """
    return "".join(map(_path_of, _contours(labels, tolerance)))


def _contours(labels: Labels, tolerance: float) -> Iterator[NDArray[np.int32]]:
    import cv2
    from scipy.ndimage import find_objects

    ids, _ = instance_areas(labels)
    compact = np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0).astype(np.int32)
    for place, box in enumerate(find_objects(compact), start=1):
        mask = (compact[box] == place).astype(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        corner = np.array([box[1].start, box[0].start], np.int32)
        for contour in found:
            yield cv2.approxPolyDP(contour, tolerance, True)[:, 0] + corner


def _path_of(points: NDArray[np.int32]) -> str:
    steps = "".join(f"{' ' if x >= 0 else ''}{x}{' ' if y >= 0 else ''}{y}" for x, y in np.diff(points, axis=0))
    # A cell of one pixel has no extent: a line of length zero, which round ends make a dot.
    return f"M{points[0, 0]} {points[0, 1]}{'l' + steps.lstrip() if steps else 'h0'}z"
