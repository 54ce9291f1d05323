"""What a worker does for :mod:`cellseg.farm.scheduling`: begin an image, segment some of its blocks, finish it.

Every function takes plain data and leaves its results on disk, so any worker may do any part, twice if need be. The
model is loaded once a process. What is done of blocks is skipped, so a task that was lost with its worker is done again
from where it was.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cellseg
from cellseg.config import PredictConfig
from cellseg.core import CellsegError
from cellseg.orders import Job, Order, Predicted, Scores, one_line
from cellseg.slides.blocks import Block

if TYPE_CHECKING:
    from cellseg.predict import Segmenter

_ONE_AT_A_TIME = threading.Lock()
_LOADED: dict[Recipe, Segmenter] = {}


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to load the model.

    Attributes
    ----------
    model : str
        Name, weights file or run folder, as every worker can find it.
    device : str
        For :func:`cellseg.devices.pick_device`, on the machine of the worker.
    settings : PredictConfig
        How it is used.
    threads : int or None
        Threads of a worker; None leaves that to how the worker was started.
    run : str
        Tells this run from others, so that weights that changed are loaded again.
    fingerprint : str
        Of the model that all workers must have; empty for the first, which says it.
    """

    model: str
    device: str
    settings: PredictConfig
    threads: int | None
    run: str = ""
    fingerprint: str = ""


def greet(recipe: Recipe) -> tuple[str, str]:
    """Return the fingerprint of the model as this worker finds it, and the version of cellseg."""
    with _ONE_AT_A_TIME:
        return segmenter_of(recipe).fingerprint, cellseg.__version__


def begin_image(
    recipe: Recipe, order: Order, beside: Callable[[Predicted], None] | None
) -> tuple[Predicted | Job, list[str]]:
    """Segment a small image, or plan a large one; see :func:`cellseg.predict_images.begin`. Also return notices."""
    from cellseg.predict_images import begin, conclude

    said: list[str] = []
    with _ONE_AT_A_TIME:
        found = begin(segmenter_of(recipe), order, said.append)
        return (found if isinstance(found, Job) else conclude(order, found, beside)), said


def run_blocks(recipe: Recipe, job: Job, blocks: list[Block]) -> None:
    """Segment those of some blocks that are not there; an error names the block."""
    from cellseg.predict_slides import run_block

    with _ONE_AT_A_TIME:
        segmenter = segmenter_of(recipe)
        for block in blocks:
            if not job.folder.is_finished(block):
                try:
                    run_block(segmenter, job, block)
                except (CellsegError, MemoryError, RuntimeError) as error:
                    raise CellsegError(f"{named(job, block)}: {one_line(error)}") from error


def finish_image(job: Job, order: Order, beside: Callable[[Predicted], None] | None) -> Predicted:
    """Join the finished blocks of an image and write the result."""
    from cellseg.predict_images import conclude
    from cellseg.predict_slides import finish_job

    scores: Scores = finish_job(job, order.target, order.image)
    return conclude(order, scores, beside)


def named(job: Job, block: Block) -> str:
    """Name a block for people."""
    core = block.core
    return f"{job.name}, block {block.name} (rows {core.top} to {core.bottom}, columns {core.left} to {core.right})"


def segmenter_of(recipe: Recipe) -> Segmenter:
    """Return the model of a recipe, loaded by this process if it is not there yet.

    Raises
    ------
    CellsegError
        If it cannot be loaded, or is not the one that the other workers have.
    """
    key = replace(recipe, fingerprint="")
    if key not in _LOADED:
        _LOADED.clear()  # before the next is loaded, so that memory need not hold two
        _LOADED[key] = _load(recipe)
    found = _LOADED[key]
    if recipe.fingerprint not in ("", found.fingerprint):
        raise CellsegError(
            f"{platform.node()}: {recipe.model} is another model here than on the other workers; "
            "wanted the same file on every machine"
        )
    return found


def _load(recipe: Recipe) -> Segmenter:
    import cv2
    import torch

    from cellseg.devices import pick_device
    from cellseg.predict import load

    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
        cv2.setNumThreads(recipe.threads)
    device = pick_device(recipe.device)
    if device.type == "cuda":
        device = torch.device("cuda", _number() % torch.cuda.device_count())
    return load(recipe.model, device=device, settings=recipe.settings)


def _number() -> int:
    """Return the place of this worker among those of a local cluster; 0 where workers have names of their own."""
    from distributed import get_worker

    name: Any = get_worker().name
    return name if isinstance(name, int) else 0
