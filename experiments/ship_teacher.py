"""Make a run the teacher that the package ships: ``make ship-teacher RUN=experiments/runs/teacher/s0``.

Copies the weights without what only this machine understands, keeps the scores by group in ``results/teacher.csv``, and
writes the model card from these. Refuses weights with an image in their past that may not be published.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from cellseg.checkpoint import load_weights, save_weights
from cellseg.config import PredictConfig, RunConfig, read_run
from cellseg.core import CellsegError
from cellseg.datasets.index import read_index
from cellseg.files import write_text
from cellseg.journal import read_summary
from cellseg.metrics.scores import read_scores, write_scores
from cellseg.report.runs import seed_folders
from cellseg.weights import SUFFIX, TEACHER

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "cellseg" / "weights" / f"{TEACHER}{SUFFIX}"
CARD = WEIGHTS.with_suffix(".md")
SCORES = ROOT / "experiments" / "results" / "teacher.csv"

PUBLISHABLE = {
    "dsb2018": "Data Science Bowl 2018 (BBBC038), CC0 1.0",
    "synthetic": "made by `cellseg prepare synthetic`",
}
PUBLISHABLE["synthetic_neurips"] = PUBLISHABLE["synthetic"]
"""Sets whose images may be in the past of shipped weights, and why."""

LARGEST_MB = 10
KEPT = ("diameter", "step", "scale_prior")
"""What predictions depend on, of the facts that go with weights; names of files are not among them."""


def main() -> None:
    """Write weights, scores and card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="Run folder, finished and scored.")
    run = next(iter(seed_folders(parser.parse_args().run)))
    past = history(run)
    check_past(past)
    ship(run)
    scores = group_scores(run)
    write_scores(scores, SCORES)
    write_text(CARD, card(scores, facts_of(past)))
    print(f"{WEIGHTS.relative_to(ROOT)}, {CARD.relative_to(ROOT)}, {SCORES.relative_to(ROOT)}")


def history(run: Path) -> list[tuple[Path, RunConfig]]:
    """Return a run and those that it began with, the first one first."""
    config = read_run(run / "config.json")
    init = config.train.init
    if init is None:
        return [(run, config)]
    if not (Path(init) / "config.json").is_file():
        raise CellsegError(f"{run}: began with {init}, which is no run folder here; its images cannot be known")
    return [*history(Path(init)), (run, config)]


def check_past(past: list[tuple[Path, RunConfig]]) -> None:
    """Raise CellsegError where an image that any of the runs learned from or chose by is of a set with other terms."""
    for run, config in past:
        data = config.data
        for selection in (*data.train, *data.val, *data.unlabelled, *data.replay, *data.fisher):
            odd = sorted({record.dataset for record in read_index(selection.index)} - set(PUBLISHABLE))
            if odd:
                raise CellsegError(f"{run}: used {selection.index} with {', '.join(odd)}; such weights are not shipped")


def ship(run: Path) -> None:
    """Copy the weights with what predictions depend on, and nothing else."""
    model, config, about = load_weights(run)
    save_weights(WEIGHTS, model, config, {key: about[key] for key in KEPT if key in about})
    WEIGHTS.chmod(0o644)
    size = WEIGHTS.stat().st_size / 1e6
    if size > LARGEST_MB:
        raise CellsegError(f"{WEIGHTS.name}: {size:.1f} MB; a shipped model has at most {LARGEST_MB}")


def group_scores(run: Path) -> pd.DataFrame:
    """Return a row for every scored set and group, and one for all of its images: means over images."""
    rows = []
    for path in sorted((run / "scores").glob("*.csv")):
        scores = read_scores(path)
        for group, part in [("all", scores), *scores.groupby("group")]:
            first = part.iloc[0]
            images = part.drop_duplicates("image")
            f1 = part.assign(ap=part.tp / (part.tp + part.fp + part.fn)).groupby("threshold")[["f1", "ap"]].mean()
            rows.append(
                {"dataset": first["dataset"], "split": first["split"], "group": group, "images": len(images)}
                | {"cells": int(images["n_true"].sum()), "f1_50": f1["f1"].iloc[0]}
                | {"f1_50_90": f1["f1"].iloc[:9].mean(), "ap_50": f1["ap"].iloc[0], "rule": first["rule"]}
            )
    if not rows:
        raise CellsegError(f"{run}: is not scored; run 'cellseg evaluate {run}' first")
    return pd.DataFrame(rows)


def facts_of(past: list[tuple[Path, RunConfig]]) -> dict[str, Any]:
    """Return what the card says of the training, none of it from the scores."""
    run, config = past[-1]
    summaries = [read_summary(folder) for folder, _ in past]
    plain = PredictConfig()
    own = {key: value for key, value in config.predict.model_dump().items() if value != getattr(plain, key)}
    words = ", ".join(f"`predict.{key} = {json.dumps(value)}`" for key, value in own.items())
    datasets = sorted({record.dataset for _, c in past for s in c.data.train for record in read_index(s.index)})
    chosen = {"steps": config.train.steps, "validated": bool(config.data.val)}
    return chosen | {
        "commands": [
            line for (folder, _), told in zip(past, summaries, strict=True) for line in commands(folder, told)
        ],
        "minutes": sum(summary["minutes"] for summary in summaries),
        "made_with": summaries[-1]["made_with"],
        "parameters": load_weights(run)[0].state_dict(),
        "model": config.model,
        "mixed": any("mixed" in told for told in summaries),
        "settings": f"Predicted with {words}, not the default." if words else "",
        "datasets": [PUBLISHABLE[name] for name in datasets],
    }


def commands(folder: Path, told: dict[str, Any]) -> list[str]:
    """Return the commands that made a run, or the run that was mixed."""
    mixed = told.get("mixed")
    run = Path(mixed["run"]) if mixed else folder
    lines = [f"cellseg train experiments/{run.parent.name}.toml --seed {run.name[1:]}"]
    return lines + ([f"python experiments/mix_teacher.py {run} --weight {mixed['weight']:g} --out …"] if mixed else [])


def card(scores: pd.DataFrame, facts: dict[str, Any]) -> str:
    """Return the model card as Markdown."""
    size = sum(value.numel() for value in facts["parameters"].values())
    made, model = facts["made_with"], facts["model"]
    versions = ", ".join(f"{key} {made[key]}" for key in ("python", "torch", "monai", "albumentations") if key in made)
    chose = ", which chose the checkpoint" if facts["validated"] else ""
    share = (
        "\nThe share of the mixture was chosen with five LIVECell validation images besides.\n"
        if facts["mixed"]
        else ""
    )
    return f"""# Model card: teacher

What `cellseg predict my.png` uses unless told otherwise; `cellseg.load("teacher")` in Python,
`train.init = "teacher"` in a run file. Written by `make ship-teacher`; the figures are those of
`experiments/results/teacher.csv`.

* **Network**: {model.network}, {size:,} parameters, {model.representation} to the cell's centre; images are shown
  with a median cell of {model.reference_diameter:g} pixels, each channel scaled to its percentiles
  {model.normalize.low:g} and {model.normalize.high:g}.
* **Data**: {"; ".join(dict.fromkeys(facts["datasets"]))}. Nothing else, so that
  the weights may be published; no image of LIVECell, of the NeurIPS challenge or of the Cell Tracking Challenge.
* **Licence**: of the weights, CC0 1.0; of the code, BSD-3-Clause.
* **File**: {WEIGHTS.stat().st_size / 1e6:.1f} MB, SHA-256 `{checksum(WEIGHTS)}`.

## Training

```text
{chr(10).join(facts["commands"])}
```

{facts["minutes"]:.0f} minutes in all; revision of the last training {made["revision"]}; {made["cpu"]}; {versions}.
{share}
## Scores

Mean over images; the split `val` holds validation images{chose}. {facts["settings"]}
Groups are a heuristic by looks. Small samples: no figure here is comparable with published ones.

{score_table(scores)}

## Limits

* Of real images it has seen nuclei: mostly fluorescent ones, some stained, few in brightfield. Of phase contrast it
  knows made-up images only, of DIC none. Where the table shows a small number, do not use it as it is: adapt it
  ([tutorial](../../docs/tutorial.md)).
* The scale is estimated from the image; where cells are cut to pieces or melted together, give `--diameter`.
* Not for diagnosis.
"""


def score_table(scores: pd.DataFrame) -> str:
    """Return the scores as lines of a Markdown table."""
    lines = [
        "| set | split | group | images | cells | F1@.5 | F1@[.5:.9] | AP@.5 |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in scores.to_dict("records"):
        figures = " | ".join(f"{row[key]:.3f}" for key in ("f1_50", "f1_50_90", "ap_50"))
        words = " | ".join(str(row[key]) for key in ("dataset", "split", "group", "images", "cells"))
        lines.append(f"| {words} | {figures} |")
    return "\n".join(lines)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
