"""Segment images on many processes or machines through Dask: small images whole, large ones by runs of blocks.

A task is an image, a run of neighbouring blocks of one, or the joining of its finished blocks. Tasks leave their
results on a disk that all workers share, exactly as one process does (:mod:`cellseg.predict_slides`), and only as many
are in flight as there are workers. So it does not matter which worker does what, how often, or when it dies: Dask gives
the tasks of a lost worker to another, and a run that was stopped is resumed, by one process or many. The process that
hands them out holds no image and no network.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cellseg
from cellseg import farm_tasks
from cellseg.blocks import Block
from cellseg.core import CellsegError
from cellseg.farm_tasks import Recipe
from cellseg.orders import Interrupted, Job, Order, Predicted, Told, say_how_to_go_on
from cellseg.progress import counter

if TYPE_CHECKING:
    from distributed import Client, Future

RETRIES = 2
"""How often what raised an error is tried again, by whatever worker is free."""

RUNS_A_WORKER = 4
"""Into how many runs, at least, the blocks of an image are divided for each worker, so that all end together."""

_LOOK_S = 1.0
"""How often finished blocks are counted for the progress bar."""


@dataclass(eq=False)
class _Slide:
    """An image on its way."""

    order: Order
    job: Job | None = None
    runs_left: int = 0


@dataclass(frozen=True, eq=False)
class _Task:
    """Work for one worker."""

    slide: _Slide
    work: Callable[..., Any]
    arguments: tuple[Any, ...]

    @property
    def about(self) -> str:
        """What it is about, for messages."""
        if self.slide.job is None or self.work is not farm_tasks.run_blocks:
            return self.slide.order.image.name
        _, job, blocks = self.arguments
        return farm_tasks.named(job, next((block for block in blocks if not job.folder.is_finished(block)), blocks[-1]))


def predict_on(
    client: Client, recipe: Recipe, orders: Sequence[Order], told: Told | None = None
) -> Iterator[Predicted]:
    """Segment images on the workers of a cluster; the results are those of one process.

    Parameters
    ----------
    client : distributed.Client
        See :func:`cellseg.cluster.connect`.
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
        farm.waiting.append(_Task(_Slide(order), farm_tasks.begin_image, (farm.recipe, order, told.beside)))
    try:
        with counter("blocks") as show:
            while farm.waiting or farm.flying:
                farm.submit()
                yield from farm.collect()
                if show is not None:
                    show(*farm.count())
    except KeyboardInterrupt:
        slide = next((task.slide for task in farm.flying.values() if task.slide.job is not None), None)
        with _how_to_go_on(slide):
            raise
    finally:
        with suppress(Exception):  # of a scheduler that is gone
            client.cancel(list(farm.flying))


def runs_of(blocks: Sequence[Block], workers: int) -> list[list[Block]]:
    """Divide blocks into runs of neighbours in a row, for a worker need not look again at windows it has just seen."""
    longest = max(1, len(blocks) // (workers * RUNS_A_WORKER))
    runs: list[list[Block]] = []
    for block in blocks:
        last = runs[-1] if runs else []
        if last and len(last) < longest and last[-1].place == (block.row, block.column - 1):
            last.append(block)
        else:
            runs.append([block])
    return runs


@dataclass
class _Farm:
    """Work that waits and work that is done by others at the moment."""

    client: Client
    recipe: Recipe
    told: Told
    waiting: deque[_Task] = field(default_factory=deque)
    flying: dict[Future, _Task] = field(default_factory=dict)
    blocks_done: int = 0
    workers: int = 1

    def submit(self) -> None:
        """Give every worker something to do."""
        with _reaching_the_cluster():
            self.workers = max(1, len(self.client.nthreads()))
            while self.waiting and len(self.flying) < self.workers:
                task = self.waiting.popleft()
                self.flying[self.client.submit(task.work, *task.arguments, pure=False, retries=RETRIES)] = task

    def collect(self) -> Iterator[Predicted]:
        """Wait a while for something to be done, and see what follows from it."""
        from distributed import wait

        try:
            with _reaching_the_cluster():
                done = wait(list(self.flying), timeout=_LOOK_S, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            return
        for future in done:
            task = self.flying.pop(future, None)
            if task is None:  # of an image that failed a moment ago
                continue
            try:
                with _how_to_go_on(task.slide):
                    found = _result(future, task.about)
            except CellsegError as error:
                self.drop(task.slide)
                self.told.fail(error)
                continue
            yield from self.follow(task, found)

    def follow(self, task: _Task, found: Any) -> Iterator[Predicted]:
        """Yield a finished image, or let what follows a task wait for its turn before all other images."""
        slide = task.slide
        if task.work is farm_tasks.begin_image:
            found, notices = found
            for line in notices:
                self.told.notice(line)
            if isinstance(found, Job):
                slide.job = found
                runs = runs_of(found.unfinished(), self.workers)
                slide.runs_left = len(runs)
                tasks = [_Task(slide, farm_tasks.run_blocks, (self.recipe, found, run)) for run in runs]
                self.waiting.extendleft(reversed(tasks))
        elif task.work is farm_tasks.run_blocks:
            slide.runs_left -= 1
        if isinstance(found, Predicted):
            if slide.job is not None:
                self.blocks_done += len(slide.job.plan.blocks())
            yield found
        elif slide.runs_left == 0:
            self.waiting.appendleft(_Task(slide, farm_tasks.finish_image, (slide.job, slide.order, self.told.beside)))

    def drop(self, slide: _Slide) -> None:
        """Do no more of an image; what of it is in flight may end, and is kept."""
        self.waiting = deque(task for task in self.waiting if task.slide is not slide)
        gone = [future for future, task in self.flying.items() if task.slide is slide]
        for future in gone:
            del self.flying[future]
        with _reaching_the_cluster():
            self.client.cancel(gone)

    def count(self) -> tuple[int, int]:
        """Return how many blocks of the images begun are finished, of how many."""
        slides = {id(task.slide): task.slide.job for task in (*self.waiting, *self.flying.values())}
        jobs = [job for job in slides.values() if job is not None]
        total = self.blocks_done + sum(len(job.plan.blocks()) for job in jobs)
        return total - sum(len(job.unfinished()) for job in jobs), total


def _agreed(client: Client, recipe: Recipe, told: Told) -> Recipe:
    """Let one worker load the model, as all others must have it."""
    recipe = replace(recipe, run=uuid.uuid4().hex, fingerprint="")
    with _reaching_the_cluster():
        if not client.nthreads():
            told.notice("the cluster has no workers yet, waiting for one")
        future = client.submit(farm_tasks.greet, recipe, pure=False)
    fingerprint, version = _result(future, "a worker, before any image")
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
        raise Interrupted(f"{_GONE} ({_line(error)})") from error
    except ModuleNotFoundError as error:
        raise CellsegError(f"a worker cannot use cellseg ({error}); install the same version everywhere") from error
    except Exception as error:
        raise CellsegError(f"{about}: {type(error).__name__}: {_line(error)}") from error


_GONE = "the Dask scheduler is gone, what was finished is kept"


@contextmanager
def _reaching_the_cluster() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise
    except (OSError, CancelledError, RuntimeError) as error:
        raise Interrupted(f"{_GONE} ({_line(error)})") from error


def _how_to_go_on(slide: _Slide | None) -> Any:
    return nullcontext() if slide is None or slide.job is None else say_how_to_go_on(slide.job)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
