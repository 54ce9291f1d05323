"""Choose settings without a validation set: train on all labelled images but one, score that one, for each of them.

``python experiments/leave_one_out.py experiments/real_five.toml --set train.lr=3e-4 --set train.lr=1e-3`` compares
the run file with each ``--set`` (several settings at once: ``--set train.lr=3e-4,train.steps=300``), and adds a row per
setting and left-out image to ``results/leave_one_out.csv``. Images that the run file scores later are never read.
Rows that are there are not made again, so an interrupted comparison goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from cellseg.config import RunConfig, Selection, check_config, load_config, merge
from cellseg.datasets.index import select
from cellseg.images import read_image, read_labels
from cellseg.metrics import THRESHOLDS, match
from cellseg.metrics.scores import write_scores
from cellseg.predict import load
from cellseg.provenance import describe
from cellseg.train import train

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "leave_one_out.csv"
KEY = ["run", "settings", "seed", "image"]


def main() -> None:
    """Train and score every fold of every setting that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE[,KEY=VALUE]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = pd.read_csv(RESULTS, keep_default_na=False) if RESULTS.exists() else pd.DataFrame(columns=KEY)
    for settings in arguments.settings or [""]:
        run = load_config(arguments.config, settings.split(",") if settings else ())
        selection = run.data.train[0]
        for record in select(selection):
            key = (arguments.config.stem, settings, arguments.seed, record.id)
            if key in set(rows[KEY].itertuples(index=False, name=None)):
                continue
            fold = fold_of(run, selection, record.id)
            f1 = score(fold, record.id, ROOT / "runs" / "leave_one_out" / "-".join(map(str, key)), arguments.seed)
            made = {name: value for name, value in describe().items() if name in ("revision", "cpu", "torch")}
            row = dict(zip(KEY, key, strict=True)) | {"group": record.group, **f1, **made}
            rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
            write_scores(rows, RESULTS)
            print(f"{settings or 'as it is'}: without {record.id}: F1@0.5 {f1['f1_50']:.3f}", flush=True)
    print(rows.groupby(["run", "settings", "seed"])[["f1_50", "f1_50_90"]].agg(["mean", "count"]).round(3))


def fold_of(run: RunConfig, selection: Selection, left_out: str) -> RunConfig:
    """Return the run trained on all but one image and scoring nothing itself."""
    kept = {**selection.model_dump(), "without": [*selection.without, left_out]}
    return check_config(merge(run.model_dump(), {"data": {"train": [kept], "val": [], "evaluate": []}}), where="fold")


def score(fold: RunConfig, left_out: str, out: Path, seed: int) -> dict[str, float]:
    """Train one fold, going on from where it was, and score the image it never saw."""
    weights = train(fold, out, seed=seed, resume=True)
    (record,) = select(Selection(index=fold.data.train[0].index, ids=(left_out,)))
    assert record.labels is not None
    labels = load(weights, settings=fold.predict).segment(read_image(record.image))
    f1 = [count.f1 for count in match(read_labels(record.labels), labels, THRESHOLDS[:-1])]
    return {"f1_50": f1[0], "f1_50_90": float(np.mean(f1))}


if __name__ == "__main__":
    main()
