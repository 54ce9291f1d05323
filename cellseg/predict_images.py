"""Segment image files of any size: small ones whole, large ones by block; each result is written once it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.block_files import BlockFolder
from cellseg.confidences import read_scores, scores_path, write_confidences
from cellseg.images import read_image, write_labels
from cellseg.label_writers import NAME, read_note, rows_of, write_label_zarr
from cellseg.predict import Segmenter, decoding_shape
from cellseg.predict_slides import Wish, blocks_folder, predict_slide, run_note, run_of, start_job
from cellseg.scale import zoom_for
from cellseg.slides import is_zarr, read_slide, slide_size


@dataclass(frozen=True)
class Predicted:
    """An image that was segmented.

    Attributes
    ----------
    name : str
        Its id.
    image : Path
        The image.
    target : Path
        The result, by whose name what belongs to it is called.
    labels : Path
        The label image: the target, or a group inside it.
    scores : float64 (n,)
        One a cell, in order of ascending id.
    """

    name: str
    image: Path
    target: Path
    labels: Path
    scores: NDArray[np.float64]


def predict_images(
    segmenter: Segmenter,
    files: Iterable[tuple[str, Path]],
    out: str | Path,
    wish: Wish,
    notice: Callable[[str], None] = lambda _: None,
) -> Iterator[Predicted]:
    """Segment images of any size one by one; large ones by block, resumed where an earlier run stopped.

    Parameters
    ----------
    segmenter : Segmenter
        The model.
    files : iterable of (id, path)
        Image files and OME-Zarr.
    out : str or Path
        Folder of the results, ``out/<id>.tif`` or ``out/<id>.zarr``, each with ``out/<id>.scores.csv``.
    wish : Wish
        How.
    notice : callable
        Takes a line that says what is skipped or resumed.

    Yields
    ------
    Predicted
        Once it is written; the scores are written first, so that a label image that is there has them.
    """
    for name, image in files:
        target = wish.target(Path(out), name, image)
        labels = target / "labels" / NAME if wish.as_zarr else target
        scores = _segment_small(segmenter, image, target, wish) if max(slide_size(image)) <= wish.block else None
        if scores is None:
            scores = _segment_large(segmenter, image, target, labels, wish, notice)
        yield Predicted(name, image, target, labels, scores)


def _segment_small(segmenter: Segmenter, image: Path, target: Path, wish: Wish) -> NDArray[np.float64] | None:
    """Segment an image whole and write the result; None if it is too large at the scale of decoding."""
    raw = read_slide(image) if is_zarr(image) else read_image(image)
    normal, diameter = segmenter.prepare(raw, wish.diameter, wish.channel)
    zoom = zoom_for(diameter, segmenter.config.reference_diameter)
    if max(decoding_shape((raw.shape[0], raw.shape[1]), zoom)) > wish.block:
        return None
    labels, scores = segmenter.segment_normalized_with_scores(normal, diameter)
    write_confidences(target, labels, scores)
    if wish.as_zarr:
        write_label_zarr(target, rows_of(labels), image, blocks_folder(target))
        BlockFolder(blocks_folder(target)).remove()
    else:
        write_labels(target, labels)
    return scores


def _segment_large(
    segmenter: Segmenter, image: Path, target: Path, labels: Path, wish: Wish, notice: Callable[[str], None]
) -> NDArray[np.float64]:
    run = run_of(segmenter, image, wish)
    if wish.keep and read_note(labels) == run_note(run) and scores_path(target).is_file():
        notice(f"{image.name}: was finished before, {labels} is kept")
        BlockFolder(blocks_folder(target)).remove()
        return read_scores(target)[1]
    job = start_job(segmenter, image, target, wish)
    left, total = len(job.unfinished()), len(job.plan.blocks())
    if left < total:
        notice(f"{image.name}: {total - left} of {total} blocks were finished before, going on")
    return predict_slide(segmenter, job, target, image)
