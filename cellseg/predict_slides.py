"""Segment images larger than memory: block by block, each block a piece of work of its own, then joined.

``segment_block`` is a pure function of plain data, so blocks may run anywhere and in any order; finished ones lie in a
folder beside the result (:mod:`cellseg.slides.block_files`), and joining them is a separate, cheap step. A run that was
stopped goes on at the blocks that are not there. The maps of a pixel do not depend on its block, so the result does
not depend on the size of the blocks, but for what a decoder takes from its image as a whole: ``distance`` its
smoothing, and ``flow`` for how long it follows paths where there are cells of several hundred pixels.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cellseg
from cellseg.confidences import write_scores
from cellseg.core import CellsegError, Labels
from cellseg.images import read_image
from cellseg.instances import representation
from cellseg.orders import Job, Wish, blocks_folder, say_how_to_go_on
from cellseg.predict import Segmenter, decoding_shape
from cellseg.progress import track
from cellseg.scale import resize_part, zoom_for
from cellseg.slides.block_files import BlockFolder
from cellseg.slides.blocks import Block, Plan, Region, make_plan
from cellseg.slides.pyramids import Slide, has_regions, is_zarr, open_slide, zarr_digest
from cellseg.slides.seams import Cells, Pieces, count_pieces, cut_cells, join, same_cells, seams
from cellseg.slides.windows import write_tiled
from cellseg.slides.writers import BAND_ROWS, LabelRows, write_label_tiff, write_label_zarr
from cellseg.sources import Source


def segment_block(segmenter: Segmenter, source: Source, plan: Plan, block: Block) -> tuple[Labels, Region, Pieces]:
    """Segment one block of an image, with a halo that grows around the cells it would cut.

    Parameters
    ----------
    segmenter : Segmenter
        The model.
    source : Source
        The image, normalised.
    plan : Plan
        How it is cut.
    block : Block
        One of the plan's.

    Returns
    -------
    labels : int32 (h, w)
        The cells of the block and its halo, at the scale of the image.
    region : Region
        Where they lie in the image.
    pieces : Pieces
        What the core of the block holds of each.
    """
    shape = decoding_shape(plan.shape, plan.zoom)
    halo = plan.halo
    while True:
        region = block.core.grown(halo, plan.shape)
        outer = region.covered(plan.shape, shape)
        core = block.core.scaled(plan.shape, shape).within(outer)
        maps = segmenter.maps_of(source, plan.zoom, outer)
        decoded = segmenter.decode(maps, plan.zoom)
        is_cut = cut_cells(decoded, outer, shape)
        inside = decoded[core.rows, core.columns]
        if halo >= plan.largest_halo or not is_cut[inside].any():
            break
        halo = min(2 * halo, plan.largest_halo)
    foreground = representation(segmenter.config.representation).foreground(maps[:, core.rows, core.columns])
    labels = resize_part(decoded, outer, shape, region, plan.shape)
    at = block.core.within(region)
    pieces = count_pieces(inside, foreground, labels[at.rows, at.columns], block.core, plan.shape[1], is_cut)
    return labels, region, pieces


def start_job(
    segmenter: Segmenter,
    image: str | Path,
    target: str | Path,
    wish: Wish,
) -> Job:
    """Measure a large image, plan its blocks, and find those that an earlier run of the same kind has finished.

    Parameters
    ----------
    segmenter : Segmenter
        The model.
    image : str or Path
        Image file or OME-Zarr; one that cannot be read by region is read whole once and copied in tiles.
    target : str or Path
        The result to be; the blocks lie beside it, in a folder whose name ends in ``.blocks``.
    wish : Wish
        How it is to be segmented.

    Raises
    ------
    CellsegError
        If the image cannot be read or the folder not be written.
    """
    image, folder = Path(image), BlockFolder(blocks_folder(target))
    run, channel = run_of(segmenter, image, wish), wish.channel
    known = folder.facts()
    if not _is_same_job(known, run, image, folder):
        folder.remove()
        known = None
    pixels = image if has_regions(image) else folder.path / "image.tif"
    if known is None:
        if pixels != image:
            write_tiled(pixels, read_image(image))
        source = open_slide(pixels, segmenter.config.normalize, channel)
        found = segmenter.diameter_of(source, wish.diameter)
        known = {"run": run, "diameter": found, "ranges": source.ranges, "shape": source.shape}
        folder.start(known)
    ranges = tuple((float(low), float(high)) for low, high in known["ranges"])
    shape = (int(known["shape"][0]), int(known["shape"][1]))
    source = Slide(pixels, shape, segmenter.config.normalize, channel, ranges)
    reference = segmenter.config.reference_diameter
    zoom = zoom_for(float(known["diameter"]), reference)
    plan = make_plan(shape, zoom, reference, wish.block)
    return Job(image.name, source, plan, folder, segmenter.min_size(zoom), run_note(run))


def run_block(segmenter: Segmenter, job: Job, block: Block) -> None:
    """Segment a block and write it, whole or not at all."""
    job.folder.write(block, *segment_block(segmenter, job.source, job.plan, block))


def finish_job(job: Job, target: str | Path, image: str | Path) -> NDArray[np.float64]:
    """Join the finished blocks, write the labels and the scores of the cells, and remove the blocks.

    Parameters
    ----------
    job : Job
        All of whose blocks are finished.
    target : str or Path
        A TIFF, or else a folder: an OME-Zarr to which the labels belong, or which is made for them.
    image : str or Path
        The image that was segmented.

    Returns
    -------
    float64 (n,)
        The score of each cell, in order of ascending id.
    """
    target = Path(target)
    tables = {block.place: job.folder.read_table(block) for block in job.plan.blocks()}
    cells = join_blocks(job, tables)
    rows = LabelRows(_bands(job, tables, cells), job.plan.shape, cells.count, job.note)
    write_scores(target, np.arange(1, cells.count + 1), cells.scores)
    if target.suffix == ".tif":
        whole = job.folder.path / "labels.tif"  # here also what a killed run leaves half written is cleared away
        write_label_tiff(whole, rows)
        whole.replace(target)
    else:
        write_label_zarr(target, rows, image, job.folder.path)
    job.folder.remove()
    return cells.scores


def join_blocks(job: Job, tables: dict[tuple[int, int], tuple[Region, Pieces]]) -> Cells:
    """Give the cells of all finished blocks their numbers, looking at the strips that two blocks decoded both."""

    def pairs() -> Iterator[tuple[tuple[int, int], tuple[int, int], NDArray[np.int64]]]:
        for one, other in seams(job.plan.blocks()):
            (region, pieces), (region_other, pieces_other) = tables[one.place], tables[other.place]
            both = region.common(region_other)
            first, second = job.folder.read(one, region, both), job.folder.read(other, region_other, both)
            yield one.place, other.place, same_cells(first, second, (pieces, pieces_other))

    return join({place: pieces for place, (_, pieces) in tables.items()}, pairs(), job.min_size)


def predict_slide(segmenter: Segmenter, job: Job, target: str | Path, image: str | Path) -> NDArray[np.float64]:
    """Run the unfinished blocks of a job one after the other, showing how many are done, and finish it.

    Raises
    ------
    CellsegError
        If anything stops it, ctrl-C included: the message says what is kept and how to go on.
    """
    with say_how_to_go_on(job):
        todo, total = job.unfinished(), len(job.plan.blocks())
        for block in track(todo, f"{job.name}: blocks", total=total, done=total - len(todo)):
            run_block(segmenter, job, block)
        segmenter.kept.forget()  # no other image asks for its windows
        return finish_job(job, target, image)


def run_note(run: dict[str, Any]) -> str:
    """Return a note that tells a run from all others."""
    return "cellseg " + hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:32]


def _bands(job: Job, tables: dict[tuple[int, int], tuple[Region, Pieces]], cells: Cells) -> Iterator[Labels]:
    """Yield the joined labels from top to bottom."""
    height, width = job.plan.shape
    blocks = job.plan.blocks()
    tops = range(0, height, BAND_ROWS)
    for top in track(tops, f"{job.name}: writing", total=len(tops)):
        band = Region(top, 0, min(top + BAND_ROWS, height), width)
        labels = np.zeros(band.shape, np.int32)
        for block in blocks:
            part = block.core.common(band)
            if part.size:
                found = job.folder.read(block, tables[block.place][0], part)
                at = part.within(band)
                labels[at.rows, at.columns] = cells.numbers[block.place][found]
        yield labels


def run_of(segmenter: Segmenter, image: Path, wish: Wish) -> dict[str, Any]:
    """Return what a result depends on, as plain values; ``pixels`` digests the finest level of an OME-Zarr."""
    file, pixels = image, ""
    if is_zarr(image):
        file = next(path for name in ("zarr.json", ".zattrs", ".zarray", ".zgroup") if (path := image / name).is_file())
        pixels = zarr_digest(image)
    try:
        status = file.stat()
    except OSError as error:
        raise CellsegError(f"{image}: cannot be read ({error.strerror or error})") from error
    return {
        "image": [image.name, status.st_size, status.st_mtime_ns],
        "pixels": pixels,
        "model": segmenter.fingerprint,
        "settings": segmenter.settings.model_dump(mode="json", exclude={"batch_size"}),
        "wish": [wish.diameter, wish.channel, wish.block],
        "version": cellseg.__version__,
    }


def _is_same_job(known: dict[str, Any] | None, run: dict[str, Any], image: Path, folder: BlockFolder) -> bool:
    """Whether finished blocks may be gone on with: also where a damaged chunk was put right, which is said."""
    if known is None:
        return False
    held = known.get("run")
    if not isinstance(held, dict) or held | {"pixels": run["pixels"]} != run:
        warnings.warn(f"{folder.path}: blocks of another run, which are removed", stacklevel=3)
        return False
    if held.get("pixels", run["pixels"]) != run["pixels"]:
        warnings.warn(
            f"{image}: its files changed since this was begun, finished blocks are kept; remove {folder.path} if other "
            "pixels are in it now",
            stacklevel=3,
        )
    return True
