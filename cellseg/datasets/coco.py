"""Read COCO annotation files of any size and turn their polygons into label images by COCO's own rule.

A label image holds one cell a pixel, so where annotated cells overlap something has to give. The policy here is
**larger first, smaller on top**: polygons are painted in order of falling area. What it costs (contested pixels,
cells left without a pixel) is returned with the labels and never silent. Instances are annotations: a polygon that
rasterises into several pieces stays one cell.

Given up: run-length segmentations (``iscrowd`` regions) are reported as invalid, since no data set here has any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError, Labels
from cellseg.memory import require_file

Polygon = list[float]
"""One ring ``[x0, y0, x1, y1, ...]`` in pixels, not closed; pixel (0, 0) covers [0, 1) x [0, 1)."""

OVERLAP_POLICY = "larger first, smaller on top"
DOUBLE_CONTOUR_IOU = 0.8
"""Two annotations of one image that overlap by more than this describe the same cell."""

LONGEST_OUTLINE = 2**20
"""An outline of more pixels covers none: pycocotools holds every fifth of a pixel along it."""

MOST_LAYERS = 1000
"""Annotations that would cover their image more often than this are damaged; in LIVECell they cover it once."""

_PIXELS_AT_ONCE = 2**24
_ROWS_AT_ONCE = 128


class CocoImage(msgspec.Struct, gc=False):
    """An entry of ``images``; its file name is used only for its stem."""

    id: int
    file_name: str
    width: int | None = None
    height: int | None = None

    @property
    def stem(self) -> str:
        """The file name without folders (of either slash) and extension: safe against ``../`` and absolute paths."""
        return PureWindowsPath(self.file_name).stem


class CocoAnnotation(msgspec.Struct, gc=False):
    """An entry of ``annotations``; its polygons stay undecoded until its image is rasterised."""

    image_id: int
    id: int = -1
    segmentation: msgspec.Raw = msgspec.Raw(b"")
    area: float | None = None


class _Content(msgspec.Struct, gc=False):
    images: list[CocoImage]
    annotations: list[CocoAnnotation] | dict[str, CocoAnnotation]


@dataclass(frozen=True)
class CocoFile:
    """A parsed annotation file.

    Attributes
    ----------
    path : Path
        Where it was read.
    images : list of CocoImage
        In file order, repeats included.
    annotations : dict of int to list of CocoAnnotation
        By image id, in file order; repeats and unknown image ids included.
    """

    path: Path
    images: list[CocoImage]
    annotations: dict[int, list[CocoAnnotation]]


@dataclass(frozen=True)
class Painting:
    """A label image and what the overlap policy did to make it.

    Attributes
    ----------
    labels : int32 (H, W)
        Ids 1..N in the order of the surviving instances.
    n_instances : int
        Instances that hold at least one pixel, N.
    empty : list of int
        Positions of instances that rasterise to no pixel at all.
    covered : list of int
        Positions of instances that lie wholly under smaller ones.
    double : list of (int, int)
        Pairs of positions with IoU above ``DOUBLE_CONTOUR_IOU`` before painting.
    contested : int
        Pixels claimed by more than one instance.
    foreground : int
        Pixels claimed by at least one.
    """

    labels: Labels
    n_instances: int
    empty: list[int]
    covered: list[int]
    double: list[tuple[int, int]]
    contested: int
    foreground: int


_CONTENT = msgspec.json.Decoder(_Content)
_POLYGONS = msgspec.json.Decoder(list[Polygon])
_STRING_OR_NOT_JSON = re.compile(rb'"(?:[^"\\]|\\.)*"|NaN|-?Infinity')


def read_coco(path: str | Path) -> CocoFile:
    """Parse a COCO file, ``annotations`` being a list or a dict keyed by id, leaving the polygons undecoded.

    Parameters
    ----------
    path : str or Path
        JSON file; 250 MB take well under a second and about its own size in memory.

    Returns
    -------
    CocoFile
        Images and annotations by image id.

    Raises
    ------
    CellsegError
        If the file is missing, truncated, not JSON, or not in COCO form.
    """
    path = Path(path)
    require_file(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CellsegError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error
    try:
        content = _decode_content(data)
    except msgspec.ValidationError as error:
        raise CellsegError(f"{path}: wanted a COCO file with 'images' and 'annotations'; {error}") from error
    except msgspec.DecodeError as error:
        if "truncated" in str(error):
            raise CellsegError(
                f"{path}: is truncated after {len(data):,} bytes; delete it and download it again"
            ) from error
        raise CellsegError(f"{path}: is not valid JSON ({error}); download it again") from error
    except (RecursionError, ValueError) as error:  # brackets in brackets, a number of thousands of digits
        raise CellsegError(f"{path}: is no COCO file ({str(error)[:100]})") from error
    annotations = content.annotations
    by_image: dict[int, list[CocoAnnotation]] = {}
    for annotation in annotations.values() if isinstance(annotations, dict) else annotations:
        by_image.setdefault(annotation.image_id, []).append(annotation)
    return CocoFile(path, content.images, by_image)


def _decode_content(data: bytes) -> _Content:
    """Decode; where Python's ``json`` wrote the non-JSON tokens NaN and Infinity, read them as null."""
    try:
        return _CONTENT.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"NaN" not in data and b"Infinity" not in data:
            raise
    return _CONTENT.decode(_STRING_OR_NOT_JSON.sub(lambda found: found[0] if found[0][:1] == b'"' else b"null", data))


def decode_polygons(annotation: CocoAnnotation) -> list[Polygon] | None:
    """Decode the polygons of one annotation; None if any is missing, not finite, or has fewer than 3 points."""
    try:
        polygons = _POLYGONS.decode(annotation.segmentation)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    usable = all(len(p) >= 6 and len(p) % 2 == 0 and all(map(math.isfinite, p)) for p in polygons)
    return polygons if polygons and usable else None


def leaves_frame(polygons: Sequence[Polygon], height: int, width: int) -> bool:
    """Tell whether any coordinate lies outside [0, width] x [0, height]."""
    return any(min(p) < 0 or max(p[0::2]) > width or max(p[1::2]) > height for p in polygons)


def rasterise(instances: Sequence[Sequence[Polygon]], height: int, width: int) -> list[dict[str, Any]]:
    """Rasterise each instance by COCO's rule.

    Coordinates are first clipped to [0, width] x [0, height]: a no-op on sound data, and the bound on memory on
    unsound data, since pycocotools walks along edges in fifths of a pixel. A ring longer than
    :data:`LONGEST_OUTLINE` even so covers no pixel.

    Parameters
    ----------
    instances : sequence of sequence of Polygon
        The rings of each instance; several are united.
    height, width : int
        Frame in pixels.

    Returns
    -------
    list of dict
        One compressed COCO run-length encoding an instance (``size``, ``counts``).
    """
    from pycocotools import mask as coco_mask

    upper = np.array([width, height], dtype=np.float64)
    clipped = [_clip(ring, upper) for rings in instances for ring in rings]
    if not clipped:
        return []
    pieces = iter(coco_mask.frPyObjects(clipped, height, width))
    grouped = [[next(pieces) for _ in rings] for rings in instances]
    return [group[0] if len(group) == 1 else coco_mask.merge(group) for group in grouped]


def _clip(ring: Polygon, upper: NDArray[np.float64]) -> NDArray[np.float64]:
    points = np.clip(np.asarray(ring, dtype=np.float64).reshape(-1, 2), 0, upper)
    steps = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1)
    return points.ravel() if steps.sum() <= LONGEST_OUTLINE else np.repeat(points[:1], 3, axis=0).ravel()


def run_pixels(encodings: Sequence[dict[str, Any]]) -> list[NDArray[np.int64]]:
    """List the pixels of each run-length encoding without decoding a whole frame for each.

    COCO writes the lengths of alternating runs, background first, down the columns; from the fourth on each is the
    difference to the one two before; numbers are in 5-bit groups, lowest first, bit 5 meaning "more follows" and
    bit 4 of the last one the sign (``rleToString`` in cocoapi, common/maskApi.c).

    Parameters
    ----------
    encodings : sequence of dict
        Compressed encodings as made by :func:`rasterise`.

    Returns
    -------
    list of int64 (n,)
        Column-major flat indices, ascending, of each.
    """
    counts = [encoding["counts"] for encoding in encodings]
    codes = np.frombuffer(b"".join(counts), dtype=np.uint8).astype(np.int64) - 48
    if not codes.size:
        return [np.empty(0, dtype=np.int64) for _ in counts]
    last = np.flatnonzero((codes & 0x20) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    length = last - first + 1
    place = np.arange(codes.size) - np.repeat(first, length)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * place), first)
    numbers[(codes[last] & 0x10) != 0] -= 1 << (5 * length[(codes[last] & 0x10) != 0])
    ends = np.searchsorted(first, np.cumsum([len(text) for text in counts]))
    return [_pixels_of_runs(runs) for runs in np.split(numbers, ends[:-1])]


def _pixels_of_runs(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    edges = np.cumsum(runs)
    lengths = runs[1::2]
    starts = edges[0::2][: lengths.size]
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))


def paint(instances: Sequence[Sequence[Polygon]], height: int, width: int) -> Painting:
    """Paint instances into one label image, larger first, smaller on top (equal areas in the given order).

    Parameters
    ----------
    instances : sequence of sequence of Polygon
        The rings of each instance, as from :func:`decode_polygons`.
    height, width : int
        Size of the image in pixels.

    Returns
    -------
    Painting
        Labels and an account of the overlaps.

    Raises
    ------
    CellsegError
        If the instances together cover the image more than :data:`MOST_LAYERS` times.
    """
    from pycocotools import mask as coco_mask

    encodings = rasterise(instances, height, width)
    # One by one: given more than 255 masks at once, pycocotools 2.0.11 overflows under NumPy 2.
    areas = np.array([int(coco_mask.area(one)) for one in encodings], dtype=np.int64)
    if (layers := areas.sum() / (height * width)) > MOST_LAYERS:
        raise CellsegError(
            f"its {len(areas):,} annotated cells would cover the image {layers:,.0f} times; is it damaged?"
        )
    flat = np.zeros(height * width, dtype=np.int32)
    claims = np.zeros(height * width, dtype=np.int32)
    for batch in _batches(np.argsort(-areas, kind="stable"), areas):
        for position, pixels in zip(batch, run_pixels([encodings[place] for place in batch]), strict=True):
            flat[pixels] = position + 1
            claims[pixels] += 1
    visible = np.bincount(flat, minlength=len(areas) + 1)[1:] > 0
    renumber = np.zeros(len(areas) + 1, dtype=np.int32)
    renumber[1:][visible] = np.arange(1, int(visible.sum()) + 1)
    return Painting(
        labels=np.ascontiguousarray(renumber[flat].reshape(width, height).T),
        n_instances=int(visible.sum()),
        empty=np.flatnonzero(areas == 0).tolist(),
        covered=np.flatnonzero((areas > 0) & ~visible).tolist(),
        double=_double_contours(encodings),
        contested=int((claims > 1).sum()),
        foreground=int((claims > 0).sum()),
    )


def _batches(order: NDArray[np.int64], areas: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut an order into runs of together at most about :data:`_PIXELS_AT_ONCE` pixels, or of one instance."""
    turns = np.cumsum(areas[order]) // _PIXELS_AT_ONCE
    return [batch for batch in np.split(order, np.flatnonzero(np.diff(turns)) + 1) if batch.size]


def _double_contours(encodings: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Find the pairs, a few instances at a time with those that begin left of where they end: memory stays small."""
    from pycocotools import mask as coco_mask

    if len(encodings) < 2:
        return []
    boxes = coco_mask.toBbox(list(encodings))
    left, right = boxes[:, 0], boxes[:, 0] + boxes[:, 2]
    order = np.argsort(left, kind="stable")
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[start : start + _ROWS_AT_ONCE]
        others = order[start : max(start + len(rows), int(np.searchsorted(left[order], right[rows].max())))]
        iou = coco_mask.iou([encodings[row] for row in rows], [encodings[one] for one in others], [0] * len(others))
        first, second = np.nonzero(np.triu(iou > DOUBLE_CONTOUR_IOU, k=1))
        pairs += [(min(pair), max(pair)) for pair in zip(rows[first].tolist(), others[second].tolist(), strict=True)]
    return sorted(pairs)
