"""The index of a prepared data set: ``index.csv``, the one thing every later step knows about data.

Each row is one image (:class:`cellseg.core.Record`); paths are relative to the index and use forward slashes,
so that a prepared folder can be moved together with what it names. Beside it lies ``report.md``: what was
found, what was dropped, and why.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from statistics import median
from typing import cast

from cellseg.config import Selection
from cellseg.core import CellsegError, LabelKind, Record
from cellseg.datasets.left_out import Finding, write_left_out
from cellseg.datasets.listed import read_names
from cellseg.files import write_text
from cellseg.memory import require_file

COLUMNS = (
    "id",
    "image",
    "labels",
    "dataset",
    "split",
    "group",
    "height",
    "width",
    "n_instances",
    "label_kind",
    "diameter",
    "well",
)
"""The columns of an index, in the order in which they are written."""

LABEL_KINDS = ("instances", "partial", "foreground", "")


@dataclass
class PrepareReport:
    """What preparing a data set gave.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    root : Path
        Where its files came from.
    records : list of Record
        The rows of the index.
    findings : list of Finding
        What was dropped, changed or doubtful.
    notes : dict of str to str
        Facts about the whole set, such as its licence or how overlapping cells were resolved.
    """

    dataset: str
    root: Path
    records: list[Record]
    findings: list[Finding] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def read_index(path: str | Path) -> list[Record]:
    """Read an index and check it.

    Parameters
    ----------
    path : str or Path
        ``index.csv`` with at least the columns :data:`COLUMNS`, or the folder that holds one.

    Returns
    -------
    list of Record
        In the order of the file; paths are absolute.

    Raises
    ------
    CellsegError
        If the file is missing or empty, or lacks a column; if a row names a file that does not exist, repeats
        an id, or holds a bad number or label kind. The message names the file and the row's line.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links away from the index
    if path.is_dir():
        path = path / "index.csv"
    records: list[Record] = []
    lines: dict[str, int] = {}
    for line, row in _read_rows(path):
        record = _to_record(row, path, line)
        if record.id in lines:
            raise CellsegError(f"{path}:{line}: id '{record.id}' is already used on line {lines[record.id]}")
        lines[record.id] = line
        records.append(record)
    return records


def write_index(path: str | Path, records: Iterable[Record]) -> None:
    """Write an index atomically, with paths relative to it where possible.

    Parameters
    ----------
    path : str or Path
        The ``index.csv`` to write.
    records : iterable of Record
        Its rows, in order.

    Raises
    ------
    CellsegError
        If two records share an id, or the file cannot be written.
    """
    path = Path(path)
    records = list(records)
    repeated = [name for name, count in Counter(record.id for record in records).items() if count > 1]
    if repeated:
        raise CellsegError(f"{path}: ids must be unique; repeated: {shorten(repeated)}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        writer.writerow(
            (
                record.id,
                _relative(record.image, path.parent),
                _relative(record.labels, path.parent) if record.labels else "",
                record.dataset,
                record.split,
                record.group,
                record.height,
                record.width,
                "" if record.n_instances is None else record.n_instances,
                record.label_kind,
                "" if record.diameter is None else float(record.diameter),
                record.well,
            )
        )
    write_text(path, text.getvalue())


def select(selection: Selection) -> list[Record]:
    """Read the images of an index that a selection asks for.

    Parameters
    ----------
    selection : Selection
        ``split``, ``groups``, ``max_pixels``, ``ids``, ``without`` and ``listed`` filter; ``limit`` then takes that
        many images evenly, the first of each group, the second of each group and so on.

    Returns
    -------
    list of Record
        In the order of the index; never empty.

    Raises
    ------
    CellsegError
        As :func:`read_index`; if a group or an id is unknown; if nothing is left, saying what the index has.
    """
    records = read_index(selection.index)
    groups = sorted({record.group for record in records})
    _check_known(selection, "group", selection.groups, groups)
    _check_known(selection, "image", (*selection.ids, *selection.without), [record.id for record in records])
    listed = read_names(selection.listed) if selection.listed is not None else None
    chosen = [
        record
        for record in records
        if (listed is None or record.id in listed)
        and (selection.split is None or record.split == selection.split)
        and (not selection.groups or record.group in selection.groups)
        and (selection.max_pixels is None or record.height * record.width <= selection.max_pixels)
        and (not selection.ids or record.id in selection.ids)
        and record.id not in selection.without
    ]
    if not chosen:
        asked = f"split {selection.split!r}" if selection.split is not None else "any split"
        asked += f" and groups {shorten(selection.groups)}" if selection.groups else ""
        asked += f" of at most {selection.max_pixels} pixels" if selection.max_pixels else ""
        asked += f" named in {selection.listed}" if selection.listed else ""
        raise CellsegError(f"{selection.index}: no image of {asked}; the index has {_describe(records)}")
    return chosen if selection.limit is None else take_evenly(chosen, selection.limit)


def told_diameter(index: str | Path, policy: float | str) -> float | None:
    """Return the cell diameter in pixels that ``predict.diameter`` takes from an index.

    Parameters
    ----------
    index : str or Path
        Whose images are to be segmented.
    policy : float or str
        ``predict.diameter``.

    Returns
    -------
    float or None
        With ``"index"`` the median over its training images of known diameter, never over those that are scored; None
        with every other policy, which needs no index.

    Raises
    ------
    CellsegError
        If there are none.
    """
    if policy != "index":
        return None
    known = [record.diameter for record in read_index(index) if record.split == "train" and record.diameter]
    if not known:
        raise CellsegError(
            f"{index}: predict.diameter = 'index' wants labelled images of split 'train', from which to take the cell "
            "diameter, and there are none; set a number, 'auto' or 'model'"
        )
    return median(known)


def _check_known(selection: Selection, what: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise CellsegError(
            f"{selection.index}: no {what} {shorten(unknown)}; the index has {shorten(known) or f'no {what}s'}"
        )


def write_prepared(out: Path, report: PrepareReport) -> Path:
    """Write ``index.csv``, ``report.md`` and, where files could not be used, ``left_out.csv`` of a data set.

    Parameters
    ----------
    out : Path
        Folder to write into; made if missing.
    report : PrepareReport
        What was found.

    Returns
    -------
    Path
        The written ``index.csv``.

    Raises
    ------
    CellsegError
        If no image is left, or a file cannot be written.
    """
    if not report.records:
        counts = Counter(finding.kind for finding in report.findings)
        reasons = ", ".join(f"{count} × {kind}" for kind, count in sorted(counts.items()))
        raise CellsegError(f"{report.root}: no usable image found" + (f" ({reasons[:500]})" if reasons else ""))
    index = Path(out) / "index.csv"
    write_left_out(Path(out), report.findings)
    write_index(index, report.records)
    write_text(index.with_name("report.md"), _render_report(report))
    return index


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    require_file(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise CellsegError(f"{path}: not an index: column {shorten(missing)} is missing; run 'cellseg prepare'")
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise CellsegError(f"{path}: no such index; 'cellseg prepare' writes one") from None
    except (OSError, ValueError, csv.Error) as error:
        raise CellsegError(f"{path}: cannot be read as CSV ({error})") from error
    if not rows:
        raise CellsegError(f"{path}: the index holds no image")
    for line, row in rows:
        if None in row or None in row.values():
            raise CellsegError(f"{path}:{line}: wanted {len(reader.fieldnames or ())} values, as in the head line")
    return rows


def _to_record(row: dict[str, str], path: Path, line: int) -> Record:
    where = f"{path}:{line}"
    if not row["id"] or not row["image"]:
        raise CellsegError(f"{where}: 'id' and 'image' must not be empty")
    if PurePath(row["id"]).name != row["id"] or row["id"] == ".." or any(ord(letter) < 32 for letter in row["id"]):
        raise CellsegError(
            f"{where}: id {row['id']!a} names a prediction file and must not hold a path or control characters"
        )
    if row["label_kind"] not in LABEL_KINDS or bool(row["labels"]) != bool(row["label_kind"]):
        raise CellsegError(
            f"{where}: label_kind '{row['label_kind']}' with labels '{row['labels']}'; wanted 'instances', "
            "'partial' or 'foreground' where there are labels and nothing where there are none"
        )
    return Record(
        id=row["id"],
        image=_existing(row["image"], path, line, "image"),
        labels=_existing(row["labels"], path, line, "labels") if row["labels"] else None,
        dataset=row["dataset"],
        split=row["split"],
        group=row["group"],
        height=_whole(row, "height", where, low=1),
        width=_whole(row, "width", where, low=1),
        n_instances=_whole(row, "n_instances", where, low=0) if row["n_instances"] else None,
        label_kind=cast("LabelKind", row["label_kind"]),
        diameter=_positive(row, "diameter", where) if row["diameter"] else None,
        well=row["well"],
    )


def _existing(name: str, path: Path, line: int, column: str) -> Path:
    target = Path(os.path.normpath(path.parent / name))
    if not os.path.isfile(target):  # noqa: PTH113 - pathlib raises where a name is too long
        raise CellsegError(
            f"{path}:{line}: {column} file {target} does not exist; was it moved? re-run 'cellseg prepare'"
        )
    return target


def _whole(row: dict[str, str], column: str, where: str, low: int) -> int:
    try:
        value = int(row[column])
    except ValueError:
        value = low - 1
    if value < low:
        raise CellsegError(f"{where}: {column} = '{row[column][:40]}'; wanted a whole number of at least {low}")
    return value


def _positive(row: dict[str, str], column: str, where: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise CellsegError(f"{where}: {column} = '{row[column]}'; wanted a number above 0")
    return value


def _relative(target: Path, folder: Path) -> str:
    # Lexical on purpose: following links would tie the index to one machine's layout.
    try:
        return Path(os.path.relpath(target, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return Path(os.path.abspath(target)).as_posix()  # noqa: PTH100


def take_evenly(records: Sequence[Record], limit: int) -> list[Record]:
    """Return at most ``limit`` records in their order: the first of each group, the second of each group and so on."""
    turns: Counter[str] = Counter()
    order: list[tuple[int, int]] = []
    for place, record in enumerate(records):
        order.append((turns[record.group], place))
        turns[record.group] += 1
    # Within a turn, groups come in the order in which the index first names them.
    first = {record.group: place for place, record in reversed(list(enumerate(records)))}
    order.sort(key=lambda item: (item[0], first[records[item[1]].group]))
    return [records[place] for place in sorted(place for _, place in order[:limit])]


def shorten(names: Iterable[str], most: int = 12) -> str:
    """Quote the first few names for a message and count the rest."""
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _describe(records: Iterable[Record]) -> str:
    counts = Counter((record.split, record.group) for record in records)
    parts = [f"{count} of split '{split}' group '{group}'" for (split, group), count in sorted(counts.items())]
    return ", ".join(parts[:12]) + (f" and {len(parts) - 12} more kinds" if len(parts) > 12 else "")


def _render_report(report: PrepareReport) -> str:
    lines = [f"# {report.dataset}", "", f"Source: `{report.root.as_posix()}`"]
    lines += [f"- {name}: {text}" for name, text in report.notes.items()]
    lines += ["", "| group | split | images | labelled | instances |", "|---|---|--:|--:|--:|"]
    cells = sorted({(record.group, record.split) for record in report.records})
    for group, split in cells:
        members = [record for record in report.records if (record.group, record.split) == (group, split)]
        lines.append(f"| {group or '–'} | {split or '–'} | {_totals(members)} |")
    lines.append(f"| **all** | | {_totals(report.records)} |")
    if not report.findings:
        return "\n".join([*lines, "", "Nothing was dropped or doubtful.", ""])
    kinds: dict[str, list[Finding]] = {}
    for finding in report.findings:
        kinds.setdefault(finding.kind, []).append(finding)
    lines += ["", "## Findings"]
    for kind, findings in kinds.items():
        lines += ["", f"### {kind} ({len(findings)})", ""]
        lines += [f"- `{finding.subject}`: {finding.message}" for finding in findings]
    return "\n".join([*lines, ""])


def _totals(records: Sequence[Record]) -> str:
    labelled = sum(record.has_labels for record in records)
    return f"{len(records)} | {labelled} | {sum(record.n_instances or 0 for record in records)}"
