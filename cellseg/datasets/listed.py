"""Lists of images in a file: one id a line, or the images of a COCO file."""

from __future__ import annotations

from pathlib import Path

from cellseg.core import CellsegError
from cellseg.datasets.coco import read_coco
from cellseg.memory import require_file


def read_names(path: str | Path) -> frozenset[str]:
    """Read the ids of the images that a file names.

    Parameters
    ----------
    path : str or Path
        Text with one id a line, ``#`` beginning a comment; or a ``.json`` in COCO form, whose image files' stems are
        the ids, as LIVECell's size splits have them.

    Returns
    -------
    frozenset of str
        May hold images that an index has not, such as those that ``prepare`` dropped.

    Raises
    ------
    CellsegError
        If the file is missing, cannot be read or names nothing.
    """
    path = Path(path)
    require_file(path)
    if path.suffix.lower() == ".json":
        names = {image.stem for image in read_coco(path).images}
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CellsegError(f"{path}: cannot be read as a list of images ({error})") from error
        names = {line.partition("#")[0].strip() for line in lines} - {""}
    if not names:
        raise CellsegError(f"{path}: names no image")
    return frozenset(names)
