"""Commands that score and show: evaluate, compare, table, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cellseg.cli.app import Device, app, say
from cellseg.cli.coco import evaluate_coco_file
from cellseg.core import CellsegError

if TYPE_CHECKING:
    from cellseg.compare import Method
    from cellseg.evaluate import FolderRule

Rule = Annotated[
    Literal["strict", "neurips"],
    typer.Option(help="strict: whole images, what is missing scores 0. neurips: the NeurIPS 2022 challenge's rule."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; as many as are worth it unless given.")]


@app.command()
def evaluate(  # noqa: PLR0913 (options of a command line)
    truth: Annotated[Path, typer.Argument(help="True label images, an index.csv, a COCO .json, or a run folder.")],
    pred: Annotated[Path | None, typer.Argument(help="Folder of predicted label images; not with a run.")] = None,
    rule: Rule = "strict",
    thresholds: Annotated[str, typer.Option(help="IoU thresholds: 0.5,0.75 or a span in steps of 0.05.")] = "0.5:0.95",
    split: Annotated[str | None, typer.Option(help="With an index: only this split.")] = None,
    by: Annotated[
        Literal["group", "split", "dataset"] | None, typer.Option(help="Summarise by this column of the index.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a row per image and threshold: .csv or .parquet.")] = None,
    details: Annotated[
        Path | None, typer.Option(help="Write AJI, SEG, Dice, splits, merges … of each image: .csv or .parquet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
    workers: Workers = None,
    device: Device = "auto",
) -> None:
    """Score predictions (by LIVECell's COCO AP if TRUTH is a COCO file), or predict and score the sets of a run.

    A run that started from other weights is shown beside them: what was gained, what was lost, and on which images.

    Files are paired by name: a.tif, a_masks.png (Cellpose) and a_label.tiff (NeurIPS) all hold the labels of image a.
    A prediction that is missing or unusable scores 0, is named, and makes the exit status 1.
    """
    options = {
        "--thresholds": thresholds != "0.5:0.95", "--split": split is not None, "--by": by is not None,
        "--details": details is not None, "--json": as_json,
    }  # fmt: skip
    given = [name for name, is_given in options.items() if is_given]
    if truth.suffix.lower() == ".json":
        evaluate_coco_file(truth, pred, out, other_options=rule != "strict" or bool(given))
    elif pred is None:
        from cellseg.cli.runs import Scoring, evaluate_run

        evaluate_run(truth, Scoring(rule, device, workers), [*given, *(["--out"] if out is not None else [])])
    else:
        settings = _Scoring(rule, thresholds, split, by or "group", out, details, as_json)
        _evaluate_folders(truth, pred, settings, workers)


@app.command()
def compare(  # noqa: PLR0913 (options of a command line)
    methods: Annotated[list[str], typer.Argument(help="Score tables, the baseline first: WHERE or NAME=WHERE.")],
    metric: Annotated[Literal["f1", "ap", "pq"], typer.Option(help="What is compared.")] = "f1",
    threshold: Annotated[str, typer.Option(help="IoU: 0.5, or 0.5:0.9 for the mean over a span.")] = "0.5",
    evaluation: Annotated[str | None, typer.Option("--set", help="Evaluation set, where WHERE is a run.")] = None,
    by: Annotated[Literal["group", "split", "dataset"], typer.Option(help="Column of the groups.")] = "group",
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap samples.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the rows: .csv or .parquet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Compare methods by their scores: differences to the first with 95 % intervals and p-values.

    WHERE is a score table made by 'cellseg evaluate --out', a run folder, or a pattern in quotes that gives one table
    for each seed:

    cellseg compare a.csv b.csv

    cellseg compare plain='runs/plain/s*/scores/target.csv' l2sp='runs/l2sp/s*/scores/target.csv'

    The interval is that of a paired bootstrap over seeds and images; p-values are adjusted by Holm's procedure for the
    number of methods compared with the first, on all images.
    """
    from cellseg.cli.screen import as_json as to_json
    from cellseg.cli.screen import show_comparison
    from cellseg.compare import compare_methods, list_notes, read_methods
    from cellseg.metrics.scores import check_suffix, parse_thresholds, write_scores

    if out is not None:
        check_suffix(out)
    steps = parse_thresholds(threshold)
    read = read_methods(methods, evaluation)
    comparison = compare_methods(read, metric, steps, by=by, draws=draws, seed=seed)
    facts: dict[str, Any] = {"metric": metric, "threshold": threshold, "draws": draws, "seed": seed}
    facts["rule"] = str(read[0].tables[0]["rule"].iloc[0])
    notes = list_notes(read, comparison)
    if out is not None:
        write_scores(comparison.assign(**facts), out)
    if as_json:
        tables = [{"name": method.name, "tables": [str(path) for path in method.paths]} for method in read]
        print(to_json({**facts, "methods": tables, "rows": comparison.to_dict("records"), "notes": notes}))
        return
    show_comparison(comparison, _comparison_title(read, metric, threshold, facts["rule"]), notes)
    if out is not None:
        say(f"written: {out}")


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
    runs: Annotated[list[Path], typer.Argument(help="Run folders, the teacher first; or one adaptation alone.")],
    evaluation: Annotated[str | None, typer.Option("--set", help="Only this evaluation set.")] = None,
    images: Annotated[int, typer.Option(min=0, help="Images to show of each set.")] = 3,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file (default: report.html in the last run), or PNG.")] = None,
    device: Device = "auto",
) -> None:
    """Show what was gained and lost: one HTML page that opens anywhere, or a PNG of outlines.

    One adaptation alone is shown beside the weights it started from. One that names nothing to score is shown by
    what needs no labels: what was decided, the criteria, and the cells before and after.
    """
    path = out or runs[-1] / "report.html"
    if path.suffix.lower() == ".png":
        from cellseg.report.picture import write_picture_of_runs

        write_picture_of_runs(runs, path, evaluation, images)
    else:
        from cellseg.cli.runs import look_at_unlabelled
        from cellseg.report.page import write_page

        look_at_unlabelled(runs, device)
        write_page(runs, path, evaluation=evaluation, images=images, title=title)
    print(path)


@dataclass(frozen=True)
class _Scoring:
    """The options of scoring two folders."""

    rule: FolderRule
    thresholds: str
    split: str | None
    by: str
    out: Path | None
    details: Path | None
    as_json: bool


def _evaluate_folders(truth: Path, pred: Path, options: _Scoring, workers: int | None) -> None:
    from cellseg.cli.screen import say_problems, scores_json, show_scores
    from cellseg.evaluate import find_pairs, list_problems, score_pairs, write_scores
    from cellseg.metrics.scores import check_suffix, parse_thresholds

    written = [path for path in (options.out, options.details) if path is not None]
    for path in written:
        check_suffix(path)
    if options.details is not None and options.rule == "neurips":
        raise CellsegError("--details are those of whole images with nothing left out: use --rule strict")
    pairs = find_pairs(truth, pred, options.split)
    scores, details = score_pairs(pairs, options.rule, parse_thresholds(options.thresholds), workers)
    if options.out is not None:
        write_scores(scores, options.out)
    if options.details is not None:
        write_scores(details, options.details)
    if options.as_json:
        print(scores_json(scores, {"truth": str(truth), "pred": str(pred)}, options.by))
    else:
        show_scores(scores, f"{pred} against {truth}", options.by)
    if (scores[options.by] == "").all() and options.by != "group":
        say(f"nothing to summarise by {options.by}: only an index.csv as the truth has a column {options.by}")
    say_problems(scores)
    for path in written:
        say(f"written: {path}")
    if list_problems(scores):
        raise typer.Exit(1)


def _comparison_title(methods: list[Method], metric: str, threshold: str, rule: str) -> str:
    names = {"f1": "F1", "ap": "AP", "pq": "PQ"}
    seeds = ", ".join(f"{m.name} {len(m.tables)} seed{'s' * (len(m.tables) > 1)}" for m in methods)
    return f"{names[metric]} at IoU {threshold}, mean over images and seeds; rule {rule}; {seeds}"
