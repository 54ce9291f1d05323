"""Images of the page: of every evaluation set the worst, the best, and those that lost most.

Where nothing is scored, those are shown whose cells changed most from the first method to the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.core import CellsegError, Labels, Record
from cellseg.images import read_image, read_labels
from cellseg.labels import count_instances
from cellseg.metrics import match
from cellseg.metrics.scores import image_values
from cellseg.report.changes import list_losses
from cellseg.report.drawing import MAX_SIDE, TOLERANCE, encode_image, trace_outlines
from cellseg.report.runs import Method, read_records
from cellseg.report.start import UNSCORED

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 4_200_000
"""Of all images and outlines together, so that a page stays below 5 MB."""


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
        Which image it is, and why it is shown (``worst``, ``median``, ``best`` or its rank, ``largest loss``).
    width, height : int
        Size of the file in pixels; the coordinates of all paths.
    uri : str
        The picture itself, as a data URI.
    truth : str
        Outlines of the true cells.
    n_true : int or None
        Number of true cells; None where they are not known.
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
    n_true: int | None
    panels: tuple[Panel, ...]

    @property
    def size(self) -> int:
        """Bytes it adds to the page."""
        return len(self.uri) + len(self.truth) + sum(len(panel.path) for panel in self.panels)


def make_views(methods: Sequence[Method], evaluations: Sequence[str], count: int) -> tuple[list[View], list[str]]:
    """Choose and read the images of a report: of every set the worst, the best, some between and the largest losses.

    Parameters
    ----------
    methods : sequence of Method
        The last one's scores choose, and what it lost against the first.
    evaluations : sequence of str
        Evaluation sets, or :data:`cellseg.report.start.UNSCORED`.
    count : int
        Images of each set, and as many again of those that lost most; 0 for none.

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
    records = {name: _records(methods, name, notes) for name in evaluations}
    wanted = {name: _choose(methods, name, count) if records[name] else [] for name in evaluations}
    for place in range(max(map(len, wanted.values()), default=0)):
        for name in evaluations:
            if place >= len(wanted[name]):
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


def _choose(methods: Sequence[Method], evaluation: str, count: int) -> list[tuple[str, str]]:
    if evaluation == UNSCORED:
        return pick_changed(compare_cells(methods), count)
    losses = list_losses(methods, evaluation, count)
    return add_losses(pick_images(_values(methods[-1], evaluation), count), [loss.image for loss in losses])


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


def add_losses(chosen: Sequence[tuple[str, str]], lost: Sequence[str]) -> list[tuple[str, str]]:
    """Add the images that lost most, the largest loss first, to those chosen; one that is both is shown once.

    Examples
    --------
    >>> add_losses([("worst", "a"), ("best", "b")], ["c", "a"])
    [('worst and loss no. 2', 'a'), ('best', 'b'), ('largest loss', 'c')]
    """
    words = ["largest loss", *(f"loss no. {place}" for place in range(2, len(lost) + 1))][: len(lost)]
    names = dict(zip(lost, words, strict=True))
    known = [(" and ".join(filter(None, (rank, names.pop(image, "")))), image) for rank, image in chosen]
    return [*known, *((word, image) for image, word in names.items())]


@dataclass(frozen=True)
class CellCount:
    """Cells found in an image that nobody labelled.

    Attributes
    ----------
    image, group : str
        Which image.
    counts : tuple of int or None
        Number of cells of each method; None without a prediction.
    agreement : float or None
        F1 at IoU 0.5 of the last method's cells against the first's, 1 where neither has any; None where it is
        alone or one has no prediction.
    """

    image: str
    group: str
    counts: tuple[int | None, ...]
    agreement: float | None


def compare_cells(methods: Sequence[Method]) -> list[CellCount]:
    """Count the cells of the first seeds in the images that nobody labelled, those that changed most first.

    Raises
    ------
    CellsegError
        If the images are not known.
    """
    found = []
    for record in read_records(methods[-1].first, UNSCORED).values():
        shape = (record.height, record.width)
        paths = [method.first.predictions(UNSCORED) / f"{record.id}.tif" for method in methods]
        labels = [_prediction(path, shape) for path in paths]
        counts = tuple(None if each is None else count_instances(each) for each in labels)
        agreement = None
        if len(labels) > 1 and labels[0] is not None and labels[-1] is not None:
            f1 = match(labels[0], labels[-1], thresholds=(0.5,))[0].f1
            agreement = 1.0 if math.isnan(f1) else f1
        found.append(CellCount(record.id, record.group, counts, agreement))
    return sorted(found, key=lambda each: (each.agreement is None, each.agreement or 0, each.image))


def pick_changed(cells: Sequence[CellCount], count: int) -> list[tuple[str, str]]:
    """Choose images spread evenly from the one that changed most to the one that changed least."""
    count = min(count, len(cells))
    last = len(cells) - 1
    places = [last * step // max(1, count - 1) for step in range(count)]
    names = {last: "changed least", 0: "changed most"} if cells and cells[0].agreement is not None else {}
    return [(names.get(place, f"image {place + 1} of {len(cells)}"), cells[place].image) for place in places]


def make_view(methods: Sequence[Method], evaluation: str, record: Record, rank: str) -> View:
    """Read one image, its truth if it is scored, and every method's prediction; an unusable one has no outlines.

    Raises
    ------
    CellsegError
        If the image or its truth cannot be read.
    """
    if record.labels is None and evaluation != UNSCORED:
        raise CellsegError(f"{record.image}: has no labels")
    image = read_image(record.image)
    labels_true = read_labels(record.labels) if record.labels is not None and evaluation != UNSCORED else None
    height, width = image.shape[:2]
    tolerance = TOLERANCE * max(1.0, max(height, width) / MAX_SIDE)
    panels = []
    for place, method in enumerate(methods):
        values = _values(method, evaluation)
        labels = _prediction(method.first.predictions(evaluation) / f"{record.id}.tif", (height, width))
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
        truth="" if labels_true is None else trace_outlines(labels_true, tolerance),
        n_true=None if labels_true is None else count_instances(labels_true),
        panels=tuple(panels),
    )


def _prediction(path: Path, shape: tuple[int, int]) -> Labels | None:
    try:
        labels = read_labels(path)
    except CellsegError:  # the score table names it, with its status
        return None
    return labels if labels.shape == shape else None
