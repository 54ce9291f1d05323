"""What was odd about files; those that cannot be used are listed beside the index, or no index is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cellseg.core import CellsegError
from cellseg.files import write_text

NAME = "left_out.csv"
"""Beside ``index.csv`` where files could not be used; not there when all could."""

BAD_FILES = frozenset({"unreadable", "unreadable image", "size mismatch", "unusable labels", "impossible annotations"})
"""Kinds of findings that say that an image, or its labels, could not be used."""


@dataclass(frozen=True)
class Finding:
    """Something the user should know about their data.

    Attributes
    ----------
    kind : str
        Short name shared by findings of the same sort, such as ``size mismatch``.
    subject : str
        The file or id it is about.
    message : str
        What was found and what was done about it.
    """

    kind: str
    subject: str
    message: str


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
