"""Segment image files of any size: small ones whole, large ones by block; each result is written once it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cellseg.confidences import read_scores, scores_path, write_confidences
from cellseg.core import CellsegError, Labels
from cellseg.images import read_image, write_labels
from cellseg.orders import Job, Order, Predicted, Scores, Told, Wish, blocks_folder, naming, orders_of
from cellseg.predict import Segmenter, decoding_shape
from cellseg.predict_slides import predict_slide, run_note, run_of, start_job
from cellseg.prefetch import prefetch
from cellseg.scale import zoom_for
from cellseg.slides.block_files import BlockFolder
from cellseg.slides.pyramids import is_zarr, read_slide, slide_size
from cellseg.slides.writers import read_note, rows_of, write_label_zarr


def predict_images(
    segmenter: Segmenter,
    files: Iterable[tuple[str, Path]],
    out: str | Path,
    wish: Wish,
    told: Told | None = None,
) -> Iterator[Predicted]:
    """Segment images of any size one by one; large ones by block, resumed where an earlier run stopped.

    Parameters
    ----------
    segmenter : Segmenter
        The model.
    files : iterable of (id, path)
        Image files and OME-Zarr. The next is read while one is segmented.
    out : str or Path
        Folder of the results, ``out/<id>.tif`` or ``out/<id>.zarr``, each with ``out/<id>.scores.csv``.
    wish : Wish
        How.
    told : Told, optional
        What is called meanwhile.

    Yields
    ------
    Predicted
        Once it is written; the scores are written first, so that a label image that is there has them.
    """
    told = told or Told()
    for order, pixels in prefetch(read_small, orders_of(files, out, wish)):
        try:
            found = begin(segmenter, order, told.notice, pixels)
            scores = predict_slide(segmenter, found, order.target, order.image) if isinstance(found, Job) else found
            predicted = conclude(order, scores, told.beside)
        except CellsegError as error:
            told.fail(error)
            continue
        yield predicted


def begin(
    segmenter: Segmenter,
    order: Order,
    notice: Callable[[str], None],
    pixels: Callable[[], NDArray[Any] | None] | None = None,
) -> Scores | Job:
    """Segment a small image, or plan a large one unless it was finished before.

    Parameters
    ----------
    segmenter : Segmenter
        The model.
    order : Order
        What is wanted.
    notice : callable
        Takes a line that says what is skipped or resumed.
    pixels : callable, optional
        Returns what :func:`read_small` does.

    Returns
    -------
    float64 (n,) or Job
        The scores of a result that is there, or the work that is left.

    Raises
    ------
    CellsegError
        If the image cannot be segmented, such as for want of memory; it is named.
    """
    with naming(order.image, RuntimeError, MemoryError):
        raw = read_small(order) if pixels is None else pixels()
        scores = None if raw is None else _segment_small(segmenter, order, raw)
        return _start_large(segmenter, order, notice) if scores is None else scores


def conclude(order: Order, scores: Scores, beside: Callable[[Predicted], None] | None) -> Predicted:
    """Write what else is wanted of a result that is there."""
    predicted = Predicted(order.name, order.image, order.target, order.labels, scores)
    if beside is not None:
        beside(predicted)
    return predicted


def read_small(order: Order) -> NDArray[Any] | None:
    """Read the raw values of an image that is no larger than a block; None for others, which are read by region."""
    if max(slide_size(order.image)) > order.wish.block:
        return None
    return read_slide(order.image) if is_zarr(order.image) else read_image(order.image)


def _segment_small(segmenter: Segmenter, order: Order, raw: NDArray[Any]) -> Scores | None:
    """Segment an image whole and write the result; None if it is too large at the scale of decoding."""
    target = order.target
    with naming(order.image, CellsegError):  # of what knows only pixels
        found = _find_cells(segmenter, order.wish, raw)
    if found is None:
        return None
    labels, scores = found
    write_confidences(target, labels, scores)
    if order.wish.as_zarr:
        write_label_zarr(target, rows_of(labels), order.image, blocks_folder(target))
        BlockFolder(blocks_folder(target)).remove()
    else:
        write_labels(target, labels)
    return scores


def _find_cells(segmenter: Segmenter, wish: Wish, raw: NDArray[Any]) -> tuple[Labels, Scores] | None:
    normal, diameter = segmenter.prepare(raw, wish.diameter, wish.channel)
    zoom = zoom_for(diameter, segmenter.config.reference_diameter)
    if max(decoding_shape((raw.shape[0], raw.shape[1]), zoom)) > wish.block:
        return None
    return segmenter.segment_normalized_with_scores(normal, diameter)


def _start_large(segmenter: Segmenter, order: Order, notice: Callable[[str], None]) -> Scores | Job:
    image, target, labels = order.image, order.target, order.labels
    run = run_of(segmenter, image, order.wish)
    if order.wish.keep and read_note(labels) == run_note(run) and scores_path(target).is_file():
        notice(f"{image.name}: was finished before, {labels} is kept")
        BlockFolder(blocks_folder(target)).remove()
        return read_scores(target)[1]
    job = start_job(segmenter, image, target, order.wish)
    left, total = len(job.unfinished()), len(job.plan.blocks())
    if left < total:
        notice(f"{image.name}: {total - left} of {total} blocks were finished before, going on")
    return job
