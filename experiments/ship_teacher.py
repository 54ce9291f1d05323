"""Make a run the teacher that the package ships: ``make ship-teacher RUN=experiments/runs/teacher/s0``.

Copies the weights without what only this machine understands and writes the model card, whose scores come from
``score_teacher.py``. Refuses weights with an image in their past that may not be published.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from score_teacher import CARD, ROOT, WEIGHTS

from cellseg.checkpoint import load_weights, save_weights
from cellseg.config import RunConfig, read_run
from cellseg.core import CellsegError
from cellseg.datasets.index import read_index
from cellseg.files import write_text
from cellseg.journal import read_summary
from cellseg.report.runs import seed_folders

PUBLISHABLE = {
    "dsb2018": "Data Science Bowl 2018 (BBBC038), CC0 1.0",
    "synthetic": "made by `cellseg prepare synthetic`",
}
PUBLISHABLE["synthetic_neurips"] = PUBLISHABLE["synthetic"]
"""Sets whose images may be in the past of shipped weights, and why."""

LARGEST_MB = 10
KEPT = ("diameter", "step", "scale_prior", "decoding")
"""What predictions depend on, of the facts that go with weights; names of files are not among them."""


def main() -> None:
    """Write weights and card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="Finished run folder.")
    run = next(iter(seed_folders(parser.parse_args().run)))
    past = history(run)
    check_past(past)
    ship(run)
    write_text(CARD, card(facts_of(past)))
    print(f"{WEIGHTS.relative_to(ROOT)}, {CARD.relative_to(ROOT)}; now score it: python experiments/score_teacher.py")


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


def facts_of(past: list[tuple[Path, RunConfig]]) -> dict[str, Any]:
    """Return what the card says of the training, none of it from the scores."""
    run, config = past[-1]
    summaries = [read_summary(folder) for folder, _ in past]
    datasets = sorted({record.dataset for _, c in past for s in c.data.train for record in read_index(s.index)})
    return {
        "commands": [
            line for (folder, _), told in zip(past, summaries, strict=True) for line in commands(folder, told)
        ],
        "minutes": sum(summary["minutes"] for summary in summaries),
        "made_with": summaries[-1]["made_with"],
        "parameters": load_weights(run)[0].state_dict(),
        "model": config.model,
        "mixed": any("mixed" in told for told in summaries),
        "datasets": [PUBLISHABLE[name] for name in datasets],
    }


def commands(folder: Path, told: dict[str, Any]) -> list[str]:
    """Return the commands that made a run, or the run that was mixed."""
    mixed = told.get("mixed")
    run = Path(mixed["run"]) if mixed else folder
    lines = [f"cellseg train experiments/{run.parent.name}.toml --seed {run.name[1:]}"]
    return lines + ([f"python experiments/mix_teacher.py {run} --weight {mixed['weight']:g} --out …"] if mixed else [])


def card(facts: dict[str, Any]) -> str:
    """Return the model card as Markdown, without scores."""
    size = sum(value.numel() for value in facts["parameters"].values())
    made, model = facts["made_with"], facts["model"]
    versions = ", ".join(f"{key} {made[key]}" for key in ("python", "torch", "monai", "albumentations") if key in made)
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
* **File**: {WEIGHTS.stat().st_size / 1e6:.1f} MB, SHA-256 `-`.

## Training

```text
{chr(10).join(facts["commands"])}
```

{facts["minutes"]:.0f} minutes in all; revision of the last training {made["revision"]}; {made["cpu"]}; {versions}.
{share}
## Scores

## Limits

* Of real images it has seen nuclei: mostly fluorescent ones, some stained, few in brightfield. Of phase contrast it
  knows made-up images only, of DIC none. Where the table shows a small number, do not use it as it is: adapt it
  ([tutorial](../../docs/tutorial.md)).
* The scale is estimated from the image; where cells are cut to pieces or melted together, give `--diameter`.
* Not for diagnosis.
"""


if __name__ == "__main__":
    main()
