"""One HTML file about a few runs, with everything inside it: opens anywhere, asks no network, prints.

The template and its style and script are package data. Every name from outside is escaped by the template engine,
and the page's own content policy forbids it to load anything or to run any script but the one inlined here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import cellseg
from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.report.changes import MEASURES, Change, list_losses, measure_change
from cellseg.report.curves import draw_bars, make_charts, plain
from cellseg.report.distances import mean_distance
from cellseg.report.facts import provenance, settings, shown, without_places
from cellseg.report.figures import describe_set
from cellseg.report.looks import compare_looks, make_scatters
from cellseg.report.runs import Method, list_evaluations, read_methods
from cellseg.report.start import UNSCORED, with_start
from cellseg.report.views import compare_cells, make_views
from cellseg.report.words import counted, number, say_caveats, say_cells, say_change, say_decisions, say_origin

MAX_METHODS = 6
"""As many as there are colours that everyone can tell apart."""

COLOUR_NAMES = ("orange", "blue", "pink", "green", "yellow", "red")


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
        (``X/s0 X/s1``, or ``X``) are taken together. One adaptation alone is shown beside its start, and without
        scores if it names nothing to score.
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
    given = read_methods([Path(run) for run in runs])
    methods = with_start(given)
    if len(methods) > MAX_METHODS:
        raise CellsegError(f"a page shows at most {MAX_METHODS} different runs, but got {len(methods)}")
    evaluations = list_evaluations(methods)
    if evaluation is not None:
        if evaluation not in evaluations:
            there = ", ".join(evaluations) or "none"
            raise CellsegError(f"no scores of evaluation set '{evaluation}'; there are: {there}")
        evaluations = [evaluation]
    for method in given:
        if evaluations and not any(run.scores for run in method.runs):
            folder = method.first.folder
            raise CellsegError(f"{folder}: names nothing to score, so it is reported alone: cellseg report {folder}")
    command = " ".join(["cellseg report", *(shown(run.folder) for method in given for run in method.runs)])
    unlabelled = not evaluations or (
        evaluation is None and all(method.first.predictions(UNSCORED).is_dir() for method in methods)
    )
    page = render_page(methods, evaluations, unlabelled=unlabelled, images=images, title=title, command=command)
    write_text(path, page)
    return path


def render_page(
    methods: Sequence[Method],
    evaluations: Sequence[str],
    *,
    unlabelled: bool,
    images: int = 3,
    title: str | None = None,
    command: str = "cellseg report",
) -> str:
    """Return the HTML of a report; see :func:`write_page`.

    ``unlabelled`` shows the images without labels too; ``command`` is what made the page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("cellseg.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "counted": counted, "breakable": breakable, "plain": plain}
    environment.filters["role"] = lambda place: role(place, len(methods))
    script = _template_text("page.js")
    page: str = environment.get_template("page.html.jinja").render(
        title=title or " → ".join(filter(None, [methods[0].name, ", ".join(method.name for method in methods[1:])])),
        style=Markup(_template_text("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        methods=methods,
        unlabelled=unlabelled,
        colours=COLOUR_NAMES,
        version=cellseg.__version__,
        command=command,
        **_scores(methods, evaluations),
        **_pictures(methods, [*evaluations, *([UNSCORED] if unlabelled else [])], images),
        **_training(methods),
        settings=settings(methods),
        provenance=[provenance(method, run) for method in methods for run in method.runs],
    )
    return page


def _scores(methods: Sequence[Method], evaluations: Sequence[str]) -> dict[str, Any]:
    """Gather what was said and measured: sentences, gains, losses, and the figures of every set."""
    changes = {name: _changes(methods, name, "F1@0.5") for name in evaluations}
    after = methods[1:] or methods
    decisions = [(method.name if len(after) > 1 else "", line) for method in after for line in say_decisions(method)]
    return {
        "origin": say_origin(methods),
        "decisions": [(name, without_places(line)) for name, line in decisions],
        "changes": [say_change(of_set, methods[0].name) for of_set in changes.values() if of_set],
        "caveats": say_caveats(methods, evaluations, [change for of_set in changes.values() for change in of_set]),
        "gains": [
            (name, [(word, of_set if word == "F1@0.5" else _changes(methods, name, word)) for word in MEASURES])
            for name, of_set in changes.items()
            if of_set
        ],
        "losses": [loss for name in evaluations for loss in list_losses(methods, name)],
        "sets": [describe_set(methods, name) for name in evaluations],
    }


def _changes(methods: Sequence[Method], evaluation: str, measure: str) -> list[Change]:
    found = (measure_change(methods[0], method, evaluation, measure) for method in methods[1:])
    return [change for change in found if change is not None]


def _pictures(methods: Sequence[Method], shown_sets: Sequence[str], count: int) -> dict[str, Any]:
    """Gather the images of the sets that are scored, and of those that nobody labelled."""
    views, notes = make_views(methods, shown_sets, count)
    try:
        cells = compare_cells(methods) if UNSCORED in shown_sets else []
    except CellsegError:  # the notes say why
        cells = []
    return {
        "views": views,
        "view_places": {(view.evaluation, view.image): place for place, view in enumerate(views, start=1)},
        "notes": [without_places(note) for note in notes],
        "shown_sets": shown_sets,
        "cells": cells,
        "said_of_cells": say_cells(methods, cells),
    }


def _training(methods: Sequence[Method]) -> dict[str, Any]:
    """Gather what happened on the way: curves, label-free criteria, and how far every layer moved."""
    after = [(place, method) for place, method in enumerate(methods) if place or len(methods) == 1]
    looks = [(place, found) for place, method in after if (found := compare_looks(method))]
    return {
        "charts": make_charts(methods),
        "scatters": make_scatters(methods),
        "looks": looks,
        "moved": _moved(after),
    }


def _moved(after: Sequence[tuple[int, Method]]) -> dict[str, Any]:
    """Gather the distance from the start of each method that has one: in all, and bars layer by layer."""
    known = [(place, distance) for place, method in after if (distance := mean_distance(method)) is not None]
    noted = [
        (place, [float(value) for run in method.runs if isinstance(value := run.summary.get("distance"), int | float)])
        for place, method in after
        if place not in dict(known)
    ]
    layers = list(dict.fromkeys(layer for _, distance in known for layer in distance.layers))
    values = [[distance.layers.get(layer) for _, distance in known] for layer in layers]
    whole = [(place, distance.whole) for place, distance in known]
    whole += [(place, sum(values) / len(values)) for place, values in noted if values]
    return {
        "whole": sorted(whole),
        "places": [place for place, _ in known],
        "layers": list(zip(layers, values, strict=True)),
        "bars": draw_bars(values),
        "top": max((value for layer in values for value in layer if value is not None), default=0.0),
    }


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
