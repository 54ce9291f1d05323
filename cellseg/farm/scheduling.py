"""Segment images on many processes or machines through Dask: small images whole, large ones by block.

A task is an image, a few neighbouring blocks of one, or the joining of its finished blocks. Tasks leave their results
on a disk that all workers share, exactly as one process does (:mod:`cellseg.predict_slides`), and only as many are in
flight as there are workers. So it does not matter which worker does what, how often, or when it dies: Dask gives the
tasks of a lost worker to another, and a run that was stopped is resumed, by one process or many. Only for speed each
worker gets the neighbours of what it did last, since it still has the windows that they share. The process that hands
out tasks holds no image and no network.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cellseg
from cellseg.core import CellsegError
from cellseg.farm import tasks
from cellseg.farm.tasks import Recipe
from cellseg.orders import Interrupted, Job, Order, Predicted, Told, one_line, say_how_to_go_on
from cellseg.progress import counter
from cellseg.slides.blocks import Block

if TYPE_CHECKING:
    from distributed import Client, Future

RETRIES = 2
"""How often what raised an error is tried again, by whatever worker is free."""

TASKS_A_WORKER = 4
"""How many tasks, at least, the blocks of an image make for each worker, so that all end together."""
TASK_PIXELS = 2**22
"""About how many pixels a task has, if its blocks are smaller: so many take long beside being handed out."""

_LOOK_S = 1.0
"""How often it is looked whether new workers are there."""


@dataclass
class Part:
    """Neighbouring blocks that nobody has begun, of which one worker takes the first; nobody's at the beginning."""

    blocks: deque[Block]
    owner: str = ""


@dataclass(eq=False)
class _Slide:
    """An image on its way."""

    order: Order
    job: Job | None = None
    parts: list[Part] = field(default_factory=list)
    at_once: int = 1
    """Blocks of a task."""
    flying: int = 0
    """Blocks being computed."""

    @property
    def left(self) -> int:
        """Number of blocks that are not finished."""
        return self.flying + sum(len(part.blocks) for part in self.parts)


@dataclass(frozen=True, eq=False)
class _Task:
    """Work for one worker."""

    slide: _Slide
    work: Callable[..., Any]
    arguments: tuple[Any, ...]

    @property
    def about(self) -> str:
        """What it is about, for messages."""
        if self.slide.job is None or self.work is not tasks.run_blocks:
            return self.slide.order.image.name
        _, job, blocks = self.arguments
        return tasks.named(job, next((block for block in blocks if not job.folder.is_finished(block)), blocks[-1]))


def predict_on(
    client: Client, recipe: Recipe, orders: Sequence[Order], told: Told | None = None
) -> Iterator[Predicted]:
    """Segment images on the workers of a cluster; the results are those of one process.

    Parameters
    ----------
    client : distributed.Client
        See :func:`cellseg.farm.cluster.connect`.
    recipe : Recipe
        The model, without run and fingerprint.
    orders : sequence of Order
        What is wanted, under paths that every worker has.
    told : Told, optional
        What is called meanwhile; ``beside`` by the workers.

    Yields
    ------
    Predicted
        Once it is written, in the order in which they come.

    Raises
    ------
    CellsegError
        If workers have no model or another one, or the scheduler is lost; and what stops one image, unless
        ``told.failed`` takes it.
    """
    told = told or Told()
    farm = _Farm(client, _agreed(client, recipe, told), told)
    for order in orders:
        farm.waiting.append(_Task(_Slide(order), tasks.begin_image, (farm.recipe, order, told.beside)))
    try:
        with counter("blocks") as show:
            while farm.is_busy:
                farm.submit()
                yield from farm.collect()
                if show is not None:
                    show(*farm.count())
    except KeyboardInterrupt:
        begun = [task.slide for task, _ in farm.flying.values() if task.slide.job is not None]
        with _how_to_go_on(begun[0] if begun else None):
            raise
    finally:
        with suppress(Exception):  # of a scheduler that is gone
            client.cancel(list(farm.flying))


def take(parts: list[Part], worker: str, count: int) -> list[Block]:
    """Take the next blocks for a worker, of its own part, of one that is nobody's, or of half the largest one.

    Parameters
    ----------
    parts : list of Part
        What is left of an image; changed.
    worker : str
        Who asks.
    count : int
        How many at most.

    Returns
    -------
    list of Block
        Empty where none is left.
    """
    parts[:] = [part for part in parts if part.blocks]
    if not parts:
        return []
    mine = next((part for owner in (worker, "") for part in parts if part.owner == owner), None)
    if mine is None:
        largest = max(parts, key=lambda part: len(part.blocks))
        half = [largest.blocks.pop() for _ in range(-(-len(largest.blocks) // 2))]
        mine = Part(deque(reversed(half)))
        parts.append(mine)
    mine.owner = worker
    return [mine.blocks.popleft() for _ in range(min(count, len(mine.blocks)))]


@dataclass
class _Farm:
    """Work that waits and work that is done by others at the moment."""

    client: Client
    recipe: Recipe
    told: Told
    waiting: deque[_Task] = field(default_factory=deque)
    slides: list[_Slide] = field(default_factory=list)
    """Large images that have begun."""
    flying: dict[Future, tuple[_Task, str]] = field(default_factory=dict)
    """Tasks and the workers they were given to."""
    workers: int = 1
    total: int = 0

    @property
    def is_busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.flying or self.waiting or self.slides)

    def submit(self) -> None:
        """Give every worker something to do."""
        with _reaching_the_cluster():
            workers = list(self.client.nthreads())
            self.workers = max(1, len(workers))
            busy = {worker for _, worker in self.flying.values()}
            for worker in [one for one in workers if one not in busy][: self.workers - len(self.flying)]:
                task = self.next_for(worker)
                if task is None:
                    return
                where = {"workers": [worker], "allow_other_workers": True}  # such as when it dies
                future = self.client.submit(task.work, *task.arguments, pure=False, retries=RETRIES, **where)
                self.flying[future] = task, worker

    def next_for(self, worker: str) -> _Task | None:
        """Return what a worker should do: blocks of images that have begun come before other images."""
        for slide in self.slides:
            blocks = take(slide.parts, worker, slide.at_once)
            if blocks:
                slide.flying += len(blocks)
                return _Task(slide, tasks.run_blocks, (self.recipe, slide.job, blocks))
        return self.waiting.popleft() if self.waiting else None

    def collect(self) -> Iterator[Predicted]:
        """Wait a while for something to be done, and see what follows from it."""
        from distributed import wait

        if not self.flying:  # all workers are gone; others may come
            time.sleep(_LOOK_S)
            return
        try:
            with _reaching_the_cluster():
                done = wait(list(self.flying), timeout=_LOOK_S, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            return
        for future in done:
            if future not in self.flying:  # of an image that failed a moment ago
                continue
            task, _ = self.flying.pop(future)
            try:
                with _how_to_go_on(task.slide):
                    found = _result(future, task.about)
            except CellsegError as error:
                self.drop(task.slide)
                self.told.fail(error)
                continue
            yield from self.follow(task, found)

    def follow(self, task: _Task, found: Any) -> Iterator[Predicted]:
        """Yield a finished image, or see to what follows a task."""
        slide = task.slide
        if isinstance(found, Predicted):
            yield found
            return
        if task.work is tasks.begin_image:
            found, notices = found
            for line in notices:
                self.told.notice(line)
            if isinstance(found, Predicted):
                yield found
                return
            self.open(slide, found)
        else:
            slide.flying -= len(task.arguments[2])
        if slide.left == 0:
            self.slides.remove(slide)
            self.waiting.appendleft(_Task(slide, tasks.finish_image, (slide.job, slide.order, self.told.beside)))

    def open(self, slide: _Slide, job: Job) -> None:
        """Let the blocks of a large image be taken."""
        blocks = job.unfinished()
        slide.job, slide.parts = job, [Part(deque(blocks))]
        most = max(1, len(blocks) // (self.workers * TASKS_A_WORKER))
        slide.at_once = min(most, max(1, TASK_PIXELS // job.plan.block**2))
        self.slides.append(slide)
        self.total += len(job.plan.blocks())

    def drop(self, slide: _Slide) -> None:
        """Do no more of an image; what of it is in flight may end, and is kept."""
        self.slides = [other for other in self.slides if other is not slide]
        gone = [future for future, (task, _) in self.flying.items() if task.slide is slide]
        for future in gone:
            del self.flying[future]
        with _reaching_the_cluster():
            self.client.cancel(gone)

    def count(self) -> tuple[int, int]:
        """Return how many blocks of the images begun are finished, of how many."""
        return self.total - sum(slide.left for slide in self.slides), self.total


def _agreed(client: Client, recipe: Recipe, told: Told) -> Recipe:
    """Let all workers load the model, at the same time; all must have that of the first."""
    recipe = replace(recipe, run=uuid.uuid4().hex, fingerprint="")
    with _reaching_the_cluster():
        workers = list(client.nthreads())
        if not workers:
            told.notice("the cluster has no workers yet, waiting for one")
        where = [{"workers": [one], "allow_other_workers": True} for one in workers] or [{}]
        greetings = [client.submit(tasks.greet, recipe, pure=False, **one) for one in where]
    fingerprint, version = _result(greetings[0], "a worker, before any image")
    if version != cellseg.__version__:
        raise CellsegError(
            f"the workers have cellseg {version}, but here it is {cellseg.__version__}; install the same everywhere"
        )
    return replace(recipe, fingerprint=fingerprint)


def _result(future: Future, about: str) -> Any:
    """Return what a task returned; what it raised becomes one line that says what it was about."""
    from distributed import KilledWorker

    try:
        return future.result()
    except CellsegError:
        raise
    except KilledWorker as error:
        raise CellsegError(
            f"{about}: every worker that tried it died, perhaps of too little memory; a smaller --block needs less"
        ) from error
    except MemoryError as error:
        raise CellsegError(f"{about}: out of memory; a smaller --block needs less") from error
    except (CancelledError, OSError) as error:
        raise Interrupted(f"{_GONE} ({one_line(error)})") from error
    except ModuleNotFoundError as error:
        raise CellsegError(f"a worker cannot use cellseg ({error}); install the same version everywhere") from error
    except Exception as error:
        raise CellsegError(f"{about}: {type(error).__name__}: {one_line(error)}") from error


_GONE = "the Dask scheduler is gone, what was finished is kept"


@contextmanager
def _reaching_the_cluster() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise
    except (OSError, CancelledError, RuntimeError) as error:
        raise Interrupted(f"{_GONE} ({one_line(error)})") from error


def _how_to_go_on(slide: _Slide | None) -> Any:
    return nullcontext() if slide is None or slide.job is None else say_how_to_go_on(slide.job)
