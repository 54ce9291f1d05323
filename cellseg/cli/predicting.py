"""The command that segments images: predict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from cellseg.cli.app import Device, app, say
from cellseg.cli.outputs import Formats, Measure, wanted
from cellseg.core import CellsegError


@app.command()
def predict(  # noqa: PLR0913 (options of a command line)
    images: Annotated[list[Path], typer.Argument(help="Image files, OME-Zarr, folders of these, or an index.csv.")],
    out: Annotated[Path, typer.Option(help="Folder of the label images.")],
    model: Annotated[str, typer.Option(help="Run folder, weights file, or the shipped teacher.")] = "teacher",
    diameter: Annotated[float | None, typer.Option(help="Cell diameter in pixels; estimated by default.")] = None,
    channel: Annotated[int | None, typer.Option(help="Use this channel alone (from 0).")] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average flips and neighbouring scales: seven times as slow, a little better.")
    ] = False,
    formats: Formats = None,
    measure: Measure = None,
    block: Annotated[
        int, typer.Option(min=64, help="Side in pixels of the blocks into which larger images are cut; bounds memory.")
    ] = 2048,
    on_error: Annotated[
        Literal["skip", "stop"],
        typer.Option(
            "--on-error", help="An image that cannot be used is named and left out (exit status 1), or stops."
        ),
    ] = "skip",
    device: Device = "auto",
) -> None:
    """Segment images and write one label image each; if wanted, outlines for QuPath and Fiji and measurements too.

    Slides larger than memory are segmented block by block, and cells are joined across the seams. What a stopped run
    finished of a slide is kept in OUT: the same command goes on there.
    """
    from cellseg.config import PredictConfig

    if diameter is not None and not 0 < diameter < math.inf:
        raise CellsegError(f"--diameter {diameter:g}: wanted a number of pixels above 0")
    files = expand(images)
    beside = wanted(formats or (), measure, ("tif", "zarr"))
    from cellseg.predict import load
    from cellseg.predict_images import predict_images
    from cellseg.predict_slides import Interrupted, Wish
    from cellseg.progress import track

    segmenter = load(model, device=device, settings=PredictConfig(tta=tta))
    wish = Wish(diameter, channel, block, as_zarr=beside.as_zarr)
    total, targets, failed = 0, [], 0
    try:
        for file in track(files, "segmenting", total=len(files)):
            try:
                for found in predict_images(segmenter, [file], out, wish, say):
                    total += len(found.scores)
                    targets.append(found.target)
                    beside.write(found.target, found.labels, found.image, found.scores)
            except CellsegError as error:
                if on_error == "stop" or isinstance(error, Interrupted):
                    raise
                failed += 1
                say(f"left out: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        raise CellsegError(f"interrupted; {len(targets)} of {len(files)} images are finished, in {out}") from None
    say(f"{len(targets)} images, {total} cells" + (f"; {failed} of {len(files)} images left out" if failed else ""))
    print(out)
    if targets:
        beside.join(targets)
    if failed:
        raise typer.Exit(1)


def expand(images: list[Path], *, unlabelled: bool = False) -> list[tuple[str, Path]]:
    """Turn files, folders and indices into (id, path); two images of one name would overwrite each other.

    With ``unlabelled``, of an index only the images that have no labels.
    """
    from cellseg.images import find_images
    from cellseg.slides import is_zarr

    files: list[tuple[str, Path]] = []
    for path in images:
        if path.suffix == ".csv":
            from cellseg.datasets.index import read_index

            records = [record for record in read_index(path) if not (unlabelled and record.has_labels)]
            files += [(record.id, record.image) for record in records]
        elif path.is_dir() and not is_zarr(path):
            found = [*find_images(path), *(folder for folder in path.iterdir() if is_zarr(folder))]
            files += [(one.name.split(".")[0], one) for one in sorted(found)]
        elif path.exists():
            files.append((path.name.split(".")[0], path))
        else:
            raise CellsegError(f"{path}: no such image or folder")
    seen: dict[str, Path] = {}
    for name, path in files:
        if name in seen:
            raise CellsegError(f"{path} and {seen[name]} would both be written as '{name}'; predict them apart")
        seen[name] = path
    if not files:
        raise CellsegError(f"{', '.join(map(str, images))}: no image found")
    return files
