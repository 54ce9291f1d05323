"""Write made-up microscopy in the form of the NeurIPS 2022 challenge, quirks included.

For a demonstration and for tests that need no download: mixed file formats and bit depths, 16-bit signed labels,
folders with and without truth, weak masks, whole slides, a file that was cut short. The labelled training images show
fluorescence and stained cells; phase contrast comes only among the unlabelled, the tuning and the test images, so
that adaptation has something to do. A score on these images says nothing of a real microscope.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from cellseg.core import CellsegError, Labels
from cellseg.datasets.rendering import draw_cells, paint_labels, render
from cellseg.files import atomic_path, write_text

FORMS = {
    "fluorescence 16 bit": ("fluorescence", ".tif"),
    "stained JPEG": ("brightfield", ".jpg"),
    "fluorescence colour": ("fluorescence", ".png"),
    "stained BMP": ("brightfield", ".bmp"),
    "fluorescence two stains": ("fluorescence", ".tif"),
    "phase grey": ("phase", ".png"),
    "phase with alpha": ("phase", ".png"),
}
"""Kinds of image: the look and the file's ending of each."""

_LABELLED = tuple(form for form in FORMS if not form.startswith("phase"))
_BLOCK, _N_BLOCKS = 320, 6
_README = """Synthetic microscopy written by 'cellseg prepare synthetic --form neurips' (seed {seed}).

Every image, cell and label in this folder was drawn by a program; no microscope, cell line or patient is behind it.
The folder imitates the layout of the NeurIPS 2022 cell segmentation challenge (Ma et al., Nature Methods 2024) and
holds none of its content. Released under CC0 1.0 (public domain). A score on these images is not a score on that set.
"""


def write_synthetic_neurips(  # noqa: PLR0913 (five counts of one kind, each with a useful default)
    out: str | Path,
    *,
    seed: int = 0,
    n_train: int = 15,
    n_weak: int = 5,
    n_tuning: int = 7,
    n_test: int = 7,
    n_unlabelled: int = 14,
    size: tuple[int, int] = (256, 320),
    slide: tuple[int, int] | None = (2880, 3072),
) -> Path:
    """Write images and labels of made-up cells as the challenge has them.

    Parameters
    ----------
    out : str or Path
        Folder to fill: ``Training-labeled``, ``Tuning``, ``Testing``, ``release-part1``, ``train-unlabeled-part2``,
        ``modalities.csv`` (the truth that the real set does not ship) and a ``README.txt``.
    seed : int
        Each image is a function of this, its part and its number alone.
    n_train, n_weak, n_tuning, n_test, n_unlabelled : int
        Images with labels; training images with a foreground mask only (``foreground_masks/``, as copies of the set
        in circulation have them); images of the other parts. Each kind of ``FORMS`` comes in turn.
    size : (height, width)
        Size of an image in pixels, at least 64 each.
    slide : (height, width), optional
        Size of the slides: one with labels among the training images, in a single compressed strip; one among the
        test slides, as PNG; one unlabelled, uncompressed. None for no slides.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    CellsegError
        If a count is negative or a size too small, or the folder cannot be written.
    """
    out = Path(out)
    counts = {
        "n_train": n_train,
        "n_weak": n_weak,
        "n_tuning": n_tuning,
        "n_test": n_test,
        "n_unlabelled": n_unlabelled,
    }
    _check(counts, size, slide)
    known: dict[str, str] = {}
    training, public, hidden = out / "Training-labeled", out / "Testing" / "Public", out / "Testing" / "Hidden"
    for number in range(n_train + n_weak):
        form = _LABELLED[number % len(_LABELLED)]
        stem = f"cell_{number + 1:05d}"
        labels = _write_image(training / "images" / stem, (seed, "train", number), form, size)
        if number < n_train:
            _write_labels(training / "labels" / f"{stem}_label.tiff", labels)
        else:
            _write(training / "foreground_masks" / f"{stem}.png", (255 * (labels > 0)).astype(np.uint8))
        known[stem] = form
    for number in range(n_tuning):
        stem, form = f"cell_{number + 1:05d}", _form(number)
        labels = _write_image(out / "Tuning" / "images" / stem, (seed, "tuning", number), form, size)
        _write_labels(out / "Tuning" / "labels" / f"{stem}_label.tiff", labels)
        known[f"tuning_{stem}"] = form
    for number in range(n_test):
        stem, form = f"OpenTest_{number + 1:03d}", _form(number)
        labels = _write_image(public / "images" / stem, (seed, "test", number), form, size)
        _write_labels(public / "labels" / f"{stem}_label.tiff", labels)
        _write_labels(public / "1st_osilab_seg" / f"{stem}_label.tiff", np.roll(labels, 5, axis=1))
        hidden_stem = f"TestHidden_{number + 1:03d}"
        guess = _write_image(hidden / "images" / hidden_stem, (seed, "hidden", number), form, size)
        _write_labels(hidden / "osilab_seg" / f"{hidden_stem}_label.tiff", np.roll(guess, 5, axis=1))
        known |= {f"test_{stem}": form, f"hidden_{hidden_stem}": form}
    for number in range(n_unlabelled):
        stem, form = f"unlabeled_cell_{number:05d}", _form(number)
        _write_image(out / "release-part1" / stem, (seed, "unlabelled", number), form, size)
        known[f"part1_{stem}"] = form
    if n_unlabelled:
        _write_cut_short(out / "release-part1" / "unlabeled_cell_00504.png", seed, size)
    if slide is not None:
        known |= _write_slides(out, seed, slide)
    write_text(out / "modalities.csv", "stem,modality\n" + "".join(f"{s},{form}\n" for s, form in known.items()))
    write_text(out / "README.txt", _README.format(seed=seed))
    return out


def draw_slide(seed: int, part: str, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Labels]:
    """Compose a slide of stained cells from a few drawn blocks, flipped and set side by side.

    Parameters
    ----------
    seed, part
        What the slide is a function of.
    size : (height, width)
        In pixels.

    Returns
    -------
    image : uint8 (H, W, 3)
    labels : int32 (H, W)
        Ids from 1 without gaps within a block; cells end at the blocks' edges.
    """
    rng = np.random.default_rng([seed, zlib.crc32(part.encode())])
    blocks = [_draw(rng, "stained BMP", (_BLOCK, _BLOCK)) for _ in range(_N_BLOCKS)]
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.int32)
    used = 0
    for top in range(0, size[0], _BLOCK):
        for left in range(0, size[1], _BLOCK):
            pixels, cells = blocks[int(rng.integers(_N_BLOCKS))]
            flip = (slice(None, None, int(rng.choice([1, -1]))), slice(None, None, int(rng.choice([1, -1]))))
            area = (slice(top, min(top + _BLOCK, size[0])), slice(left, min(left + _BLOCK, size[1])))
            inside = (slice(0, area[0].stop - top), slice(0, area[1].stop - left))
            image[area] = pixels[flip][inside]
            labels[area] = np.where(cells[flip] > 0, cells[flip] + used, 0)[inside]
            used += int(cells.max())
    return image, labels


def _check(counts: dict[str, int], size: tuple[int, int], slide: tuple[int, int] | None) -> None:
    for name, count in counts.items():
        if not 0 <= count <= 500:
            raise CellsegError(f"{name} must be from 0 to 500, got {count}")
    for what, sides in (("images", size), ("slides", slide)):
        if sides is not None and min(sides) < 64:
            raise CellsegError(f"synthetic {what} must be at least 64 pixels high and wide, got {sides}")


def _form(number: int) -> str:
    return tuple(FORMS)[number % len(FORMS)]


def _draw(rng: np.random.Generator, form: str, size: tuple[int, int]) -> tuple[NDArray[Any], Labels]:
    """Draw cells and render them as one kind of file holds them."""
    style = FORMS[form][0]
    cells = draw_cells(rng, size, style)
    labels, grey = paint_labels(cells, size), render(rng, cells, size, style)
    if form == "fluorescence two stains":
        return np.stack([grey, render(rng, cells, size, style)], axis=-1), labels
    if form == "fluorescence colour":
        bright = np.clip((grey.astype(np.float32) - 400) / 3000, 0, 1)[..., None]
        return (255 * bright * np.array([0.06, 0.45, 1.0], np.float32)).astype(np.uint8), labels
    if style == "brightfield":
        tint = np.where(labels[..., None] > 0, [0.80, 0.58, 0.86], [1.0, 0.93, 0.98])
        return np.clip(grey[..., None] * 1.25 * tint, 0, 255).astype(np.uint8), labels
    if form == "phase with alpha":
        return np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1), labels
    return grey, labels


def _write_image(path: Path, which: tuple[int, str, int], form: str, size: tuple[int, int]) -> Labels:
    """Write one image at ``path`` plus the ending of its form; return its labels."""
    seed, part, number = which
    image, labels = _draw(np.random.default_rng([seed, zlib.crc32(part.encode()), number]), form, size)
    _write(path.with_name(path.name + FORMS[form][1]), image)
    return labels


def _write(path: Path, image: NDArray[Any], **options: Any) -> None:
    with atomic_path(path) as temporary:
        if path.suffix in (".tif", ".tiff"):
            colours = {"photometric": "rgb" if image.ndim == 3 and image.shape[2] == 3 else "minisblack"}
            contig = {"planarconfig": "contig"} if image.ndim == 3 else {}
            tifffile.imwrite(temporary, image, metadata=None, software=False, **colours, **contig, **options)
        elif path.suffix == ".png":
            temporary.write_bytes(imagecodecs.png_encode(image, level=1))
        else:
            from PIL import Image

            Image.fromarray(image).save(temporary, quality=92)


def _write_labels(path: Path, labels: Labels) -> None:
    """Write labels as the organisers do: 16 bits with a sign, so that ids above 32,767 turn negative."""
    _write(path, labels.astype(np.uint16).view(np.int16), compression="zlib")


def _write_cut_short(path: Path, seed: int, size: tuple[int, int]) -> None:
    image, _ = _draw(np.random.default_rng([seed, 504]), "phase grey", size)
    content = imagecodecs.png_encode(image)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content[: len(content) // 2])


def _write_slides(out: Path, seed: int, size: tuple[int, int]) -> dict[str, str]:
    image, labels = draw_slide(seed, "training slide", size)
    whole = {"compression": "zlib", "compressionargs": {"level": 1}, "rowsperstrip": size[0]}
    _write(out / "Training-labeled" / "images" / "cell_slide.tiff", image, **whole)
    _write_labels(out / "Training-labeled" / "labels" / "cell_slide_label.tiff", labels)
    public = out / "Testing" / "Public"
    image, labels = draw_slide(seed, "test slide", size)
    _write(public / "WSI" / "OpenTest_slide.png", image)
    _write_labels(public / "WSI-labels" / "OpenTest_slide_label.tiff", labels)
    image, _ = draw_slide(seed, "unlabelled slide", size)
    _write(out / "train-unlabeled-part2" / "whole_slide_00001.tiff", image)
    stems = ("cell_slide", "testwsi_OpenTest_slide", "part2_whole_slide_00001")
    return dict.fromkeys(stems, "stained slide")
