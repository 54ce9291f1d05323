"""Write files so that a reader sees the old content or the new one, never half of either.

A process that was killed leaves its temporary file behind. The next one that writes into the folder removes it: a
temporary is locked for as long as its writer lives, and what nobody holds belongs to nobody. Where files cannot be
locked (some network file systems, Windows) such files stay.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cellseg.core import CellsegError

if sys.platform != "win32":
    import fcntl

_TEMPORARY = re.compile(r"\..*\.\d+\.tmp(\.[^.]*)?", re.DOTALL)
_swept: set[Path] = set()
"""Folders in which this process has looked for what killed ones left."""


class CannotWrite(CellsegError):
    """A file cannot be written: nothing is wrong with what was read, and the next file will fail as well."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; flush and rename it there when the block succeeds.

    Parameters
    ----------
    path : str or Path
        Final file; missing parent folders are created.

    Yields
    ------
    Path
        Empty file to write to, in the same folder and with the same extension.

    Raises
    ------
    CannotWrite
        If the folder cannot be written (read-only, disk full), with the old file intact.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.tmp{final.suffix}")
    with writing(final):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            _sweep(final.parent)
            with temporary.open("ab") as held:
                _lock(held)
                yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(final)
            flush_folder(final.parent)
        finally:
            with suppress(OSError):  # such as: its folder is a file
                temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Have the disk know the names in a folder, so that a file that was renamed is there after a power cut."""
    with suppress(OSError):  # Windows, and some file systems, flush no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def writing(final: str | Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be written into a CannotWrite that names it."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"{final}: cannot be written ({error.strerror or error}); is the disk full or read-only?"
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; raises CellsegError as :func:`atomic_path`, and if the text cannot be UTF-8."""
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = ascii(text[max(0, error.start - 20) : error.end + 20])
        raise CellsegError(f"{path}: cannot be written: {near} is no UTF-8; rename the file of that name") from None
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)


def _sweep(folder: Path) -> None:
    """Remove the temporaries of processes that died, once in each folder."""
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):  # a folder that may be written and not listed
        left = [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name) and path.is_file()]
        for path in left:
            with suppress(OSError), path.open("ab") as handle:
                if _lock(handle):
                    path.unlink()


def _lock(handle: IO[bytes]) -> bool:
    """Whether this process holds the file now; it lets go when the file is closed."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds it, or the file system knows no locks
        return False
    return True
