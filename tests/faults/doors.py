"""The doors by which files come in: each takes the folder of a case, reads what lies in ``in``, writes to ``out``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cellseg.core import CellsegError


def image(root: Path) -> None:
    """Read an image in every way: its size, all of it, a window, and as network input."""
    from cellseg.images import normalize, read_image, read_size
    from cellseg.slides.windows import has_windows, is_slide, measure_ranges, read_window

    path = _only(root)
    size = read_size(path)
    if has_windows(path):
        read_window(path, slice(0, min(64, size[0])), slice(0, min(64, size[1])))
    found = read_image(path)
    assert found.shape[:2] == size or is_slide(*size), (found.shape, size)
    if found.ndim == 2 or found.shape[2] <= 4:
        normal = normalize(found)
        assert normal.dtype == np.float32 and normal.shape == (*found.shape[:2], 3)
        assert np.isfinite(normal).all()
    if has_windows(path):
        from cellseg.config import NormalizeConfig

        measure_ranges(path, size, NormalizeConfig())


def labels(root: Path) -> None:
    """Read labels whole and in bands."""
    from cellseg.images import read_labels, write_labels
    from cellseg.slides.bands import open_labels

    path = _only(root)
    found = read_labels(path)
    assert found.dtype == np.int32 and found.ndim == 2 and found.min() >= 0
    assert sum(len(band) for band in open_labels(path).bands()) == len(found)
    write_labels(root / "out" / "again.tif", found)


def livecell(root: Path) -> None:
    """Prepare a folder in LIVECell's form and read the index."""
    from cellseg.datasets.index import read_index
    from cellseg.datasets.livecell import prepare_livecell

    read_index(prepare_livecell(root / "in", root / "out"))


def folder(root: Path) -> None:
    """Prepare a folder of images and labels and read the index."""
    from cellseg.datasets.folder import prepare_folder
    from cellseg.datasets.index import read_index

    read_index(prepare_folder(root / "in", root / "out"))


def neurips(root: Path) -> None:
    """Prepare a folder in the challenge's form and read the index."""
    from cellseg.datasets.index import read_index
    from cellseg.datasets.neurips import prepare_neurips

    read_index(prepare_neurips(root / "in", root / "out"))


def index(root: Path) -> None:
    """Read an index and load every image that it names, as training does."""
    from cellseg.config import ModelConfig, Selection
    from cellseg.datasets.index import select
    from cellseg.datasets.samples import load_sample

    for record in select(Selection(index=str(root / "in" / "index.csv"))):
        load_sample(record, ModelConfig(), record.diameter)


def evaluate(root: Path) -> None:
    """Score predicted against true label images."""
    from cellseg import evaluate as scoring

    scores = scoring.evaluate(root / "in" / "truth", root / "in" / "pred")
    assert scores["f1"].between(0, 1).all()
    scoring.write_scores(scores, root / "out" / "scores.csv")
    scoring.read_scores(root / "out" / "scores.csv")


def coco(root: Path) -> None:
    """Score label images against a COCO file."""
    from cellseg.evaluate_coco import evaluate_coco

    evaluate_coco(root / "in" / "truth.json", root / "in" / "pred")


def config(root: Path) -> None:
    """Read a run file with the overrides of a command line beside it."""
    from cellseg.config import load_config

    said = root / "in" / "overrides.json"
    load_config(root / "in" / "run.toml", json.loads(said.read_text()) if said.is_file() else ())


def run_json(root: Path) -> None:
    """Read the resolved configuration of a run."""
    from cellseg.config import read_run

    read_run(root / "in" / "config.json")


def table(root: Path) -> None:
    """Render a table file from the scores of a run."""
    from cellseg.tables import render_table

    render_table(root / "in" / "table.toml", root / "in" / "runs", root / "out")


def archive(root: Path) -> None:
    """Unpack a downloaded zip, as 'cellseg download' does."""
    from cellseg.datasets.download import unpack

    path = _only(root)
    (root / "out").mkdir()
    path = path.rename(root / "out" / path.name)  # the damaged are set aside there
    unpack(path, root / "out")


def weights(root: Path) -> None:
    """Load a network from a weights file, cellseg's or Cellpose's."""
    import torch

    from cellseg.checkpoint import load_weights

    model, config, about = load_weights(_only(root))
    assert isinstance(about, dict) and config.network
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))


def state(root: Path) -> None:
    """Load the state of a run to be resumed."""
    from cellseg.checkpoint import load_state

    load_state(_only(root))


def predict(root: Path) -> None:
    """Give the command line a folder of images and a model, as a user does."""
    _command(root, "predict", "in/images", "--model", "in/model.safetensors", "--out", "out", "--diameter", "24")


def command(root: Path) -> None:
    """Give the command line the words of ``in/argv.json``."""
    _command(root, *json.loads((root / "in" / "argv.json").read_text()))


def _command(root: Path, *words: str) -> None:
    """Run the command line in this process; it must end with status 0, 1 or 2 and print no traceback."""
    from cellseg.cli import main

    before = sys.argv
    sys.argv = ["cellseg", *words]
    try:
        main()
    except SystemExit as stop:
        assert stop.code in (None, 0, 1, 2), stop.code
        if stop.code == 1:
            raise CellsegError("exit status 1") from None
    finally:
        sys.argv = before


def _only(root: Path) -> Path:
    """Return the one file of a case."""
    (path,) = [path for path in (root / "in").iterdir() if not path.name.startswith(".")]
    return path


DOORS: dict[str, Callable[[Path], None]] = {
    door.__name__: door
    for door in (
        image, labels, livecell, folder, neurips, index, evaluate, coco, config, run_json, table, archive, weights,
        state, predict, command,
    )
}  # fmt: skip
