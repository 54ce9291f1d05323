"""Finished blocks on disk: a killed run goes on at the blocks that are not there, and other processes may add theirs.

A block is two files, its labels (a tiled TIFF, so that its rim can be read alone) and the table of its cells, written
first; each is whole or absent, and a block is finished when its labels are there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.core import CellsegError, Labels
from cellseg.files import atomic_path, write_text
from cellseg.images import reading_file
from cellseg.slides.blocks import Block, Region
from cellseg.slides.seams import Pieces
from cellseg.slides.windows import read_label_window, write_tiled

SUFFIX = ".blocks"
"""Ending of the folder beside the result."""

_FACTS = "run.json"


@dataclass(frozen=True)
class BlockFolder:
    """A folder of finished blocks of one image.

    Attributes
    ----------
    path : Path
        The folder, which is removed once the blocks are joined.
    """

    path: Path

    def facts(self) -> dict[str, Any] | None:
        """Return what :meth:`start` noted; None where nothing was started or the note cannot be read."""
        try:
            found = json.loads((self.path / _FACTS).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            return None
        return found if isinstance(found, dict) else None

    def start(self, facts: dict[str, Any]) -> None:
        """Note what all blocks share, as JSON."""
        write_text(self.path / _FACTS, json.dumps(facts, indent=1))

    def is_finished(self, block: Block) -> bool:
        """Whether a block is there."""
        return self._labels(block).is_file()

    def write(self, block: Block, labels: Labels, region: Region, pieces: Pieces) -> None:
        """Write a block.

        Parameters
        ----------
        block : Block
            Which.
        labels : int32 (h, w)
            Its cells, with those of its halo, at the scale of the image.
        region : Region
            Where they lie in the image.
        pieces : Pieces
            What its core holds.

        Raises
        ------
        CellsegError
            If the folder cannot be written; no block is half there then.
        """
        corners = (region.top, region.left, region.bottom, region.right)
        with atomic_path(self._table(block)) as temporary:
            np.savez_compressed(temporary, region=np.array(corners), **vars(pieces))
        write_tiled(self._labels(block), labels)

    def read_table(self, block: Block) -> tuple[Region, Pieces]:
        """Return where the labels of a finished block lie and what its core holds."""
        path = self._table(block)
        with reading_file(path), np.load(path, allow_pickle=False) as table:
            columns = {name: table[name] for name in table.files}
            return Region(*map(int, columns.pop("region"))), Pieces(**columns)

    def read(self, block: Block, region: Region, part: Region) -> Labels:
        """Return the labels of a finished block, which lie in ``region``, in a part of the image."""
        inner = part.within(region)
        return read_label_window(self._labels(block), inner.rows, inner.columns)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        try:
            shutil.rmtree(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CellsegError(
                f"{self.path}: cannot be removed ({error.strerror or error}); remove it by hand"
            ) from error

    def _labels(self, block: Block) -> Path:
        return self.path / f"{block.name}.tif"

    def _table(self, block: Block) -> Path:
        return self.path / f"{block.name}.npz"
