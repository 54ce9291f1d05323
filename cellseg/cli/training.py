"""Commands that train a network: train, adapt; and info."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cellseg import __version__
from cellseg.cli.app import Device, OnError, Overrides, Resume, Seed, app, say
from cellseg.core import CellsegError

if TYPE_CHECKING:
    from cellseg.config import RunConfig

RUNS = Path("experiments/runs")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Run file (TOML).")],
    overrides: Overrides = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; experiments/runs/NAME/sSEED by default.")] = None,
    resume: Resume = False,
    on_error: OnError = "stop",
    device: Device = "auto",
) -> None:
    """Train a network on labelled images."""
    from cellseg.config import load_config

    run = _readable(load_config(config, overrides or ()), on_error)
    from cellseg.train import train as train_run

    print(train_run(run, out or _run_folder(config, seed), seed=seed, resume=resume, device=device))


@app.command()
def adapt(  # noqa: PLR0913 (options of a command line)
    config: Annotated[Path | None, typer.Argument(help="Run file (TOML); or give --images and --out.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of unlabelled images.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of label images for some of them.")] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            help="What keeps in mind what the model knows: an index.csv of labelled images of it, whose test (else "
            "val) images are then scored; 'made-up' images, the default with the shipped teacher; or 'none', the "
            "default with any other model."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Run folder or weights file to start from; by default the shipped teacher.")
    ] = None,
    overrides: Overrides = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    resume: Resume = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Score data.evaluate before and after, at the end.")
    ] = True,
    on_error: OnError = "stop",
    device: Device = "auto",
) -> None:
    """Adapt a pretrained model to new images, with few labels or none.

    The cells that the model finds in every view of an image become its labels, made anew every adapt.round_steps
    updates. Label-free criteria choose the weights, and where nothing beats the start, the start is kept.
    """
    from cellseg.config import load_config

    if config is not None and any((images, labels, replay, model)):
        raise CellsegError("adapt: --images, --labels, --replay and --model go without a run file, which has its own")
    if config is not None:
        run = _readable(load_config(config, overrides or ()), on_error)
        folder = out or _run_folder(config, seed)
    elif images is not None and out is not None:
        run = _folder_run(images, labels, replay, model, out, overrides or [])
        if on_error == "stop":
            from cellseg.datasets.left_out import stop_on_left_out

            stop_on_left_out(out / "data" / "index.csv")
        folder = out
    else:
        raise CellsegError("adapt: wanted a run file, or --images DIR with --out DIR")
    from cellseg.adapt import adapt as adapt_run

    weights = adapt_run(run, folder, seed=seed, resume=resume, device=device)
    from cellseg.cli.runs import Scoring, conclude

    conclude(folder, Scoring(device=device), evaluate=evaluate)
    print(weights)


@app.command()
def info() -> None:
    """Show versions, device and threads."""
    import platform
    from importlib.metadata import version

    import torch

    from cellseg.devices import pick_device

    lines = {"cellseg": __version__, "python": platform.python_version(), "torch": torch.__version__}
    lines |= {name: version(name) for name in ("monai", "lightning-fabric", "albumentations", "numpy", "pandas")}
    lines |= {"device": str(pick_device()), "threads": str(torch.get_num_threads())}
    for name, value in lines.items():
        print(f"{name:<18}{value}")


def _readable(run: RunConfig, on_error: str) -> RunConfig:
    """With ``skip``, leave out what cannot be read before anything starts, and name it; else such a file will stop."""
    if on_error == "stop":
        return run
    from cellseg.datasets.unreadable import without_unreadable

    run, problems = without_unreadable(run)
    for problem in problems:
        say(f"left out: {problem}")
    if problems:
        say(f"{len(problems)} images cannot be used and are left out")
    return run


def _run_folder(config: Path, seed: int) -> Path:
    return RUNS / config.stem / f"s{seed}"


def _replayed(replay: str, out: Path) -> dict[str, list[dict[str, str]]]:
    """Select what is replayed, of a divided index its training images, and the source images that are then scored."""
    if replay == "none":
        return {"replay": []}
    if replay == "made-up":
        from cellseg.datasets.made_up import prepare_made_up

        say(f"made-up images are replayed, so that less is forgotten; they lie in {out / 'made_up'}")
        return {"replay": [{"index": str(prepare_made_up(out / "made_up"))}]}
    from cellseg.datasets.index import read_index

    if not Path(replay).is_file():
        raise CellsegError(f"--replay {replay}: no such index; wanted an index.csv, 'made-up' or 'none'")
    records = read_index(Path(replay))
    if not any(record.split == "train" for record in records):
        return {"replay": [{"index": replay}]}
    known = {record.split for record in records if record.label_kind == "instances"}
    scored = [{"name": "source", "index": replay, "split": split} for split in ("test", "val") if split in known]
    return {"replay": [{"index": replay, "split": "train"}], "evaluate": scored[:1]}


_BETTER_REPLAY = """the real images that the teacher learned from hold it better than made-up ones (90 MB, once):
  cellseg download dsb2018 --root data
  cellseg prepare dsb2018 --root data/dsb2018 --out data/prepared/dsb2018
  cellseg adapt … --replay data/prepared/dsb2018/index.csv"""


def _folder_run(
    images: Path, labels: Path | None, replay: str | None, model: str | None, out: Path, overrides: list[str]
) -> RunConfig:
    """Index the user's folder and make a run of defaults that suit a laptop."""
    from cellseg.checkpoint import load_weights, resolve_weights
    from cellseg.config import check_config, merge, parse_override
    from cellseg.datasets.folder import prepare_folder
    from cellseg.weights import TEACHER

    init = TEACHER if model is None or model == TEACHER else str(resolve_weights(model))
    _, config, _ = load_weights(init)
    if replay is None and init == TEACHER:
        say(_BETTER_REPLAY)
    replayed = _replayed(replay or ("made-up" if init == TEACHER else "none"), out)
    index = str(prepare_folder(images, out / "data", labels=labels))
    values: dict[str, Any] = {
        "model": config.model_dump(),
        "augment": {"scale_min": 0.6, "scale_max": 1.6, "weak": 0.6} if labels else {},
        "train": {"init": init, "batch_size": 6, "crop_size": 192, "warmup_steps": 30}
        | ({"steps": 600, "lr": 1e-3} if labels else {"steps": 400, "lr": 5e-4})
        | {"weight_decay": 0.0, "ema": 0.99, "validate_every": 40, "save_every": 40}
        | ({} if replayed["replay"] else {"regularizer": {"kind": "l2sp", "alpha": 0.003}})
        | ({"freeze_norm_statistics": True} if config.norm == "batch" else {}),
        "adapt": {"batch_size": 6, "round_steps": 140} | ({"labels_first": 0.4, "replay": 0.3} if labels else {}),
        "data": {
            "unlabelled": [{"index": index}],
            "train": [{"index": index}] if labels else [],
        }
        | replayed,
    }
    for override in overrides:
        values = merge(values, parse_override(override))
    return check_config(values, where="adapt --images")
