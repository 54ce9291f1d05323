"""The command that segments images: predict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cellseg.cli.app import Device, app, say
from cellseg.cli.outputs import Formats, Measure, wanted
from cellseg.core import CellsegError
from cellseg.files import CannotWrite

if TYPE_CHECKING:
    from cellseg.config import PredictConfig
    from cellseg.orders import Predicted, Told, Wish


@app.command()
def predict(  # noqa: PLR0913 (options of a command line)
    images: Annotated[list[Path], typer.Argument(help="Image files, OME-Zarr, folders of these, or an index.csv.")],
    out: Annotated[Path, typer.Option(help="Folder of the label images.")] = Path("masks"),
    model: Annotated[str, typer.Option(help="Weights file or run folder.")] = "teacher",
    diameter: Annotated[float | None, typer.Option(help="Cell diameter in pixels; estimated by default.")] = None,
    channel: Annotated[int | None, typer.Option(help="Use this channel alone (from 0).")] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average flips and neighbouring scales: seven times as slow, a little better.")
    ] = False,
    foreground: Annotated[
        float | None,
        typer.Option(help="A pixel may be cell above this probability: lower finds more. By default the model's own."),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Cells of a lower mean probability are left out. By default the model's own."),
    ] = None,
    min_size: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Cells of fewer pixels are left out, counted at the network's scale, where a typical cell has 24 "
            "across, or 30 for Cellpose weights. By default 30.",
        ),
    ] = None,
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
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "off"],
        typer.Option(help="Numbers the network computes with: bf16 where the device has it (auto); off is float32."),
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Windows the network sees at once; by default 1 on a CPU, 8 on a GPU, and fewer where memory ends.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Work in this many processes (Dask), each with its own model and its share of the "
            "cores. By default in this one, which uses all cores and the least memory.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Work on a Dask cluster that runs: tcp://HOST:PORT or its scheduler file.")
    ] = None,
) -> None:
    """Segment images and write one label image each; if wanted, outlines for QuPath and Fiji and measurements too.

    Slides larger than memory are segmented block by block, and cells are joined across the seams. What a stopped run
    finished of a slide is kept in OUT: the same command goes on there.
    """
    from cellseg.config import PredictConfig

    if diameter is not None and not 0 < diameter < math.inf:
        raise CellsegError(
            f"--diameter {diameter:g}: wanted a number of pixels above 0; leave it away to have it estimated"
        )
    if workers is not None and scheduler is not None:
        raise CellsegError("--workers starts processes here and --scheduler uses those of a cluster; give one of them")
    files = expand(images)
    beside = wanted(formats or (), measure, ("tif", "zarr"))
    from cellseg.orders import Told, Wish

    wish = Wish(diameter, channel, block, as_zarr=beside.as_zarr)
    check_probability("--foreground", foreground)
    check_probability("--min-score", min_score)
    rule = {"foreground": foreground, "min_score": min_score, "min_size": min_size}
    given = {key: value for key, value in rule.items() if value is not None}
    settings = PredictConfig.model_validate({"tta": tta, "precision": precision, "batch_size": batch_size, **given})
    left_out = LeftOut(stop=on_error == "stop")
    told = Told(say, beside.of, left_out)
    if workers is None and scheduler is None:
        results = in_this_process(files, out, wish, told, (model, device, settings))
    else:
        results = on_workers(files, out, wish, told, (model, device, settings), (workers, scheduler))
    targets = gather(results, len(files), left_out, out)
    print(out)
    if targets:
        beside.join(targets)
    if left_out.count:
        raise typer.Exit(1)


def check_probability(option: str, value: float | None) -> None:
    """Refuse what is no probability; 0 and 1, all cells and none, only a least score may be."""
    if value is None or 0 < value < 1 or (value in (0, 1) and option == "--min-score"):
        return
    raise CellsegError(f"{option} {value:g}: wanted a probability between 0 and 1; left away, the model's own is taken")


@dataclass
class LeftOut:
    """Names images that cannot be used and counts them, or stops at the first."""

    stop: bool
    count: int = 0

    def __call__(self, error: CellsegError) -> None:
        """Take what is wrong with an image; where results cannot be written, nothing is, and the work ends."""
        if self.stop or isinstance(error, CannotWrite) or isinstance(error.__cause__, CannotWrite):
            raise error
        self.count += 1
        say(f"left out: {' '.join(str(error).split())}")


def gather(results: Iterator[Predicted], total: int, left_out: LeftOut, out: Path) -> list[Path]:
    """Let images be segmented, showing how many are; return where the results are."""
    from cellseg.progress import counter

    targets, cells = [], 0
    try:
        with counter("segmenting") as show:
            for found in results:
                targets.append(found.target)
                cells += len(found.scores)
                if show is not None:
                    show(len(targets) + left_out.count, total)
    except KeyboardInterrupt:
        raise CellsegError(f"interrupted; {len(targets)} of {total} images are finished, in {out}") from None
    failed = f"; {left_out.count} of {total} images left out" if left_out.count else ""
    say(f"{len(targets)} images, {cells} cells{failed}")
    return sorted(targets)


def in_this_process(
    files: list[tuple[str, Path]], out: Path, wish: Wish, told: Told, model: tuple[str, str, PredictConfig]
) -> Iterator[Predicted]:
    """Segment images one by one."""
    from cellseg.predict import load
    from cellseg.predict_images import predict_images

    name, device, settings = model
    return predict_images(load(name, device=device, settings=settings), files, out, wish, told)


def on_workers(
    files: list[tuple[str, Path]],
    out: Path,
    wish: Wish,
    told: Told,
    model: tuple[str, str, PredictConfig],
    cluster: tuple[int | None, str | None],
) -> Iterator[Predicted]:
    """Segment images on so many local workers, or on those of a scheduler; paths are made absolute for them."""
    from cellseg.farm.cluster import connect, threads_each
    from cellseg.farm.scheduling import predict_on
    from cellseg.farm.tasks import Recipe
    from cellseg.orders import orders_of

    name, device, settings = model
    workers, scheduler = cluster
    name = str(Path(name).absolute()) if Path(name).exists() else name
    recipe = Recipe(name, device, settings, None if workers is None else threads_each(workers))
    with connect(workers, scheduler) as client:
        yield from predict_on(
            client, recipe, orders_of(((i, p.absolute()) for i, p in files), out.absolute(), wish), told
        )


def expand(images: list[Path], *, unlabelled: bool = False) -> list[tuple[str, Path]]:
    """Turn files, folders and indices into (id, path); two images of one name would overwrite each other.

    Of a folder, files that by their names are labels or results are left out, which is said. With ``unlabelled``, of an
    index only the images that have no labels.
    """
    from cellseg.slides.pyramids import is_zarr

    files: list[tuple[str, Path]] = []
    for path in images:
        if path.suffix == ".csv":
            from cellseg.datasets.index import read_index

            records = [record for record in read_index(path) if not (unlabelled and record.has_labels)]
            files += [(record.id, record.image) for record in records]
        elif path.is_dir() and not is_zarr(path):
            files += [(_id_of(one), one) for one in _images_of(path)]
        elif path.exists():
            files.append((_id_of(path), path))
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


def _id_of(path: Path) -> str:
    """Return the stem of an image file or ``.zarr`` folder; another folder's name has no suffix to lose."""
    from cellseg.names import file_stem

    return path.name if path.is_dir() and path.suffix.lower() != ".zarr" else file_stem(path)


def _images_of(folder: Path) -> list[Path]:
    """List the images of a folder, and say how many files are labels or results of a program such as Cellpose."""
    from cellseg.images import find_images
    from cellseg.names import role_of
    from cellseg.slides.pyramids import is_zarr

    found = sorted([*find_images(folder), *(one for one in folder.iterdir() if is_zarr(one))])
    others = [one.name for one in found if role_of(one) != "image"]
    if others:
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        say(
            f"{folder}: {len(others)} of {len(found)} files are labels or results by the ends of their names and left "
            f"out: {shown}; if they are images, name them one by one"
        )
    return [one for one in found if role_of(one) == "image"]
