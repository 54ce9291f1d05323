"""What a run writes about itself as it goes: lines of JSON, and the same numbers for TensorBoard.

Both are appended to, so a run that is killed may leave half a line; such a line is nobody's, and a resumed run writes
both anew up to the step from which it goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from cellseg.config import merge
from cellseg.core import CellsegError
from cellseg.files import atomic_path, write_text, writing

LOG_NAME = "log.jsonl"
SUMMARY_NAME = "summary.json"
EVENTS_NAME = "tensorboard/events.out.tfevents.cellseg"


def append(out: Path, step: int, values: dict[str, float]) -> None:
    """Append the numbers of a step to the log of the run folder ``out``; raises CellsegError where it cannot."""
    with writing(out / LOG_NAME), (out / LOG_NAME).open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({"step": step, **values}) + "\n")
    with writing(out / EVENTS_NAME), (out / EVENTS_NAME).open("ab") as handle:
        _write_events(handle, [{"step": step, **values}])


def truncate(out: Path, step: int) -> None:
    """Drop log lines after the step a run goes on from; a fresh run, from step 0, starts an empty log."""
    lines = [line for line in read_log(out) if line["step"] <= step] if step else []
    write_text(out / LOG_NAME, "".join(json.dumps(line) + "\n" for line in lines))
    with atomic_path(out / EVENTS_NAME) as temporary, temporary.open("wb") as handle:
        _write_events(handle, lines, first=True)


def read_log(out: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log; none where there is no log, and no line that is not whole."""
    path = out / LOG_NAME
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [line for line in map(_parse, lines) if line]


def _parse(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else {}


def _write_events(handle: IO[bytes], lines: Iterable[dict[str, Any]], *, first: bool = False) -> None:
    """Write numbers as TensorBoard reads them: one file a run, and no thread that outlives an error."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    writer = RecordWriter(handle)
    if first:
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    for line in lines:
        numbers = ((name, value) for name, value in line.items() if name != "step" and isinstance(value, int | float))
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers])
        writer.write(Event(wall_time=time.time(), step=line["step"], summary=summary).SerializeToString())


def read_summary(out: Path) -> dict[str, Any]:
    """Read the summary of a run; empty where it has none yet, raises CellsegError where it is damaged."""
    path = out / SUMMARY_NAME
    if not path.exists():
        return {}
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CellsegError(f"{path}: damaged, wanted JSON; remove it and go on with --resume") from error
    return summary


def forget_summary(out: Path) -> None:
    """Remove the summary of a run that is not finished; raises CellsegError where that is not allowed."""
    with writing(out / SUMMARY_NAME):
        (out / SUMMARY_NAME).unlink(missing_ok=True)


def note(out: Path, values: dict[str, Any]) -> None:
    """Lay values over those of the run's summary, nested tables included; without a summary nothing is written."""
    if summary := read_summary(out):
        write_text(out / SUMMARY_NAME, json.dumps(merge(summary, values), indent=2))
