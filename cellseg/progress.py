"""A progress bar on stderr for long work; silent where stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Yield the items, showing how many are done of how many.

    Parameters
    ----------
    items : iterable
        What to go through.
    what : str
        Name of the work.
    total, done : int
        Number of all items, and of those done before (by a resumed run).
    """
    if not sys.stderr.isatty():
        yield from items
        return
    with _bar() as progress:
        task = progress.add_task(what, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task)


@contextmanager
def counter(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function that shows how many are done of how many, which may grow; None where stderr is no terminal.

    Parameters
    ----------
    what : str
        Name of the work.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with _bar() as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
