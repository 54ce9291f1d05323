"""Commands that bring data in: download, prepare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cellseg.cli.app import OnError, Seed, app, check_known, say
from cellseg.core import CellsegError


@app.command()
def download(
    dataset: Annotated[str, typer.Argument(help="livecell, neurips or dsb2018.")],
    root: Annotated[Path, typer.Option(help="Where the files go.")] = Path("data"),
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Do not ask.")] = False,
) -> None:
    """Download a data set with resume and checksums; its licence is shown first."""
    check_known("data set", dataset, ("livecell", "neurips", "dsb2018"))
    from cellseg.datasets.download import download as fetch
    from cellseg.datasets.download import licence

    say(licence(dataset))
    if not accept_licence and not (sys.stdin.isatty() and typer.confirm("Accept and go on?", err=True)):
        raise CellsegError("not downloaded: the licence was not accepted; give --accept-licence")
    print(fetch(dataset, root / dataset, accept_licence=True))


@app.command()
def prepare(  # noqa: PLR0913 (options of a command line)
    dataset: Annotated[str, typer.Argument(help="livecell, neurips, dsb2018, folder or synthetic.")],
    root: Annotated[Path, typer.Option(help="Where the images are (for synthetic: where they are written).")],
    out: Annotated[Path, typer.Option(help="Where index.csv and labels/ go.")],
    split_by: Annotated[str, typer.Option(help="LIVECell: 'json' (official) or 'well' (grouped by well).")] = "json",
    val_fraction: Annotated[float, typer.Option(help="Folder: share of labelled images set aside as val.")] = 0.0,
    partial: Annotated[
        str | None,
        typer.Option(help="NeurIPS, folder: images with only some cells labelled: STEM,STEM or a text file."),
    ] = None,
    modalities: Annotated[
        Path | None, typer.Option(help="NeurIPS: CSV (stem,modality) of what is known; the rest is grouped by looks.")
    ] = None,
    clusters: Annotated[int | None, typer.Option(help="NeurIPS: how many groups to look for.")] = None,
    form: Annotated[str, typer.Option(help="Synthetic: form of 'livecell' or 'neurips'.")] = "livecell",
    lines: Annotated[
        str | None,
        typer.Option(help="Synthetic: lines, of SynFluo,SynPhase,SynBright,SynDic,SynSheet,SynStain."),
    ] = None,
    on_error: OnError = "stop",
    seed: Seed = 0,
) -> None:
    """Turn a data set into index.csv, label images and a report of what was found.

    Files that cannot be used are listed in left_out.csv; with any of them there is no index, unless they may be
    skipped.
    """
    check_known("data set", dataset, ("livecell", "neurips", "dsb2018", "folder", "synthetic"))
    check_known("form", form, ("livecell", "neurips"))
    used = form if dataset == "synthetic" else dataset
    _check_used(used, partial=partial, modalities=modalities, clusters=clusters, val_fraction=val_fraction or None)
    if lines is not None and (dataset, form) != ("synthetic", "livecell"):
        raise CellsegError(f"prepare {dataset}: --lines has no meaning there; leave it out")
    if dataset == "synthetic":
        _write_synthetic(root, form, lines, seed)
    if used == "folder":
        from cellseg.datasets.folder import prepare_folder

        index = prepare_folder(root, out, val_fraction=val_fraction, seed=seed, partial=partial)
    elif used == "neurips":
        from cellseg.datasets.neurips import prepare_neurips

        name = "synthetic_neurips" if dataset == "synthetic" else "neurips"
        index = prepare_neurips(
            root, out, modalities=modalities, clusters=clusters, partial=partial, seed=seed, dataset=name
        )
    elif used == "dsb2018":
        from cellseg.datasets.dsb2018 import prepare_dsb2018

        index = prepare_dsb2018(root, out)
    else:
        from cellseg.datasets.livecell import prepare_livecell

        index = prepare_livecell(root, out, split_by=split_by, seed=seed, dataset=dataset)
    from cellseg.datasets.left_out import NAME, count_left_out, stop_on_left_out

    if on_error == "stop" and dataset != "synthetic":  # of made-up files one is damaged on purpose
        stop_on_left_out(index)
    elif count := count_left_out(index)[0]:
        say(f"{count} images or label files cannot be used and are left out; they are in {index.parent / NAME}")
    say(f"report: {index.parent / 'report.md'}")
    print(index)


def _check_used(used: str, **options: object) -> None:
    """Refuse an option that the chosen data set would silently ignore."""
    known = {
        "folder": {"partial", "val_fraction"},
        "neurips": {"partial", "modalities", "clusters"},
    }.get(used, set())
    for name, value in options.items():
        if value is not None and name not in known:
            raise CellsegError(f"prepare {used}: --{name.replace('_', '-')} has no meaning there; leave it out")


def _write_synthetic(root: Path, form: str, lines: str | None, seed: int) -> None:
    if form == "livecell":
        from cellseg.datasets.synthetic import USUAL, write_synthetic

        write_synthetic(root, seed=seed, lines=USUAL if lines is None else lines.split(","))
    else:
        from cellseg.datasets.synthetic_neurips import write_synthetic_neurips

        write_synthetic_neurips(root, seed=seed)
