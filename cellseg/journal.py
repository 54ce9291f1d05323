"""What a run writes about itself as it goes: lines of JSON, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cellseg.config import merge
from cellseg.files import write_text

LOG_NAME = "log.jsonl"
SUMMARY_NAME = "summary.json"


def append(out: Path, step: int, values: dict[str, float]) -> None:
    """Append the numbers of a step to the log of the run folder ``out``."""
    from torch.utils.tensorboard import SummaryWriter

    with (out / LOG_NAME).open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({"step": step, **values}) + "\n")
    with SummaryWriter(str(out / "tensorboard")) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, step)


def truncate(out: Path, step: int) -> None:
    """Drop log lines after the step a run goes on from; a fresh run, from step 0, starts an empty log."""
    path = out / LOG_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and step else []
    write_text(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))


def read_log(out: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log; none where there is no log."""
    path = out / LOG_NAME
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def read_summary(out: Path) -> dict[str, Any]:
    """Read the summary of a run; empty where it has none yet."""
    path = out / SUMMARY_NAME
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return summary


def note(out: Path, values: dict[str, Any]) -> None:
    """Lay values over those of the run's summary, nested tables included; without a summary nothing is written."""
    path = out / SUMMARY_NAME
    if path.exists():
        write_text(path, json.dumps(merge(json.loads(path.read_text(encoding="utf-8")), values), indent=2))
