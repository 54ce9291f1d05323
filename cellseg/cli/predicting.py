"""The command that segments images: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cellseg.cli.app import Device, app, say
from cellseg.cli.outputs import Formats, Measure, wanted
from cellseg.core import CellsegError


@app.command()
def predict(  # noqa: PLR0913 (options of a command line)
    images: Annotated[list[Path], typer.Argument(help="Image files, folders, or an index.csv.")],
    out: Annotated[Path, typer.Option(help="Folder of the label images.")],
    model: Annotated[str, typer.Option(help="Weights file or run folder.")] = "teacher",
    diameter: Annotated[float | None, typer.Option(help="Cell diameter in pixels; estimated by default.")] = None,
    channel: Annotated[int | None, typer.Option(help="Use this channel alone (from 0).")] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average flips and neighbouring scales: seven times as slow, a little better.")
    ] = False,
    formats: Formats = None,
    measure: Measure = None,
    device: Device = "auto",
) -> None:
    """Segment images and write one label image each; if wanted, outlines for QuPath and Fiji and measurements too."""
    from cellseg.config import PredictConfig

    files = expand(images)
    beside = wanted(formats or (), measure)
    from cellseg.predict import load, predict_files
    from cellseg.progress import track

    segmenter = load(model, device=device, settings=PredictConfig(tta=tta))
    todo = [(name, path, diameter) for name, path in files]
    total = 0
    found = track(predict_files(segmenter, todo, out, channel), "segmenting", total=len(todo))
    for (name, labels), (_, path) in zip(found, files, strict=True):
        total += int(labels.max(initial=0))
        beside.write(out / f"{name}.tif", labels, path)
    say(f"{len(todo)} images, {total} cells")
    print(out)
    beside.join([out / f"{name}.tif" for name, _ in files])


def expand(images: list[Path], *, unlabelled: bool = False) -> list[tuple[str, Path]]:
    """Turn files, folders and indices into (id, path); two images of one name would overwrite each other.

    With ``unlabelled``, of an index only the images that have no labels.
    """
    from cellseg.images import find_images

    files: list[tuple[str, Path]] = []
    for path in images:
        if path.suffix == ".csv":
            from cellseg.datasets.index import read_index

            records = [record for record in read_index(path) if not (unlabelled and record.has_labels)]
            files += [(record.id, record.image) for record in records]
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
