"""Commands that need no labels: suggest, and criteria, which says how far such judgements can be trusted."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cellseg.cli.app import Device, app, check_known, say
from cellseg.cli.predicting import expand
from cellseg.core import CellsegError

if TYPE_CHECKING:
    from cellseg.label_free.suggest import Doubt
    from cellseg.predict import Segmenter


@app.command()
def suggest(
    images: Annotated[list[Path], typer.Argument(help="Folder or image files, or an index.csv: those without labels.")],
    out: Annotated[Path, typer.Option(help="Folder of suggest.csv and suggest.png.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many images.")] = 3,
    model: Annotated[str, typer.Option(help="Run folder, weights file, or the shipped teacher.")] = "teacher",
    criterion: Annotated[
        str, typer.Option(help="How sure the model is: consensus (all of these), flips, scales, cycle or confidence.")
    ] = "consensus",
    device: Device = "auto",
) -> None:
    """Say which images to annotate first: those the model is least sure of, and not all of one kind.

    Sure is what is found again when the image is flipped and shown a little finer and coarser; an image in which
    nothing is found counts as most doubtful. After the first, each image must also look unlike those before.
    """
    from cellseg.label_free.criteria import CRITERIA

    check_known("criterion", criterion, tuple(CRITERIA))
    files = expand(images, unlabelled=True)
    import numpy as np

    from cellseg.label_free.suggest import choose, doubt
    from cellseg.predict import load
    from cellseg.progress import track

    segmenter = load(model, device=device)
    looking = track(files, "looking at images", total=len(files))
    found = [doubt(segmenter, name, path, criterion) for name, path in looking]
    places = choose([one.agreement for one in found], np.stack([one.looks for one in found]), count)
    chosen = [found[place] for place in places]
    _write_list(out / "suggest.csv", chosen, criterion)
    _write_sheet(out / "suggest.png", segmenter, chosen, criterion)
    for rank, one in enumerate(chosen, start=1):
        print(f"{rank}\t{one.path}\t{criterion} {one.agreement:.3f}\t{one.cells} cells")
    say(f"{len(chosen)} of {len(found)} images; list and picture: {out}")


@app.command()
def criteria(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of adaptations that had data.val.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write every checkpoint here (CSV), and a .png beside it.")
    ] = None,
) -> None:
    """Show how well each label-free criterion ranked the checkpoints of runs by their true F1 (Spearman).

    The last column is what its choice costs: the F1 of the best checkpoint less that of the one it would hand out,
    on average over runs.
    """
    from cellseg.journal import read_log
    from cellseg.label_free.criteria import CRITERIA, cost_of_choice, rank_correlations

    logs = {run: [line for line in read_log(run) if "val_f1" in line and "cycle" in line] for run in runs}
    for run, lines in logs.items():
        if not lines:
            raise CellsegError(f"{run}: its log has no look with both val_f1 and the criteria; adapt with data.val")
    within = [rank_correlations(lines) for lines in logs.values()]
    costs = [cost_of_choice(lines) for lines in logs.values()]
    together = rank_correlations(line for lines in logs.values() for line in lines)
    size = f"({len(logs)} runs, {sum(map(len, logs.values()))} checkpoints)"
    print(f"{'criterion':<12}{'all':>8}{'within a run':>14}{'F1 lost':>10}   {size}")
    for name in CRITERIA:
        shown = (_number(value) for value in (together[name], _mean(within, name), _mean(costs, name)))
        print("{:<12}{:>8}{:>14}{:>10}".format(name, *shown))
    if out is not None:
        _write_checkpoints(out, logs)
        say(f"{out}, {out.with_suffix('.png')}")


def _mean(values: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    known = [value for one in values if (value := one[name]) is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _write_checkpoints(path: Path, logs: Mapping[Path, Sequence[Mapping[str, Any]]]) -> None:
    """Write a row a checkpoint, and draw each criterion against the true F1, a colour a run."""
    import matplotlib as mpl
    import pandas as pd

    from cellseg.files import atomic_path, write_text
    from cellseg.label_free.criteria import CRITERIA

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    keys = ["step", *CRITERIA, "cells", "giants", "val_f1"]
    rows = [
        {"run": "/".join(run.resolve().parts[-2:]), **{key: line.get(key) for key in keys}}
        for run, lines in logs.items()
        for line in lines
    ]
    table = pd.DataFrame(rows)
    write_text(path, table.round(4).to_csv(index=False, lineterminator="\n"))
    figure, axes = plt.subplots(1, len(CRITERIA), figsize=(3 * len(CRITERIA), 3.2), sharey=True, layout="constrained")
    for axis, name in zip(axes, CRITERIA, strict=True):
        for run, points in table.groupby("run", sort=False):
            axis.plot(points[name], points["val_f1"], "o-", markersize=3, linewidth=0.6, label=run)
        axis.set_xlabel(name)
    axes[0].set_ylabel("true F1@0.5")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="x-small")
    with atomic_path(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _write_list(path: Path, chosen: list[Doubt], criterion: str) -> None:
    from cellseg.files import write_text

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("rank", "image", criterion, "cells", "diameter"))
    for rank, one in enumerate(chosen, start=1):
        writer.writerow((rank, one.path.as_posix(), round(one.agreement, 4), one.cells, round(one.diameter, 1)))
    write_text(path, text.getvalue())


def _write_sheet(path: Path, segmenter: Segmenter, chosen: list[Doubt], criterion: str) -> None:
    """Draw a column an image: the part looked at, and its cells, green where sure and orange where not."""
    import numpy as np

    from cellseg.instances.interface import renumber
    from cellseg.label_free.suggest import picture_of
    from cellseg.outputs.overlays import PRED_COLOUR, TRUE_COLOUR, draw_outlines
    from cellseg.report.picture import write_picture

    plain, drawn = {}, {}
    for rank, one in enumerate(chosen, start=1):
        image, views, sure = picture_of(segmenter, one)
        title = f"{rank}. {one.name}\n{criterion} {one.agreement:.2f}, {one.cells} cells"
        plain[title] = image
        doubtful = draw_outlines(image, renumber(views.labels, np.append(False, ~sure)), PRED_COLOUR)
        drawn[title] = draw_outlines(doubtful, renumber(views.labels, np.append(False, sure)), TRUE_COLOUR)
    write_picture([plain, drawn], path, "annotate first (green: found in most views, orange: doubtful)")
