"""Write files so that a reader sees the old content or the new one, never half of either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cellseg.core import CellsegError


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
        File to write to, in the same folder and with the same extension.

    Raises
    ------
    CellsegError
        If the folder cannot be written (read-only, disk full), with the old file intact.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.tmp{final.suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(final)
    except OSError as error:
        raise CellsegError(
            f"{final}: cannot be written ({error.strerror or error}); is the disk full or read-only?"
        ) from error
    finally:
        with suppress(OSError):  # such as: its folder is a file
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; raises CellsegError as :func:`atomic_path`, and if the text cannot be UTF-8."""
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = ascii(text[max(0, error.start - 20) : error.end + 20])
        raise CellsegError(f"{path}: cannot be written: {near} is no UTF-8; rename the file of that name") from None
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)
