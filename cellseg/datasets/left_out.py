"""What to do about files that cannot be used: name them in a list of their own, stop, or go on without them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.config import RunConfig, Selection
from cellseg.core import CellsegError, Record
from cellseg.files import write_text
from cellseg.images import read_image, read_labels, read_size
from cellseg.progress import track
from cellseg.windows import has_windows, is_slide

if TYPE_CHECKING:
    from cellseg.datasets.index import Finding

NAME = "left_out.csv"
"""Beside ``index.csv`` where files could not be used; not there when all could."""

BAD_FILES = frozenset({"unreadable", "unreadable image", "size mismatch", "unusable labels", "impossible annotations"})
"""Kinds of findings that say that an image, or its labels, could not be used."""


def write_left_out(folder: Path, findings: Iterable[Finding]) -> None:
    """Write :data:`NAME`, a row a file that could not be used: ``file, kind, reason``; remove it if there is none."""
    bad = [finding for finding in findings if finding.kind in BAD_FILES]
    if not bad:
        (folder / NAME).unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "kind", "reason"))
    writer.writerows((finding.subject, finding.kind, " ".join(finding.message.split())) for finding in bad)
    write_text(folder / NAME, text.getvalue())


def count_left_out(index: Path) -> tuple[int, str]:
    """Return how many files beside an index could not be used, and the first of them with its reason."""
    path = index.parent / NAME
    if not path.is_file():
        return 0, ""
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return len(rows), f"{rows[0]['file']}: {rows[0]['reason']}" if rows else ""


def stop_on_left_out(index: Path) -> None:
    """Take a new index away again if files could not be used.

    Raises
    ------
    CellsegError
        If there are such files: how many, the first, and where all are listed.
    """
    count, first = count_left_out(index)
    if count:
        index.unlink()
        raise CellsegError(
            f"{count} images or label files cannot be used, and no index is written; all are in {index.parent / NAME}, "
            f"the first is {first[:300]}. Mend or remove them, or give --on-error skip"
        )


def without_unreadable(run: RunConfig) -> tuple[RunConfig, list[str]]:
    """Read every image that a run learns from or is validated on, and leave out those that cannot be read.

    Parameters
    ----------
    run : RunConfig
        Its ``data`` names the images.

    Returns
    -------
    run : RunConfig
        The same with the unreadable images in ``without`` of their selections: the run says what it did not use.
    problems : list of str
        A line an image.

    Raises
    ------
    CellsegError
        As :func:`cellseg.datasets.index.select`: a file that is not there at all is a mistake of the index.
    """
    from cellseg.datasets.index import select

    problems: dict[str, None] = {}
    changed: dict[str, tuple[Selection, ...]] = {}
    for name in ("train", "val", "unlabelled", "replay", "fisher"):
        selections = []
        for selection in getattr(run.data, name):
            records = select(selection)
            found = {record.id: problem for record in track(records, f"reading {name}", len(records))
                     if (problem := _problem(record))}  # fmt: skip
            problems |= dict.fromkeys(found.values())
            selections.append(selection.model_copy(update={"without": (*selection.without, *found)}))
        changed[name] = tuple(selections)
    return run.model_copy(update={"data": run.data.model_copy(update=changed)}), list(problems)


def _problem(record: Record) -> str:
    """Say why an image or its labels cannot be used; empty where they can. Of a slide only the header is read."""
    try:
        for path, read in ((record.image, read_image), (record.labels, read_labels)):
            if path is None:
                continue
            if is_slide(record.height, record.width) and has_windows(path):
                size = read_size(path) if path.suffix != ".npy" else (record.height, record.width)
            else:
                size = read(path).shape[:2]
            if size != (record.height, record.width):
                return f"{path}: is {size}, but the index says {(record.height, record.width)}"
    except CellsegError as error:
        return " ".join(str(error).split())
    return ""
