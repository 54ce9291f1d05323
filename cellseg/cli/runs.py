"""What is done with a finished run: its sets scored, its start beside it, and the images that nobody labelled.

Composes prediction, scoring and report. Scores of the start are those of its own run where that was scored on the
same images, else they are made once and kept in ``RUN/start``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli.app import run_config, say
from cellseg.core import CellsegError, Record

if TYPE_CHECKING:
    from cellseg.config import EvaluationSet, RunConfig
    from cellseg.evaluate import FolderRule
    from cellseg.predict import Segmenter
    from cellseg.report.runs import Run

LOOKED_AT = 8
"""Unlabelled images that are segmented where nothing is scored, if the run watched none."""


@dataclass(frozen=True)
class Scoring:
    """How the sets of a run are scored."""

    rule: FolderRule = "strict"
    device: str = "auto"
    workers: int | None = None


def evaluate_run(folder: Path, how: Scoring, given: Sequence[str] = ()) -> None:
    """Predict and score the evaluation sets of a run, then show what it gained and lost against its start.

    Parameters
    ----------
    folder : Path
        Run folder.
    how : Scoring
        Rule, device and processes.
    given : sequence of str
        Options that were given and mean nothing here.

    Raises
    ------
    CellsegError
        If this is no run folder, options were given, or the run names nothing to score.
    """
    if not (folder / "config.json").is_file():
        raise CellsegError(
            f"{folder}: is no run folder (it has no config.json); to score label images give two folders: "
            "cellseg evaluate TRUTH PRED"
        )
    if given:
        raise CellsegError(f"{', '.join(given)} go with TRUTH and PRED; the scores of a run are in {folder / 'scores'}")
    run = run_config(folder)
    if not run.data.evaluate:
        raise CellsegError(
            f"{folder}: names no labelled images to score (data.evaluate); see what it changed with 'cellseg report "
            f"{folder}', or score it on your own labels: cellseg predict IMAGES --model {folder} --out PRED, then "
            "cellseg evaluate TRUTH PRED"
        )
    _score_sets(folder, run, how, run.data.evaluate)
    if run.train.init is not None:
        _score_start(folder, run, how)
        from cellseg.cli.two_sided import show_adaptation

        show_adaptation(folder)


def conclude(folder: Path, how: Scoring, *, evaluate: bool) -> None:
    """Show on stderr what an adaptation did; with ``evaluate`` also before and after on the sets that it names.

    Sets that were scored since the weights were written are not scored again. Under torchrun the first process
    alone does this.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    from cellseg.cli.two_sided import show_adaptation
    from cellseg.report.start import WEIGHTS, is_newer

    run = run_config(folder)
    if evaluate and run.data.evaluate:
        scores = folder / "scores"
        todo = [s for s in run.data.evaluate if not is_newer(scores / f"{s.name}.csv", folder / WEIGHTS)]
        try:
            _score_sets(folder, run, how, todo, show=False)
            _score_start(folder, run, how)
        except CellsegError as error:
            say(f"the run is finished, but its sets could not be scored: {error}")
    show_adaptation(folder, to_stderr=True)
    if run.data.evaluate and not evaluate:
        say(f"\nbefore and after on the sets it names: cellseg evaluate {folder}")
    else:
        say(f"\npictures and every figure: cellseg report {folder}")


def look_at_unlabelled(runs: Sequence[Path], device: str) -> None:
    """Segment, before and after, the images that adaptations whose target is not scored are reported by.

    They are those that a run watched, else the first of each group, and lie under ``predictions/unlabelled`` of the
    run and of ``RUN/start``. Nothing is done for images that are there already.
    """
    from cellseg.report.runs import lacks_target, seed_folders

    folders = [seed for run in runs for seed in seed_folders(run)]
    configs = {folder: run_config(folder) for folder in folders if (folder / "config.json").is_file()}
    if len(configs) == len(folders) and all(lacks_target(run) for run in configs.values()):
        for folder, run in configs.items():
            _segment_both(folder, run, device)


def _segment_both(folder: Path, run: RunConfig, device: str) -> None:
    from cellseg.report.start import FOLDER

    records = _unlabelled(run)
    _segment(folder, folder, records, str(folder), device)
    try:
        _segment(folder, folder / FOLDER, records, _start_weights(folder, run), device)
    except CellsegError as error:
        say(f"the start is not shown: {error}")


def _unlabelled(run: RunConfig) -> list[Record]:
    """Return the images to look at: without true labels if there are such, evenly over groups."""
    from cellseg.batches import gather
    from cellseg.datasets.index import take_evenly

    records = gather(run.data.unlabelled or run.data.train, labelled=False)
    unknown = [record for record in records if record.label_kind != "instances"]
    return take_evenly(unknown or records, run.adapt.watch or LOOKED_AT)


def _segment(run: Path, home: Path, records: Sequence[Record], model: str, device: str) -> None:
    """Segment images into a folder unless that was done since the weights were written."""
    from cellseg.checkpoint import resolve_weights
    from cellseg.datasets.index import write_index
    from cellseg.orders import Wish
    from cellseg.predict import load
    from cellseg.predict_images import predict_images
    from cellseg.progress import track
    from cellseg.report.start import UNSCORED, is_newer

    out = home / "predictions" / UNSCORED
    if is_newer(out / "index.csv", resolve_weights(model)):
        return
    settings = run_config(run).predict
    if settings.diameter == "index":  # which says nothing of images without labels
        settings = settings.model_copy(update={"diameter": "auto"})
    segmenter = load(model, device=device, settings=settings)
    todo = [(record.id, record.image) for record in records]
    for _ in track(predict_images(segmenter, todo, out, Wish()), f"segmenting with {model}", total=len(todo)):
        pass
    write_index(out / "index.csv", list(records))


def _start_weights(folder: Path, run: RunConfig) -> str:
    from cellseg.report.start import find_weights

    assert run.train.init is not None
    return str(find_weights(folder, run.train.init) or run.train.init)


def _score_start(folder: Path, run: RunConfig, how: Scoring) -> None:
    """Score what a run started from on its sets, where that was not done before."""
    from cellseg.predict import load
    from cellseg.report.runs import read_folder
    from cellseg.report.start import FOLDER, find_scores

    done: Run = read_folder(folder)
    todo = [chosen for chosen in run.data.evaluate if chosen.name in done.scores and not find_scores(done, chosen.name)]
    if not todo:
        return
    try:
        segmenter = load(_start_weights(folder, run), device=how.device, settings=run.predict)
    except CellsegError as error:
        say(f"before is not known: {error}")
        return
    for chosen in todo:
        _score_set(folder / FOLDER, chosen, segmenter, how, f"segmenting {chosen.name} with the start")


def _score_sets(
    folder: Path, run: RunConfig, how: Scoring, sets: Sequence[EvaluationSet], *, show: bool = True
) -> None:
    from cellseg.cli.screen import say_problems, show_scores
    from cellseg.journal import note, read_summary
    from cellseg.metrics.scores import read_scores
    from cellseg.predict import load

    if not sets:
        return
    segmenter = load(folder, device=how.device, settings=run.predict)
    for chosen in sets:
        before = dict(segmenter.spent)
        count = _score_set(folder, chosen, segmenter, how, f"segmenting {chosen.name}")
        ms = {part: 1e3 * (spent - before[part]) / count for part, spent in segmenter.spent.items()}
        times = read_summary(folder).get("scorings", {}).get(chosen.name, 0) + 1
        facts = {"ms_per_image": {chosen.name: ms}, "scorings": {chosen.name: times}}
        note(folder, {"parameters": segmenter.n_parameters} | facts)
        scores = read_scores(folder / "scores" / f"{chosen.name}.csv")
        if show:
            show_scores(scores, f"{folder}: {chosen.name}")
        say_problems(scores)


def _score_set(home: Path, chosen: EvaluationSet, segmenter: Segmenter, how: Scoring, what: str) -> int:
    """Predict and score one set into a folder; return the number of images."""
    from cellseg.datasets.index import select, told_diameter, write_index
    from cellseg.evaluate import evaluate, write_scores
    from cellseg.orders import Wish
    from cellseg.predict_images import predict_images
    from cellseg.progress import track

    records = [record for record in select(chosen) if record.label_kind == "instances"]
    predictions = home / "predictions" / chosen.name
    todo = [(record.id, record.image) for record in records]
    wish = Wish(told_diameter(chosen.index, segmenter.settings.diameter), keep=False)  # done again, since it is timed
    for _ in track(predict_images(segmenter, todo, predictions, wish), what, total=len(todo)):
        pass
    index = predictions / "index.csv"
    write_index(index, records)
    write_scores(
        evaluate(index, predictions, rule=how.rule, workers=how.workers), home / "scores" / f"{chosen.name}.csv"
    )
    return len(records)
