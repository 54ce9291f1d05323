"""What is to be segmented, as plain data: wishes, orders, and large images as jobs of many blocks.

Nothing here knows the network, so a process that only hands out work imports none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError
from cellseg.slides.block_files import SUFFIX, BlockFolder
from cellseg.slides.blocks import BLOCK, Block, Plan
from cellseg.slides.pyramids import Slide, is_zarr
from cellseg.slides.writers import labels_group

STRIP_PIXELS, WINDOW_REACH = 18_000_000, 656
"""So many pixels of maps :class:`cellseg.sliding.Kept` holds, counted without overlap and with a reserve; and by so
much the windows of a row of blocks reach beyond them: a window and two halos, about."""

Scores = NDArray[np.float64]
"""The score of every cell of an image, in order of ascending id."""


class Interrupted(CellsegError):
    """All of the work was stopped, by the user or for want of who does it; nothing is wrong with the image."""


@dataclass(frozen=True)
class Job:
    """A large image being segmented: plain data, to be sent to whoever computes a block.

    Attributes
    ----------
    name : str
        Of the image, for messages.
    source : Slide
        Its pixels.
    plan : Plan
        Its blocks.
    folder : BlockFolder
        Where finished blocks lie.
    min_size : int
        Cells of fewer pixels are dropped, at the scale of decoding.
    note : str
        Tells this run from all others, kept with the result.
    """

    name: str
    source: Slide
    plan: Plan
    folder: BlockFolder
    min_size: int
    note: str

    def unfinished(self) -> list[Block]:
        """List the blocks that are not there yet, in the order of :func:`in_strips`."""
        return [block for block in in_strips(self.plan) if not self.folder.is_finished(block)]


@dataclass(frozen=True)
class Wish:
    """How images are to be segmented.

    Attributes
    ----------
    diameter : float or None
        Typical cell diameter in pixels; None as the settings of the segmenter say.
    channel : int or None
        Use this channel alone.
    block : int
        Images that are decoded at no more than this many pixels a side are segmented whole, others by block.
    as_zarr : bool
        Write labels as OME-Zarr, not as TIFF.
    keep : bool
        Leave a slide alone that the same run has finished before.
    """

    diameter: float | None = None
    channel: int | None = None
    block: int = BLOCK
    as_zarr: bool = False
    keep: bool = True

    def target(self, out: Path, name: str, image: Path) -> Path:
        """Return what the result of an image is called; an OME-Zarr predicted into its own folder gets the labels."""
        if not self.as_zarr:
            return out / f"{name}.tif"
        return image if is_zarr(image) and image.resolve().parent == out.resolve() else out / f"{name}.zarr"


@dataclass(frozen=True)
class Order:
    """An image to be segmented: plain data, to be sent to whoever does it.

    Attributes
    ----------
    name : str
        Its id.
    image : Path
        The image.
    target : Path
        The result, by whose name what belongs to it is called.
    wish : Wish
        How.
    """

    name: str
    image: Path
    target: Path
    wish: Wish

    @property
    def labels(self) -> Path:
        """The label image: the target, or a group inside it."""
        return labels_group(self.target, self.image) if self.wish.as_zarr else self.target


@dataclass(frozen=True)
class Predicted:
    """An image that was segmented: the fields of its :class:`Order`, and ``scores``, float64 ``(n,)``, one a cell."""

    name: str
    image: Path
    target: Path
    labels: Path
    scores: Scores


@dataclass(frozen=True)
class Told:
    """What is called while images are segmented.

    Attributes
    ----------
    notice : callable
        Takes a line that says what is skipped or resumed.
    beside : callable
        Takes every result that is there, to write what else is wanted of it; sent to other processes where these do
        the work.
    failed : callable
        Takes the error of an image that cannot be used; by default raises it. The others go on.
    """

    notice: Callable[[str], None] = lambda _: None
    beside: Callable[[Predicted], None] | None = None
    failed: Callable[[CellsegError], None] | None = None

    def fail(self, error: CellsegError) -> None:
        """Let one image fail and the others go on, unless errors stop the work or the user did."""
        if self.failed is None or isinstance(error, Interrupted):
            raise error
        self.failed(error)


def orders_of(files: Iterable[tuple[str, Path]], out: str | Path, wish: Wish) -> list[Order]:
    """Say where the result of every image goes."""
    return [Order(name, image, wish.target(Path(out), name, image), wish) for name, image in files]


def in_strips(plan: Plan) -> list[Block]:
    """List the blocks row by row in upright strips, narrow enough that the windows of a row are kept for the next.

    So windows at the rim of a block are seen once and not up to four times, but for those between strips.
    """
    blocks = plan.blocks()
    columns = max((block.column for block in blocks), default=0) + 1
    side = min(plan.block, *plan.shape)
    width = max(1, STRIP_PIXELS // (side * (side + WINDOW_REACH)))
    strips = -(-columns // width)
    return sorted(blocks, key=lambda block: (block.column * strips // columns, block.row, block.column))


@contextmanager
def naming(image: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds into one line that names the image."""
    try:
        yield
    except kinds as error:
        raise CellsegError(f"{image.name}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return what an error says in one line, cut where it is not our own."""
    silent = {MemoryError: "out of memory, a smaller --block needs less", KeyboardInterrupt: "interrupted"}
    said = " ".join(str(error).split()) or silent.get(type(error), type(error).__name__)
    return said if isinstance(error, CellsegError) else said[:200]


@contextmanager
def say_how_to_go_on(job: Job) -> Iterator[None]:
    """Let whatever stops a job say how many of its blocks are kept, and that the same command goes on there."""
    try:
        yield
    except (CellsegError, KeyboardInterrupt, MemoryError, RuntimeError) as error:
        blocks = job.plan.blocks()
        done = sum(job.folder.is_finished(block) for block in blocks)
        kind = Interrupted if isinstance(error, KeyboardInterrupt | Interrupted) else CellsegError
        raise kind(
            f"{one_line(error)}; {done} of {len(blocks)} blocks of {job.name} are finished and kept in "
            f"{job.folder.path}: the same command goes on there"
        ) from error


def blocks_folder(target: str | Path) -> Path:
    """Return the folder of the blocks of a result: ``out/a.tif`` has ``out/a.blocks``."""
    return Path(target).with_suffix(SUFFIX)
