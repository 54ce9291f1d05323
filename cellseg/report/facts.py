"""How the runs of a page were made: their settings, summaries and folders, in a form to show to others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellseg.report.runs import Method, Run, differing, flatten

DRAWN = ("distance", "distances", "criteria_vs_val_f1", "decision")
"""Parts of a summary that the page shows elsewhere."""


def settings(methods: Sequence[Method]) -> list[tuple[str, list[str]]]:
    """Return the settings in which the methods differ, key by key."""
    tables = [flatten(m.first.config.model_dump(mode="json")) if m.first.config else {} for m in methods]
    known = [table for table in tables if table]
    return [(key, [_word(table.get(key)) if table else "?" for table in tables]) for key in differing(known)]


def provenance(method: Method, run: Run) -> dict[str, Any]:
    """Return what is known of how a run was made: ``name``, ``seed``, ``facts`` and its ``config`` as JSON."""
    rules = {str(rule) for table in run.scores.values() for rule in table["rule"].unique()}
    facts: dict[str, Any] = {"folder": shown(run.folder), "seed": "not known" if run.seed is None else run.seed}
    facts |= ({"rule": ", ".join(sorted(rules))} if rules else {}) | flatten(
        {key: value for key, value in run.summary.items() if key not in DRAWN}
    )
    return {
        "name": method.name,
        "seed": run.seed,
        "facts": [(key.replace("_", " "), _word(value)) for key, value in facts.items()],
        "config": without_places(run.config.model_dump_json(indent=2)) if run.config else "",
    }


def shown(path: Path) -> str:
    """Return a path without the folders of one machine: relative to here, or its last two parts."""
    absolute = path.resolve()
    here = Path.cwd().resolve()
    return (absolute.relative_to(here) if absolute.is_relative_to(here) else Path(*absolute.parts[-2:])).as_posix()


def _word(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping | list):
        return _selections(value) if isinstance(value, list) else json.dumps(value)
    return without_places(str(value))


def without_places(text: str) -> str:
    """Shorten paths in a text that will be shown to others: nothing above this folder, nobody's home."""
    for place, short in ((Path.cwd(), ""), (Path.home(), "~/")):
        if len(place.parts) > 1:
            text = text.replace(f"{place}/", short)
    return text


def _selections(values: Sequence[Any]) -> str:
    """Write a list; the image selections of a configuration in a form that can be read."""
    if not values:
        return "none"
    if not all(isinstance(value, Mapping) for value in values):
        return ", ".join(map(str, values))
    return "; ".join(
        ", ".join(f"{key} {_word(part)}" for key, part in value.items() if part not in (None, [], ()))
        for value in values
    )
