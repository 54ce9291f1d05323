"""What a user may say about the rows of an index before it is written: validation images, partly labelled images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cellseg.core import CellsegError, Record
from cellseg.datasets.index import shorten
from cellseg.names import file_stem


def split_validation(records: Sequence[Record], fraction: float, seed: int) -> list[Record]:
    """Turn part of the training images into validation images, whole wells at a time.

    Parameters
    ----------
    records : sequence of Record
        Rows in any order; the result does not depend on it.
    fraction : float
        Part of the labelled training units of each group, in (0, 1); at least one unit, but never all. A well
        that lies in several groups counts for the first by name.
    seed : int
        Units are ordered by a hash of seed and name.

    Returns
    -------
    list of Record
        The same rows in the same order, some with split ``val``.
    """
    units: dict[tuple[str, str], str] = {}
    for record in records:
        if record.split == "train" and record.has_labels:
            unit = _unit(record)
            units[unit] = min(record.group, units.get(unit, record.group))
    chosen: set[tuple[str, str]] = set()
    for group in set(units.values()):
        members = [unit for unit in units if units[unit] == group]
        members.sort(key=lambda unit: hashlib.sha256(f"{seed}:{unit}".encode()).digest())
        chosen.update(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    return [
        dataclasses.replace(record, split="val") if record.split == "train" and _unit(record) in chosen else record
        for record in records
    ]


def mark_partial(
    records: Sequence[Record], names: str | Path | None, where: Path, stem: Callable[[Path], str] = file_stem
) -> list[Record]:
    """Say of some labelled images that only some of their cells are labelled.

    Parameters
    ----------
    records : sequence of Record
        Rows in any order.
    names : str or Path or None
        Ids, or stems of image files, with commas between; or a text file with one a line, ``#`` for remarks.
    where : Path
        The data set, for messages.
    stem : callable
        Returns the stem of an image file, as the data set has it.

    Returns
    -------
    list of Record
        The same rows, those with label kind ``partial``. Their cells are trained on; their background is not.

    Raises
    ------
    CellsegError
        If a name is of no image, or of one without instance labels, or the file cannot be read.
    """
    labelled = [record for record in records if record.label_kind == "instances"]
    wanted = read_partial(names, {name for record in labelled for name in (record.id, stem(record.image))}, where)
    return [
        dataclasses.replace(record, label_kind="partial")
        if record.label_kind == "instances" and wanted & {record.id, stem(record.image)}
        else record
        for record in records
    ]


def read_partial(names: str | Path | None, known: Iterable[str], where: Path) -> set[str]:
    """Read the names that :func:`mark_partial` takes; raises CellsegError if one is not among the known."""
    wanted = set(_read_names(str(names))) if names is not None else set()
    if unknown := sorted(wanted.difference(known)):
        raise CellsegError(f"{where}: --partial names {shorten(unknown)}, of which there are no instance labels")
    return wanted


def _unit(record: Record) -> tuple[str, str]:
    return ("well", record.well) if record.well else ("image", record.id)


def _read_names(names: str) -> list[str]:
    if not Path(names).is_file():
        return [name.strip() for name in names.split(",") if name.strip()]
    try:
        lines = Path(names).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CellsegError(f"{names}: cannot be read as a list of image names ({error})") from error
    return [name for line in lines if (name := line.partition("#")[0].strip())]
