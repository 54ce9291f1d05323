"""Run the command line in children forked from a process that has imported everything: a start costs milliseconds.

What a child does to files inside its folder is numbered as it happens (opened for writing, flushed, renamed, removed,
made), so it can be ended, or told that the disk is full, at any of these events. A fork must not follow work by
threads: the parent computes nothing.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]

ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "MPLBACKEND": "Agg"}

IMPORTED = """cv2 cellseg.adapt cellseg.cli.runs cellseg.datasets.folder cellseg.datasets.livecell cellseg.outputs
cellseg.predict_images matplotlib.pyplot scipy.stats skimage.measure skimage.segmentation roifile scipy.cluster.vq
pycocotools.mask pyarrow.parquet pandas zarr tensorboard.summary.writer.record_writer cellseg.evaluate cellseg.tables
cellseg.report.page"""

LIMIT_S = 300.0
"""A child that takes longer hangs."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


@dataclass(frozen=True)
class Fault:
    """What happens to a child at one of its events.

    Attributes
    ----------
    kind : {"none", "kill", "torn", "full"}
        Nothing; SIGKILL just before the event; the same with the file it is about written half; or the disk is full
        from that event on.
    event : int
        Which, from 1.
    """

    kind: str = "none"
    event: int = 0


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes
    ----------
    status : int
        Exit status, or minus the number of the signal.
    said : str
        What it printed.
    seconds : float
        From the fork to the end.
    events : list of str
        What it did to files, in order.
    """

    status: int
    said: str
    seconds: float
    events: list[str] = field(default_factory=list)


def preload() -> None:
    """Import all that the commands import, before the first fork."""
    sys.path.insert(0, str(REPOSITORY))
    os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp(prefix="cellseg-faults-mpl-"))
    Path(os.environ["MPLCONFIGDIR"]).chmod(0o777)
    for name in IMPORTED.split():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def learn(works: Sequence[Callable[[], None]], folder: Path) -> None:
    """Do works once in children and import here what they imported, so that it is not imported in every child."""
    for number, work in enumerate(works):
        known, place = set(sys.modules), folder / f"imports {number}"

        def listing(work: Callable[[], None] = work, known: set[str] = known) -> None:
            try:
                work()
            finally:
                for name in sys.modules:
                    if name not in known:
                        print("imported", name)

        place.mkdir()
        for line in run(listing, place).said.splitlines():
            if line.startswith("imported "):
                with suppress(ImportError):
                    importlib.import_module(line.removeprefix("imported "))
        shutil.rmtree(place)
    gc.collect()
    gc.freeze()


def command(*words: str) -> Callable[[], None]:
    """Return what runs the command line on words."""

    def run() -> None:
        from cellseg.cli import main

        sys.argv = ["cellseg", *words]
        main()

    return run


def run(
    work: Callable[[], None],
    folder: Path,
    fault: Fault | None = None,
    kill_after: float | None = None,
    before: Callable[[], None] = lambda: None,
) -> Ended:
    """Fork, do the work in the child, and say how it ended.

    Parameters
    ----------
    work : callable
        What the child does.
    folder : Path
        Where it works; only events inside it count.
    fault : Fault, optional
        What happens at one of its events.
    kill_after : float, optional
        Seconds after which it is killed if it is still there.
    before : callable
        What the child does first, such as giving up rights.
    """
    out, mine = os.pipe()
    with tempfile.TemporaryFile() as noted:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(out)
            _be_the_child(work, folder, (mine, noted.fileno()), fault or Fault(), before)
        os.close(mine)
        said = _listen(out, child, began, LIMIT_S if kill_after is None else kill_after)
        _, waited = os.waitpid(child, 0)
        seconds = time.monotonic() - began
        noted.seek(0)
        events = noted.read().decode("utf-8", "replace").splitlines()
    return Ended(os.waitstatus_to_exitcode(waited), said, seconds, events)


def _listen(out: int, child: int, began: float, limit: float) -> str:
    """Read what a child says until it ends or its time is over."""
    said = b""
    while True:
        left = began + limit - time.monotonic()
        if left <= 0:
            os.kill(child, signal.SIGKILL)
            left = 1.0
        ready, _, _ = select.select([out], [], [], left)
        if not ready:
            continue
        piece = os.read(out, 65536)
        if not piece:
            os.close(out)
            return said.decode("utf-8", "replace")
        said += piece


def _be_the_child(
    work: Callable[[], None], folder: Path, ends: tuple[int, int], fault: Fault, before: Callable[[], None]
) -> None:
    status = 70
    try:
        os.dup2(ends[0], 1)
        os.dup2(ends[0], 2)
        os.chdir(folder)
        before()
        _Events(folder, ends[1], fault).install()
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Events:
    """Numbers what this process does to files inside a folder, and lets a fault happen at one of them."""

    def __init__(self, folder: Path, noted: int, fault: Fault) -> None:
        self.folder, self.noted, self.fault = os.fsencode(folder.resolve()) + b"/", noted, fault
        self.count, self.inside = 0, False

    def install(self) -> None:
        """Listen from now on; an audit hook cannot be taken away, which is why only children do this."""
        flush = os.fsync

        def fsync(handle: int) -> None:
            self._happens("fsync", Path(f"/proc/self/fd/{handle}").readlink())
            flush(handle)

        os.fsync = fsync
        sys.addaudithook(self._hear)

    def _hear(self, name: str, said: tuple[Any, ...]) -> None:
        if self.inside:
            return
        if name == "open":
            path, mode, flags = said
            if isinstance(flags, int) and flags & _WRITING and isinstance(path, str | bytes | os.PathLike):
                self._happens("append" if mode and "a" in mode and ".tmp" not in str(path) else "open", path)
        elif name in _CHANGES:
            self._happens(name, said[0])

    def _happens(self, name: str, path: Any) -> None:
        self.inside = True
        try:
            where = os.path.abspath(os.fsencode(path))  # noqa: PTH100 (links stay as they are)
            if not where.startswith(self.folder):
                return
            self.count += 1
            with suppress(OSError):  # a limit on the size of files is one on the notes as well
                os.write(self.noted, b"%s %s\n" % (name.encode(), where[len(self.folder) :]))
            if self.count == self.fault.event and self.fault.kind in ("kill", "torn"):
                if self.fault.kind == "torn":
                    _tear(name, where)
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault.kind == "full" and self.count >= self.fault.event and name not in ("os.rename", "os.remove"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))
        finally:
            self.inside = False


def _tear(name: str, path: bytes) -> None:
    """Leave a file as a killed write leaves it: what is appended begins, what is not yet renamed is half."""
    if name == "append":
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, b'{"step": 3, "lo')
        os.close(handle)
    elif b".tmp" in path and Path(os.fsdecode(path)).is_file():
        os.truncate(path, Path(os.fsdecode(path)).stat().st_size // 2)


def only_line(said: str) -> str:
    """Return the one line in which a failure is said, empty if it is not said in one; warnings are let pass."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("warning:")]
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[0] if len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in said else ""


def words_of(text: str, **places: Path) -> Sequence[str]:
    """Split a command line and fill in its places."""
    return [word.format(**{name: str(path) for name, path in places.items()}) for word in text.split()]
