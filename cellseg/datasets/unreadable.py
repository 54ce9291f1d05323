"""Go on without the images that cannot be read, and say so in the run."""

from __future__ import annotations

from cellseg.config import RunConfig, Selection
from cellseg.core import CellsegError, Record
from cellseg.datasets.index import select
from cellseg.images import read_image, read_labels, read_size
from cellseg.progress import track
from cellseg.slides.windows import has_windows, is_slide


def without_unreadable(run: RunConfig) -> tuple[RunConfig, list[str]]:
    """Read every image that a run learns from or is validated on, and leave out those that cannot be read.

    Parameters
    ----------
    run : RunConfig
        Its ``data`` names the images.

    Returns
    -------
    run : RunConfig
        The same with the unreadable images in ``without`` of their selections: the run says what it did not use.
    problems : list of str
        A line an image.

    Raises
    ------
    CellsegError
        As :func:`cellseg.datasets.index.select`: a file that is not there at all is a mistake of the index.
    """
    problems: dict[str, None] = {}
    changed: dict[str, tuple[Selection, ...]] = {}
    for name in ("train", "val", "unlabelled", "replay", "fisher"):
        selections = []
        for selection in getattr(run.data, name):
            records = select(selection)
            found = {record.id: problem for record in track(records, f"reading {name}", len(records))
                     if (problem := _problem(record))}  # fmt: skip
            problems |= dict.fromkeys(found.values())
            selections.append(selection.model_copy(update={"without": (*selection.without, *found)}))
        changed[name] = tuple(selections)
    return run.model_copy(update={"data": run.data.model_copy(update=changed)}), list(problems)


def _problem(record: Record) -> str:
    """Say why an image or its labels cannot be used; empty where they can. Of a slide only the header is read."""
    try:
        for path, read in ((record.image, read_image), (record.labels, read_labels)):
            if path is None:
                continue
            if is_slide(record.height, record.width) and has_windows(path):
                size = read_size(path) if path.suffix != ".npy" else (record.height, record.width)
            else:
                size = read(path).shape[:2]
            if size != (record.height, record.width):
                return f"{path}: is {size}, but the index says {(record.height, record.width)}"
    except CellsegError as error:
        return " ".join(str(error).split())
    return ""
