"""Read what comes next on another thread, while the caller works on what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def prefetch(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[tuple[Item, Callable[[], Read]]]:
    """Yield every item with a function that returns what was read for it, or raises what reading it raised.

    Parameters
    ----------
    read : callable
        Called once for every item, in order and never twice at a time; for the next item while the caller uses this
        one. A single item is read where the caller asks for it, without a thread.
    items : iterable
        What to read; taken one item ahead.
    """
    source = iter(items)
    first = list(islice(source, 2))
    if len(first) < 2:
        yield from ((item, partial(read, item)) for item in first)
        return
    with ThreadPoolExecutor(1, "prefetch") as pool:
        item, coming = first[0], pool.submit(read, first[0])
        for following in chain(first[1:], source):
            reading = pool.submit(read, following)
            yield item, coming.result
            item, coming = following, reading
        yield item, coming.result
