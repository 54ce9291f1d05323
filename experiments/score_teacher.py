"""Score the shipped teacher and write the figures into its table and its model card: ``make ship-teacher``.

``python experiments/score_teacher.py --foreground 0.38 --min-score 0.7`` first writes into the weights by which rule
their maps are read; what is not told stays. The rule is chosen by ``decoding.py``. The DSB2018 and LIVECell samples are
those that ``make experiments`` prepares.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from cellseg.checkpoint import load_weights, save_weights
from cellseg.config import PredictConfig, Selection
from cellseg.core import CellsegError
from cellseg.datasets.index import select, write_index
from cellseg.decoding import Rule, rule_of
from cellseg.evaluate import evaluate
from cellseg.files import write_text
from cellseg.metrics.scores import write_scores
from cellseg.orders import Wish
from cellseg.predict import Segmenter, load
from cellseg.predict_images import predict_images
from cellseg.progress import track
from cellseg.weights import SUFFIX, TEACHER

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "cellseg" / "weights" / f"{TEACHER}{SUFFIX}"
CARD = WEIGHTS.with_suffix(".md")
SCORES = ROOT / "experiments" / "results" / "teacher.csv"
SETS = (("dsb2018", "val"), ("dsb2018", "test"), ("livecell", "test"))


def main() -> None:
    """Write the rule, if one is told, then the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--foreground", type=float, help="probability above which a pixel may be cell")
    parser.add_argument("--min-score", type=float, help="least mean probability of a cell")
    told = vars(parser.parse_args())
    check_indices()
    set_rule({key: value for key, value in told.items() if value is not None})
    table = pd.concat([score(*one) for one in SETS], ignore_index=True)
    write_scores(table, SCORES)
    write_text(CARD, refreshed(CARD.read_text(encoding="utf-8"), table))
    print(f"{WEIGHTS.relative_to(ROOT)}, {CARD.relative_to(ROOT)}, {SCORES.relative_to(ROOT)}")


def check_indices() -> None:
    """Refuse to begin where a set is not there: the weights would change and their scores would not."""
    missing = [str(index) for index in (index_of(dataset) for dataset, _ in SETS) if not index.is_file()]
    if missing:
        raise CellsegError(f"no {', '.join(sorted(set(missing)))}; make experiments prepares them")


def index_of(dataset: str) -> Path:
    """Return where a set is prepared."""
    return ROOT / "data" / "prepared" / dataset / "index.csv"


def set_rule(told: dict[str, float]) -> None:
    """Write into the weights by which rule their maps are read; the rest of the file stays."""
    model, config, about = load_weights(WEIGHTS)
    rule = about.get("decoding", {}) | told
    try:
        PredictConfig.model_validate(rule)
    except ValidationError as error:
        first = error.errors()[0]
        raise CellsegError(f"{first['loc'][0]} {first['input']:g}: {first['msg']}; the weights stay") from None
    if rule != about.get("decoding", {}):
        save_weights(WEIGHTS, model, config, about | {"decoding": rule})
        WEIGHTS.chmod(0o644)


def score(dataset: str, split: str) -> pd.DataFrame:
    """Return a row for every group of a set, and one for all of it: means over images, in one view and in six."""
    images = Selection(index=str(index_of(dataset)), split=split)
    one, six = (by_group(images, load(TEACHER, settings=PredictConfig(tta=tta))) for tta in (False, True))
    return one.assign(six_views_f1_50=six["f1_50"])


def by_group(images: Selection, segmenter: Segmenter) -> pd.DataFrame:
    """Segment and score images; return a row for all of them, then one for every group."""
    scores = segmented(images, segmenter)
    return pd.DataFrame([row_of(group, part) for group, part in [("all", scores), *scores.groupby("group")]])


def segmented(images: Selection, segmenter: Segmenter) -> pd.DataFrame:
    """Segment and score images; return their score table."""
    records = [record for record in select(images) if record.label_kind == "instances"]
    todo = [(record.id, record.image) for record in records]
    with tempfile.TemporaryDirectory() as folder:
        found = predict_images(segmenter, todo, Path(folder), Wish(None, keep=False))
        for _ in track(found, f"{records[0].dataset} {images.split}", total=len(todo)):
            pass
        write_index(Path(folder) / "index.csv", records)
        return evaluate(Path(folder) / "index.csv", folder)


def row_of(group: str, scores: pd.DataFrame) -> dict[str, Any]:
    """Return the means over the images of a group."""
    images = scores.drop_duplicates("image")
    means = scores.assign(ap=scores.tp / (scores.tp + scores.fp + scores.fn)).groupby("threshold")[["f1", "ap"]].mean()
    first = scores.iloc[0]
    return {
        **{"dataset": first["dataset"], "split": first["split"], "group": group, "images": len(images)},
        **{"cells": int(images["n_true"].sum()), "f1_50": means["f1"].iloc[0], "f1_50_90": means["f1"].iloc[:9].mean()},
        **{"ap_50": means["ap"].iloc[0], "rule": first["rule"]},
    }


# ---- the card


def refreshed(card: str, scores: pd.DataFrame) -> str:
    """Return a card with the scores, the rule and the checksum of today."""
    head, _, rest = card.partition("## Scores\n")
    limits = rest[rest.index("## Limits") :]
    head = re.sub(r"SHA-256 `[\w-]*`", f"SHA-256 `{checksum(WEIGHTS)}`", head)
    how = words(rule_of(PredictConfig(), load_weights(WEIGHTS)[2]))
    return f"{head}## Scores\n\n{how}\n\n{score_table(scores)}\n\n{limits}"


def words(rule: Rule) -> str:
    """Say how the scores were made."""
    return f"""Mean over images, in default settings, and with `--tta` (six views). A pixel may be cell from a
probability of {rule.foreground:g}, and cells of a mean below {rule.min_score:g} are dropped: the weights carry this
rule. It was [chosen](../../experiments/results/decoding.md) on the validation images (`val`), as the checkpoint was;
the test images chose nothing. Groups are a heuristic by looks. Small samples: no figure here is comparable with
published ones."""


def score_table(scores: pd.DataFrame) -> str:
    """Return the scores as lines of a Markdown table."""
    lines = [
        "| set | split | group | images | cells | F1@.5 | F1@[.5:.9] | AP@.5 | F1@.5, six views |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in scores.to_dict("records"):
        figures = " | ".join(f"{row[key]:.3f}" for key in ("f1_50", "f1_50_90", "ap_50", "six_views_f1_50"))
        names = " | ".join(str(row[key]) for key in ("dataset", "split", "group", "images", "cells"))
        lines.append(f"| {names} | {figures} |")
    return "\n".join(lines)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    try:
        main()
    except CellsegError as error:
        sys.exit(f"error: {error}")
