"""Read what run folders hold, forgiving of what is not there: a report says so instead of failing.

Runs whose folders are the seeds ``s0``, ``s1``, … of one parent are one method. What is required is one score
table at least, or the configuration of an adaptation that names nothing to score; the rest may be absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.config import RunConfig, read_run
from cellseg.core import CellsegError, Record
from cellseg.datasets.index import read_index, select
from cellseg.metrics.scores import read_scores

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes
    ----------
    folder : Path
        As the user named it.
    name : str
        Name of the method: that of the parent of a seed folder, else of the folder.
    seed : int or None
        From the folder's name; None where that is not ``s<number>``.
    config : RunConfig or None
        None where there is no configuration, or one of another version.
    summary : dict
        ``summary.json``, empty where there is none.
    log : list of dict
        Lines of ``log.jsonl``; lines that are no JSON object are left out.
    scores : dict of str to DataFrame
        A score table for each evaluation set.
    homes : dict of str to Path
        Folders, other than ``folder``, that hold the scores and predictions of an evaluation set.
    """

    folder: Path
    name: str
    seed: int | None
    config: RunConfig | None
    summary: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    scores: Mapping[str, pd.DataFrame]
    homes: Mapping[str, Path] = field(default_factory=dict)

    @property
    def start(self) -> str | None:
        """What it was trained on from, as its configuration says; None from scratch or without a configuration."""
        return self.config.train.init if self.config is not None else None

    def predictions(self, evaluation: str) -> Path:
        """Return the folder of the label images of an evaluation set."""
        return self.homes.get(evaluation, self.folder) / "predictions" / evaluation


@dataclass(frozen=True)
class Method:
    """The runs of one method, one for each seed; pictures are of the first."""

    name: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run that is shown in pictures."""
        return self.runs[0]

    def scores(self, evaluation: str) -> list[pd.DataFrame]:
        """Return the score tables of one evaluation set, one for each seed that has it."""
        return [run.scores[evaluation] for run in self.runs if evaluation in run.scores]


def read_methods(folders: Sequence[Path]) -> list[Method]:
    """Read run folders, in the order given, and gather the seeds of each method.

    Parameters
    ----------
    folders : sequence of Path
        Run folders, or folders of seeds ``s0``, ``s1``, …, the teacher first.

    Returns
    -------
    list of Method
        At least one.

    Raises
    ------
    CellsegError
        If a folder is missing or holds no scores, is named twice, or a file in it cannot be read.
    """
    runs: dict[Path, list[Run]] = {}
    seen: set[Path] = set()
    for folder in (seed for named in folders for seed in seed_folders(named)):
        if folder.resolve() in seen:
            raise CellsegError(f"{folder}: the same run is named twice")
        seen.add(folder.resolve())
        run = read_folder(folder)
        runs.setdefault(folder.resolve().parent if run.seed is not None else folder.resolve(), []).append(run)
    if not runs:
        raise CellsegError("wanted at least one run folder, the teacher first")
    names = [group[0].name for group in runs.values()]
    return [
        Method(
            group[0].name if names.count(group[0].name) == 1 else f"{parent.parent.name}/{parent.name}", tuple(group)
        )
        for parent, group in runs.items()
    ]


def seed_folders(folder: Path) -> Iterator[Path]:
    """Yield the folder itself, or the seeds in it where it is the parent of some."""
    if not folder.is_dir():
        raise CellsegError(f"{folder}: no such run folder")
    seeds = [path for path in folder.glob("s*") if path.is_dir() and _seed_of(path) is not None]
    if (folder / "scores").is_dir() or not seeds:
        yield folder
    else:
        yield from sorted(seeds, key=lambda path: _seed_of(path) or 0)


def _seed_of(folder: Path) -> int | None:
    found = re.fullmatch(r"s(\d+)", folder.resolve().name)
    return int(found[1]) if found else None


def read_folder(folder: Path, *, scored: bool = True) -> Run:
    """Read one run folder.

    Raises
    ------
    CellsegError
        If a file in it cannot be read, or with ``scored`` if it has no scores, unless it is an adaptation that names
        nothing of its target to score.
    """
    tables = sorted([*(folder / "scores").glob("*.csv"), *(folder / "scores").glob("*.parquet")])
    try:
        config = read_run(folder / "config.json")
    except CellsegError:
        config = None
    if scored and not tables and not (config and lacks_target(config)):
        raise CellsegError(f"{folder}: holds no scores; make them with 'cellseg evaluate {folder}'")
    seed = _seed_of(folder)
    return Run(
        folder=folder,
        name=folder.resolve().parent.name if seed is not None else folder.resolve().name,
        seed=seed,
        config=config,
        summary=_read_json(folder / "summary.json"),
        log=list(_read_log(folder / "log.jsonl")),
        scores={path.stem: read_scores(path) for path in tables},
    )


def lacks_target(config: RunConfig) -> bool:
    """Whether a run started from other weights and names no labelled images to score but of what it replays.

    An index that is replayed and learned from may hold both sides, and what is scored of it counts as target.
    """
    data = config.data
    learned = {selection.index for selection in (*data.train, *data.unlabelled)}
    source = {selection.index for selection in data.replay} - learned
    return config.train.init is not None and all(named.index in source for named in data.evaluate)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CellsegError(f"{path}: cannot be read as JSON ({error})") from error
    return values if isinstance(values, dict) else {}


def _read_log(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # a line that was cut off while a run was stopped
            continue
        if isinstance(values, dict):
            yield values


def list_evaluations(methods: Sequence[Method]) -> list[str]:
    """List the evaluation sets: those named target… first, then as the last run's configuration names them."""
    config = methods[-1].first.config
    named = [chosen.name for chosen in config.data.evaluate] if config else []
    found = [name for method in methods for run in method.runs for name in run.scores]
    known = [name for name in dict.fromkeys([*named, *found]) if name in found]
    return sorted(known, key=lambda name: not name.startswith("target"))


def read_records(run: Run, evaluation: str) -> dict[str, Record]:
    """Return the images of an evaluation set by id, from where the run noted them.

    Raises
    ------
    CellsegError
        If neither the run nor its configuration names an index, or a file of it is gone.
    """
    noted = run.predictions(evaluation) / "index.csv"
    if noted.is_file():
        return {record.id: record for record in read_index(noted)}
    chosen = next((s for s in run.config.data.evaluate if s.name == evaluation), None) if run.config else None
    if chosen is None:
        raise CellsegError(f"{noted}: no such file, so the images of '{evaluation}' are not known")
    return {record.id: record for record in select(chosen)}


def log_series(run: Run, key: str) -> list[tuple[float, float]]:
    """Return (step, value) of one quantity of the log, leaving out what is no finite number."""
    series = []
    for line in run.log:
        step, value = line.get("step"), line.get(key)
        if _is_number(step) and _is_number(value):
            series.append((float(step), float(value)))  # type: ignore[arg-type]
    return series


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key; lists stay whole.

    Examples
    --------
    >>> flatten({"train": {"lr": 0.1}})
    {'train.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the keys whose values are not the same in all mappings, in order of first appearance."""
    tables = list(settings)
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if any(table.get(key) != tables[0].get(key) for table in tables)]
