"""Prepare LIVECell (Edlund et al., Nature Methods 2021): COCO polygons and TIFFs in, label images and an index out.

Both folder forms in circulation are accepted (official tree or flat), the main annotation files or, for a split that
has none, those of single cell lines. Images are matched to annotations by stem. Every reported defect of the set that
occurs is named in the report: repeated ids, images in two splits, double contours, odd counts, missing files.

Given up: where cells overlap, a label image holds one of them (see :mod:`cellseg.datasets.coco`), so scores on these
labels are not LIVECell's own COCO AP.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from cellseg.core import CellsegError, Record
from cellseg.datasets import coco
from cellseg.datasets.index import PrepareReport, write_prepared
from cellseg.datasets.left_out import Finding
from cellseg.images import IMAGE_SUFFIXES, read_size, write_labels
from cellseg.labels import median_diameter
from cellseg.memory import require_room
from cellseg.progress import track

T = TypeVar("T")

CELL_LINES = ("A172", "BT474", "BV2", "Huh7", "MCF7", "SHSY5Y", "SkBr3", "SKOV3")
SPLITS = ("test", "val", "train")
"""In order of precedence: an image listed twice stays out of training."""
FEW_LABELS = 10
"""Fewer annotations than this in an image are odd; the set has nine such images."""

_LINES = {line.lower(): line for line in CELL_LINES}
_NAME = re.compile(r"^(?P<line>[^_]+)_Phase_(?P<well>[A-Za-z]+\d+)_")
_MAIN_JSON = re.compile(r"^livecell_coco_(train|val|test)\.json$")
_LINE_JSON = re.compile(r"^livecell_([a-z0-9]+)_(train|val|test)\.json$")


@dataclass(frozen=True)
class _Tree:
    """What a folder holds: image files by stem and annotation files by split."""

    images: dict[str, Path]
    annotations: dict[str, list[Path]]


@dataclass
class _Tally:
    """Everything gathered on the way to the report."""

    labels_dir: Path
    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    contested: int = 0
    foreground: int = 0
    lost: int = 0

    def find(self, kind: str, subject: str, message: str) -> None:
        """Add a finding to the report."""
        self.findings.append(Finding(kind, subject, message))


def prepare_livecell(
    root: str | Path, out: str | Path, *, split_by: str = "json", seed: int = 0, dataset: str = "livecell"
) -> Path:
    """Write ``index.csv``, ``labels/*.tif`` and a report for a LIVECell folder.

    Parameters
    ----------
    root : str or Path
        Folder with images (below ``images/`` if that exists, else anywhere) and annotation files (anywhere).
    out : str or Path
        Folder to write; may be ``root`` itself.
    split_by : {"json", "well"}
        ``json`` keeps the split of the annotation files; ``well`` redraws it over the labelled images so that no
        culture well is in two splits.
    seed : int
        Draws the wells of ``split_by="well"``.
    dataset : str
        Name in the index and the report; anything but ``livecell`` says that only the form is LIVECell's.

    Returns
    -------
    Path
        The index.

    Raises
    ------
    CellsegError
        If there is no image, or an annotation file is truncated or not COCO.
    """
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))  # noqa: PTH100 - links are kept
    if split_by not in ("json", "well"):
        raise CellsegError(f"split_by = {split_by!r}: wanted 'json' or 'well'")
    tally = _Tally(labels_dir=out / "labels")
    tree = _search(root, out, tally)
    for split in SPLITS:
        for path in tree.annotations.get(split, []):
            _prepare_file(coco.read_coco(path), split, tree, tally)
    _add_unlabelled(tree, tally)
    records = sorted(tally.records, key=lambda record: record.id)
    if split_by == "well":
        records = split_by_well(records, seed)
    notes = _notes(root, tree, tally, f"by well, seed {seed}" if split_by == "well" else "by annotation file")
    if dataset == "livecell":
        tally.findings += _unknown_lines(records)
    else:
        records = [dataclasses.replace(record, dataset=dataset) for record in records]
        notes["source"] = f"{dataset} images in the form of LIVECell"
    tally.findings += shared_wells(records)
    return write_prepared(out, PrepareReport(dataset, root, records, tally.findings, notes))


def cell_line(stem: str) -> tuple[str, str]:
    """Split a file stem into cell line and well, ``("SkBr3", "H3")``; a line in other case gets its official name.

    A stem of another form gives what stands before its first underscore, or ``unknown``, and an empty well.
    """
    match = _NAME.match(stem)
    line = match["line"] if match else stem.partition("_")[0] if "_" in stem else "unknown"
    return _LINES.get(line.lower(), line), match["well"].upper() if match else ""


def split_by_well(records: Sequence[Record], seed: int) -> list[Record]:
    """Redraw train, val and test over the labelled images of each cell line, whole wells at a time.

    Wells are ordered by a hash of seed, line and well, so the draw does not depend on the machine. A fifth of a
    line's wells (at least one) goes to test and a fifth to val; with two wells there is no val, with one only train.

    Parameters
    ----------
    records : sequence of Record
        Unlabelled ones pass unchanged.
    seed : int
        Chooses the draw.

    Returns
    -------
    list of Record
        In the same order.
    """
    wells: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.has_labels:
            wells[record.group].add(record.well)
    split: dict[tuple[str, str], str] = {}
    for line, names in wells.items():
        drawn = sorted(names, key=lambda well: hashlib.sha256(f"{seed}:{line}:{well}".encode()).digest())
        share = max(1, round(len(drawn) / 5))
        n_test = share if len(drawn) >= 2 else 0
        n_val = share if len(drawn) >= 3 else 0
        for position, well in enumerate(drawn):
            split[line, well] = "test" if position < n_test else "val" if position < n_test + n_val else "train"
    return [
        replace(record, split=split[record.group, record.well]) if record.has_labels else record for record in records
    ]


def shared_wells(records: Iterable[Record]) -> list[Finding]:
    """Name every culture well whose images are in more than one of train, val and test: scores across it leak."""
    splits: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        if record.well and record.split in SPLITS:
            splits[record.group, record.well][record.split] += 1
    return [
        Finding(
            "well in two splits",
            f"{line} {well}",
            ", ".join(f"{count[s]} in {s}" for s in reversed(SPLITS) if count[s]) + "; use the split by well",
        )
        for (line, well), count in sorted(splits.items())
        if len(count) > 1
    ]


def _search(root: Path, out: Path, tally: _Tally) -> _Tree:
    """Walk the tree once for images and annotation files; label folders and hidden files are passed over."""
    if not root.is_dir():
        raise CellsegError(f"{root}: is not a folder; run 'cellseg download livecell' or name the unpacked data set")
    images: dict[str, Path] = {}
    main: dict[str, list[Path]] = defaultdict(list)
    by_line: dict[str, list[Path]] = defaultdict(list)
    image_root = root / "images" if (root / "images").is_dir() else root
    for path in _walk(root, out):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_relative_to(image_root):
            if path.stem in images:
                tally.find("repeated image file", path.stem, f"{images[path.stem]} is used, {path} is not")
            images.setdefault(path.stem, path)
        elif match := _MAIN_JSON.match(path.name):
            main[match[1]].append(path)
        elif split := _line_split(path):
            by_line[split].append(path)
    if not images:
        raise CellsegError(f"{image_root}: wanted LIVECell images (*.tif), found none; is the zip unpacked here?")
    annotations = {split: main.get(split) or by_line.get(split, []) for split in SPLITS}
    if not any(annotations.values()):
        tally.find("no annotations", str(root), "no livecell_coco_*.json found: every image is unlabelled")
    return _Tree(images, annotations)


def _walk(root: Path, out: Path) -> Iterator[Path]:
    """Yield files, sorted and TIFFs first, without what an earlier ``prepare`` wrote."""
    found: list[Path] = []
    for folder, below, names in os.walk(root, followlinks=False):
        here = Path(folder)
        below[:] = [n for n in below if n != "labels" and not n.startswith((".", "__MACOSX")) and here / n != out]
        found += [here / name for name in names if not name.startswith(".")]
    return iter(sorted(found, key=lambda path: (path.suffix.lower() not in (".tif", ".tiff"), path)))


def _line_split(path: Path) -> str | None:
    """Tell the split of a single-cell-line annotation file; None for any other file."""
    match = _LINE_JSON.match(path.name.lower())
    if match and match[1] in _LINES:
        return match[2]
    if path.name in {f"{split}.json" for split in SPLITS} and path.parent.name.lower() in _LINES:
        return path.stem
    return None


def _prepare_file(file: coco.CocoFile, split: str, tree: _Tree, tally: _Tally) -> None:
    """Rasterise every image of one annotation file that has not been prepared before."""
    where = file.path.name
    known = {image.id for image in file.images}
    orphans = {image_id: found for image_id, found in file.annotations.items() if image_id not in known}
    if orphans:
        count = sum(map(len, orphans.values()))
        named = ", ".join(map(str, sorted(orphans)[:5]))
        tally.find("unknown image id", where, f"{count} annotations name image ids it does not list, such as {named}")
    for image in _track(_distinct_images(file, tally), f"{split}: {where}"):
        path = tree.images.get(image.stem)
        if path is None:
            tally.find("missing image file", image.stem, f"listed in {where} but not found in any folder")
        elif image.stem in tally.seen:
            other = tally.seen[image.stem]
            kind = "image in two files of a split" if other == split else "image in two splits"
            tally.find(kind, image.stem, f"kept in {other}; ignored in {where} ({split})")
        else:
            tally.seen[image.stem] = split
            _prepare_image(path, image, _distinct_annotations(file, image, tally), split, tally)


def _distinct_images(file: coco.CocoFile, tally: _Tally) -> list[coco.CocoImage]:
    """Keep one entry of each id and each stem, the one with most annotations, and name the rest."""
    count: dict[int, int] = {image_id: len(found) for image_id, found in file.annotations.items()}
    ids = Counter(image.id for image in file.images)
    for image_id, times in ids.items():
        if times > 1:
            names = sorted({image.stem for image in file.images if image.id == image_id})
            tally.find(
                "repeated image id", names[0], f"id {image_id} occurs {times} times in {file.path.name}: {names}"
            )
    best: dict[str, coco.CocoImage] = {}
    for image in {image.id: image for image in reversed(file.images)}.values():
        best[image.stem] = max(best.get(image.stem, image), image, key=lambda one: (count.get(one.id, 0), -one.id))
    stems = Counter({image.id: image.stem for image in file.images}.values())
    for stem, times in stems.items():
        if times > 1:
            tally.find(
                "repeated file name",
                stem,
                f"{times} ids in {file.path.name}; id {best[stem].id} with {count.get(best[stem].id, 0)} cells is used",
            )
    return sorted(best.values(), key=lambda image: image.stem)


def _distinct_annotations(file: coco.CocoFile, image: coco.CocoImage, tally: _Tally) -> list[coco.CocoAnnotation]:
    """Drop annotations that repeat an id and its polygon."""
    found = file.annotations.get(image.id, [])
    distinct: dict[tuple[int, bytes], coco.CocoAnnotation] = {}
    for position, annotation in enumerate(found):
        key = (annotation.id, bytes(annotation.segmentation)) if annotation.id >= 0 else (-1 - position, b"")
        distinct.setdefault(key, annotation)
    if len(distinct) < len(found):
        tally.find("repeated annotation", image.stem, f"{len(found) - len(distinct)} repeat another's id and polygon")
    return list(distinct.values())


def _prepare_image(
    path: Path, image: coco.CocoImage, annotations: list[coco.CocoAnnotation], split: str, tally: _Tally
) -> None:
    """Write the labels of one image and add its record; problems leave it unlabelled and named."""
    record = _unlabelled_record(path, split, tally)
    if record is None:
        return
    size = (record.height, record.width)
    stated = (image.height, image.width)
    if None not in stated and stated != size:
        tally.find("size mismatch", record.id, f"annotated as {stated}, the file is {size}; left unlabelled")
    elif not annotations:
        tally.find("no cells", record.id, "listed without a single annotation; left unlabelled")
    else:
        record = _with_labels(record, annotations, tally)
    tally.records.append(record)


def _with_labels(record: Record, annotations: list[coco.CocoAnnotation], tally: _Tally) -> Record:
    """Paint the annotations of one image, write its label file, and name whatever is odd."""
    decoded = [(annotation.id, coco.decode_polygons(annotation)) for annotation in annotations]
    usable = [(name, polygons) for name, polygons in decoded if polygons is not None]
    ids = [name for name, _ in usable]
    require_room(record.image, (record.height, record.width), 8)
    try:
        painting = coco.paint([polygons for _, polygons in usable], record.height, record.width)
    except CellsegError as error:
        tally.find("impossible annotations", record.id, f"{error}; left unlabelled")
        return record
    outside = [n for n, polygons in usable if coco.leaves_frame(polygons, record.height, record.width)]
    named = {
        "invalid polygon": (
            [n for n, p in decoded if p is None],
            "is not a finite polygon of 3 points or more; dropped",
        ),
        "empty polygon": ([ids[i] for i in painting.empty], "covers no pixel, or its outline has no end; lost"),
        "covered cell": ([ids[i] for i in painting.covered], "lies wholly under smaller ones; lost"),
        "polygon outside the image": (outside, "has points outside the image; clipped"),
        "double contour": ([ids[j] for _, j in painting.double], f"has IoU > {coco.DOUBLE_CONTOUR_IOU} with another"),
    }
    for kind, (subjects, what) in named.items():
        if subjects:
            tally.find(kind, record.id, f"annotation {', '.join(map(str, subjects))} {what}")
    if len(annotations) < FEW_LABELS:
        tally.find("few labels", record.id, f"only {len(annotations)} annotated cells")
    tally.contested += painting.contested
    tally.foreground += painting.foreground
    tally.lost += len(annotations) - painting.n_instances
    if not painting.n_instances:
        return record
    path = tally.labels_dir / f"{record.id}.tif"
    write_labels(path, painting.labels)
    return replace(
        record,
        labels=path,
        n_instances=painting.n_instances,
        label_kind="instances",
        diameter=median_diameter(painting.labels),
    )


def _unlabelled_record(path: Path, split: str, tally: _Tally) -> Record | None:
    """Describe an image by its header and name; None, with a finding, if it cannot be read."""
    try:
        height, width = read_size(path)
    except CellsegError as error:
        tally.find("unreadable image", path.stem, f"{error}; left out")
        return None
    line, well = cell_line(path.stem)
    return Record(path.stem, path, None, "livecell", split, line, height, width, None, "", None, well)


def _add_unlabelled(tree: _Tree, tally: _Tally) -> None:
    """Add the images that no annotation file lists."""
    missing = [path for stem, path in tree.images.items() if stem not in tally.seen]
    for path in _track(missing, "unlabelled"):
        record = _unlabelled_record(path, "unlabelled", tally)
        if record is not None:
            tally.records.append(record)
        if "livecell_test_images" in path.parts:
            tally.find("test image without annotations", path.stem, "kept as unlabelled: do not adapt to it")


def _unknown_lines(records: Iterable[Record]) -> list[Finding]:
    count = Counter(record.group for record in records if record.group not in CELL_LINES)
    known = ", ".join(CELL_LINES)
    return [Finding("unknown cell line", line, f"{n} images; known are {known}") for line, n in sorted(count.items())]


def _notes(root: Path, tree: _Tree, tally: _Tally, split: str) -> dict[str, str]:
    files = [path for paths in tree.annotations.values() for path in paths]
    share = 100 * tally.contested / tally.foreground if tally.foreground else 0.0
    return {
        "source": "LIVECell, Edlund et al., Nature Methods 2021; CC BY-NC 4.0",
        "annotation files": ", ".join(path.relative_to(root).as_posix() for path in sorted(files)) or "none",
        "split": split,
        "instances": "one an annotation, rasterised by COCO's rule; never relabelled by connected components",
        "overlap policy": coco.OVERLAP_POLICY,
        "contested pixels": f"{tally.contested} of {tally.foreground} foreground pixels ({share:.2f} %)",
        "annotations without a pixel": str(tally.lost),
    }


def _track(items: Sequence[T], what: str) -> Iterable[T]:
    """Show a progress bar for more than 100 items."""
    return track(items, what, total=len(items)) if len(items) > 100 else items
