"""A Dask cluster to work with: local processes, or one that runs already.

Dask is an extra, ``pip install 'cellseg[dask]'``, and imported only here and where it is used.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.core import CellsegError
from cellseg.orders import one_line

if TYPE_CHECKING:
    from distributed import Client, Worker

_PATIENCE_S = 30
"""How long an address may not answer."""


@contextmanager
def connect(workers: int | None, scheduler: str | None) -> Iterator[Client]:
    """Yield a client of a cluster, which is closed at the end if it was started here.

    Parameters
    ----------
    workers : int or None
        So many processes on this machine, of one task at a time.
    scheduler : str or None
        Address of a scheduler that runs, such as ``tcp://node7:8786``, or its scheduler file (JSON).

    Raises
    ------
    CellsegError
        If Dask is not installed or nobody answers at the address.
    """
    if importlib.util.find_spec("distributed") is None:
        raise CellsegError("--workers and --scheduler need Dask, which is not installed: pip install 'cellseg[dask]'")
    import dask
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said again, in one line, by us
    with dask.config.set(_SETTINGS):
        if scheduler is None:
            with _local(workers or 1) as client:
                yield client
            return
        is_file = scheduler.endswith(".json")
        if is_file and not Path(scheduler).is_file():
            raise CellsegError(f"--scheduler {scheduler}: no such file; wanted the one of 'dask scheduler'")
        try:
            where = {"scheduler_file": scheduler} if is_file else {"address": scheduler}
            client = Client(**where, timeout=_PATIENCE_S)
        except (OSError, ValueError, TypeError) as error:
            raise CellsegError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({one_line(error)}); wanted the address "
                "that 'dask scheduler' printed, such as tcp://node7:8786, or its scheduler file"
            ) from error
        with client:
            yield client


_SETTINGS: dict[str, Any] = {
    "distributed.comm.timeouts.connect": f"{_PATIENCE_S}s",
    "distributed.scheduler.allowed-failures": 2,
    "distributed.worker.use-file-locking": False,
    # Left out: MALLOC_TRIM_THRESHOLD_, which gives freed memory back at once; networks wait for it a third of the time.
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), 1),
}


@contextmanager
def _local(workers: int) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    with tempfile.TemporaryDirectory(prefix="cellseg-") as scratch:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # a block bounds its memory itself; Dask would count the page cache and stop
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
            preload=[__name__],
        )
        with cluster, Client(cluster) as client:
            yield client


def dask_setup(worker: Worker) -> None:
    """Let a local worker leave ctrl-C to the process that started it, warn as the command line does, and get ready.

    The name is the one that Dask looks for in modules it is told to preload.
    """
    import cellseg.predict_images  # noqa: F401 (all workers do it at the same time, before there is work)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)


def threads_each(workers: int) -> int:
    """Return how many threads each of some local processes should have: OMP_NUM_THREADS, or its share of the cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(told) if told.isdecimal() and int(told) > 0 else max(1, cores // workers)
