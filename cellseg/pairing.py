"""Which file holds the labels of which image: true and predicted label images are paired by name.

``a.tif``, ``a_masks.png`` and ``a_label.tiff`` are all labels of the image ``a``: Cellpose, StarDist and the NeurIPS
2022 challenge each have an ending of their own. Files are never paired by their order.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cellseg.config import Selection
from cellseg.core import CellsegError
from cellseg.datasets.index import select
from cellseg.images import find_images
from cellseg.names import file_stem

LABEL_SUFFIXES = ("_cp_masks", "_masks", "_mask", "_labels", "_label", "_seg", "_pred")
"""Endings of a file's stem that say "labels of", and are ignored when files are paired by name."""


@dataclass(frozen=True)
class Pair:
    """One image to score: what is known about it, its truth, and its prediction if there is one."""

    image: str
    truth: Path
    pred: Path | None
    dataset: str = ""
    split: str = ""
    group: str = ""


def find_pairs(truth: Path, pred: Path, split: str | None = None, groups: Sequence[str] = ()) -> list[Pair]:
    """List the images to score and the files they are scored from; see :func:`evaluate` for the naming rules."""
    index = truth / "index.csv" if truth.is_dir() else truth
    if index.is_file() and index.suffix.lower() == ".csv":
        pairs = _truth_of_index(index, split, groups)
    elif split is not None or groups:
        raise CellsegError(f"{truth}: split and groups need an index.csv as the truth, not a folder of label images")
    else:
        pairs = _truth_of_folder(truth)
    files = find_predictions([pair.image for pair in pairs], pred)
    if not (index.is_file() and index.suffix.lower() == ".csv"):
        _tell_unpaired(pred, [pair.image for pair in pairs])
    return [replace(pair, pred=files[pair.image]) for pair in pairs]


def find_predictions(images: Iterable[str], pred: Path) -> dict[str, Path | None]:
    """Find the predicted label image of each image by name, None where there is none; see :func:`evaluate`."""
    if not pred.is_dir():
        raise CellsegError(f"{pred}: wanted a folder of predicted label images, but there is none")
    found = _by_name(find_images(pred))
    names = list(dict.fromkeys(images))
    uses = Counter(map(_name, names))
    return {name: _choose(name, found, exact=uses[_name(name)] > 1) for name in names}


def _tell_unpaired(pred: Path, images: Iterable[str]) -> None:
    """Warn of predictions no true image goes with; raises CellsegError if that is so of all of them."""
    names, found = set(map(_name, images)), _by_name(find_images(pred))
    if not found:
        warnings.warn(f"{pred}: has no image file, so every prediction is missing", stacklevel=4)
    unpaired = sorted(path.name for name, paths in found.items() if name not in names for path in paths)
    if not unpaired:
        return
    shown = ", ".join(unpaired[:3]) + (", …" if len(unpaired) > 3 else "")
    if not names & found.keys():
        raise CellsegError(
            f"{pred}: no file has the name of a true image (wanted e.g. {min(names)}.tif or {min(names)}_masks.tif, "
            f"found {shown}); files are paired by name: rename one side"
        )
    warnings.warn(f"{pred}: {len(unpaired)} files go with no true image and are not scored: {shown}", stacklevel=4)


def _truth_of_index(index: Path, split: str | None, groups: Sequence[str]) -> list[Pair]:
    records = select(Selection(index=str(index), split=split, groups=tuple(groups)))
    pairs = [
        Pair(record.id, record.labels, None, record.dataset, record.split, record.group)
        for record in records
        if record.labels is not None and record.label_kind == "instances"
    ]
    if not pairs:
        raise CellsegError(f"{index}: none of the {len(records)} images chosen has instance labels to score against")
    if len(pairs) < len(records):
        warnings.warn(f"{index}: {len(records) - len(pairs)} images have no instance labels: not scored", stacklevel=4)
    return pairs


def _truth_of_folder(folder: Path) -> list[Pair]:
    """Take all files for labels; where images lie beside files whose names say they are labels, these alone."""
    files = _by_name(find_images(folder))
    if not files:
        raise CellsegError(f"{folder}: wanted true label images, but the folder has no image file")
    said = {name: paths for name, paths in files.items() if any(file_stem(path) != name for path in paths)}
    if any(len(paths) > 1 for paths in said.values()):
        others = sorted(path.name for name in files.keys() - said.keys() for path in files[name])
        _tell_left_out(folder, others)
        files = said
    pairs = [(name, _choose(name, files)) for name in sorted(files)]
    return [Pair(name, path, None) for name, path in pairs if path is not None]


def _tell_left_out(folder: Path, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        warnings.warn(
            f"{folder}: {len(names)} files are not labels by their names, as others are, and no truth: {shown}",
            stacklevel=5,
        )


def _name(stem: str) -> str:
    """Return what is left of a stem without its ending that says it is labels."""
    ending = next((ending for ending in LABEL_SUFFIXES if stem.lower().endswith(ending)), "")
    return stem[: len(stem) - len(ending)] or stem


def _by_name(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in paths:
        found[_name(file_stem(path))].append(path)
    return dict(found)


def _choose(image: str, found: dict[str, list[Path]], exact: bool = False) -> Path | None:
    """Pick the one label file of an image; with ``exact`` only a file of exactly its name will do."""
    files = found.get(_name(image), [])
    same = [path for path in files if file_stem(path) == image]
    if exact:
        files = same
    said = [path for path in files if _name(file_stem(path)) != file_stem(path)]
    for candidates in (said, files, same):
        if len(candidates) == 1:
            return candidates[0]
    if not files:
        return None
    names = ", ".join(sorted(path.name for path in files))
    raise CellsegError(f"{files[0].parent}: more than one file may hold the labels of '{image}': {names}; keep one")
