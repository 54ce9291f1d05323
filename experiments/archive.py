"""Keep what tables and figures are made from: of every run in a table its counts by image, its summary and its log.

``python experiments/archive.py`` writes ``results/runs/<run>.csv`` (a row an image, a column a seed: predicted cells,
then true positives at IoU .50, .55, … .95), ``results/runs.csv`` (a row a run and seed: times, distances, provenance)
and ``results/steps.csv`` (what was logged, thinned out) from the run folders that are there, and leaves the rest as it
is. Then it renders every table from these files alone, so that a clone without run folders makes the same bytes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd

from cellseg.config import merge
from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.journal import read_log, read_summary
from cellseg.metrics import THRESHOLDS
from cellseg.metrics.scores import GOOD_STATUS, read_scores, write_scores
from cellseg.report.runs import seed_folders
from cellseg.tables import read_table, render_table

ROOT = Path(__file__).resolve().parent
RUNS, RESULTS, TABLES = ROOT / "runs", ROOT / "results", ROOT / "tables"
FACTS = ["set", "image", "group", "split", "dataset", "rule", "n_true"]
SUMMARY = (
    *("steps", "chosen_step", "minutes", "processor_minutes", "ms_per_step", "peak_mb", "distance", "parameters"),
    *("regularizer", "stopped", "threads", "device", "gpu", "config_hash", "index_hash"),
)
LOGGED = ("distance", "val_f1", "flips", "scales", "cycle", "confidence", "consensus", "cells")
LOG_EVERY = 50
"""Steps between the kept distances; every look of a judge is kept."""


def main() -> None:
    """Archive the runs that are there, then render every table from the archive."""
    pack(RUNS, RESULTS)
    for table in TABLES.glob("*.toml"):
        if any(column.metric in ("pq", "sq") for column in read_table(table).column):
            raise CellsegError(f"{table}: wants the IoU of matched cells, which the archive does not hold")
    with tempfile.TemporaryDirectory() as folder:
        unpack(RESULTS, Path(folder))
        for table in sorted(TABLES.glob("*.toml")):
            print(render_table(table, folder, RESULTS)[0].relative_to(ROOT))


def tabled_runs() -> list[str]:
    """Return the runs that tables name, in order."""
    rows = (row.run for table in sorted(TABLES.glob("*.toml")) for row in read_table(table).row)
    return list(dict.fromkeys(rows))


# ---- from run folders to CSV


def pack(runs: Path, results: Path) -> None:
    """Write the archive of the runs in tables that are there; the rows of others are kept."""
    facts, steps = [], []
    for run in tabled_runs():
        folders = [folder for folder in _seeds(runs / run) if (folder / "scores").is_dir()]
        if not folders:
            continue
        write_scores(counts_of(folders), results / "runs" / f"{run}.csv")
        facts += [summary_of(run, folder) for folder in folders]
        steps += [line for folder in folders for line in thinned_log(run, folder)]
    _merge(results / "runs.csv", facts)
    _merge(results / "steps.csv", steps)


def _seeds(run: Path) -> list[Path]:
    return [folder for folder in seed_folders(run) if folder != run] if run.is_dir() else []


def _merge(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the rows of the runs that are there, keep those of others; in order of run, seed and step."""
    new = pd.DataFrame(rows, dtype=object)
    if path.exists():
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
        new = pd.concat([old[~old["run"].isin(set(new["run"]) if rows else ())], new])
    keys = [key for key in ("run", "seed", "step") if key in new]
    numbers = {key: new[key].astype(float) for key in keys if key != "run"}
    order = new.assign(**numbers).reset_index(drop=True).sort_values(keys).index
    write_text(path, new.iloc[order].to_csv(index=False, lineterminator="\n"))


def counts_of(folders: list[Path]) -> pd.DataFrame:
    """Return a row for every set and image, and a column for every seed (``s0``) and its start (``s0/start``).

    Raises
    ------
    CellsegError
        If the seeds were scored on different images.
    """
    columns = [
        _column(path, home.relative_to(folder.parent).as_posix())
        for folder in folders
        for home in (folder, folder / "start")
        for path in sorted((home / "scores").glob("*.csv"))
    ]
    parts: dict[str, list[pd.DataFrame]] = {}
    for column in columns:
        parts.setdefault(str(column["set"].iloc[0]), []).append(column)
    merged = []
    for name, some in parts.items():
        one = reduce(lambda left, right: left.merge(right, on=FACTS, how="outer"), some)
        if len(one) != len(some[0]):
            raise CellsegError(f"{folders[0].parent}: its seeds were scored on different images of {name}")
        merged.append(one.sort_values("image"))
    return pd.concat(merged).fillna("")


def _column(path: Path, name: str) -> pd.DataFrame:
    """Return one score table as counts: a row an image."""
    scores = read_scores(path).sort_values(["image", "threshold"], ignore_index=True)
    images = scores.drop_duplicates("image", ignore_index=True)
    if list(scores["threshold"]) != list(THRESHOLDS) * len(images):
        raise CellsegError(f"{path}: cannot be archived: not every image is scored at .50, .55, … .95")
    hits = scores["tp"].to_numpy(int).reshape(len(images), len(THRESHOLDS))
    bad = images["status"].where(~images["status"].isin(GOOD_STATUS), "")
    cells = [
        " ".join(map(str, [int(n_pred), *row])) + f" {status}".rstrip()
        for n_pred, row, status in zip(images["n_pred"], hits, bad, strict=True)
    ]
    return images[FACTS[1:]].assign(set=path.stem, **{name: cells})[[*FACTS, name]]


def summary_of(run: str, folder: Path) -> dict[str, Any]:
    """Return what ``summary.json`` says in one row."""
    summary = read_summary(folder)
    made = summary.get("made_with", {})
    words = {key: _reach(summary, key) for key in summary_keys()}
    words |= {key: made[key] for key in sorted(made) if key != "command"}
    return {"run": run, "seed": int(folder.name[1:])} | {k: "" if v is None else v for k, v in words.items()}


def summary_keys() -> list[str]:
    """Return what is kept of a summary, dots reaching into nested tables: what tables show, and how it was made."""
    tables = (read_table(table) for table in sorted(TABLES.glob("*.toml")))
    shown = (column.json_key for table in tables for column in table.column)
    return list(dict.fromkeys([*SUMMARY, *(key for key in shown if key is not None)]))


def _reach(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def thinned_log(run: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield distances now and then, and what a judge found at every look."""
    for line in read_log(folder):
        values = {key: round(line[key], 4) if key in line else "" for key in LOGGED}
        looked = any(key in line for key in LOGGED[1:])
        if looked or ("distance" in line and line["step"] % LOG_EVERY == 0):
            yield {"run": run, "seed": int(folder.name[1:]), "step": line["step"], **values}


# ---- from CSV to run folders


def unpack(results: Path, runs: Path) -> None:
    """Write run folders with as much in them as tables and figures read."""
    for path in sorted((results / "runs").glob("*.csv")):
        counts = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        for home in [name for name in counts[0] if name not in FACTS]:
            for name in dict.fromkeys(row["set"] for row in counts):
                rows = [one for row in counts if row["set"] == name and row[home] for one in scores_of(row, row[home])]
                if rows:
                    write_scores(pd.DataFrame(rows), runs / path.stem / home / "scores" / f"{name}.csv")
    for row in _records(results / "runs.csv"):
        values: dict[str, Any] = {}
        for key in summary_keys():
            if row.get(key):
                nested = _value(row[key])
                for part in reversed(key.split(".")):
                    nested = {part: nested}
                values = merge(values, nested)
        write_text(runs / row["run"] / f"s{row['seed']}" / "summary.json", json.dumps(values))


def _records(path: Path) -> list[dict[str, str]]:
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records") if path.exists() else []


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def scores_of(row: Mapping[str, Any], cell: str) -> list[dict[str, Any]]:
    """Turn one cell back into rows of a score table; the IoU of matched cells is not kept."""
    words = cell.split()
    n_true, n_pred, hits = int(row["n_true"]), int(words[0]), words[1 : 1 + len(THRESHOLDS)]
    status = " ".join(words[1 + len(THRESHOLDS) :]) or "ok"
    rows = []
    for threshold, hit in zip(THRESHOLDS, map(int, hits), strict=True):
        facts = {key: row[key] for key in ("image", "group", "split", "dataset", "rule")}
        counts = {"tp": hit, "fp": n_pred - hit, "fn": n_true - hit, "n_true": n_true, "n_pred": n_pred}
        f1 = _f1(hit, n_true + n_pred, row["rule"], status)
        rows.append(facts | {"threshold": threshold, **counts, "iou_sum": 0.0, "f1": f1, "status": status})
    return rows


def _f1(hit: int, cells: int, rule: str, status: str) -> float:
    if cells == 0:
        return float(rule != "neurips" and status in GOOD_STATUS)
    return round(2 * hit / cells, 4) if rule == "neurips" else 2 * hit / cells


if __name__ == "__main__":
    main()
