"""Cases by chance: a sound input, synthetic or real, with one or two kinds of damage; a function of seed and number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import damage
import numpy as np
import sound

Files = dict[str, bytes | str]

TEXTS = frozenset({".json", ".csv", ".toml"})
MAX_REAL_BYTES = 2**21
"""Larger real files are left out: their decoding would be all that the time goes to."""

FORMS: dict[str, tuple[float, Callable[[], Files]]] = {
    "image": (0.27, sound.images),
    "labels": (0.14, sound.label_files),
    "livecell": (0.11, sound.livecell),
    "coco": (0.06, sound.coco),
    "folder": (0.07, sound.folder),
    "neurips": (0.04, sound.neurips),
    "index": (0.06, sound.index),
    "evaluate": (0.05, sound.evaluate),
    "config": (0.05, lambda: {"run.toml": sound.RUN}),
    "run_json": (0.02, lambda: {"config.json": sound.table()["runs/a/s0/config.json"]}),
    "table": (0.04, sound.table),
    "archive": (0.02, sound.archive),
    "weights": (0.03, lambda: {"w.safetensors": sound.weights_file(), "cyto": sound.cellpose_file()}),
    "state": (0.02, lambda: {"last.pt": sound.state_file()}),
    "predict": (0.02, sound.predict),
}
"""Door: its share of the cases and the sound files it is given."""

ONE_FILE = frozenset({"image", "labels", "weights", "state", "archive"})
"""Doors that take one file of those listed."""


def real_files(shared: Path | None) -> dict[str, list[Path]]:
    """List the real samples that fit a door; empty where there are none."""
    found: dict[str, list[Path]] = {"image": [], "labels": []}
    if shared is None or not shared.is_dir():
        return found
    for path in sorted(shared.rglob("*")):
        if path.suffix.lower() not in (".tif", ".tiff", ".png", ".bmp", ".jpg") or path.stat().st_size > MAX_REAL_BYTES:
            continue
        found["labels" if path.parent.name in ("labels", "foreground_masks") else "image"].append(path)
    return found


def write_case(root: Path, door: str, rng: np.random.Generator, real: dict[str, list[Path]]) -> str:
    """Write a damaged input for a door below ``root/in`` and return what was done to what."""
    files = dict(FORMS[door][1]())
    origin = ""
    if door in ONE_FILE:
        samples = real.get(door, [])
        if samples and rng.random() < 0.4:
            path = samples[int(rng.integers(0, len(samples)))]
            files, origin = {path.name: path.read_bytes()}, "real "
        else:
            name = sorted(files)[int(rng.integers(0, len(files)))]
            files = {name: files[name]}
    name = _choose(sorted(files), rng)
    content = files[name]
    data = content if isinstance(content, bytes) else content.encode()
    kinds = damage.TEXT if Path(name).suffix in TEXTS else damage.BINARY
    done = []
    for _ in range(1 + int(rng.random() < 0.3)):
        kind = kinds[int(rng.integers(0, len(kinds)))]
        data = kind(data, rng)
        done.append(kind.__name__)
    if rng.random() < 0.05 and door in ("image", "labels"):
        del files[name]
        name = Path(name).stem + (".tif", ".png", ".jpg", ".bmp", ".npy", ".txt")[int(rng.integers(0, 6))]
        done.append("rename")
    files[name] = data
    sound.write(root, files)
    return f"{origin}{name}: {' + '.join(done)}"


def choose_door(rng: np.random.Generator) -> str:
    """Draw a door by its share."""
    names = list(FORMS)
    shares = np.array([share for share, _ in FORMS.values()])
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _choose(names: list[str], rng: np.random.Generator) -> str:
    """Draw a file, one of text twice as often as one of pixels: its parser is ours."""
    weights = np.array([2.0 if Path(name).suffix in TEXTS else 1.0 for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]
