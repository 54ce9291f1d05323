"""Write made-up microscopy in the form LIVECell is published in, quirks included.

For a demonstration and for tests that need no download: everything from ``cellseg prepare`` on runs as on the real
set. Four cell "lines" are four modalities (fluorescence, phase contrast, bright field, DIC), so that adapting a network
from one to another has something to do; two more, flat cells in phase contrast and stained tissue, are written where
they are asked for. The images are synthetic; a score on them says nothing of a real microscope.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellseg.core import CellsegError
from cellseg.datasets.rendering import Cell, draw_cells, render
from cellseg.files import atomic_path, write_text

LINES = {
    "SynFluo": "fluorescence",
    "SynPhase": "phase",
    "SynBright": "brightfield",
    "SynDic": "dic",
    "SynSheet": "sheet",
    "SynStain": "stained",
}
"""The made-up cell lines and the look of each."""

USUAL = ("SynFluo", "SynPhase", "SynBright", "SynDic")
"""The lines that are written unless others are asked for."""

_SPLITS = ("train", "val", "test", "unlabelled")
_PLATE_ROWS = {"train": "ABC", "val": "D", "test": "EF", "unlabelled": "GH"}
_IMAGES_A_WELL = 4
_README = """Synthetic microscopy written by 'cellseg prepare synthetic' (seed {seed}).

Every image, cell and annotation in this folder was drawn by a program; no microscope, cell line or patient is behind
it. The folder imitates the layout and the annotation form of LIVECell (Edlund et al., Nature Methods 2021) and holds
none of its content. Released under CC0 1.0 (public domain). A score on these images is not a score on LIVECell.
"""


def write_synthetic(  # noqa: PLR0913 (four counts of one kind, each with a useful default)
    out: str | Path,
    *,
    seed: int = 0,
    n_train: int = 40,
    n_val: int = 8,
    n_test: int = 12,
    n_unlabelled: int = 12,
    lines: Iterable[str] = USUAL,
    size: tuple[int, int] = (256, 320),
) -> Path:
    """Write images and COCO annotations of made-up cells as LIVECell has them.

    Parameters
    ----------
    out : str or Path
        Folder to fill: ``images/livecell_{train_val,test}_images/<line>/``, ``annotations/LIVECell/`` and a
        ``README.txt`` that says the images are synthetic.
    seed : int
        Each image is a function of this, its line, its split and its number alone, byte for byte.
    n_train, n_val, n_test, n_unlabelled : int
        Images of each line; the unlabelled ones lie beside the training images and appear in no annotation file.
    lines : iterable of str
        Keys of ``LINES``.
    size : (height, width)
        Image size in pixels, at least 64 each.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    CellsegError
        If a line is unknown, a count negative or the size too small, or the folder cannot be written.

    Notes
    -----
    Kept from the real files: polygons with two decimals, never closed, with repeated points and coordinates up to the
    image's width and height; file names without folder beside ``.png`` original names; ids that are sparse and
    shared by images and annotations; a dict of annotations in the val file and lists in the others; overlapping cells;
    8-bit TIFFs (fluorescence: 16-bit) in LZW with horizontal predictor and strips of 11 rows; wells photographed at
    several times and in several crops. Splits share no well.
    """
    out, lines = Path(out), tuple(lines)
    counts = dict(zip(_SPLITS, (n_train, n_val, n_test, n_unlabelled), strict=True))
    _check(lines, counts, size)
    for split, count in counts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for line in lines:
            for index in range(count):
                cells = _write_image(out, (seed, line, split, index), size)
                _describe(images, annotations, cells, (_name(line, split, index), size))
        if split != "unlabelled":
            _write_annotations(out / f"annotations/LIVECell/livecell_coco_{split}.json", images, annotations)
    write_text(out / "README.txt", _README.format(seed=seed))
    return out


def polygon_of(cell: Cell) -> list[float]:
    """Outline a cell as LIVECell does: ``[x1, y1, x2, y2, ...]`` in pixels, pixel edges at whole numbers, not closed.

    The outline runs through the middles of the border pixels' edges (marching squares at one half), so that COCO's
    rule rasterises it to nearly the cell's own mask. Where a mask has several outlines, the longest is taken.
    """
    import cv2
    from skimage.measure import find_contours

    contour = max(find_contours(np.pad(cell.mask, 1).astype(np.float32), 0.5), key=len)[:-1, ::-1]
    thinned = cv2.approxPolyDP(contour.astype(np.float32)[:, None], 0.25, closed=True)[:, 0]
    points = (thinned if len(thinned) >= 4 else contour).astype(np.float64) - 0.5 + (cell.left, cell.top)
    points = np.insert(points, len(points) // 2, points[len(points) // 2], axis=0)
    return [round(float(value), 2) for value in points.ravel()]


def _check(lines: tuple[str, ...], counts: dict[str, int], size: tuple[int, int]) -> None:
    unknown = [line for line in lines if line not in LINES]
    if unknown or not lines:
        raise CellsegError(f"synthetic lines must be some of {', '.join(LINES)}, got {', '.join(unknown) or 'none'}")
    for split, count in counts.items():
        wells = 12 * len(_PLATE_ROWS[split])
        if not 0 <= count <= wells * _IMAGES_A_WELL:
            raise CellsegError(f"n_{split} must be from 0 to {wells * _IMAGES_A_WELL} ({wells} wells), got {count}")
    if min(size) < 64:
        raise CellsegError(f"synthetic images must be at least 64 pixels high and wide, got {size}")


def _name(line: str, split: str, index: int) -> str:
    """File stem: four images a well, at two times in two crops."""
    well, shot = divmod(index, _IMAGES_A_WELL)
    row, column = divmod(well, 12)
    time, crop = divmod(shot, 2)
    return f"{line}_Phase_{_PLATE_ROWS[split][row]}{column + 1}_1_{time:02d}d{12 * time:02d}h00m_{crop + 1}"


def _write_image(out: Path, which: tuple[int, str, str, int], size: tuple[int, int]) -> list[Cell]:
    seed, line, split, index = which
    rng = np.random.default_rng([seed, zlib.crc32(line.encode()), _SPLITS.index(split), index])
    cells = draw_cells(rng, size, LINES[line])
    folder = "livecell_test_images" if split == "test" else "livecell_train_val_images"
    _write_tiff(
        out / "images" / folder / line / f"{_name(line, split, index)}.tif", render(rng, cells, size, LINES[line])
    )
    return cells


def _write_tiff(path: Path, image: NDArray[np.generic]) -> None:
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary, image, compression="lzw", predictor=True, rowsperstrip=11,
            photometric="minisblack" if image.ndim == 2 else "rgb", metadata=None, software=False,
        )  # fmt: skip


def _describe(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    cells: list[Cell],
    file: tuple[str, tuple[int, int]],
) -> None:
    """Append one image and its cells; their ids run on together with gaps."""
    stem, (height, width) = file
    last = max((entry["id"] for entry in (images[-1:] + annotations[-1:])), default=512_000)
    image_id = last + 7
    images.append(
        {
            "id": image_id,
            "width": width,
            "height": height,
            "file_name": f"{stem}.tif",
            "original_filename": f"{stem}.png",
            "url": f"https://example.org/synthetic/{image_id}/original",
        }
    )
    for number, cell in enumerate(cells, start=1):
        polygon = polygon_of(cell)
        x, y = np.array(polygon[0::2]), np.array(polygon[1::2])
        annotations.append(
            {
                "id": image_id + number,
                "image_id": image_id,
                "category_id": 1,
                "segmentation": [polygon],
                "area": float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2),
                "bbox": [float(x.min()), float(y.min()), float(np.ptp(x)), float(np.ptp(y))],
                "iscrowd": 0,
            }
        )


def _write_annotations(path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    keyed = {str(annotation["id"]): annotation for annotation in annotations}
    content = {
        "info": {
            "year": "2021",
            "version": "1.0",
            "description": "Synthetic cells in the form of LIVECell",
            "contributor": "cellseg",
            "url": "https://example.org/synthetic",
            "date_created": "2021/01/19",
        },
        "licenses": [{"url": "https://creativecommons.org/publicdomain/zero/1.0/", "id": 1, "name": "CC0 1.0"}],
        "categories": [{"supercategory": "cell", "id": 1, "name": "cell"}],
        "images": images,
        "annotations": keyed if path.stem.endswith("val") else annotations,
    }
    write_text(path, json.dumps(content))
