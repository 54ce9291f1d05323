"""Commands that bring data in: download, prepare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cellseg.cli.app import Seed, app, check_known, say
from cellseg.core import CellsegError


@app.command()
def download(
    dataset: Annotated[str, typer.Argument(help="livecell or neurips.")],
    root: Annotated[Path, typer.Option(help="Where the files go.")] = Path("data"),
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Do not ask.")] = False,
) -> None:
    """Download a data set with resume and checksums; its licence is shown first."""
    check_known("data set", dataset, ("livecell", "neurips"))
    from cellseg.datasets.download import download as fetch
    from cellseg.datasets.download import licence

    say(licence(dataset))
    if not accept_licence and not (sys.stdin.isatty() and typer.confirm("Accept and go on?", err=True)):
        raise CellsegError("not downloaded: the licence was not accepted; give --accept-licence")
    print(fetch(dataset, root / dataset, accept_licence=True))


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
    check_known("data set", dataset, ("livecell", "neurips", "folder", "synthetic"))
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
    say(f"report: {index.parent / 'report.md'}")
    print(index)
