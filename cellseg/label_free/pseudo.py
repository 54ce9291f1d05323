"""Pseudo-labels: the cells that a network finds in an image whatever the view, and nothing where it is not sure.

Each image is shown at the scale that suits its cells, flipped, and a little finer and coarser. A cell found again in
most views becomes a label; a pixel that is almost surely background, or lies just outside such a cell, becomes
background, so that a network that is sure of no background still learns where its cells end; all else is left open
and weighs nothing. One round labels all images and writes what it made into the run folder, where it can be looked at
and scored like any prediction, and from where a resumed run reads it back.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries

from cellseg.adapt_config import AdaptConfig
from cellseg.config import ModelConfig
from cellseg.core import CellsegError, Image, Labels, Record
from cellseg.datasets.targets import Prepared, combine, near_cells
from cellseg.datasets.windowed import load_view
from cellseg.files import write_text
from cellseg.images import read_labels, write_labels
from cellseg.instances.interface import renumber
from cellseg.label_free.views import found_again, see
from cellseg.predict import Segmenter
from cellseg.progress import track
from cellseg.scale import middle_of, resize_image, resize_labels, stable_zooms, zoom_for
from cellseg.slides.blocks import Region

INDEX_NAME = "index.csv"

SLIDE_SIDE = 2048
"""Of a slide, and of what is larger once it is shown to the network, the middle of this many pixels a side is labelled
and learned from."""


@dataclass(frozen=True)
class PseudoLabels:
    """What a network is sure of in one image.

    Attributes
    ----------
    labels : int32 (H, W)
        The cells kept, at the size of the image.
    known : bool (H, W)
        What is surely background, and the cells kept: with a thin ring around each or, where maps say where a cell
        ends, without its rim. False where nothing is said.
    diameter : float
        Cell diameter in pixels at which the image was shown.
    kept, seen : int
        Cells kept, and cells found.
    """

    labels: Labels
    known: NDArray[np.bool_]
    diameter: float
    kept: int
    seen: int


@dataclass(frozen=True)
class Row:
    """One image of a round, as its table holds it.

    Attributes
    ----------
    name : str
        Name of its files ``labels/<name>.tif`` and ``known/<name>.tif``.
    diameter : float
        Cell diameter in pixels.
    kept, seen : int
        Cells kept and found.
    known, foreground : float
        Shares of the pixels about which something is said, and of those in cells kept.
    """

    name: str
    diameter: float
    kept: int
    seen: int
    known: float
    foreground: float


def make_labels(
    segmenter: Segmenter, image: Image, settings: AdaptConfig, diameter: float | None = None
) -> PseudoLabels:
    """Label the cells of an image of which a network is sure.

    Parameters
    ----------
    segmenter : Segmenter
        The teacher.
    image : float32 (H, W, 3)
        Normalised image.
    settings : AdaptConfig
        ``views``, ``agreement`` and ``background``.
    diameter : float, optional
        Cell diameter in pixels; found without labels by default, and where none is found that of the images the
        network was trained on.

    Returns
    -------
    PseudoLabels
        Nothing is kept of an image without cells; its sure background is known even so.
    """
    config = segmenter.config
    diameter = diameter or segmenter.estimate_diameter(image) or segmenter.about.get("diameter")
    diameter = float(diameter or config.reference_diameter)
    zoom, shape = zoom_for(diameter, config.reference_diameter), (image.shape[0], image.shape[1])
    part = middle_of(shape, zoom, SLIDE_SIDE)
    views = see(segmenter, image[part.rows, part.columns], zoom)
    others = {"flips": views.flips, "scales": views.scales, "both": views.flips + views.scales}[settings.views]
    share = found_again(views.labels, others)
    kept = share >= settings.agreement - 1e-9  # a share such as 4 / 6 is no exact number
    labels = renumber(views.labels, np.concatenate([[False], kept]))
    surely_none = views.foreground < settings.background
    if settings.method == "pseudo":  # where maps are learned too, they say where a cell ends
        surely_none |= near_cells(labels)
    cells = labels > 0 if settings.method == "pseudo" else _without_rim(labels, settings.rim)
    known = cells | (surely_none & (views.labels == 0))
    return PseudoLabels(
        _spread(labels, part, shape),
        _spread(known.astype(np.int32), part, shape) > 0,
        diameter,
        int(kept.sum()),
        len(kept),
    )


def _spread(labels: Labels, part: Region, shape: tuple[int, int]) -> Labels:
    """Return labels of a part, resized to it, in an image that holds nothing else."""
    whole = np.zeros(shape, np.int32)
    whole[part.rows, part.columns] = resize_labels(labels, part.shape)
    return whole


def _without_rim(labels: Labels, width: int) -> NDArray[np.bool_]:
    """Return where cells are but for so many pixels along their outlines."""
    if width == 0:
        return labels > 0
    edge = find_boundaries(labels, mode="inner").astype(np.uint8)
    rim = np.asarray(cv2.dilate(edge, np.ones((2 * width - 1, 2 * width - 1), np.uint8)), np.bool_)
    return (labels > 0) & ~rim


def find_diameters(
    segmenter: Segmenter, records: Sequence[Record], policy: float | Literal["auto", "index"]
) -> list[float | None]:
    """Find the cell diameters of unlabelled images, all of one kind, in pixels.

    Parameters
    ----------
    segmenter : Segmenter
        The teacher.
    records : sequence of Record
        The images.
    policy : float or {"auto", "index"}
        ``adapt.diameter``: one number; what the index says; or the scale that suits each image and all of them
        together (:func:`cellseg.scale.stable_zooms`), and where no cell is found in any the diameter that the
        teacher was trained on, if that is known.
    """
    if policy == "index":
        return [record.diameter for record in records]
    if isinstance(policy, float):
        return [policy] * len(records)
    views = (load_view(record, segmenter.config, SLIDE_SIDE) for record in records)
    zooms = stable_zooms(track(views, "estimating cell size", total=len(records)), segmenter.segment_at)
    known = segmenter.about.get("diameter")
    return [segmenter.config.reference_diameter / zoom if zoom is not None else known for zoom in zooms]


def write_round(
    folder: Path,
    segmenter: Segmenter,
    records: Sequence[Record],
    settings: AdaptConfig,
    what: str = "labelling images",
) -> None:
    """Label all images and write ``labels/``, ``known/`` and, last, ``index.csv``.

    Parameters
    ----------
    folder : Path
        Folder of the round; what it held of the same names is written over.
    segmenter : Segmenter
        The teacher.
    records : sequence of Record
        The images; their labels, if any, are not read.
    settings : AdaptConfig
        How labels are made; ``diameter`` may be a number or say to take the index's.
    what : str
        Name of the work, for the progress bar.
    """
    (folder / INDEX_NAME).unlink(missing_ok=True)
    rows = []
    diameters = find_diameters(segmenter, records, settings.diameter)
    for name, record, diameter in track(
        zip(_names(records), records, diameters, strict=True), what, total=len(records)
    ):
        made = make_labels(segmenter, load_view(record, segmenter.config, SLIDE_SIDE), settings, diameter)
        write_labels(folder / "labels" / f"{name}.tif", made.labels)
        write_labels(folder / "known" / f"{name}.tif", made.known.astype(np.int32))
        shares = float(made.known.mean()), float((made.labels > 0).mean())
        rows.append(Row(name, made.diameter, made.kept, made.seen, *shares))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(astuple(row) for row in rows)
    write_text(folder / INDEX_NAME, text.getvalue())


def read_round(folder: Path, records: Sequence[Record]) -> list[Row]:
    """Read the table of a round.

    Raises
    ------
    CellsegError
        If it is missing, damaged or of other images.
    """
    path = folder / INDEX_NAME
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            rows = [
                Row(
                    line["name"],
                    float(line["diameter"]),
                    int(line["kept"]),
                    int(line["seen"]),
                    float(line["known"]),
                    float(line["foreground"]),
                )
                for line in csv.DictReader(handle)
            ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CellsegError(f"{path}: the pseudo-labels of this round cannot be read; start without --resume") from error
    if [row.name for row in rows] != _names(records):
        raise CellsegError(f"{path}: made of other images than data.unlabelled names now; start without --resume")
    return rows


def prepare_labelled(folder: Path, record: Record, row: Row, config: ModelConfig) -> Prepared:
    """Read what was labelled of an image, at the network's scale and encoded; unknown pixels weigh nothing."""
    view, zoom = load_view(record, config, SLIDE_SIDE), zoom_for(row.diameter, config.reference_diameter)
    part = middle_of((view.shape[0], view.shape[1]), zoom, SLIDE_SIDE)
    labels, known = (
        read_labels(folder / name / f"{row.name}.tif")[part.rows, part.columns] for name in ("labels", "known")
    )
    image = resize_image(view[part.rows, part.columns], zoom)
    shape = (image.shape[0], image.shape[1])
    prepared = combine(image, resize_labels(labels, shape), "instances", config, labelled=True)
    return replace(prepared, known=resize_labels(known, shape) > 0)


def _names(records: Sequence[Record]) -> list[str]:
    """Name each image by its id, with its number where images of several indices share one."""
    counts = Counter(record.id for record in records)
    return [record.id if counts[record.id] == 1 else f"{record.id}-{n}" for n, record in enumerate(records)]
