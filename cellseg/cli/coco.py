"""What ``cellseg evaluate`` does when the truth is a COCO file."""

from __future__ import annotations

from pathlib import Path

import typer

from cellseg.cli.app import say
from cellseg.core import CellsegError

NAMES = {
    "ap": "AP (IoU .50:.05:.95)",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs (to 324 px)",
    "ap_medium": "APm (324-961 px)",
    "ap_large": "APl (from 961 px)",
    "afnr": "AFNR",
    "n_images": "images",
    "n_annotations": "annotations",
    "n_predictions": "predictions",
    "n_unusable": "unusable predictions",
    "score_source": "score source",
}


def evaluate_coco_file(truth: Path, pred: Path | None, out: Path | None, *, other_options: bool = False) -> None:
    """Print LIVECell's scores of a folder, write them to ``out``; name what was unusable and exit 1 if anything was."""
    from cellseg.evaluate_coco import evaluate_coco, score_table, write_report

    if pred is None:
        raise CellsegError(f"{truth}: to score against a COCO file give the folder of predicted label images as well")
    if other_options:
        raise CellsegError(
            f"{truth}: a COCO file is scored whole, by LIVECell's rule; leave --rule and --split away (all but --out)"
        )
    report = evaluate_coco(truth, pred)
    if out is not None:
        write_report(report, out)
    row = score_table(report).iloc[0].to_dict()
    print(f"{pred} against {truth}, at most 2000 detections an image")
    for name, title in NAMES.items():
        value = row[name]
        print(f"{title:<22}{f'{value:.4f}' if isinstance(value, float) else value}")
    for line in (*report.notes, *report.problems):
        say(line)
    if report.problems:
        raise typer.Exit(1)
