"""What ``cellseg predict`` writes beside the label images: outlines for QuPath and Fiji, pictures, tables of cells."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellseg.cli.app import check_known

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellseg.orders import Predicted

Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        help="Of the label image, tif or zarr (OME-Zarr with a pyramid), and of outlines beside it: png to look at, "
        "geojson for QuPath, roi for Fiji; several with commas: tif,png.",
    ),
]
Measure = Annotated[
    Path | None,
    typer.Option(
        help="Measure size, shape and brightness of every cell: CELLS.csv or CELLS.parquet of all images, "
        "and a table beside each label image."
    ),
]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of every image beside its labels.

    Attributes
    ----------
    formats : collection of str
        Of :data:`cellseg.outputs.OUTLINE_FORMATS`.
    measure : Path or None
        Table of the cells of all images.
    as_zarr : bool
        Whether the label image is an OME-Zarr.
    """

    formats: Collection[str]
    measure: Path | None
    as_zarr: bool = False

    def write(self, target: Path, labels_path: Path, image_path: Path, scores: NDArray[np.float64]) -> None:
        """Write it for one image, once its label image is there, under names like the target's."""
        if not self.formats and self.measure is None:
            return
        from cellseg.outputs import open_pixels, write_outputs

        write_outputs(
            target,
            open_pixels(labels_path),
            formats=self.formats,
            table_suffix=None if self.measure is None else self.measure.suffix.lower(),
            image=open_pixels(image_path) if self.measure is not None or "png" in self.formats else None,
            scores=scores,
        )

    def of(self, found: Predicted) -> None:
        """Do what :meth:`write` does for an image that was segmented."""
        self.write(found.target, found.labels, found.image, found.scores)

    def join(self, labels_paths: Sequence[Path]) -> None:
        """Write the table of all images, from those beside their label images."""
        if self.measure is None:
            return
        from cellseg.outputs import cells_path, join_cells

        join_cells([cells_path(path, self.measure.suffix.lower()) for path in labels_paths], self.measure)
        print(self.measure)


def wanted(formats: Sequence[str], measure: Path | None, label_formats: tuple[str, ...] = ("tif",)) -> Wanted:
    """Check ``--format`` and ``--measure`` before the long work begins.

    Parameters
    ----------
    formats : sequence of str
        As given, each a name or several with commas.
    measure : Path or None
        Table to write; CSV or Parquet.
    label_formats : tuple of str
        Formats of label images, known but no business of this module.

    Raises
    ------
    CellsegError
        If a format is unknown or the table is of another kind.
    """
    from cellseg.outputs import OUTLINE_FORMATS, check_table_path

    if measure is not None:
        check_table_path(measure)
    names = [name.strip() for text in formats for name in text.split(",")]
    for name in names:
        check_known("format", name, (*label_formats, *OUTLINE_FORMATS))
    return Wanted([name for name in OUTLINE_FORMATS if name in names], measure, as_zarr="zarr" in names)
