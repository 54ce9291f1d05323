"""The figures of one evaluation set that the page shows: rows of its table, dots, groups, and every image."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cellseg.metrics.scores import SPANS, aggregate, image_values
from cellseg.report.changes import mean_f1
from cellseg.report.curves import place_dots
from cellseg.report.runs import Method
from cellseg.report.words import number

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 2000
"""Images listed for one evaluation set, the worst first."""


def describe_set(methods: Sequence[Method], name: str) -> dict[str, Any]:
    """Gather what the page shows of one evaluation set: rows of the table, dots, groups, and every image."""
    tables = [method.scores(name) for method in methods]
    some = next(table for per_seed in tables for table in per_seed)
    images = some.drop_duplicates("image")
    words = sorted({" ".join(filter(None, pair)) for pair in images[["dataset", "split"]].itertuples(index=False)})
    listed = _list_images(methods, name)
    return {
        "name": name,
        "about": ", ".join(filter(None, words)),
        "n_images": len(images),
        "n_true": int(images["n_true"].sum()),
        "rule": "+".join(sorted(some["rule"].unique())),
        "rows": [_figures(per_seed) for per_seed in tables],
        "dots": [_dots(per_seed) for per_seed in tables],
        "means": [mean_f1(method, name) for method in methods],
        "groups": _groups(tables),
        "images": listed[:MAX_ROWS],
        "n_listed": len(listed),
    }


def _figures(tables: Sequence[pd.DataFrame]) -> dict[str, str] | None:
    """Return the cells of one row of the table, each a mean over seeds, or None without scores."""
    if not tables:
        return None
    span = SPANS["_50_90"] if all(set(table["threshold"]).issuperset(SPANS["_50_90"]) for table in tables) else None
    row = {
        statistic: _over_seeds([aggregate(table, "f1", (0.5,), statistic) for table in tables])
        for statistic in ("mean", "median", "pooled")
    }
    row["span"] = _over_seeds([aggregate(table, "f1", span, "mean") for table in tables]) if span else number(None)
    row["seeds"] = str(len(tables))
    return row


def _over_seeds(values: Sequence[float]) -> str:
    spread = f" ± {number(statistics.stdev(values))}" if len(values) > 1 else ""
    return number(statistics.fmean(values)) + spread


def _dots(tables: Sequence[pd.DataFrame]) -> list[tuple[str, str]]:
    return place_dots([float(value) for value in image_values(tables[0], "f1", (0.5,))]) if tables else []


def _groups(tables: Sequence[Sequence[pd.DataFrame]]) -> list[dict[str, Any]]:
    """Return mean F1 of every group, where there are several; over the seeds as well."""
    shown = [table for per_seed in tables for table in per_seed]
    names = sorted({group for table in shown for group in table["group"].unique() if group})
    if len(names) < 2:
        return []
    rows = []
    for name in names:
        parts = [[table[table["group"] == name] for table in per_seed] for per_seed in tables]
        values = [_over_seeds([aggregate(p, "f1", (0.5,), "mean") for p in part]) if part else "–" for part in parts]
        count = max(part["image"].nunique() for per_seed in parts for part in per_seed)
        rows.append({"name": name, "n_images": int(count), "values": values})
    return rows


def _list_images(methods: Sequence[Method], name: str) -> list[dict[str, Any]]:
    """List every image of a set with the F1 of each method's first seed, the last method's worst first."""
    firsts = [method.scores(name)[0] if method.scores(name) else None for method in methods]
    values = [_by_image(table) for table in firsts]
    facts: dict[str, dict[str, Any]] = {}
    for table in firsts:
        if table is not None:
            for row in table.drop_duplicates("image").to_dict("records"):
                fact = facts.setdefault(row["image"], {"image": row["image"], "group": row["group"], "status": ""})
                fact["n_true"], fact["n_pred"] = int(row["n_true"]), int(row["n_pred"])
                fact["status"] = "" if row["status"] == "ok" else row["status"]
    for image, fact in facts.items():
        fact["f1"] = [found.get(image) for found in values]
        first, last = fact["f1"][0], fact["f1"][-1]
        fact["change"] = last - first if len(methods) > 1 and first is not None and last is not None else None
    return sorted(facts.values(), key=lambda fact: (fact["f1"][-1] is None, fact["f1"][-1] or 0, fact["image"]))


def _by_image(scores: pd.DataFrame | None) -> dict[str, float]:
    return {} if scores is None else {str(key): float(f1) for key, f1 in image_values(scores, "f1", (0.5,)).items()}
