"""Whether a run folder may be gone on with: only as the run that it holds; no file could say what two learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cellseg import journal
from cellseg.checkpoint import STATE_NAME
from cellseg.config import DataConfig, RunConfig, read_run
from cellseg.core import CellsegError

CONFIG_NAME = "config.json"

_FREE = {
    "data": ("evaluate", "cache_mb"),
    "train": ("steps", "accumulate", "log_every", "save_every", "workers"),
    "predict": ("batch_size",),
}
"""What may change on the way: nothing that is learned or chosen depends on it. ``steps`` may grow."""

_MOST_NAMES = 8
_PATHS = ("index", "listed", "init")


def refuse_another(run: RunConfig, out: Path, *, resume: bool) -> None:
    """Refuse to write over a run, or to go on with another than the folder holds.

    Parameters
    ----------
    run : RunConfig
        What is asked for. It may have more steps than the run had, be scored on other sets, use memory, processes and
        disk in another way, and make the same crops in more or fewer micro-batches.
    out : Path
        Run folder; one without a saved state is free.
    resume : bool
        Whether the run is to be gone on with.

    Raises
    ------
    CellsegError
        If there is a saved state and ``resume`` is not asked for, or settings differ; they are named by dotted key.
    """
    if not (out / STATE_NAME).exists():
        return
    if not resume:
        raise CellsegError(f"{out}: holds a run already; go on with --resume or name another folder")
    held = read_run(out / CONFIG_NAME)
    if names := _changed(held, run):
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        raise CellsegError(
            f"{out}: cannot be resumed, it was begun with other settings ({', '.join(names[:_MOST_NAMES])}{more}); "
            f"wanted those of its {CONFIG_NAME}, or name another folder"
        )


def refuse_another_seed(seed: int, saved: Mapping[str, Any], out: Path) -> None:
    """Raise CellsegError where a saved state says, or the summary of a run, that it has another seed."""
    held = saved.get("seed", journal.read_summary(out).get("seed", seed))
    if held != seed:
        raise CellsegError(f"{out}: cannot be resumed with seed {seed}, it was begun with seed {held}")


def _changed(held: RunConfig, asked: RunConfig) -> list[str]:
    """Return the dotted keys that differ of what is learned and chosen, in order; lists as a whole."""
    old, new = (dict(_leaves(_what_counts(run, held.data))) for run in (held, asked))
    names = [_name(key) for key in old | new if key not in old or key not in new or old[key] != new[key]]
    return list(dict.fromkeys(names + ["train.steps"] * (asked.train.steps < held.train.steps)))


def _what_counts(run: RunConfig, data: DataConfig) -> dict[str, Any]:
    """Return the words on which it depends what a run with such data learns and chooses."""
    words = run.model_dump(mode="json")
    for part, names in _FREE.items():
        for name in names:
            del words[part][name]
    for part in ("train", "adapt"):  # crops an update, in however many micro-batches
        words[part]["batch_size"] *= run.train.accumulate
    if not data.train:
        del words["train"]["batch_size"]
    if not data.unlabelled:
        words["adapt"] = {name: words["adapt"][name] for name in ("replay", "wise")}
    if not (data.val or data.unlabelled):  # nothing is predicted on the way
        del words["predict"]
    return words


def _leaves(words: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield plain values by key, paths in full."""
    items = words.items() if isinstance(words, dict) else enumerate(words) if isinstance(words, list) else None
    if items is None:
        yield key, str(Path(words).resolve()) if key[-1] in _PATHS and words is not None else words
        return
    for name, value in items:
        yield from _leaves(value, (*key, str(name)))


def _name(key: tuple[str, ...]) -> str:
    first = next((place for place, part in enumerate(key) if part.isdigit()), len(key))
    return ".".join(key[:first])
