"""Write the labels of a slide row by row: as a tiled TIFF, or as the ``labels`` of an OME-Zarr with a pyramid.

OME-Zarr follows NGFF 0.5 (https://ngff.openmicroscopy.org/0.5/#labels-md) on Zarr 3; into an image of NGFF 0.4, which
is Zarr 2, its own form is written. Coarser levels take every second row and column from the first on, so that ids are
never mixed, and the first pixel of every level lies where that of the finest does.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Labels
from cellseg.files import atomic_path, flush_folder, writing
from cellseg.slides.pyramids import Placement, image_group, is_zarr, placement

BAND_ROWS = 512
"""Rows of each band that the writers take; the last may be lower."""

NAME = "cells"
"""Name of the labels in the ``labels`` group."""

Version = Literal[2, 3]
"""Of the Zarr format."""

_TILE = 256
_CHUNK = 512


def id_type(n_cells: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest of uint16 and uint32 that holds so many ids, as label files have them."""
    return np.uint16 if n_cells <= np.iinfo(np.uint16).max else np.uint32


@dataclass(frozen=True)
class LabelRows:
    """Labels that come row by row.

    Attributes
    ----------
    bands : iterable of int32 (BAND_ROWS, W)
        From top to bottom.
    shape : (height, width)
        Of the whole.
    n_cells : int
        Largest id: stored as uint16 up to 65,535, else as uint32.
    note : str
        Kept with the labels; see :func:`read_note`.
    """

    bands: Iterable[Labels]
    shape: tuple[int, int]
    n_cells: int
    note: str = ""


def rows_of(labels: Labels, note: str = "") -> LabelRows:
    """Return labels that are in memory as :class:`LabelRows`."""
    bands = (labels[top : top + BAND_ROWS] for top in range(0, labels.shape[0], BAND_ROWS))
    return LabelRows(bands, (labels.shape[0], labels.shape[1]), int(labels.max(initial=0)), note)


def write_label_tiff(path: str | Path, labels: LabelRows) -> None:
    """Write labels as a lossless tiled TIFF, atomically.

    Parameters
    ----------
    path : str or Path
        Final file, ending in ``.tif`` or ``.tiff``.
    labels : LabelRows
        The note becomes the image description.

    Raises
    ------
    CellsegError
        If the file cannot be written.
    """
    import tifffile

    dtype = id_type(labels.n_cells)
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary, _tiles(labels.bands, dtype), shape=labels.shape, dtype=dtype, tile=(_TILE, _TILE),
            compression="zlib", photometric="minisblack", metadata=None, software=False,
            description=labels.note or None,
            bigtiff=labels.shape[0] * labels.shape[1] * np.dtype(dtype).itemsize > 2**31,
        )  # fmt: skip


def labels_group(group: str | Path, image: str | Path) -> Path:
    """Return where labels go: into the image itself where that is the group, else into a folder of their own."""
    inside = image_group(image) if Path(group) == Path(image) else Path(group)
    return inside / "labels" / NAME


def write_label_zarr(group: str | Path, labels: LabelRows, image: str | Path, workplace: str | Path) -> Path:
    """Write labels as ``labels/cells`` of an OME-Zarr with a pyramid, beside what else is there.

    Parameters
    ----------
    group : str or Path
        An OME-Zarr image, or a new folder, whose one content are the labels then.
    labels : LabelRows
        The note becomes the attribute ``cellseg``.
    image : str or Path
        The image that was segmented; of an OME-Zarr the place of its pixels in space and the link are taken.
    workplace : str or Path
        Folder on the same disk where the labels lie until they are whole.

    Returns
    -------
    Path
        The group of the labels, a multiscale image, which takes the place of an older one when it is whole.

    Raises
    ------
    CellsegError
        If the folder cannot be written.
    """
    final = labels_group(group, image)
    group = final.parent.parent
    version: Version = 2 if (group / ".zgroup").is_file() else 3
    where, source = Placement(), {}
    if is_zarr(image):
        where = placement(image)
        source = {"source": {"image": Path(os.path.relpath(image_group(image), final)).as_posix()}}
    with writing(final), _new_folder(final, Path(workplace) / NAME) as folder:
        levels = _write_levels(folder, labels, version)
        said = _multiscale(levels, where) | {"image-label": source}
        _describe(folder, version, said, {"cellseg": labels.note})
        if not _is_described(group):  # all of it before the labels: where these are, everything is
            _describe(group, version, {})
        _describe(group / "labels", version, {"labels": _names(group / "labels")})
    return final


def read_note(path: str | Path) -> str:
    """Return the note of labels that the writers of this module wrote; empty where there is none, or no such file."""
    import tifffile
    import zarr

    path = Path(path)
    try:
        if path.is_dir():
            attributes: dict[str, Any] = dict(zarr.open_group(path, mode="r").attrs)
            return str(attributes.get("cellseg", ""))
        with tifffile.TiffFile(path) as tiff:
            return str(tiff.pages.first.description)
    except (OSError, ValueError, LookupError, tifffile.TiffFileError):
        return ""


def _tiles(bands: Iterable[Labels], dtype: type[np.unsignedinteger[Any]]) -> Iterator[NDArray[Any]]:
    """Cut bands of rows into tiles in reading order."""
    for band in bands:
        stored = band.astype(dtype)
        for top, left in itertools.product(range(0, stored.shape[0], _TILE), range(0, stored.shape[1], _TILE)):
            tile = stored[top : top + _TILE, left : left + _TILE]
            yield np.pad(tile, ((0, _TILE - tile.shape[0]), (0, _TILE - tile.shape[1])))


def _write_levels(folder: Path, labels: LabelRows, version: Version) -> int:
    """Write the labels and their coarser levels, the last of which is one chunk; return how many there are."""
    level = _new_level(folder / "0", labels.shape, labels.n_cells, version)
    top, count = 0, 1
    for band in labels.bands:
        level[top : top + len(band)] = band
        top += len(band)
    while max(level.shape) > _CHUNK:
        finer, shape = level, (-(-level.shape[0] // 2), -(-level.shape[1] // 2))
        level = _new_level(folder / str(count), shape, labels.n_cells, version)
        for top in range(0, finer.shape[0], 2 * _CHUNK):
            level[top // 2 : top // 2 + _CHUNK] = finer[top : top + 2 * _CHUNK][::2, ::2]
        count += 1
    return count


def _new_level(path: Path, shape: tuple[int, int], n_cells: int, version: Version) -> Any:
    import zarr

    chunks = (min(_CHUNK, shape[0]), min(_CHUNK, shape[1]))
    options: dict[str, Any] = {"dimension_names": ("y", "x")} if version == 3 else {}
    options["chunk_key_encoding"] = {"name": "default" if version == 3 else "v2", "separator": "/"}
    return zarr.create_array(
        path, shape=shape, chunks=chunks, dtype=id_type(n_cells), fill_value=0, zarr_format=version, **options
    )


def _multiscale(levels: int, where: Placement) -> dict[str, Any]:
    axes = [{"name": name, "type": "space"} | ({"unit": where.unit} if where.unit else {}) for name in "yx"]
    shift = [{"type": "translation", "translation": list(where.translation)}] if any(where.translation) else []
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [step * 2**level for step in where.scale]},
                *shift,
            ],
        }
        for level in range(levels)
    ]
    return {"multiscales": [{"name": NAME, "axes": axes, "datasets": datasets, "type": "nearest"}]}


def _names(labels: Path) -> list[str]:
    """List the labels that a group has, ours among them."""
    import zarr

    attributes: dict[str, Any] = dict(zarr.open_group(labels, mode="r").attrs) if is_zarr(labels) else {}
    known = (attributes.get("ome") or attributes).get("labels", [])
    return [*(name for name in known if name != NAME), NAME]


def _is_described(group: Path) -> bool:
    """Whether a folder is Zarr already, and no group that a killed process had no time to say anything of."""
    import zarr

    if not is_zarr(group):
        return False
    found = zarr.open(group, mode="r")
    return not isinstance(found, zarr.Group) or bool(dict(found.attrs))


def _describe(folder: Path, version: Version, said: dict[str, Any], beside: dict[str, Any] | None = None) -> None:
    """Write NGFF metadata, and attributes of our own, to a Zarr group, which is made where there is none."""
    import zarr

    for left in folder.glob(f"*.{'?' * 32}.partial"):  # by a process that was killed while it wrote what follows
        left.unlink()
    group = zarr.open_group(folder, mode="a", zarr_format=version)
    if version == 2:
        for part in (*said.get("multiscales", ()), *(said[key] for key in ("image-label",) if key in said)):
            part["version"] = "0.4"
        group.attrs.update(said | (beside or {}))
    else:
        group.attrs.update({"ome": {"version": "0.5", **said}} | (beside or {}))


@contextmanager
def _new_folder(final: Path, temporary: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``final`` when the block succeeds."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        shutil.rmtree(final)
    temporary.replace(final)
    flush_folder(final.parent)
