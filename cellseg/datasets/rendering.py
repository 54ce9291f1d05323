"""Draw made-up cells and render them in six looks, from fluorescence over phase contrast and DIC to stained tissue.

The shapes are drawn first (touching clusters; round, long and curved, tiny and large cells in every image), then
one of the looks. It imitates what matters to a segmenter (contrast, halo, blur, noise, illumination), not optics:
nothing learned here says anything about a real microscope.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg.core import Labels
from cellseg.datasets.sheets import draw_islands

Field = NDArray[np.float32]

_KINDS = ("round", "long", "tiny", "large", "flat")
_MIX = {
    "fluorescence": (0.62, 0.08, 0.18, 0.12, 0.0),
    "phase": (0.42, 0.20, 0.16, 0.07, 0.15),
    "brightfield": (0.50, 0.15, 0.20, 0.10, 0.05),
    "dic": (0.50, 0.15, 0.15, 0.12, 0.08),
    "sheet": (0.25, 0.25, 0.10, 0.05, 0.35),
    "stained": (0.66, 0.06, 0.08, 0.20, 0.0),
}
"""Shares of the shapes in each look, in the order of ``_KINDS``."""

STYLES = tuple(_MIX)
"""The looks that :func:`render` knows."""

_DENSITY = {"sheet": (4, 30)}
"""Cells in 256 x 320 pixels, beside those of islands, where it is not the usual."""

_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""What a unit of haematoxylin and of eosin absorbs of red, green and blue (Ruifrok and Johnston 2001, table 1)."""

_MIN_AREA = 25
_TRIES = 12


class Cell(NamedTuple):
    """One drawn cell: the box's first row and column, its mask in that box, and whether it is rounded up."""

    top: int
    left: int
    mask: NDArray[np.bool_]
    rounded: bool


def draw_cells(rng: np.random.Generator, size: tuple[int, int], style: str) -> list[Cell]:
    """Place cells in clusters and alone until the image holds as many as a random density asks for.

    Parameters
    ----------
    rng : numpy Generator
        Source of all randomness.
    size : (height, width)
        Image size in pixels.
    style : str
        One of ``STYLES``; decides the mix of shapes.

    Returns
    -------
    list of Cell
        From the largest to the smallest, which is drawn on top as ``cellseg prepare livecell`` does. Cells touch
        but do not overlap, except about one in thirty.
    """
    taken = np.zeros(size, bool)
    cells: list[Cell] = []
    if style == "sheet":
        cells += [Cell(*place, rounded=False) for place in draw_islands(rng, size)]
        for flat in cells:
            taken[_box(flat)] |= flat.mask
    wanted = int(size[0] * size[1] / 81920 * rng.uniform(*_DENSITY.get(style, (30, 75)))) + 1
    friendly = rng.uniform(0.4, 0.85)
    for kind in rng.choice(_KINDS, wanted, p=_MIX[style]):
        outline = _outline(rng, str(kind))
        overlapping = rng.random() < 0.03
        for _ in range(_TRIES):
            cell = _place(outline + _position(rng, size, cells, friendly), taken, overlapping)
            if cell is not None:
                rounded = kind == "tiny" or (kind == "round" and rng.random() < 0.3)
                cells.append(cell._replace(rounded=bool(rounded)))
                taken[_box(cell)] |= cell.mask
                break
    return sorted(cells, key=lambda cell: -int(cell.mask.sum()))


def paint_labels(cells: list[Cell], size: tuple[int, int]) -> Labels:
    """Paint cells as ids from 1, later ones on top."""
    labels = np.zeros(size, np.int32)
    for number, cell in enumerate(cells, start=1):
        labels[_box(cell)][cell.mask] = number
    return labels


def render(
    rng: np.random.Generator, cells: list[Cell], size: tuple[int, int], style: str
) -> NDArray[np.uint8 | np.uint16]:
    """Render cells in one of ``STYLES``.

    Returns
    -------
    ndarray, shape (H, W), for stained tissue (H, W, 3)
        uint16 with a camera offset of 400 for fluorescence, uint8 for the others.
    """
    labels = paint_labels(cells, size)
    if style == "fluorescence":
        return _fluorescence(rng, labels, len(cells))
    if style == "stained":
        return _stained(rng, labels, len(cells))
    rounded = np.array([False, *(cell.rounded for cell in cells)])[labels]
    draw = {"phase": _phase, "brightfield": _brightfield, "dic": _dic, "sheet": _sheet}[style]
    image = np.clip(np.rint(draw(rng, labels, rounded, len(cells))), 0, 255)
    return np.asarray(image, np.uint8)


def _outline(rng: np.random.Generator, kind: str) -> Field:
    """Draw a closed curve (x, y) around the origin: an ellipse made wavy, then bent along its long axis."""
    if kind == "long":
        length, width, wave, bend = rng.uniform(30, 62), rng.uniform(7, 12), 0.05, rng.normal(0, 0.012)
    else:
        low, high = {"round": (13, 24), "tiny": (7, 11), "large": (28, 42), "flat": (26, 46)}[kind]
        length = rng.uniform(low, high)
        width = length * rng.uniform(0.72, 1) * (0.6 if kind == "flat" else 1)
        wave, bend = (0.14 if kind == "flat" else 0.04), 0.0
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(angle)
    for order in range(2, 6):
        radius += wave * rng.normal() / np.sqrt(order / 2) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.6, 1.5)
    x, y = length / 2 * radius * np.cos(angle), width / 2 * radius * np.sin(angle)
    y = y + bend * (x**2 - length**2 / 12)
    turn = rng.uniform(0, 2 * np.pi)
    turned = [x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)]
    return np.stack(turned, axis=1).astype(np.float32)


def _position(rng: np.random.Generator, size: tuple[int, int], cells: list[Cell], friendly: float) -> Field:
    """Position (x, y) beside an earlier cell, or anywhere."""
    if cells and rng.random() < friendly:
        cell = cells[int(rng.integers(len(cells)))]
        height, width = cell.mask.shape
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.3)
        x = cell.left + width / 2 + reach * (width / 2 + 6) * np.cos(angle)
        y = cell.top + height / 2 + reach * (height / 2 + 6) * np.sin(angle)
        return np.array([x, y], np.float32)
    return np.array([rng.uniform(0, size[1]), rng.uniform(0, size[0])], np.float32)


def _place(outline: Field, taken: NDArray[np.bool_], overlapping: bool) -> Cell | None:
    """Rasterise an outline (x, y) where enough room is free; None where it is not."""
    height, width = taken.shape
    left, top = np.maximum(np.floor(outline.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 2, (width, height))
    if right - left < 2 or bottom - top < 2:
        return None
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillPoly(canvas, [np.rint(16 * (outline - (left, top))).astype(np.int32)], 1, shift=4)
    mask = canvas.astype(bool)
    area = int(mask.sum())
    if area < _MIN_AREA:
        return None
    occupied = mask & taken[top:bottom, left:right]
    share = occupied.sum() / area
    if share > (0.3 if overlapping else 0.2):
        return None
    if not overlapping:
        mask = _largest(mask & ~occupied)
    return Cell(int(top), int(left), mask, False) if mask.sum() >= max(_MIN_AREA, 0.7 * area) else None


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest 4-connected piece."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if len(stats) < 2:
        return mask
    return np.asarray(pieces == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])), np.bool_)


def _box(cell: Cell) -> tuple[slice, slice]:
    height, width = cell.mask.shape
    return slice(cell.top, cell.top + height), slice(cell.left, cell.left + width)


def _blur(image: NDArray[np.generic], sigma: float) -> Field:
    return np.asarray(cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101))


def _texture(rng: np.random.Generator, size: tuple[int, ...], fine: float, coarse: float) -> Field:
    """Band-passed noise of standard deviation 1, grains between ``fine`` and ``coarse`` pixels."""
    noise = rng.standard_normal(size, dtype=np.float32)
    band = _blur(noise, fine) - _blur(noise, coarse)
    return np.asarray(band / band.std(), np.float32)


def _illumination(rng: np.random.Generator, size: tuple[int, ...]) -> Field:
    """Smooth field between about -1 and 1 that changes over the whole image."""
    coarse = rng.standard_normal((3, 4), dtype=np.float32)
    field = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(field / max(float(np.abs(field).max()), 1e-6), np.float32)


def _depth(labels: Labels) -> Field:
    """Distance of each cell pixel to the border of its own cell, 0 outside."""
    inside = (labels > 0).astype(np.uint8)
    padded = np.pad(labels, 1, mode="edge")
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inside &= padded[dy : dy + labels.shape[0], dx : dx + labels.shape[1]] == labels
    return np.asarray(cv2.distanceTransform(inside, cv2.DIST_L2, 3)) + (labels > 0).astype(np.float32)


def _per_cell(rng: np.random.Generator, labels: Labels, count: int, low: float, high: float) -> Field:
    """One uniform draw a cell, spread over its pixels; 0 outside."""
    values = np.concatenate([[0], rng.uniform(low, high, count)]).astype(np.float32)
    return values[labels]


def _fluorescence(rng: np.random.Generator, labels: Labels, count: int) -> NDArray[np.uint16]:
    """Bright blobs on a dim ground, blurred by the lens, with shot noise, an offset and read noise."""
    size = labels.shape
    bright = np.exp(_per_cell(rng, labels, count, -0.9, 0.5)) * (labels > 0)
    dome = 0.55 + 0.45 * np.minimum(_depth(labels) / 4, 1)
    chromatin = np.clip(1 + 0.16 * _texture(rng, size, 1.5, 4), 0.4, 1.6)
    signal = bright * dome * chromatin
    ground = 0.05 + 0.03 * _illumination(rng, size) + 0.07 * _blur(bright, 14)
    light = (_blur(signal, rng.uniform(0.9, 1.7)) + ground) * (1 + 0.15 * _illumination(rng, size))
    photons = rng.uniform(60, 250)
    counts = rng.poisson(np.clip(light, 0, None) * photons) * (3000 / photons)
    noisy = 400 + counts + rng.normal(0, 12, size)
    return np.clip(np.rint(noisy), 0, 65535).astype(np.uint16)


def _phase(rng: np.random.Generator, labels: Labels, rounded: NDArray[np.bool_], count: int) -> Field:
    """Grainy, slightly dark bodies on mid-grey, each in a bright halo; rounded cells glow with a dark core."""
    size = labels.shape
    inside = (labels > 0).astype(np.float32)
    depth = _depth(labels)
    thick = np.sqrt(np.minimum(depth, 8) / 8) * _per_cell(rng, labels, count, 0.35, 1.0) * np.where(rounded, 1.6, 1)
    wave = _blur(thick, 1.0) - _blur(thick, 6.0)
    rim = np.exp(-((depth - 2.6) ** 2) / 1.4) * inside
    halo = np.exp(-((depth - 1.0) ** 2) / 0.5) * inside + 1.6 * _blur(inside, 1.6) * (1 - inside)
    grains = _texture(rng, size, 0.7, 2.2) * inside * _per_cell(rng, labels, count, 4, 11)
    speckle = np.clip(_texture(rng, size, 0.8, 1.6) - 2.0, 0, None) * inside * 12
    glow = np.where(rounded, np.exp(-((depth - 2.6) ** 2) / 2.5) * 34, 0)
    strength = rng.uniform(0.75, 1.25)
    image = 128 + 6 * _illumination(rng, size) - strength * 34 * wave
    image += strength * (_blur(glow - 14 * rim + grains + speckle, 0.6) + _blur(22 * halo, 0.7))
    return np.asarray(image + _debris(rng, size) + rng.normal(0, rng.uniform(1.5, 3.5), size), np.float32)


def _brightfield(rng: np.random.Generator, labels: Labels, rounded: NDArray[np.bool_], count: int) -> Field:
    """Clear bodies on a light ground, drawn by a dark line and, out of focus, a light ring inside it."""
    size = labels.shape
    inside = (labels > 0).astype(np.float32)
    depth = _depth(labels)
    line = np.exp(-((depth - 1.0) ** 2) / 1.0) * inside * _per_cell(rng, labels, count, 28, 60)
    ring = np.exp(-((depth - 3.6) ** 2) / 2.0) * inside * np.where(rounded, 26, 12)
    body = _blur(inside, 0.8) * _per_cell(rng, labels, count, 2, 16)
    grains = np.clip(_texture(rng, size, 0.8, 2.0) - 1.0, 0, None) * inside * 14
    image = 182 + 12 * _illumination(rng, size) + _blur(ring - line - body - grains, rng.uniform(0.6, 1.1))
    return np.asarray(image + _debris(rng, size) + rng.normal(0, rng.uniform(2, 4), size), np.float32)


def _sheet(rng: np.random.Generator, labels: Labels, rounded: NDArray[np.bool_], count: int) -> Field:
    """Bodies as grey as the ground, known by a thin bright edge, granules and a faint nucleus; rounded cells glow."""
    size = labels.shape
    inside = (labels > 0).astype(np.float32)
    depth = _depth(labels)
    deepest = np.ones(count + 1, np.float32)
    np.maximum.at(deepest, labels, depth)
    central = depth / deepest[labels]
    flat = 1 - rounded
    edge = np.exp(-((depth - 1) ** 2) / rng.uniform(0.4, 1.2)) * _per_cell(rng, labels, count, 6, 34)
    flank = np.exp(-((depth - 2.8) ** 2) / 1.6) * _per_cell(rng, labels, count, 0, 12)
    nucleus = np.exp(-((central - 0.62) ** 2) / 0.006) * _per_cell(rng, labels, count, -4, 12) * flat
    body = _blur(_per_cell(rng, labels, count, -6, 5), 1.2)
    dots = [np.clip(_texture(rng, size, 0.5, 1.3) - rng.uniform(1.0, 1.8), 0, None) * (0.25 + central) for _ in "12"]
    granules = dots[1] * _per_cell(rng, labels, count, 0, 45) - dots[0] * _per_cell(rng, labels, count, 5, 80)
    glow = np.exp(-((depth - 2.4) ** 2) / 2.5) * 30 - np.clip(depth - 3, 0, 4) * 5
    halo = _blur(inside, rng.uniform(1.0, 2.0)) * (1 - inside) * rng.uniform(0, 18)
    signal = inside * (edge - flank - nucleus + granules * flat + glow * rounded) + body + halo
    image = 128 + 5 * _illumination(rng, size) + rng.uniform(0.6, 1.4) * _blur(signal, rng.uniform(0.4, 0.8))
    dirt = _debris(rng, size, most=int(rng.integers(12, 160)))
    return np.asarray(image + dirt + rng.normal(0, rng.uniform(0.8, 2.8), size), np.float32)


def _stained(rng: np.random.Generator, labels: Labels, count: int) -> NDArray[np.uint8]:
    """Dark nuclei in paler tissue, some out of focus and no cells of anyone; one image in six is grey.

    Light is absorbed as Beer and Lambert say, by two stains whose colours differ from image to image.
    """
    size = labels.shape
    inside = (labels > 0).astype(np.float32)
    depth = _depth(labels)
    amount = np.exp(_per_cell(rng, labels, count, -0.5, 0.6)) * inside * rng.uniform(0.5, 1.3)
    membrane = 1 + rng.uniform(0, 0.6) * np.exp(-((depth - 1.5) ** 2) / 2)
    chromatin = np.clip(1 + rng.uniform(0.1, 0.45) * _texture(rng, size, 1.2, 4), 0.3, 2)
    ghosts = _blur(np.roll(amount, tuple(rng.integers(30, 200, 2)), (0, 1)), rng.uniform(3, 6))
    tissue = rng.uniform(0, 0.3) * _blur(inside, rng.uniform(6, 16)) + rng.uniform(0, 0.25)
    fibres = 1 + 0.35 * _texture(rng, size, rng.uniform(1, 3), rng.uniform(6, 14))
    nuclear = _blur(amount * membrane * chromatin, rng.uniform(0.6, 1.4)) + rng.uniform(0, 0.4) * ghosts * (1 - inside)
    stains = np.clip(_STAINS + rng.normal(0, 0.12, (2, 3)), 0.02, None)
    around = np.clip(tissue * fibres, 0, None) * (1 + 0.3 * _illumination(rng, size))
    absorbed = np.stack([nuclear + rng.uniform(0, 0.5) * around, around], axis=-1) @ stains
    image = rng.uniform(215, 245) * np.exp(-absorbed)
    if rng.random() < 1 / 6:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    image += rng.normal(0, rng.uniform(1, 4), size)[..., None]
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


def _dic(rng: np.random.Generator, labels: Labels, rounded: NDArray[np.bool_], count: int) -> Field:
    """Relief lit from one side: a cell is bright where its thickness rises toward the light and dark where it falls."""
    size = labels.shape
    inside = (labels > 0).astype(np.float32)
    dome = np.sqrt(np.minimum(_depth(labels), 9) / 9) * _per_cell(rng, labels, count, 0.6, 1.2)
    bumps = 0.05 * _texture(rng, size, 0.8, 2.5) * inside
    thick = _blur(dome * np.where(rounded, 1.4, 1) + bumps, rng.uniform(0.8, 1.3))
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * np.gradient(thick, axis=1) + np.sin(angle) * np.gradient(thick, axis=0)
    image = 120 + 14 * _illumination(rng, size) + rng.uniform(130, 200) * slope
    return np.asarray(image + _debris(rng, size) + rng.normal(0, rng.uniform(2, 4), size), np.float32)


def _debris(rng: np.random.Generator, size: tuple[int, ...], most: int = 12) -> Field:
    """Scatter specks of dirt, darker or lighter than the ground, that are no cells."""
    specks = np.zeros(size, np.float32)
    for _ in range(int(rng.integers(2, most))):
        place = (int(rng.integers(size[1])), int(rng.integers(size[0])))
        cv2.circle(specks, place, int(rng.integers(1, 3)), float(rng.choice([-40.0, 35.0])), -1)
    return _blur(specks, 0.8)
