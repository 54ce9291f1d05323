"""Commands that score and show: evaluate, table, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cellseg.cli.app import Device, app, run_config, say
from cellseg.cli.coco import evaluate_coco_file
from cellseg.core import CellsegError

if TYPE_CHECKING:
    from cellseg.config import EvaluationSet
    from cellseg.evaluate import FolderRule
    from cellseg.predict import Segmenter

SHOWN = ("group", "n_images", "n_true", "f1_mean", "f1_median", "f1_pooled", "f1_mean_50_90", "ap_mean", "pq_mean")
"""Columns of a summary on the screen; the scores file has all that is needed for the rest."""


@app.command()
def evaluate(
    truth: Annotated[Path, typer.Argument(help="True label images, an index.csv, a COCO .json, or a run folder.")],
    pred: Annotated[Path | None, typer.Argument(help="Folder of predicted label images; not with a run.")] = None,
    rule: Annotated[Literal["strict", "neurips"], typer.Option(help="How a folder is scored.")] = "strict",
    split: Annotated[str | None, typer.Option(help="With an index: only this split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a row per image and threshold to this CSV.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    device: Device = "auto",
) -> None:
    """Score predictions (by LIVECell's COCO AP if TRUTH is a COCO file), or predict and score the sets of a run."""
    from cellseg.evaluate import evaluate as score
    from cellseg.evaluate import list_problems, write_scores

    if truth.suffix.lower() == ".json":
        evaluate_coco_file(truth, pred, out, other_options=rule != "strict" or split is not None)
        return
    if pred is None:
        _evaluate_run(truth, rule, device, workers)
        return
    scores = score(truth, pred, rule=rule, split=split, workers=workers)
    if out is not None:
        write_scores(scores, out)
    _show_scores(scores, f"{pred} against {truth}")
    if list_problems(scores):
        raise typer.Exit(1)


@app.command()
def table(
    config: Annotated[Path, typer.Argument(help="Table file (TOML).")],
    out: Annotated[Path | None, typer.Option(help="Folder of the .md, .csv and .tex.")] = None,
) -> None:
    """Make a paper-style table from the scores of runs."""
    from cellseg.tables import render_table

    paths = render_table(config, None, out or Path("experiments/results"))
    markdown = next(path for path in paths if path.suffix == ".md")
    print(markdown.read_text(encoding="utf-8"))
    say("written: " + ", ".join(str(path) for path in paths))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders with scores, the teacher first.")],
    evaluation: Annotated[str | None, typer.Option("--set", help="Only this evaluation set.")] = None,
    images: Annotated[int, typer.Option(min=0, help="Images to show of each set.")] = 3,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file (default: report.html in the last run), or PNG.")] = None,
) -> None:
    """Show what was gained and lost: one HTML page that opens anywhere, or a PNG of outlines."""
    path = out or runs[-1] / "report.html"
    if path.suffix.lower() == ".png":
        from cellseg.report.picture import write_picture_of_runs

        write_picture_of_runs(runs, path, evaluation, images)
    else:
        from cellseg.report.page import write_page

        write_page(runs, path, evaluation=evaluation, images=images, title=title)
    print(path)


def _evaluate_run(folder: Path, rule: FolderRule, device: str, workers: int) -> None:
    from cellseg.predict import load

    run = run_config(folder)
    if not run.data.evaluate:
        raise CellsegError(f"{folder}: its configuration names no data.evaluate sets; give TRUTH and PRED instead")
    segmenter = load(folder, device=device, settings=run.predict)
    for chosen in run.data.evaluate:
        _evaluate_set(folder, chosen, segmenter, rule, workers)


def _evaluate_set(folder: Path, chosen: EvaluationSet, segmenter: Segmenter, rule: FolderRule, workers: int) -> None:
    from cellseg.datasets.index import select, write_index
    from cellseg.evaluate import evaluate as score
    from cellseg.evaluate import write_scores
    from cellseg.predict import predict_files
    from cellseg.progress import track

    records = [record for record in select(chosen) if record.label_kind == "instances"]
    predictions = folder / "predictions" / chosen.name
    todo = [(record.id, record.image, _known_diameter(segmenter, chosen)) for record in records]
    list(track(predict_files(segmenter, todo, predictions), f"segmenting {chosen.name}", total=len(todo)))
    index = predictions / "index.csv"
    write_index(index, records)
    scores = score(index, predictions, rule=rule, workers=workers)
    write_scores(scores, folder / "scores" / f"{chosen.name}.csv")
    _show_scores(scores, f"{folder}: {chosen.name}")


def _known_diameter(segmenter: Segmenter, chosen: EvaluationSet) -> float | None:
    """With ``predict.diameter = "index"``: the median over the index's training images, never the scored ones."""
    if segmenter.settings.diameter != "index":
        return None
    from statistics import median

    from cellseg.datasets.index import read_index

    known = [r.diameter for r in read_index(chosen.index) if r.split == "train" and r.diameter]
    return median(known) if known else None


def _show_scores(scores: Any, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from cellseg.evaluate import list_problems, summarize

    summary = summarize(scores)
    summary = summary[[name for name in SHOWN if name in summary.columns]]
    shown = Table(title=title)
    for column in summary.columns:
        shown.add_column(str(column), justify="left" if summary[column].dtype.kind in "OUT" else "right")
    for row in summary.itertuples(index=False):
        shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
    for problem in list_problems(scores):
        say(problem)
