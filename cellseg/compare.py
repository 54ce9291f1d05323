"""Compare methods by their score tables: which beats the baseline, by how much, and how sure that is.

Knows score tables and nothing of pixels. The first method is the baseline. What is declared, and corrected for by
Holm's procedure, is one comparison with the baseline per further method, over all images; the rows of single groups
describe and test nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError
from cellseg.metrics.scores import GOOD_STATUS, TABLE_SUFFIXES, read_scores
from cellseg.metrics.statistics import Difference, compare, holm, score_matrix

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("method", "baseline", "group", "n_images", "n_seeds", "n_seeds_baseline", "mean", "mean_baseline"),
    *("difference", "low", "high", "p_value", "p_holm"),
)
"""Columns of a comparison, in order."""

FEW_IMAGES, FEW_SEEDS = 10, 5
"""Below these the percentile interval is known to be too short, and a note says so."""


@dataclass(frozen=True)
class Method:
    """One method: its name and a score table per seed, all over the same images."""

    name: str
    paths: tuple[Path, ...]
    tables: tuple[pd.DataFrame, ...]


def read_methods(arguments: Sequence[str], evaluation: str | None = None) -> list[Method]:
    """Read the score tables of methods, the baseline first.

    Parameters
    ----------
    arguments : sequence of str
        One a method, each ``WHERE`` or ``NAME=WHERE``. WHERE is a score table, several with commas between them,
        a pattern (``runs/plain/s*/scores/target.csv``), a run folder (with ``s0/scores/…``) or a folder of score
        tables; more than one table are seeds of the method. Without a name it is called by what tells its path
        from those of the others.
    evaluation : str, optional
        Evaluation set to take from run folders that have several.

    Returns
    -------
    list of Method
        In the order given.

    Raises
    ------
    CellsegError
        If there are fewer than two methods, two have one name, nothing is found, two unnamed arguments are seeds of
        one method, or the tables are not of the same images, truth and rule.
    """
    named = [_split_name(argument) for argument in arguments]
    if len(named) < 2:
        raise CellsegError("compare wants at least two methods, the baseline first: cellseg compare plain.csv mine.csv")
    places = [place for name, place in named if name is None]
    _refuse_loose_seeds(places)
    short = dict(zip(places, _short_names(places), strict=True))
    names = [short[place] if name is None else name for name, place in named]
    if len(set(names)) < len(names):
        raise CellsegError(f"methods need different names, but these are {', '.join(names)}; give NAME=WHERE")
    methods = []
    for name, (_, place) in zip(names, named, strict=True):
        paths = find_tables(place, evaluation)
        methods.append(Method(name, tuple(paths), tuple(map(read_scores, paths))))
    _check_same(methods)
    return methods


def compare_methods(
    methods: Sequence[Method],
    metric: str = "f1",
    thresholds: Sequence[float] = (0.5,),
    *,
    by: str = "group",
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every further method with the first, group by group and over all images.

    Parameters
    ----------
    methods : sequence of Method
        The baseline first (see :func:`read_methods`).
    metric, thresholds
        As in :func:`cellseg.metrics.scores.image_values`.
    by : str
        Column whose values are the groups.
    draws, seed
        As in :func:`cellseg.metrics.statistics.compare`.

    Returns
    -------
    DataFrame
        For each further method a row per group and one of ``all``, with :data:`COLUMNS`. ``difference`` is the
        mean of the method minus that of the baseline, over seeds and images; ``low`` and ``high`` bound its 95 %
        interval. ``p_value`` and ``p_holm`` are those of ``all``. Of a single image there is neither.

    Raises
    ------
    CellsegError
        If the metric is unknown, a table lacks a threshold, or there are no images.
    """
    import pandas as pd

    values = [_matrix(method, metric, thresholds) for method in methods]
    group_of = methods[0].tables[0].drop_duplicates("image").sort_values("image")[by].astype(str).to_numpy()
    groups = {name: np.flatnonzero(group_of == name) for name in sorted(set(group_of)) if name}
    rows = []
    for method, scores in zip(methods[1:], values[1:], strict=True):
        for name, images in [*groups.items(), ("all", np.arange(len(group_of)))]:
            pair = scores[:, images], values[0][:, images]
            found = _difference(*pair, draws=draws, seed=seed)
            row = (method.name, methods[0].name, name, len(images), len(scores), len(values[0]))
            p_value = found.p_value if name == "all" else math.nan
            means = float(pair[0].mean()), float(pair[1].mean())
            rows.append((*row, *means, found.mean, found.low, found.high, p_value, math.nan))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    declared = table.index[table["group"].eq("all") & table["p_value"].notna()]
    table.loc[declared, "p_holm"] = holm(table.loc[declared, "p_value"].tolist())
    return table


def list_notes(methods: Sequence[Method], comparison: pd.DataFrame) -> list[str]:
    """Say in a line each what the intervals do not cover and what went into the means as 0."""
    seeds = {method.name: len(method.tables) for method in methods}
    alone = [name for name, count in seeds.items() if count == 1]
    images = methods[0].tables[0]["image"].nunique()
    notes = []
    if alone:
        notes.append(
            f"One seed of {', '.join(alone)}: the intervals cover the choice of images, not the randomness of training."
        )
    elif min(seeds.values()) < FEW_SEEDS:
        count = min(seeds.values())
        notes.append(f"{count} seeds tell little about the randomness of training: the intervals tend to be too short.")
    if len(set(seeds.values())) > 1:
        notes.append("Methods of different numbers of seeds are not paired by seed.")
    if images == 1:
        notes.append("One image tells nothing about others: no interval and no p-value.")
    elif images < FEW_IMAGES:
        notes.append(f"{images} images are few: the intervals tend to be too short and p-values too small.")
    else:
        notes.append("Images count as independent: with several crops of one field the intervals are too short.")
    if (comparison["group"] != "all").any():
        notes.append("Rows of single groups describe, and those of few images poorly; the p-value is that of 'all'.")
    return notes + _failures(methods)


def find_tables(place: str, evaluation: str | None = None) -> list[Path]:
    """List the score tables of one method in natural order (s2 before s10); see :func:`read_methods`."""
    parts = [place] if Path(place).exists() else place.split(",")
    found: list[Path] = []
    for part in parts:
        anchor = Path(part).anchor
        pattern = part[len(anchor) :] or "*"
        paths = [Path(part)] if Path(part).exists() else sorted(Path(anchor).glob(pattern), key=_natural)
        if not part or not paths:
            raise CellsegError(f"{part or place}: no such score table or folder; 'cellseg evaluate --out' makes one")
        for path in paths:
            found += _tables_in(path, evaluation) if path.is_dir() else [path]
    repeated = sorted({str(path) for path in found if found.count(path) > 1})
    if repeated:
        raise CellsegError(f"{place}: {repeated[0]} is given twice; the seeds of a method are different tables")
    return found


# ---- arguments


def _split_name(argument: str) -> tuple[str | None, str]:
    name, equals, place = argument.partition("=")
    if not equals or Path(argument).exists():
        return None, argument
    if not name or not place:
        raise CellsegError(f"wanted NAME=WHERE, such as plain=runs/plain, but got '{argument}'")
    return name, place


def _refuse_loose_seeds(places: Sequence[str]) -> None:
    """Stop where a shell has made one argument of each seed: they would be taken for so many methods."""
    seen: dict[str, str] = {}
    for place in places:
        method = re.sub(r"(^|/)s\d+(/|$)", r"\1s*\2", Path(place).as_posix())
        if method != Path(place).as_posix() and method in seen:
            raise CellsegError(
                f"{seen[method]} and {place} look like seeds of one method: quote the pattern, '{method}', so that "
                "it is one argument (or name them, a=… b=…, to compare seeds)"
            )
        seen[method] = place


def _short_names(places: Sequence[str]) -> list[str]:
    """Call each place by the parts of its path that it does not share with all others."""
    parts = [[*Path(place).parts[:-1], _bare(Path(place))] for place in places]
    if len(places) == 1:
        return [parts[0][-1]]
    shortest = min(map(len, parts), default=0)
    start = next((i for i in range(shortest) if len({part[i] for part in parts}) > 1), shortest)
    shortest -= start
    end = next((i for i in range(shortest) if len({part[-1 - i] for part in parts}) > 1), shortest)
    names = ["/".join(part[start : len(part) - end]) for part in parts]
    return [name or place for name, place in zip(names, places, strict=True)]


def _bare(path: Path) -> str:
    return path.stem if path.suffix.lower() in TABLE_SUFFIXES else path.name


def _tables_in(folder: Path, evaluation: str | None) -> list[Path]:
    files: list[Path] = []
    for pattern in ("s[0-9]*/scores/*", "scores/*", "*"):
        files = [path for path in folder.glob(pattern) if path.suffix.lower() in TABLE_SUFFIXES]
        if files:
            break
    is_run = any(path.parent.name == "scores" and path.parent != folder for path in files)
    sets = sorted({path.stem for path in files})
    if is_run and evaluation is None and len(sets) > 1:
        raise CellsegError(f"{folder}: has scores of the sets {', '.join(sets)}; choose one with --set")
    chosen = [path for path in files if not is_run or evaluation in (None, path.stem)]
    if not chosen:
        wanted = f"scores of the set '{evaluation}', only of {', '.join(sets)}" if files else "score table"
        raise CellsegError(f"{folder}: has no {wanted}; make it with 'cellseg evaluate'")
    return sorted(chosen, key=_natural)


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.as_posix())]


# ---- tables


def _check_same(methods: Sequence[Method]) -> None:
    """Raise CellsegError unless all tables are of the same images, truth and rule as the first."""
    facts = [
        (path, table.drop_duplicates("image").set_index("image"))
        for method in methods
        for path, table in zip(method.paths, method.tables, strict=True)
    ]
    first_path, first = facts[0]
    if first.empty:
        raise CellsegError(f"{first_path}: has no scores; re-run 'cellseg evaluate'")
    for path, images in facts[1:]:
        for one, other, lacking in ((first, images, path), (images, first, first_path)):
            absent = sorted(set(one.index) - set(other.index))
            if absent:
                shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
                raise CellsegError(
                    f"{lacking}: lacks {len(absent)} of the images of {path if lacking == first_path else first_path} "
                    f"({shown}); only scores of the same images can be compared"
                )
        if images["rule"].iloc[0] != first["rule"].iloc[0]:
            raise CellsegError(
                f"{path}: scored by rule {images['rule'].iloc[0]}, but {first_path} by {first['rule'].iloc[0]}; "
                "re-run 'cellseg evaluate' with one --rule"
            )
        differs = first.index[first["n_true"] != images["n_true"].reindex(first.index)]
        if len(differs):
            name = differs[0]
            raise CellsegError(
                f"{path}: scored against another truth than {first_path}: image {name} has "
                f"{images['n_true'][name]} true cells here and {first['n_true'][name]} there"
            )


def _matrix(method: Method, metric: str, thresholds: Sequence[float]) -> NDArray[np.float64]:
    try:
        return score_matrix(method.tables, metric, thresholds)
    except CellsegError as error:
        raise CellsegError(f"{method.paths[0]}: {error}") from error


def _difference(scores: NDArray[np.float64], baseline: NDArray[np.float64], *, draws: int, seed: int) -> Difference:
    if scores.shape[1] == 1:
        return Difference(float(scores.mean() - baseline.mean()), math.nan, math.nan, math.nan)
    return compare(scores, baseline, draws=draws, seed=seed)


def _failures(methods: Sequence[Method]) -> list[str]:
    notes = []
    for method in methods:
        for path, table in zip(method.paths, method.tables, strict=True):
            failed = table.loc[~table["status"].isin(GOOD_STATUS), "image"].unique()
            if len(failed):
                shown = ", ".join(failed[:3]) + (", …" if len(failed) > 3 else "")
                notes.append(f"{path}: {len(failed)} images have no usable prediction and score 0: {shown}.")
    return notes
