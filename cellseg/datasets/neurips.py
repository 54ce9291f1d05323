"""Prepare the NeurIPS 2022 cell segmentation challenge: its folders in, label images, groups and an index out.

Every folder of the published archives is known by name, and of each only what the organisers meant as image or as
truth is read: the winner's masks that ``Testing.zip`` ships are never labels. Images and labels are matched by stem,
the part before the first dot. Each file is decoded once, so that a damaged one is found now; slides are left where
they are if windows of them can be read, else copied in tiles (see :mod:`cellseg.datasets.inspection`).

The modality of an image is not published; images that look alike are grouped (:mod:`cellseg.datasets.modality`). What
this gives up: the organisers' three-class labels, and merging of images that occur in two archives.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cellseg.core import CellsegError, LabelKind, Record
from cellseg.datasets.index import PrepareReport, write_prepared
from cellseg.datasets.inspection import Inspected, inspect_image, rewrite_labels
from cellseg.datasets.left_out import Finding
from cellseg.datasets.modality import cluster, describe, read_modalities
from cellseg.datasets.rows import mark_partial, read_partial
from cellseg.files import write_text
from cellseg.images import IMAGE_SUFFIXES, find_images
from cellseg.progress import track
from cellseg.slides.windows import is_slide


class Part(NamedTuple):
    """A folder of images in the published archives.

    ``folder`` is how its path ends, in lower case; ``labels`` the folder of labels beside it, None where there is no
    truth; ``prefix`` keeps ids of different parts apart.
    """

    folder: str
    labels: str | None
    split: str
    prefix: str


PARTS = (
    Part("training-labeled/images", "labels", "train", ""),
    Part("train_labeled/images", "labels", "train", ""),
    Part("tuning/images", "labels", "val", "tuning_"),
    Part("testing/public/images", "labels", "test", "test_"),
    Part("testing/public/wsi", "wsi-labels", "test", "testwsi_"),
    Part("testing/hidden/images", None, "test", "hidden_"),
    Part("release-part1", None, "unlabelled", "part1_"),
    Part("train-unlabeled-part1", None, "unlabelled", "part1_"),
    Part("train-unlabeled-part2", None, "unlabelled", "part2_"),
    Part("train_unlabeled", None, "unlabelled", "unlabelled_"),
)
"""The parts of the current and of the older release."""

PLAIN = Part("images", "labels", "train", "")
"""A folder of another name with ``images/`` and ``labels/`` or ``foreground_masks/``."""

NOT_TRUTH = ("osilab_seg", "1st_osilab_seg", "osilab_seg_wsi")
"""Folders of the winner's predictions, which lie beside the test images."""

_LICENCE = (
    "CC BY-NC-ND 4.0: no commercial use; the label files and tiled copies written here are changed copies, for your "
    "own use: do not pass them on"
)


@dataclass(frozen=True)
class _Item:
    """An image of one part, its label file and what that means."""

    id: str
    stem: str
    image: Path
    labels: Path | None
    kind: LabelKind
    split: str


@dataclass(frozen=True)
class _Checked:
    """What reading an item gave; ``record`` is None where it is left out."""

    item: _Item
    record: Record | None
    findings: tuple[Finding, ...]
    seen: Inspected | None = None
    features: tuple[float, ...] = ()
    labels_dtype: str = ""


def prepare_neurips(
    root: str | Path,
    out: str | Path,
    *,
    modalities: str | Path | None = None,
    clusters: int | None = None,
    partial: str | Path | None = None,
    seed: int = 0,
    dataset: str = "neurips",
) -> Path:
    """Write ``index.csv``, ``labels/*.tif``, ``files.csv`` and a report for a folder of the challenge.

    Parameters
    ----------
    root : str or Path
        Folder with any of :data:`PARTS` in it or above it, or with ``images/`` and ``labels/`` or
        ``foreground_masks/``.
    out : str or Path
        Folder to write into; tiled copies of slides go to ``tiled/`` in it.
    modalities : str or Path, optional
        CSV with the columns ``stem`` (or an id) and ``modality``; images not named there are grouped by their looks.
    clusters : int, optional
        How many groups to look for; by default it grows with the number of images up to 40.
    partial : str or Path, optional
        Images of which only some cells are labelled; see :func:`cellseg.datasets.rows.mark_partial`.
    seed : int
        Seed of the grouping.
    dataset : str
        Name in the index; anything but ``neurips`` says that only the form is the challenge's.

    Returns
    -------
    Path
        The index.

    Raises
    ------
    CellsegError
        If no part is found, no image is usable, or ``labels/`` in ``out`` is the source. Files that cannot be read
        are left out and named in the report.
    """
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))  # noqa: PTH100 - links are kept
    known = read_modalities(modalities) if modalities is not None else {}
    findings: list[Finding] = []
    items = list(_find_items(root, out, findings))
    if clusters is not None and clusters < 1:
        raise CellsegError(f"--clusters {clusters}: wanted at least 1")
    read_partial(partial, {name for item in items if item.kind == "instances" for name in (item.id, item.stem)}, root)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda item: _check(item, root, out, dataset), items)
        checked = list(track(results, "reading images", total=len(items)))
    findings += [finding for one in checked for finding in one.findings]
    kept = sorted((one for one in checked if one.record is not None), key=lambda one: one.item.id)
    groups = _group(kept, known, clusters, seed)
    findings += _unknown_stems(kept, known, modalities)
    records = [
        dataclasses.replace(one.record, group=group)
        for one, group in zip(kept, groups, strict=True)
        if one.record is not None
    ]
    records = mark_partial(records, partial, root, stem_of)
    notes = _notes(kept, records, seed)
    if dataset != "neurips":
        notes = {"source": f"{dataset} images in the form of the challenge", **notes}
        notes.pop("licence")
    index = write_prepared(out, PrepareReport(dataset, root, records, findings, notes))
    write_text(out / "files.csv", _list_files(kept, records, root))
    return index


def stem_of(path: Path) -> str:
    """Return the part of a file name before its first dot, by which images and labels are matched."""
    return path.name.partition(".")[0]


def _find_items(root: Path, out: Path, findings: list[Finding]) -> Iterator[_Item]:
    """Find the images of every part, and name what is not used."""
    if not root.is_dir():
        raise CellsegError(f"{root}: is not a folder; run 'cellseg download neurips' or name the unpacked data set")
    parts = list(_find_parts(root, out, findings))
    if not parts and (root / "images").is_dir():
        if out == root:
            raise CellsegError(f"{out}: its labels/ is the source and would be mixed; choose another output folder")
        parts = [(root / "images", PLAIN)]
    if not parts:
        raise CellsegError(
            f"{root}: wanted Training-labeled/, Tuning/, Testing/, release-part1/ or train-unlabeled-part2/ of the "
            "challenge, or images/ with labels/, found none; are the zips unpacked here?"
        )
    seen: dict[str, Path] = {}
    for folder, part in parts:
        for item in _pair(folder, part, root, findings):
            if item.id in seen:
                message = f"{_name(seen[item.id], root)} of the same stem is used instead"
                findings.append(Finding("repeated stem", _name(item.image, root), message))
            else:
                seen[item.id] = item.image
                yield item


def _find_parts(root: Path, out: Path, findings: list[Finding]) -> Iterator[tuple[Path, Part]]:
    for here, below, _ in os.walk(root):
        folder = Path(here)
        below[:] = sorted(n for n in below if not n.startswith((".", "__MACOSX")) and folder / n != out)
        for name in [name for name in below if name.lower() in NOT_TRUTH]:
            findings.append(Finding("not truth", _name(folder / name, root), "the winner's predictions; not read"))
            below.remove(name)
        if len(folder.relative_to(root).parts) >= 5:
            below.clear()
        path = "/".join([root.name, *folder.relative_to(root).parts]).lower()
        for part in PARTS:
            if path == part.folder or path.endswith("/" + part.folder):
                inner = folder / "images"
                yield (inner if part.labels is None and inner.is_dir() else folder), part


def _pair(folder: Path, part: Part, root: Path, findings: list[Finding]) -> Iterator[_Item]:
    """Match the images of one part with its label files."""
    instances, masks = {}, {}
    images = find_images(folder)
    stems = {stem_of(path) for path in images}
    if part.labels is not None:
        for sibling in sorted(folder.parent.iterdir()):
            if sibling.is_dir() and sibling.name.lower() == part.labels:
                instances = _label_files(sibling, stems, root, findings)
            elif sibling.is_dir() and sibling.name.lower() == "foreground_masks":
                masks = _label_files(sibling, stems, root, findings)
    findings += [
        Finding("unknown file type", _name(file, root), "not a TIFF, PNG, JPEG or BMP; left out")
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() not in IMAGE_SUFFIXES
    ]
    for image in images:
        stem = stem_of(image)
        labels = instances.get(stem, masks.get(stem))
        kind: LabelKind = "instances" if stem in instances else "foreground" if stem in masks else ""
        yield _Item(part.prefix + stem, stem, image, labels, kind, part.split)


def _label_files(folder: Path, stems: set[str], root: Path, findings: list[Finding]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in find_images(folder):
        stem = stem_of(file)
        owner = stem if stem in stems else stem.removesuffix("_label")
        if owner not in stems:
            findings.append(Finding("labels without image", _name(file, root), "no image of this stem; left out"))
        elif owner in found:
            message = f"{_name(found[owner], root)} is used instead"
            findings.append(Finding("repeated labels", _name(file, root), message))
        else:
            found[owner] = file
    return found


def _check(item: _Item, root: Path, out: Path, dataset: str) -> _Checked:
    """Decode an image and its labels, write the labels and make the record; a bad file becomes a finding."""
    subject = _name(item.image, root)
    try:
        seen = inspect_image(item.image, out / "tiled" / f"{item.id}.tif")
    except CellsegError as error:
        return _Checked(item, None, (Finding("unreadable image", subject, f"{error}; left out"),))
    found = _judge_image(seen, subject)
    labels, kind, dtype = None, item.kind, ""
    diameters: list[float] = []
    if item.labels is not None:
        target = out / "labels" / f"{item.id}.tif"
        try:
            diameters, n_wrapped, dtype = rewrite_labels(
                item.labels, target, seen.size, as_mask=item.kind == "foreground"
            )
            labels = target
        except CellsegError as error:
            kind = ""
            found.append(Finding("unusable labels", subject, f"{error}; the image is kept without labels"))
        else:
            found += _judge_labels(_name(item.labels, root), len(diameters), n_wrapped)
    elif item.split == "train":
        found.append(Finding("no labels", subject, "among the training images without labels; moved to 'unlabelled'"))
    record = Record(
        id=item.id,
        image=seen.path,
        labels=labels,
        dataset=dataset,
        split="unlabelled" if item.split == "train" and labels is None else item.split,
        group="",
        height=seen.size[0],
        width=seen.size[1],
        n_instances=len(diameters) if kind == "instances" else None,
        label_kind=kind,
        diameter=round(float(np.median(diameters)), 2) if diameters and kind == "instances" else None,
    )
    features = tuple(describe(seen.thumbnail, seen.detail))
    return _Checked(item, record, tuple(found), seen, features, dtype)


def _judge_image(seen: Inspected, subject: str) -> list[Finding]:
    found = []
    if seen.channels > 4:
        found.append(Finding("many channels", subject, f"{seen.channels} channels; training needs one to be chosen"))
    if seen.is_constant:
        found.append(Finding("constant image", subject, f"every pixel is {seen.thumbnail.flat[0]}; kept"))
    if seen.tiled:
        message = f"{seen.size[0]} x {seen.size[1]} pixels that cannot be read by window; a tiled copy is used"
        found.append(Finding("tiled copy", subject, message))
    return found


def _judge_labels(subject: str, n_cells: int, n_wrapped: int) -> list[Finding]:
    found = []
    if n_wrapped:
        message = f"{n_wrapped} ids above 32,767 had wrapped to negative numbers in 16 bits; put right"
        found.append(Finding("wrapped ids", subject, message))
    if n_cells == 0:
        found.append(Finding("empty labels", subject, "no cell is labelled; kept"))
    return found


def _group(kept: Sequence[_Checked], known: dict[str, str], clusters: int | None, seed: int) -> list[str]:
    """Name the group of each image: what the user says, else a cluster of those that look alike."""
    said = [known.get(one.item.id, known.get(one.item.stem, "")) for one in kept]
    rest = [place for place, group in enumerate(said) if not group]
    features = np.array([kept[place].features for place in rest])
    fit = np.array([kept[place].item.split in ("train", "unlabelled") for place in rest], np.bool_)
    for place, group in zip(rest, cluster(features, seed, n_clusters=clusters, fit=fit), strict=True):
        said[place] = group
    return said


def _unknown_stems(kept: Sequence[_Checked], known: dict[str, str], path: str | Path | None) -> list[Finding]:
    names = {name for one in kept for name in (one.item.id, one.item.stem)}
    return [
        Finding("modality of no image", stem, f"named in {path}, but there is no such image")
        for stem in sorted(set(known) - names)
    ]


def _notes(kept: Sequence[_Checked], records: Sequence[Record], seed: int) -> dict[str, str]:
    forms: dict[str, list[tuple[int, int]]] = {}
    for one in kept:
        if one.seen is not None:
            forms.setdefault(_form(one.item.image, one.seen), []).append(one.seen.size)
    kinds = Counter(record.label_kind or "none" for record in records)
    n_slides = sum(is_slide(record.height, record.width) for record in records)
    n_inferred = len({record.group for record in records if record.group.startswith("inferred-")})
    return {
        "licence": _LICENCE,
        "images": "; ".join(f"{len(sizes)} × {form}, {_span(sizes)}" for form, sizes in sorted(forms.items())),
        "labels": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        + "; ids are those of the files",
        "splits": "Training-labeled is train, Tuning val, Testing test (Hidden without truth), the rest unlabelled",
        "groups": f"{n_inferred} inferred from image statistics (k-means, seed {seed}), not the true modalities",
        "slides": f"{n_slides} too large to be held whole; training reads them by window",
    }


def _form(path: Path, seen: Inspected) -> str:
    kind = path.suffix.lower().lstrip(".").replace("jpeg", "jpg").replace("tiff", "tif").upper()
    return f"{kind} {seen.dtype}, {seen.channels} channel{'s' if seen.channels > 1 else ''}"


def _span(sizes: Sequence[tuple[int, int]]) -> str:
    low, high = (min(sizes, key=lambda s: s[0] * s[1])), (max(sizes, key=lambda s: s[0] * s[1]))
    return f"{low[0]} x {low[1]}" + (f" to {high[0]} x {high[1]}" if high != low else "")


def _list_files(kept: Sequence[_Checked], records: Sequence[Record], root: Path) -> str:
    """List every image with what its file holds, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "file", "dtype", "channels", "height", "width", "label_file", "label_dtype", "tiled"))
    for one, record in zip(kept, records, strict=True):
        if one.seen is None:
            continue
        labels = _name(one.item.labels, root) if record.labels is not None and one.item.labels is not None else ""
        form = (one.seen.dtype, one.seen.channels, *one.seen.size)
        writer.writerow((record.id, _name(one.item.image, root), *form, labels, one.labels_dtype, int(one.seen.tiled)))
    return text.getvalue()


def _name(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()
