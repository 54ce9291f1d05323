"""What a file may ask for: refuse a header that lies, a bomb or a pipe before anything of it is taken into memory."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.core import CellsegError

MOST_PIXELS = 2**35
"""Larger images are taken for a damaged header: the largest slides have half as many."""

_COPIES = 2
"""A decoded image and one copy of it, while channels are put in order or labels become int32."""


def require_file(path: str | Path) -> None:
    """Refuse what is there but is no file: reading a pipe waits for ever, and a device never ends.

    Raises
    ------
    CellsegError
        If the path is a folder, a pipe or a device. What is not there at all passes: opening it says so.
    """
    # os.path answers False where pathlib raises: a name too long, or with a NUL.
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
        raise CellsegError(f"{path}: cannot be read: it is a folder, a pipe or a device, not a file")


def require_plausible(path: str | Path, height: int, width: int) -> None:
    """Refuse an image that says it has more pixels than any microscope makes.

    Raises
    ------
    CellsegError
        If there are more than :data:`MOST_PIXELS`.
    """
    if height * width > MOST_PIXELS:
        raise CellsegError(f"{path}: says it is {height:,} x {width:,} pixels, more than any image has; it is damaged")


def require_room(path: str | Path, shape: Sequence[int], itemsize: int = 1) -> None:
    """Refuse to decode an image that would not fit into memory.

    Parameters
    ----------
    path : str or Path
        The file, for the message.
    shape : sequence of int
        What its header says; all axes.
    itemsize : int
        Bytes a number.

    Raises
    ------
    CellsegError
        If twice its size is more than :func:`free_bytes`.
    """
    wanted, free = math.prod(shape) * itemsize, free_bytes()
    if _COPIES * wanted > free:
        size = " x ".join(f"{length:,}" for length in shape)
        raise CellsegError(
            f"{path}: says it is {size}, {wanted / 2**30:,.1f} GiB once decoded, but {free / 2**30:.1f} GiB are free; "
            "if that is no damage, save it as a tiled TIFF or OME-Zarr, which are read by block"
        )


def peak_mb() -> float | None:
    """Return the most memory in MB that this process has had so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def free_bytes() -> int:
    """Return the memory that this process may still take: what the machine, its container and its limits leave."""
    return max(0, min(_left_on_machine(), _left_in_container(), _left_to_process()))


def _left_on_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**63


def _left_in_container() -> int:
    group = Path("/sys/fs/cgroup")
    try:
        most, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return int(most) - int(used)
    except (OSError, ValueError):  # no such group, or "max"
        return 2**63


def _left_to_process() -> int:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return 2**63
        return limit - int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return 2**63
