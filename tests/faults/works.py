"""The works that are interrupted: what each reads, the command that starts it, and when two results are the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

TIMES = ("minutes", "processor_minutes", "ms_per_step", "ms_per_image", "peak_mb")
"""What a summary says of time and memory; all else of two results must be the same."""

SIDE = 96


@dataclass(frozen=True)
class Work:
    """A command that is killed and started again.

    Attributes
    ----------
    name : str
        What the figures call it.
    words : str
        Its command line; ``{into}`` is the folder of inputs, and the work's own folder is the current one.
    resumed : str
        What is added to it after a kill.
    needs_teacher : bool
        Whether it starts from a network that finds cells.
    """

    name: str
    words: str
    resumed: str = ""
    needs_teacher: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether it goes on where it was killed, and is left alone where it was finished."""
        return bool(self.resumed) or "--block" in self.words


_ADAPT = "--set train.crop_size=32 --set train.batch_size=1 --set adapt.batch_size=1 --set train.save_every=2 "

WORKS = (
    Work("train", "train {into}/train.toml --out out --device cpu", "--resume"),
    Work("adapt mixed", "adapt {into}/mixed.toml --out out --device cpu --no-evaluate", "--resume", True),
    Work(
        "adapt labelled",
        "adapt --images {into}/images --labels {into}/labels --model {into}/plain.safetensors --out out --device cpu "
        "--set train.steps=5 --set train.warmup_steps=0 --set train.validate_every=2 --set adapt.watch=1 "
        "--set adapt.patience=0 --set adapt.diameter=24.0 --set data.diameter=24.0 --no-evaluate " + _ADAPT,
        "--resume",
    ),
    Work("prepare livecell", "prepare livecell --root {into}/livecell/in --out out"),
    Work("prepare folder", "prepare folder --root {into}/folder/in --out out"),
    Work(
        "predict folder",
        "predict {into}/images --model {into}/plain.safetensors --out out --diameter 24 --device cpu "
        "--format geojson,roi --measure out/cells.csv",
    ),
    Work(
        "predict blocks",
        "predict {into}/slide/s.tif --model {into}/plain.safetensors --out out --diameter 24 --device cpu --block 64",
    ),
    Work(
        "predict blocks zarr",
        "predict {into}/slide/s.tif --model {into}/plain.safetensors --out out --diameter 24 --device cpu --block 64 "
        "--format zarr",
    ),
)


def make_inputs(into: Path, *, teacher: bool) -> None:
    """Write all inputs; with ``teacher`` also train a network that finds the disks."""
    import numpy as np
    import tifffile
    import torch
    from random_cases import FORMS
    from sound import write

    from cellseg.checkpoint import save_weights
    from cellseg.config import ModelConfig
    from cellseg.core import Record
    from cellseg.datasets.index import write_index
    from cellseg.images import write_labels
    from cellseg.models.build import build_model
    from cellseg.slides.windows import write_tiled

    records = []
    for folder in ("images", "labels", "slide"):
        (into / folder).mkdir(parents=True)
    for number in range(3):
        labels = disks(number)
        image, truth = into / "images" / f"{number}.tif", into / "labels" / f"{number}.tif"
        tifffile.imwrite(image, shades(labels, number))
        write_labels(truth, labels)
        records.append(Record(str(number), image, truth, "disks", "", "g", SIDE, SIDE, 4, "instances", 24.0))
    write_index(into / "index.csv", records)
    write_tiled(into / "slide" / "s.tif", shades(np.tile(disks(0), (1, 2))[:, :120], 9))
    for name in ("livecell", "folder"):
        write(into / name, FORMS[name][1]())
    torch.manual_seed(0)
    config = ModelConfig(size="tiny")
    save_weights(into / "plain.safetensors", build_model(config), config, {"diameter": 24.0, "step": 9})
    _write_runs(into)
    if teacher:
        from cellseg.config import load_config
        from cellseg.train import train

        train(load_config(into / "teacher.toml"), into / "teacher", device="cpu")


def disks(number: int) -> Any:
    """Four disks, moved a little."""
    import numpy as np

    rows, columns = np.indices((SIDE, SIDE))
    labels = np.zeros((SIDE, SIDE), np.int32)
    for cell, (y, x) in enumerate([(24, 24), (24, 72), (72, 24), (72, 72)], start=1):
        labels[(rows - y + 0.5) ** 2 + (columns - x + 0.5) ** 2 <= 12**2] = cell
    return np.roll(labels, (3 * number, -2 * number), (0, 1))


def shades(labels: Any, seed: int) -> Any:
    """Bright cells on a dark ground with noise."""
    import numpy as np

    noise = np.random.default_rng(seed).normal(0, 6, labels.shape)
    return ((labels > 0) * 120 + 40 + noise).clip(0, 255).astype(np.uint8)


def _write_runs(into: Path) -> None:
    index = f'index = "{into}/index.csv"'
    common = 'model.size = "tiny"\npredict.diameter = "model"\n'
    (into / "teacher.toml").write_text(
        f'{common}data.train = [{{ {index}, ids = ["0", "1"] }}]\naugment = {{ scale_min = 0.9, scale_max = 1.1, '
        f"weak = 0.0 }}\n[train]\nsteps = 40\nlr = 5e-3\nwarmup_steps = 5\nbatch_size = 4\ncrop_size = {SIDE}\n"
        "ema = 0.8\nsave_every = 40\n"
    )
    steps = "log_every = 1\nvalidate_every = 2\nsave_every = 2\nbatch_size = 1\ncrop_size = 32\nwarmup_steps = 0\n"
    (into / "train.toml").write_text(
        f'{common}data.train = [{{ {index}, ids = ["0", "1"] }}]\ndata.val = [{{ {index}, ids = ["2"] }}]\n'
        f'data.evaluate = [{{ {index}, ids = ["2"], name = "held" }}]\n'
        f"[train]\nsteps = 7\nema = 0.5\n{steps}"
    )
    (into / "mixed.toml").write_text(
        f'{common}data.unlabelled = [{{ {index}, ids = ["1", "2"] }}]\ndata.replay = [{{ {index}, ids = ["0"] }}]\n'
        f'[train]\nsteps = 4\nema = 0.5\nlr = 1e-4\ninit = "{into}/teacher"\n{steps}'
        'regularizer = { kind = "l2sp", alpha = 0.003 }\n'
        '[adapt]\nbatch_size = 1\nround_steps = 2\nviews = "flips"\n'
        "diameter = 24.0\nwatch = 1\npatience = 0\ncutmix = 0.5\nwise = 0.5\n"
    )


def saved_step(folder: Path) -> int:
    """Return the step a killed run goes on from; 0 where nothing was saved."""
    from cellseg.checkpoint import load_state

    last = folder / "out" / "last.pt"
    return int(load_state(last)["step"]) if last.exists() else 0


def differences(wanted: Path, found: Path) -> list[str]:
    """List what of one result is missing, too much or not the same in another; times are not compared."""
    names = [{path.relative_to(root).as_posix() for path in root.rglob("*")} for root in (wanted, found)]
    return [
        *(f"missing: {name}" for name in sorted(names[0] - names[1])),
        *(f"left behind: {name}" for name in sorted(names[1] - names[0])),
        *(text for name in sorted(names[0] & names[1]) for text in _compare(wanted, found, name)),
    ]


def _compare(wanted: Path, found: Path, name: str) -> Iterator[str]:
    one, other = wanted / name, found / name
    if one.is_dir() or "tensorboard" in name:  # wall times are in its events
        return
    if one.suffix in (".pt", ".safetensors"):
        yield from (f"{name}: {text}" for text in _compare_weights(one, other))
    elif one.name == "summary.json":
        said = [json.loads(path.read_text()) for path in (one, other)]
        for summary in said:
            del summary["made_with"]["command"]  # one of them with --resume
        yield from (f"{name}: {key}" for key in said[0] | said[1] if key not in TIMES and _differ(said, key))
    elif other.read_bytes() not in (one.read_bytes(), one.read_bytes().replace(bytes(wanted), bytes(found))):
        # configurations name their place
        yield f"{name}: not the same bytes"


def _differ(said: list[dict[str, Any]], key: str) -> bool:
    return bool(said[0].get(key) != said[1].get(key))


def _compare_weights(one: Path, other: Path) -> Iterator[str]:
    """Compare tensors bit for bit, and all that stands beside them but times."""
    import torch
    from safetensors import safe_open

    from cellseg.checkpoint import load_state

    def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict | list | tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from leaves(inner, f"{name}.{key}")
        else:
            yield name, value

    def read(path: Path) -> dict[str, Any]:
        if path.suffix == ".pt":
            return dict(leaves({key: value for key, value in load_state(path).items() if key != "spent"}, ""))
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata()) | {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    values = [read(path) for path in (one, other)]
    for name in sorted(set(values[0]) | set(values[1])):
        first, second = values[0].get(name), values[1].get(name)
        same = torch.equal(first, second) if isinstance(first, torch.Tensor) and second is not None else first == second
        if not same:
            yield f"{name} differs"
