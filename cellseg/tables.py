"""From the scores of runs to a table: Markdown, CSV and LaTeX, the same bytes whenever the inputs are the same.

Knows score tables, ``summary.json`` and nothing of pixels. A table is one TOML file of columns (what is shown)
and rows (which run). Every seed of a run gives one value; a cell is their mean ± standard deviation. What is
not there is a dash and is named below the table; figures over different images never share a column.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import statistics
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cellseg.config import Strict
from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.metrics.scores import GOOD_STATUS, aggregate, read_scores
from cellseg.table_formats import DASH, Cell, Table, to_csv, to_latex, to_markdown

if TYPE_CHECKING:
    import pandas as pd


class Column(Strict):
    """What one column shows: a score, a value of ``summary.json``, or a word of the row."""

    name: str
    scores: str | None = None
    """``target`` reads ``runs/<run>/s<seed>/scores/target.csv``."""
    json_key: str | None = Field(None, alias="json")
    """Key of ``runs/<run>/s<seed>/summary.json``; dots reach into nested tables."""
    text: str | None = None
    """Key of the row's own ``text`` table."""
    metric: Literal["f1", "ap", "pq", "precision", "recall", "sq"] = "f1"
    threshold: float | str = 0.5
    """An IoU, or ``0.5:0.95`` for the mean over 0.5, 0.55, …, 0.95."""
    statistic: Literal["mean", "median", "pooled"] = "mean"
    """Over images (see :func:`cellseg.metrics.scores.aggregate`)."""
    group: str | None = None
    """Only images of this group."""
    difference_to: str | None = None
    """Show the difference to the row of this name, seed by seed where both have the same seeds."""
    ratio_to: str | None = None
    """Show the ratio to the row of this name: of a seed's value to the mean of that row over its seeds."""
    digits: int = Field(3, ge=0, le=9)
    best: Literal["max", "min"] | None = None
    """Print the best mean in bold."""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The IoU thresholds the value is the mean over."""
        if isinstance(self.threshold, float | int):
            return (float(self.threshold),)
        low, high = (round(20 * float(part)) for part in self.threshold.split(":"))
        return tuple(step / 20 for step in range(low, high + 1))

    @field_validator("threshold")
    @classmethod
    def _threshold_is_one_or_a_span(cls, value: float | str) -> float | str:
        if isinstance(value, str):
            found = re.fullmatch(r"(0\.\d+):(0\.\d+)", value)
            steps = [20 * float(part) for part in found.groups()] if found else [1.0, 0.0]
            if steps[0] >= steps[1] or any(abs(step - round(step)) > 1e-9 for step in steps):
                raise ValueError("wanted an IoU such as 0.5, or a span of steps of 0.05 such as '0.5:0.95'")
        elif not 0 < value <= 1:
            raise ValueError("an IoU threshold must lie in (0, 1]")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.scores, self.json_key, self.text)) != 1:
            raise ValueError("a column needs exactly one of 'scores', 'json' and 'text'")
        wrong = {"metric", "threshold", "statistic", "group"} & self.model_fields_set
        if self.scores is None and wrong:
            raise ValueError(f"only a column of 'scores' has {', '.join(sorted(wrong))}")
        if self.difference_to is not None and self.ratio_to is not None:
            raise ValueError("a column shows a difference or a ratio, not both")
        return self


class Row(Strict):
    """One method: the run its values come from."""

    name: str
    run: str
    start: bool = False
    """Show the scores of what the run started from, which ``evaluate`` keeps in ``s<seed>/start``."""
    before: str | None = None
    """The row that shows this run's start, where that is not the one that the columns relate to: other weights, or
    scored in another way."""
    seeds: tuple[int, ...] | None = Field(None, strict=False)
    """Seeds that should be there; all that are found unless given."""
    text: dict[str, str] = Field(default_factory=dict)
    """Words shown by columns of ``text``, such as the number of labels."""


class TableConfig(Strict):
    """A table file."""

    title: str
    note: str = ""
    runs: str = "experiments/runs"
    missing: str = DASH
    """What a cell says for which there is no run."""
    column: tuple[Column, ...] = Field(strict=False, min_length=1)
    row: tuple[Row, ...] = Field(strict=False, min_length=1)

    @model_validator(mode="after")
    def _names_are_unique_and_known(self) -> Self:
        rows = [row.name for row in self.row]
        for names, what in ((rows, "row"), ([column.name for column in self.column], "column")):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{what} names must be unique; repeated: {', '.join(repeated)}")
        for row in self.row:
            if row.before is not None and not any(other.name == row.before and other.start for other in self.row):
                raise ValueError(f"row '{row.name}': before names no row of a start: '{row.before}'")
        for column in self.column:
            for word in ("difference_to", "ratio_to"):
                other = getattr(column, word)
                if other is not None and other not in rows:
                    raise ValueError(f"column '{column.name}': {word} names no row: '{other}'")
        return self


_MOST_MISTAKES = 8


def render_table(
    toml_path: str | Path, runs_dir: str | Path | None = None, out_dir: str | Path = "experiments/results"
) -> list[Path]:
    """Build a table and write it as Markdown, CSV and LaTeX.

    Parameters
    ----------
    toml_path : str or Path
        Table file (:class:`TableConfig`); its stem names the output.
    runs_dir : str or Path, optional
        Folder of runs; that of the file unless given.
    out_dir : str or Path
        Folder to write into.

    Returns
    -------
    list of Path
        The ``.md``, ``.csv`` and ``.tex`` written.

    Raises
    ------
    CellsegError
        As :func:`build_table`.
    """
    table = build_table(toml_path, runs_dir)
    paths = []
    for suffix, write in ((".md", to_markdown), (".csv", to_csv), (".tex", to_latex)):
        path = Path(out_dir) / f"{Path(toml_path).stem}{suffix}"
        write_text(path, write(table))
        paths.append(path)
    return paths


def read_table(toml_path: str | Path) -> TableConfig:
    """Read and check a table file; raises CellsegError that names each wrong key and the nearest known one."""
    path = Path(toml_path)
    try:
        return TableConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CellsegError(f"{path}: no such table file") from None
    except ValidationError as error:
        more = "; …" if error.error_count() > _MOST_MISTAKES else ""
        raise CellsegError(f"{path}: {'; '.join(map(_explain, error.errors()[:_MOST_MISTAKES]))}{more}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CellsegError(f"{path}: cannot be read as TOML ({str(error)[:200]})") from error


def _explain(detail: Any) -> str:
    location = detail["loc"]
    key = ".".join(str(part + 1 if isinstance(part, int) else part) for part in location)
    if detail["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"column": Column, "row": Row}
        model = models.get(str(location[0]), TableConfig) if len(location) > 1 else TableConfig
        known = [entry.alias or name for name, entry in model.model_fields.items()]
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        return f"unknown key '{key}'; did you mean '{near[0]}'?"
    message = detail["msg"].removeprefix("Value error, ")
    return f"'{key or 'table'}': {message[:1].lower()}{message[1:]}"


# ---- values


def build_table(toml_path: str | Path, runs_dir: str | Path | None = None) -> Table:
    """Read the runs a table file names and fill its cells.

    Raises
    ------
    CellsegError
        If the file is wrong, a score table cannot be read, or the runs of one column were scored on different
        images, another truth or by another rule.
    """
    spec = read_table(toml_path)
    source = _Source(Path(spec.runs if runs_dir is None else runs_dir))
    seeds = {row.name: row.seeds if row.seeds is not None else source.seeds(row.run) for row in spec.row}
    cells = [[_cell(source, column, row, spec, seeds) for column in spec.column] for row in spec.row]
    for index, column in enumerate(spec.column):
        means = [mean for mean in (line[index].mean for line in cells) if mean is not None]
        if column.best and means:
            best = max(means) if column.best == "max" else min(means)
            for line in cells:
                line[index] = replace(line[index], best=line[index].mean == best)
    return Table(
        title=spec.title,
        columns=[column.name for column in spec.column],
        names=[row.name for row in spec.row],
        runs=[row.run for row in spec.row],
        cells=cells,
        seeds=[len(seeds[row.name]) for row in spec.row],
        notes=[
            *([spec.note] if spec.note else []),
            *source.describe(seeds),
            f"Made by `cellseg table {_shown(toml_path)}`.",
        ],
    )


def _shown(path: str | Path) -> str:
    path = Path(path).absolute()
    return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(path.name)).as_posix()


class _Source:
    """Reads values from a folder of runs, and remembers which images they were over and what was missing."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.images: dict[str, tuple[Path, pd.DataFrame]] = {}
        self.missing: dict[str, None] = {}
        self.unusable: dict[str, int] = {}

    def seeds(self, run: str) -> tuple[int, ...]:
        found = (re.fullmatch(r"s(\d+)", path.name) for path in (self.runs / run).glob("s*") if path.is_dir())
        return tuple(sorted(int(match[1]) for match in found if match))

    def values(self, column: Column, row: Row, seeds: Sequence[int]) -> dict[int, Any]:
        """Return the value of each seed that has one; the others are noted as missing."""
        values = {}
        if not seeds:
            self.missing[row.run] = None
        if row.start and column.json_key is not None:
            return {}  # what the start was made with is not the run's to say
        for seed in seeds:
            folder = self.runs / row.run / f"s{seed}"
            folder = folder / "start" if row.start else folder
            value = self._score(column, folder) if column.scores is not None else self._json(column, folder)
            if value is not None and not (isinstance(value, float) and math.isnan(value)):
                values[seed] = value
        return values

    def _score(self, column: Column, folder: Path) -> float | None:
        path = folder / "scores" / f"{column.scores}.csv"
        if not path.is_file():
            self.missing[f"{' '.join(folder.relative_to(self.runs).parts)} {column.scores}"] = None
            return None
        scores = read_scores(path)
        self._check_images(str(column.scores), path, scores)
        if column.group is not None:
            scores = scores[scores["group"] == column.group]
            if scores.empty:
                raise CellsegError(f"{path}: column '{column.name}' wants group '{column.group}', which it has not")
        try:
            return aggregate(scores, column.metric, column.thresholds, column.statistic)
        except CellsegError as error:
            raise CellsegError(f"{path}: column '{column.name}': {error}") from error

    def _check_images(self, name: str, path: Path, scores: pd.DataFrame) -> None:
        images = scores.drop_duplicates("image").sort_values("image", ignore_index=True)
        bad = int((~images["status"].isin(GOOD_STATUS)).sum())
        if bad:
            self.unusable[f"{' '.join(path.parent.parent.relative_to(self.runs).parts)} {name}"] = bad
        first_path, first = self.images.setdefault(name, (path, images))
        facts = ["image", "rule", "n_true"]
        if not images[facts].equals(first[facts]):
            raise CellsegError(
                f"{path}: scored on other images, another truth or by another rule than {first_path}, so the two "
                "cannot share a column; re-run 'cellseg evaluate' for both"
            )

    def _json(self, column: Column, folder: Path) -> Any:
        path = folder / "summary.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            value = None
        except (OSError, ValueError, RecursionError) as error:
            raise CellsegError(f"{path}: cannot be read as JSON ({str(error)[:200]})") from error
        for key in str(column.json_key).split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            self.missing[f"{folder.parent.name} {folder.name} {column.json_key}"] = None
        return value

    def describe(self, seeds: Mapping[str, Sequence[int]]) -> list[str]:
        """Return the lines that say what the figures are over."""
        lines = []
        for name, (_, images) in self.images.items():
            of = sorted({" ".join(filter(None, words)) for words in images[["dataset", "split"]].to_numpy().tolist()})
            of_what = f" ({', '.join(filter(None, of))})" if any(of) else ""
            rule = images["rule"].iloc[0] if len(images) else "unknown"
            lines.append(f"{name}: {len(images)} images, {images['n_true'].sum()} true cells{of_what}, rule {rule}.")
        lines.append(f"Cells are mean ± standard deviation over n seeds. Seeds: {_seed_words(seeds)}.")
        if self.unusable:
            parts = (f"{name} {count}" for name, count in self.unusable.items())
            lines.append(f"Predictions missing or unusable, scored 0: {'; '.join(parts)}.")
        if self.missing:
            lines.append(f"Missing: {'; '.join(self.missing)}.")
        return lines


def _seed_words(seeds: Mapping[str, Sequence[int]]) -> str:
    """Say which seeds the rows have: those of most rows once, then the rows that have others."""
    listed = {row: ", ".join(map(str, found)) or "none" for row, found in seeds.items()}
    shared, rows = Counter(listed.values()).most_common(1)[0]
    shared = shared if rows > 1 else ""
    others = "; ".join(f"{row} {found}" for row, found in listed.items() if found != shared)
    return ", but ".join(filter(None, [shared, others]))


def _related(row: Row, named: str, rows: Mapping[str, Row]) -> Row:
    """Return the row that a column names; where that shows a start, the one that shows this row's own."""
    return rows[row.before] if rows[named].start and row.before is not None else rows[named]


def _cell(source: _Source, column: Column, row: Row, spec: TableConfig, seeds: Mapping[str, Sequence[int]]) -> Cell:
    if column.text is not None:
        return Cell(row.text.get(column.text, DASH))
    values = source.values(column, row, seeds[row.name])
    if any(isinstance(value, bool | str | list | dict) for value in values.values()):
        return Cell("/".join(sorted({str(value) for value in values.values()})), n=len(values))
    signed = column.difference_to is not None
    named = column.difference_to or column.ratio_to
    if named is not None:
        other = _related(row, named, {one.name: one for one in spec.row})
        reference = source.values(column, other, seeds[other.name])
        values = _differences(values, reference) if signed else _ratios(values, reference)
    if not values:
        return Cell(DASH if seeds[row.name] else spec.missing)
    numbers = [float(value) for value in values.values()]
    mean = statistics.fmean(numbers)
    sd = statistics.stdev(numbers) if len(numbers) > 1 else None
    text = f"{mean:{'+' if signed and round(mean, column.digits) else 'z'}.{column.digits}f}"
    text += "" if sd is None else f" ± {sd:.{column.digits}f}"
    text += f" (n={len(numbers)})" if len(numbers) < len(seeds[row.name]) else ""
    return Cell(text, mean, sd, len(numbers))


def _differences(values: Mapping[int, float], reference: Mapping[int, float]) -> dict[int, float]:
    """Subtract seed by seed where both have the same seeds, otherwise the mean of the reference."""
    if not reference:
        return {}
    mean = statistics.fmean(reference.values())
    return {
        seed: value - (reference[seed] if values.keys() == reference.keys() else mean) for seed, value in values.items()
    }


def _ratios(values: Mapping[int, float], reference: Mapping[int, float]) -> dict[int, float]:
    """Divide by the mean of the reference, so that the mean of the ratios is the ratio of the means."""
    mean = statistics.fmean(reference.values()) if reference else 0.0
    return {seed: value / mean for seed, value in values.items()} if mean else {}
