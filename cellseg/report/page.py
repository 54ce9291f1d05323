"""One HTML file about a few runs, with everything inside it: opens anywhere, asks no network, prints.

The template and its style and script are package data. Every name from outside is escaped by the template engine,
and the page's own content policy forbids it to load anything or to run any script but the one inlined here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cellseg
from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.metrics.scores import SPANS, aggregate, image_values
from cellseg.report.curves import make_charts, place_dots
from cellseg.report.runs import Method, Run, differing, flatten, list_evaluations, read_methods
from cellseg.report.views import make_views
from cellseg.report.words import (
    counted,
    mean_f1,
    measure_change,
    number,
    say_caveats,
    say_change,
    say_origin,
)

if TYPE_CHECKING:
    import pandas as pd

MAX_METHODS = 6
"""As many as there are colours that everyone can tell apart."""

COLOUR_NAMES = ("orange", "blue", "pink", "green", "yellow", "red")

MAX_ROWS = 2000
"""Images listed for one evaluation set, the worst first."""


def write_page(
    runs: Sequence[str | Path],
    path: str | Path,
    *,
    evaluation: str | None = None,
    images: int = 3,
    title: str | None = None,
) -> Path:
    """Write the report of some runs as one self-contained HTML file.

    Parameters
    ----------
    runs : sequence of str or Path
        Run folders with scores, the one before adaptation first and the one after last; seeds of one run
        (``X/s0 X/s1``, or ``X``) are taken together.
    path : str or Path
        HTML file.
    evaluation : str, optional
        Only this evaluation set; all by default.
    images : int
        Images shown of each set, spread from the worst to the best of the last run.
    title : str, optional
        Heading; the names of the runs unless given.

    Returns
    -------
    Path
        The file written. The same runs give the same bytes.

    Raises
    ------
    CellsegError
        If a run has no scores, its files cannot be read, there is no such evaluation set, there are more than
        :data:`MAX_METHODS` different runs, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in {".html", ".htm"}:
        raise CellsegError(f"{path}: a report is written as .html, or as .png for a picture alone")
    methods = read_methods([Path(run) for run in runs])
    if len(methods) > MAX_METHODS:
        raise CellsegError(f"a page shows at most {MAX_METHODS} different runs, but got {len(methods)}")
    evaluations = list_evaluations(methods)
    if evaluation is not None:
        if evaluation not in evaluations:
            raise CellsegError(f"no scores of evaluation set '{evaluation}'; there are: {', '.join(evaluations)}")
        evaluations = [evaluation]
    write_text(path, render_page(methods, evaluations, images=images, title=title))
    return path


def render_page(
    methods: Sequence[Method], evaluations: Sequence[str], *, images: int = 3, title: str | None = None
) -> str:
    """Return the HTML of a report; see :func:`write_page`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    changes = [
        [change for method in methods[1:] if (change := measure_change(methods[0], method, name)) is not None]
        for name in evaluations
    ]
    views, notes = make_views(methods, evaluations, images)
    environment = Environment(
        loader=PackageLoader("cellseg.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "counted": counted, "breakable": breakable}
    environment.filters["role"] = lambda place: role(place, len(methods))
    script = _template_text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page: str = environment.get_template("page.html.jinja").render(
        title=title or " → ".join(filter(None, [methods[0].name, ", ".join(method.name for method in methods[1:])])),
        style=Markup(_template_text("page.css")),
        script=Markup(script),
        script_hash=digest,
        methods=methods,
        colours=COLOUR_NAMES,
        origin=say_origin(methods),
        changes=[say_change(of_set, methods[0].name) for of_set in changes if of_set],
        caveats=say_caveats(methods, evaluations, [change for of_set in changes for change in of_set]),
        sets=[_describe_set(methods, name) for name in evaluations],
        views=views,
        notes=[_without_places(note) for note in notes],
        charts=make_charts(methods),
        distances=_distances(methods),
        settings=_settings(methods),
        provenance=[_provenance(method, run) for method in methods for run in method.runs],
        version=cellseg.__version__,
        command="cellseg report " + " ".join(_shown(run.folder) for method in methods for run in method.runs),
    )
    return page


def _template_text(name: str) -> str:
    return (files("cellseg.report") / "templates" / name).read_text(encoding="utf-8")


def role(place: int, count: int) -> str:
    """Say what part a method plays: the first is ``before``, the others ``after``; nothing where it is alone."""
    if count == 1:
        return ""
    return "before" if place == 0 else "after"


def breakable(name: str) -> str:
    """Return a name as HTML that may be broken after its underscores; everything in it is escaped."""
    from markupsafe import Markup, escape

    return escape(name).replace("_", Markup("_<wbr>"))


# ---- figures of one evaluation set


def _describe_set(methods: Sequence[Method], name: str) -> dict[str, Any]:
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


# ---- provenance


def _distances(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """Return how far each method ended from where it started, for those that noted it."""
    found = []
    for method in methods:
        values = [run.summary.get("distance") for run in method.runs]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        if numbers:
            found.append((method.name, _over_seeds(numbers)))
    return found


def _settings(methods: Sequence[Method]) -> list[tuple[str, list[str]]]:
    """Return the settings in which the methods differ, key by key."""
    tables = [flatten(m.first.config.model_dump(mode="json")) if m.first.config else {} for m in methods]
    known = [table for table in tables if table]
    return [(key, [_word(table.get(key)) if table else "?" for table in tables]) for key in differing(known)]


def _provenance(method: Method, run: Run) -> dict[str, Any]:
    rules = {str(rule) for table in run.scores.values() for rule in table["rule"].unique()}
    facts: dict[str, Any] = {"folder": _shown(run.folder), "seed": "not known" if run.seed is None else run.seed}
    facts |= {"rule": ", ".join(sorted(rules))} | flatten(run.summary)
    return {
        "name": method.name,
        "seed": run.seed,
        "facts": [(key.replace("_", " "), _word(value)) for key, value in facts.items()],
        "config": _without_places(run.config.model_dump_json(indent=2)) if run.config else "",
    }


def _shown(path: Path) -> str:
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
    return _without_places(str(value))


def _without_places(text: str) -> str:
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
