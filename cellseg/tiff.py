"""Open a TIFF after a look at what its OME-XML asks for: other files to open, and lists to make room for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from cellseg.core import CellsegError
from cellseg.memory import require_file

MOST_PLANES = 10**7
"""A file that says it has more planes is damaged; tifffile would make a list of so many."""

_FILE = re.compile(r"""\bFileName\s*=\s*["']([^"']*)["']""")
_COUNT = re.compile(r"""\b(?:PlaneCount|NumPlanes|IFD|First[A-Z]|Size[A-Z])\s*=\s*["']\s*(\d+)""")


@contextmanager
def open_tiff(path: Path) -> Iterator[Any]:
    """Open a TIFF as ``tifffile.TiffFile``.

    Raises
    ------
    CellsegError
        If its OME-XML names a file outside its folder, or one that is a pipe or a device, or counts more than
        :data:`MOST_PLANES`.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        if tiff.is_ome:
            _check(str(tiff.ome_metadata), path)
        yield tiff


def require_bytes(page: Any, count: int) -> None:
    """Raise CellsegError where a strip or tile of a page claims more bytes than the file has that holds it.

    tifffile makes room for as many as are claimed before it reads them.
    """
    file = page.parent.filehandle
    if count > file.size:
        raise CellsegError(f"{file.path}: says that a part of it is larger than the whole; it is damaged or cut short")


def _check(text: str, path: Path) -> None:
    for name in set(_FILE.findall(text)):
        parts = PureWindowsPath(name)  # knows slashes of both kinds
        if parts.anchor or ".." in parts.parts:
            raise CellsegError(f"{path}: has planes in {name[:100]!r}, outside its folder; put them together")
        require_file(path.parent / name)
    for count in _COUNT.findall(text):
        if len(count) > 12 or int(count) > MOST_PLANES:
            raise CellsegError(f"{path}: says it has {count[:20]} planes or pixels a side; it is damaged")
