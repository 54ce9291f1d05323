"""Prepare anyone's own folder of images, with or without labels, in the layouts the field uses.

Layouts, told apart by what is there; files are matched by stem, case kept, never by sorted order:

* ``images/`` with ``labels/`` or ``masks/`` (StarDist, NeurIPS 2022: ``x_label.tiff`` for ``x.png``), and
  ``foreground_masks/`` for images that have only a mask of all cells together;
* flat (Cellpose): ``x.tif`` or ``x_img.tif``, and beside it ``x_masks.tif`` or another of
  :data:`cellseg.names.LABEL_ENDINGS`;
* any of these inside ``train/``, ``val/``, ``test/`` and ``unlabelled/``; ids are then ``train_x`` and so on.

A source ``index.csv`` beside ``images/`` (columns ``image`` and any of ``split, group, n_instances, well``) says
which images count and what is known of them. Every image and label file is decoded once, so that a damaged one
is found now and not during training; slides band by band (:mod:`cellseg.datasets.inspection`). Files are used where
they lie; only slides that cannot be read by window are copied, in tiles. What this gives up: several label files an
image, and one file a cell.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from cellseg.core import CellsegError, LabelKind, Record
from cellseg.datasets.index import PrepareReport, write_prepared
from cellseg.datasets.inspection import inspect_image, inspect_labels
from cellseg.datasets.left_out import Finding
from cellseg.datasets.rows import mark_partial, split_validation
from cellseg.images import IMAGE_SUFFIXES, find_images, is_image_name
from cellseg.names import LABEL_ENDINGS, file_stem, role_of
from cellseg.progress import track

SPLITS = ("train", "val", "test", "unlabelled")

_OTHER_FILES = frozenset({".csv", ".txt", ".md", ".json", ".npy", ".xml", ".db"})


@dataclass(frozen=True)
class _Item:
    """An image, its label file and what the source index says of it."""

    id: str
    image: Path
    labels: Path | None
    kind: LabelKind
    split: str
    row: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Checked:
    """What reading an item gave; ``record`` is None where it is left out."""

    record: Record | None
    findings: tuple[Finding, ...]
    n_ids: int = 0
    n_pieces: int = 0


def prepare_folder(
    root: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    split: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
    partial: str | Path | None = None,
) -> Path:
    """Write ``index.csv`` and ``report.md`` for a folder of images.

    Parameters
    ----------
    root : str or Path
        Folder in one of the layouts of this module.
    out : str or Path
        Folder to write into; may be ``root`` unless that holds a source ``index.csv``.
    labels : str or Path, optional
        Another folder whose label files belong to the images of ``root`` too.
    split : {"train", "val", "test"}, optional
        Split of every labelled image; by default what the source index or the sub-folder says, else ``train``.
        Images without labels are ``unlabelled``.
    val_fraction : float
        Part of the training units of each group, in [0, 1), that becomes ``val``; at least one unit where a
        group has two. A unit is a well where the source index names wells, else an image. The choice depends
        on the seed and the unit's name alone.
    seed : int
        Seed of that choice.
    partial : str or Path, optional
        Images of which only some cells are labelled; see :func:`cellseg.datasets.rows.mark_partial`.

    Returns
    -------
    Path
        The written ``index.csv``.

    Raises
    ------
    CellsegError
        If no layout is recognised, two images or two label files share a stem, the source index is wrong, or no
        image is usable. Files that cannot be read and labels of another size than their image are left out and
        named in the report.
    """
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))  # noqa: PTH100 - links are kept
    if split is not None and split not in SPLITS[:3]:
        raise CellsegError(f"split '{split}': wanted one of {', '.join(SPLITS[:3])}")
    if not 0 <= val_fraction < 1:
        raise CellsegError(f"val_fraction = {val_fraction}: wanted at least 0 and less than 1")
    findings: list[Finding] = []
    items = _find_items(root, findings)
    if labels is not None:
        items = _add_labels(items, Path(os.path.abspath(labels)), findings)  # noqa: PTH100 - links are kept
    if out == root and any(item.row for item in items):
        raise CellsegError(f"{out}: its index.csv is the source and would be overwritten; choose another output folder")
    if split is not None:
        items = [dataclasses.replace(item, split=split) for item in items]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda item: _check(item, root, out), items)
        checked = list(track(results, "reading images", total=len(items)))
    findings += [finding for one in checked for finding in one.findings]
    records = [one.record for one in checked if one.record is not None]
    notes = {"labels": "used in place; ids are those of the files"}
    if _holds_plain_masks(checked):
        records = [_as_foreground(record) for record in records]
        notes["binary labels"] = (
            "no label file holds more than one id although the ids lie in several pieces: taken for foreground masks"
        )
    records = mark_partial(records, partial, root)
    if val_fraction > 0:
        records = split_validation(records, val_fraction, seed)
        if not any(record.split == "val" for record in records):
            findings.append(Finding("no validation images", root.name, "every group has one training unit or none"))
        notes["validation"] = (
            f"{val_fraction:g} of the training units of every group, seed {seed}; a unit is a well where known, or "
            "an image: give a column 'well' in the source index.csv if those of one slide or movie belong together"
        )
    return write_prepared(out, PrepareReport(root.name, root, records, findings, notes))


def _find_items(root: Path, findings: list[Finding]) -> list[_Item]:
    if not root.is_dir():
        raise CellsegError(f"{root}: no such folder")
    parts = [(root, "")]
    if not (root / "images").is_dir() and not find_images(root):
        parts = [(root / name, name) for name in SPLITS if (root / name).is_dir()]
    items = []
    for folder, split in parts:
        items += _pair(folder, split, root, findings)
    if not items:
        raise CellsegError(
            f"{root}: no images found; wanted images/ with labels/ or masks/, or image files "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}) with x_masks files beside them"
        )
    return items


def _add_labels(items: list[_Item], folder: Path, findings: list[Finding]) -> list[_Item]:
    """Give unlabelled items the label files of another folder, found by stem."""
    if not folder.is_dir():
        raise CellsegError(f"{folder}: no such folder of label images")
    images = _by_stem([item.image for item in items if item.labels is None], folder, strip_img=True)
    found = {images[stem]: file for stem, file in _match(_label_files(folder), images, folder, findings).items()}
    return [
        dataclasses.replace(item, labels=found[item.image], kind="instances") if item.image in found else item
        for item in items
    ]


def _pair(folder: Path, split: str, root: Path, findings: list[Finding]) -> list[_Item]:
    """Match the images of one part of the data set with their label files and rows."""
    image_folder = folder / "images" if (folder / "images").is_dir() else folder
    label_folders = [folder / name for name in ("labels", "masks") if (folder / name).is_dir()]
    foreground_folder = folder / "foreground_masks"
    image_files, label_files = find_images(image_folder), [file for one in label_folders for file in _label_files(one)]
    is_flat = not label_folders and not foreground_folder.is_dir()
    if is_flat:
        files = _label_files(image_folder)
        image_files = [file for file in image_files if role_of(file) == "image"]
        label_files = [file for file in files if role_of(file) == "labels"]
        results = [file for file in files if role_of(file) == "result"]
        findings += [Finding("result file", _name(file, root), "not an image; left out") for file in results]
    findings += [
        Finding("unknown file type", _name(file, root), "not a TIFF, PNG, JPEG or BMP; left out")
        for file in sorted(image_folder.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() not in IMAGE_SUFFIXES | _OTHER_FILES
    ]
    images = _by_stem(image_files, root, strip_img=is_flat)
    labels = _match(label_files, images, root, findings)
    foreground_files = _label_files(foreground_folder) if foreground_folder.is_dir() else []
    foreground = _match(foreground_files, images, root, findings)
    rows = _read_source_index(folder / "index.csv", images, root, findings)
    return [
        _Item(
            id=f"{split}_{stem}" if split else stem,
            image=images[stem],
            labels=labels.get(stem, foreground.get(stem)),
            kind="instances" if stem in labels else "foreground" if stem in foreground else "",
            split=row.get("split") or split,
            row=row,
        )
        for stem, row in rows.items()
    ]


def _name(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _label_files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if (is_image_name(file.name) or (file.suffix.lower() == ".npy" and file.name[0] != ".")) and file.is_file()
    )


def _by_stem(files: Iterable[Path], root: Path, strip_img: bool) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        stem = file_stem(file).removesuffix("_img") if strip_img else file_stem(file)
        if stem in found:
            raise CellsegError(
                f"{root}: '{_name(found[stem], root)}' and '{_name(file, root)}' share the stem '{stem}', by which "
                "labels are found; rename or remove one"
            )
        found[stem] = file
    return found


def _match(files: list[Path], images: dict[str, Path], root: Path, findings: list[Finding]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        stem = file_stem(file)
        stripped = [stem.removesuffix(ending) for ending in LABEL_ENDINGS if stem.endswith(ending)]
        owner = next((name for name in [stem, *stripped] if name in images), None)
        if owner is None:
            near = [name for name in images if name.lower() in (stem.lower(), *(name.lower() for name in stripped))]
            hint = f" ('{near[0]}' differs in case)" if near else ""
            findings.append(
                Finding("labels without image", _name(file, root), f"no image of this stem{hint}; left out")
            )
        elif owner in found:
            both = f"'{_name(found[owner], root)}' and '{_name(file, root)}'"
            raise CellsegError(f"{root}: {both} are both labels of '{owner}'; keep one")
        else:
            found[owner] = file
    return found


def _read_source_index(
    path: Path, images: dict[str, Path], root: Path, findings: list[Finding]
) -> dict[str, dict[str, str]]:
    """Read the rows of a source index by stem; without one, every image has an empty row."""
    everything: dict[str, dict[str, str]] = {stem: {} for stem in images}
    if not path.is_file():
        return everything
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            columns = set(reader.fieldnames or ())
            lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CellsegError(f"{path}: cannot be read as CSV ({error})") from error
    if {"id", "label_kind"} <= columns:
        return everything  # written by an earlier prepare
    if "image" not in columns:
        raise CellsegError(
            f"{path}: column 'image' is missing; wanted image and any of split, group, n_instances, well"
        )
    by_name = {file.name: stem for stem, file in images.items()}
    rows: dict[str, dict[str, str]] = {}
    for line, row in lines:
        values = {key: value or "" for key, value in row.items() if isinstance(key, str)}
        _check_row(values, f"{path}:{line}")
        stem = by_name.get(Path(values["image"]).name)
        if stem is None:
            raise CellsegError(f"{path}:{line}: there is no image '{values['image']}'")
        if stem in rows:
            raise CellsegError(f"{path}:{line}: image '{values['image']}' is listed twice")
        rows[stem] = values
    findings += [
        Finding("not in index.csv", _name(images[stem], root), "not listed there; left out")
        for stem in images
        if stem not in rows
    ]
    return rows


def _check_row(row: dict[str, str], where: str) -> None:
    if row.get("split", "") not in ("", *SPLITS):
        raise CellsegError(f"{where}: split = '{row['split']}'; wanted one of {', '.join(SPLITS)}")
    if row.get("n_instances") and not (row["n_instances"].isdecimal() and len(row["n_instances"]) < 12):
        raise CellsegError(f"{where}: n_instances = '{row['n_instances'][:40]}'; wanted a whole number or nothing")


def _check(item: _Item, root: Path, out: Path) -> _Checked:
    """Decode an image and its labels and make its record; a bad file becomes a finding."""
    subject = _name(item.image, root)
    try:
        image = inspect_image(item.image, out / "tiled" / f"{item.id}.tif")
        labels = inspect_labels(item.labels, out / "tiled" / f"{item.id}_labels.tif") if item.labels else None
    except CellsegError as error:
        return _Checked(None, (Finding("unreadable", subject, f"{error}; left out"),))
    found: list[Finding] = []
    if labels is not None and labels.size != image.size:
        message = f"labels are {labels.size} but the image is {image.size}; left out"
        return _Checked(None, (Finding("size mismatch", subject, message),))
    if image.channels > 4:
        found.append(Finding("many channels", subject, f"{image.channels} channels; training needs one to be chosen"))
    if image.is_constant:
        found.append(Finding("constant image", subject, f"every pixel is {image.thumbnail.flat[0]}; kept"))
    diameters: Sequence[float] = labels.diameters.tolist() if labels is not None else ()
    if labels is not None:
        found += _judge_labels(item, subject, len(diameters))
    elif item.split not in ("", "unlabelled"):
        found.append(Finding("no labels", subject, f"in split '{item.split}' without labels; moved to 'unlabelled'"))
    found += [
        Finding("tiled copy", path.name, f"cannot be read by window; {used.path.name} in the output is used")
        for path, used in ((item.image, image), (item.labels, labels))
        if path is not None and used is not None and used.tiled
    ]
    record = Record(
        id=item.id,
        image=image.path,
        labels=labels.path if labels is not None else None,
        dataset=root.name,
        split=(item.split or "train") if item.labels else "unlabelled",
        group=item.row.get("group", ""),
        height=image.size[0],
        width=image.size[1],
        n_instances=len(diameters) if item.kind == "instances" else None,
        label_kind=item.kind,
        diameter=round(median(diameters), 2) if diameters and item.kind == "instances" else None,
        well=item.row.get("well", ""),
    )
    return _Checked(record, tuple(found), len(diameters), labels.n_pieces if labels is not None else 0)


def _judge_labels(item: _Item, subject: str, n_ids: int) -> list[Finding]:
    if n_ids == 0:
        return [Finding("empty labels", subject, "no cell is labelled; kept")]
    said = item.row.get("n_instances", "")
    if item.kind == "instances" and said and int(said) != n_ids:
        message = f"index.csv says {int(said)} cells, the label file holds {n_ids}; the file counts"
        return [Finding("n_instances differs", subject, message)]
    return []


def _holds_plain_masks(checked: Sequence[_Checked]) -> bool:
    """Whether no label file tells cells apart, though one of them shows several pieces."""
    labelled = [one for one in checked if one.record is not None and one.record.label_kind == "instances"]
    return any(one.n_pieces > 1 for one in labelled) and all(one.n_ids <= 1 for one in labelled)


def _as_foreground(record: Record) -> Record:
    if record.label_kind != "instances":
        return record
    return dataclasses.replace(record, label_kind="foreground", n_instances=None, diameter=None)
