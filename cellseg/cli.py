"""The command line: each command composes the library's functions; heavy imports wait inside them.

Results go to stdout, talk to stderr. Exit status: 0 success, 1 an expected failure in one clear line (``--debug``
shows its traceback), 2 misuse.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from cellseg import __version__
from cellseg.core import CellsegError

if TYPE_CHECKING:
    from cellseg.config import EvaluationSet, RunConfig
    from cellseg.evaluate import FolderRule
    from cellseg.predict import Segmenter

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adapt a pretrained cell segmenter to your images, and see exactly what was gained and what was lost.",
)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="dotted.key=value, as in the configuration.")]
Seed = Annotated[int, typer.Option(help="Seed of the run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last saved state.")]
RUNS = Path("experiments/runs")
SHOWN = ("group", "n_images", "n_true", "f1_mean", "f1_median", "f1_pooled", "f1_mean_50_90", "ap_mean", "pq_mean")
"""Columns of a summary on the screen; the scores file has all that is needed for the rest."""


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Read by :func:`main` before the commands run."""


@app.command()
def prepare(
    dataset: Annotated[str, typer.Argument(help="livecell, neurips, folder or synthetic.")],
    root: Annotated[Path, typer.Option(help="Where the images are (for synthetic: where they are written).")],
    out: Annotated[Path, typer.Option(help="Where index.csv and labels/ go.")],
    split_by: Annotated[str, typer.Option(help="LIVECell: 'json' (official) or 'well' (grouped by well).")] = "json",
    val_fraction: Annotated[float, typer.Option(help="Folder: share of labelled images set aside as val.")] = 0.0,
    seed: Seed = 0,
) -> None:
    """Turn a data set into index.csv, label images and a report of what was found."""
    _known("data set", dataset, ("livecell", "neurips", "folder", "synthetic"))
    if dataset == "neurips":
        raise CellsegError("prepare neurips: not yet; use 'folder' for images/ with labels/<stem>_label.tiff")
    if dataset == "folder":
        from cellseg.datasets.folder import prepare_folder

        index = prepare_folder(root, out, val_fraction=val_fraction, seed=seed)
    else:
        from cellseg.datasets.livecell import prepare_livecell

        if dataset == "synthetic":
            from cellseg.datasets.synthetic import write_synthetic

            write_synthetic(root, seed=seed)
        name = "synthetic" if dataset == "synthetic" else "livecell"
        index = prepare_livecell(root, out, split_by=split_by, seed=seed, dataset=name)
    _say(f"report: {index.parent / 'report.md'}")
    print(index)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Run file (TOML).")],
    overrides: Overrides = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; experiments/runs/NAME/sSEED by default.")] = None,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Train a network on labelled images."""
    from cellseg.config import load_config

    run = load_config(config, overrides or ())
    from cellseg.train import train as train_run

    print(train_run(run, out or _run_folder(config, seed), seed=seed, resume=resume, device=device))


@app.command()
def adapt(  # noqa: PLR0913 (options of a command line)
    config: Annotated[Path | None, typer.Argument(help="Run file (TOML); or give --images and --out.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of unlabelled images.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of label images for some of them.")] = None,
    model: Annotated[str | None, typer.Option(help="Weights file or run folder to start from.")] = None,
    overrides: Overrides = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Adapt a pretrained model to new images, with few labels or none."""
    from cellseg.config import load_config

    if config is not None:
        run = load_config(config, overrides or ())
        folder = out or _run_folder(config, seed)
    elif images is not None and out is not None:
        run = _folder_run(images, labels, model, out, overrides or [])
        folder = out
    else:
        raise CellsegError("adapt: wanted a run file, or --images DIR with --out DIR")
    from cellseg.adapt import adapt as adapt_run

    print(adapt_run(run, folder, seed=seed, resume=resume, device=device))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, folders, or an index.csv.")],
    out: Annotated[Path, typer.Option(help="Folder of the label images.")],
    model: Annotated[str, typer.Option(help="Weights file or run folder.")] = "teacher",
    diameter: Annotated[float | None, typer.Option(help="Cell diameter in pixels; estimated by default.")] = None,
    channel: Annotated[int | None, typer.Option(help="Use this channel alone (from 0).")] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Average the four flips: slower, a little better.")] = False,
    device: Device = "auto",
) -> None:
    """Segment images and write one label image each."""
    from cellseg.config import PredictConfig

    files = _expand(images)
    from cellseg.predict import load, predict_files
    from cellseg.progress import track

    segmenter = load(model, device=device, settings=PredictConfig(tta=tta))
    todo = [(name, path, diameter) for name, path in files]
    total = 0
    for _name, labels in track(predict_files(segmenter, todo, out, channel), "segmenting", total=len(todo)):
        total += int(labels.max(initial=0))
    _say(f"{len(todo)} images, {total} cells")
    print(out)


@app.command()
def evaluate(
    truth: Annotated[Path, typer.Argument(help="Folder of true label images, an index.csv, or a run folder.")],
    pred: Annotated[Path | None, typer.Argument(help="Folder of predicted label images; not with a run.")] = None,
    rule: Annotated[Literal["strict", "neurips"], typer.Option(help="How a folder is scored.")] = "strict",
    split: Annotated[str | None, typer.Option(help="With an index: only this split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a row per image and threshold to this CSV.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    device: Device = "auto",
) -> None:
    """Score predictions, or predict and score the evaluation sets of a run."""
    from cellseg.evaluate import evaluate as score
    from cellseg.evaluate import list_problems, write_scores

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
    _say("written: " + ", ".join(str(path) for path in paths))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, the teacher first.")],
    evaluation: Annotated[str | None, typer.Option("--set", help="Evaluation set; the first by default.")] = None,
    images: Annotated[int, typer.Option(help="Images to show.")] = 3,
    out: Annotated[Path | None, typer.Option(help="PNG file.")] = None,
) -> None:
    """Draw images with true and predicted outlines, one column a run."""
    chosen = next((s for s in _run_config(runs[-1]).data.evaluate if evaluation in (None, s.name)), None)
    if chosen is None:
        raise CellsegError(f"{runs[-1]}: no evaluation set '{evaluation or ''}' in its configuration")
    path = out or runs[-1] / "report.png"
    _draw(runs, chosen, images, path)
    print(path)


@app.command()
def download(
    dataset: Annotated[str, typer.Argument(help="livecell or neurips.")],
    root: Annotated[Path, typer.Option(help="Where the files go.")] = Path("data"),
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Do not ask.")] = False,
) -> None:
    """Download a data set with resume and checksums; its licence is shown first."""
    _known("data set", dataset, ("livecell", "neurips"))
    from cellseg.datasets.download import download as fetch
    from cellseg.datasets.download import licence

    _say(licence(dataset))
    if not accept_licence and not (sys.stdin.isatty() and typer.confirm("Accept and go on?", err=True)):
        raise CellsegError("not downloaded: the licence was not accepted; give --accept-licence")
    print(fetch(dataset, root / dataset, accept_licence=True))


@app.command()
def info() -> None:
    """Show versions, device and threads."""
    import platform
    from importlib.metadata import version

    import torch

    from cellseg.predict import pick_device

    lines = {"cellseg": __version__, "python": platform.python_version(), "torch": torch.__version__}
    lines |= {name: version(name) for name in ("monai", "lightning-fabric", "albumentations", "numpy", "pandas")}
    lines |= {"device": str(pick_device()), "threads": str(torch.get_num_threads())}
    for name, value in lines.items():
        print(f"{name:<18}{value}")


def main() -> None:
    """Run the command line; turn expected failures into one line and exit status 1."""
    debug = "--debug" in sys.argv[1:]
    for library in ("tifffile", "lightning_fabric", "PIL"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what they say is said again, in one line, by us
    try:
        app()
    except (CellsegError, MemoryError) as error:
        if debug:
            raise
        _fail(str(error) or "out of memory")
    except KeyboardInterrupt:
        _fail("interrupted; what was saved is kept, go on with --resume")


def _fail(message: str) -> NoReturn:
    _say(f"error: {' '.join(message.split())}")
    raise SystemExit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise CellsegError(f"unknown {what} '{name}'; known: {', '.join(known)}")


def _run_folder(config: Path, seed: int) -> Path:
    return RUNS / config.stem / f"s{seed}"


def _folder_run(images: Path, labels: Path | None, model: str | None, out: Path, overrides: list[str]) -> RunConfig:
    """Index the user's folder and make a run of defaults that suit a laptop."""
    from cellseg.checkpoint import load_weights, resolve_weights
    from cellseg.config import check_config, merge, parse_override
    from cellseg.datasets.folder import prepare_folder

    weights = resolve_weights(model or "teacher")
    _, config, _ = load_weights(weights)
    index = str(prepare_folder(images, out / "data", labels=labels))
    values: dict[str, Any] = {
        "model": config.model_dump(),
        "train": {"init": str(weights), "steps": 400, "lr": 3e-4, "ema": 0.99, "l2sp_alpha": 0.003, "save_every": 100},
        "data": {"unlabelled": [{"index": index}], "train": [{"index": index}] if labels else []},
    }
    for override in overrides:
        values = merge(values, parse_override(override))
    return check_config(values, where="adapt --images")


def _expand(images: list[Path]) -> list[tuple[str, Path]]:
    """Turn files, folders and indices into (id, path); two images of one name would overwrite each other."""
    from cellseg.images import find_images

    files: list[tuple[str, Path]] = []
    for path in images:
        if path.suffix == ".csv":
            from cellseg.datasets.index import read_index

            files += [(record.id, record.image) for record in read_index(path)]
        elif path.is_dir():
            files += [(found.name.split(".")[0], found) for found in find_images(path)]
        elif path.is_file():
            files.append((path.name.split(".")[0], path))
        else:
            raise CellsegError(f"{path}: no such image or folder")
    seen: dict[str, Path] = {}
    for name, path in files:
        if name in seen:
            raise CellsegError(f"{path} and {seen[name]} would both be written as {name}.tif; predict them apart")
        seen[name] = path
    if not files:
        raise CellsegError(f"{', '.join(map(str, images))}: no image found")
    return files


def _run_config(folder: Path) -> RunConfig:
    from cellseg.config import read_run

    return read_run(folder / "config.json")


def _evaluate_run(folder: Path, rule: FolderRule, device: str, workers: int) -> None:
    from cellseg.predict import load

    run = _run_config(folder)
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
        _say(problem)


def _draw(runs: list[Path], chosen: EvaluationSet, count: int, path: Path) -> None:
    from cellseg.datasets.index import select
    from cellseg.images import normalize, read_image, read_labels
    from cellseg.report import PRED_COLOUR, TRUE_COLOUR, draw_outlines, write_picture

    records = [record for record in select(chosen) if record.labels is not None]
    rows = []
    for record in records[:: max(1, len(records) // count)][:count]:
        image = normalize(read_image(record.image))
        row = {"image": image}
        if record.labels is not None:
            row["truth"] = draw_outlines(image, read_labels(record.labels), TRUE_COLOUR)
        for run in runs:
            labels = read_labels(run / "predictions" / chosen.name / f"{record.id}.tif")
            row[run.parent.name] = draw_outlines(image, labels, PRED_COLOUR)
        rows.append(row)
    synthetic = " (synthetic images)" if records[0].dataset == "synthetic" else ""
    write_picture(rows, path, f"{chosen.name}{synthetic}")


if __name__ == "__main__":
    main()
