"""Score a folder of predicted label images against a COCO file of polygons, as LIVECell does.

The file's list of images drives the loop: a prediction that is missing, unreadable, of another shape, or whose
score file does not fit counts as no detections and is named. Torch-free, like :mod:`cellseg.evaluate`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cellseg.confidences import SUFFIX, read_confidences
from cellseg.core import CellsegError, Labels
from cellseg.datasets.coco import CocoFile, CocoImage, decode_polygons, rasterise, read_coco
from cellseg.images import read_labels
from cellseg.memory import require_room
from cellseg.metrics.coco_ap import CocoScores, CocoTruth, livecell_ap
from cellseg.metrics.scores import write_scores
from cellseg.pairing import find_predictions
from cellseg.progress import track

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CocoReport:
    """LIVECell's scores of a folder and what has to be said with them.

    Attributes
    ----------
    scores : CocoScores
        The numbers.
    score_source : str
        Where the confidences came from: score files, the constant 1, or both.
    problems : tuple of str
        One line for each prediction that counts as no detections, in the order of the file.
    notes : tuple of str
        One line for each image of which annotations had to be left out.
    """

    scores: CocoScores
    score_source: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def evaluate_coco(truth: str | Path, pred: str | Path) -> CocoReport:
    """Score every image of a COCO file against the predicted label image of its name.

    Parameters
    ----------
    truth : str or Path
        COCO file with polygons and image sizes, ``annotations`` being a list or a dict. Annotated cells keep their
        overlaps; an annotation's ``area`` decides whether it is small, medium or large, where it has one. As in
        pycocotools, one file listed under two ids is scored under both, and annotations of unlisted images are not
        looked at. Annotations without usable polygons (run-lengths among them) are left out and noted.
    pred : str or Path
        Folder of label images, named as :func:`cellseg.evaluate.evaluate` says, each perhaps with its score file
        (see :mod:`cellseg.confidences`); without one every cell of the image scores 1.

    Returns
    -------
    CocoReport
        Scores, their source, and what could not be used.

    Raises
    ------
    CellsegError
        If the file cannot be read, lists no image, one without its size, or one id for two files; or if the folder
        is missing or holds two files for one image.
    """
    file = read_coco(truth)
    images = _list_images(file)
    files = find_predictions([image.stem for image in images], Path(pred))
    notes: list[str] = []
    problems: dict[str, str] = {}
    sources: dict[str, bool] = {}
    truths = (_read_truth(file, image, notes) for image in track(images, "Scoring", len(images)))
    found = (_read_detections(image, files[image.stem], problems, sources) for image in images)
    scores = livecell_ap(truths, found)
    lines = tuple(f"{name}: {status}; counted as no detections" for name, status in problems.items())
    return CocoReport(scores, _describe(sources), lines, tuple(notes))


def score_table(report: CocoReport) -> pd.DataFrame:
    """Return a report as a table of one row: the fields of ``CocoScores``, then ``n_unusable`` and ``score_source``."""
    import pandas as pd

    extra = {"n_unusable": len(report.problems), "score_source": report.score_source}
    return pd.DataFrame([{**asdict(report.scores), **extra}])


def write_report(report: CocoReport, path: str | Path) -> Path:
    """Write :func:`score_table` atomically, every digit kept, as Parquet when the suffix says so, else as CSV."""
    return write_scores(score_table(report), path)


def _list_images(file: CocoFile) -> list[CocoImage]:
    """List the images by ascending id, which is COCOeval's order."""
    images: dict[int, CocoImage] = {}
    for image in file.images:
        if images.setdefault(image.id, image).stem != image.stem:
            raise CellsegError(
                f"{file.path}: id {image.id} names two images, {images[image.id].stem} and {image.stem}, so that their "
                "annotations cannot be told apart; correct the file"
            )
        if not image.height or not image.width or min(image.height, image.width) < 1:
            raise CellsegError(f"{file.path}: image {image.stem} has no width and height; add them to the file")
        require_room(f"{file.path}: image {image.stem}", (image.height, image.width), 4)
    if not images:
        raise CellsegError(f"{file.path}: lists no image to score against")
    return [images[image_id] for image_id in sorted(images)]


def _read_truth(file: CocoFile, image: CocoImage, notes: list[str]) -> CocoTruth:
    from pycocotools import mask as coco_mask

    height, width = int(image.height or 0), int(image.width or 0)
    annotations = file.annotations.get(image.id, [])
    pairs = [(annotation.area, decode_polygons(annotation)) for annotation in annotations]
    usable = [(area, polygons) for area, polygons in pairs if polygons is not None]
    if len(usable) < len(pairs):
        notes.append(f"{image.stem}: {len(pairs) - len(usable)} annotations without usable polygons are left out")
    masks = rasterise([polygons for _, polygons in usable], height, width)
    # One by one: given more than 255 masks at once, pycocotools 2.0.11 overflows under NumPy 2.
    areas = [
        float(coco_mask.area(mask)) if area is None else area for (area, _), mask in zip(usable, masks, strict=True)
    ]
    return CocoTruth(height, width, masks, np.array(areas, np.float64))


def _read_detections(
    image: CocoImage, path: Path | None, problems: dict[str, str], sources: dict[str, bool]
) -> tuple[Labels, NDArray[np.float64] | None]:
    """Read labels and scores of an image; say what is wrong, and else whether scores came from a file."""
    shape = (int(image.height or 0), int(image.width or 0))
    nothing = np.zeros(shape, np.int32)
    if path is None:
        problems[image.stem] = "missing"
        return nothing, None
    try:
        labels = read_labels(path)
        scores = read_confidences(path, labels)
    except CellsegError as error:
        problems[image.stem] = "unreadable: " + " ".join(str(error).replace(f"{path.parent}{os.sep}", "").split())
        return nothing, None
    if labels.shape != shape:
        problems[image.stem] = f"misshaped: {path.name} is {labels.shape} but the image is {shape}"
        return nothing, None
    sources[image.stem] = scores is not None
    return labels, scores


def _describe(sources: dict[str, bool]) -> str:
    """Say where the scores of the usable predictions came from."""
    scored, total = sum(sources.values()), len(sources)
    if not total:
        return "none: no usable prediction"
    if scored == total:
        return f"files (*{SUFFIX})"
    if not scored:
        return "constant 1: no score files, so cells are ranked by image and id"
    return f"mixed: files for {scored} of {total} images, constant 1 for the others"
