"""Checkpoints: ``*.safetensors`` are weights with everything needed to use them, ``last.pt`` is a run to resume.

A weights file holds the tensors and, as JSON in its header, the model configuration and what is known of
its training. Both kinds are written atomically and hold a SHA-256 of their content, which is checked when they are
read (of files without one nothing is checked); anything pickled is loaded with ``weights_only=True``.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from cellseg.config import ModelConfig, PredictConfig
from cellseg.core import CellsegError
from cellseg.digests import sha256_of
from cellseg.files import atomic_path
from cellseg.memory import require_file
from cellseg.models.build import build_model
from cellseg.models.cellpose_files import is_torch_file, load_plain, read_cellpose
from cellseg.models.network import Network
from cellseg.weights import TEACHER, find_shipped

WEIGHTS_NAME = "best.safetensors"
STATE_NAME = "last.pt"
CHECKSUM = "sha256"


def save_weights(path: str | Path, model: nn.Module, config: ModelConfig, about: dict[str, Any]) -> None:
    """Write weights, model configuration and plain facts about the training as one safetensors file."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": "cellseg-1", "model": config.model_dump_json(), "about": json.dumps(about, sort_keys=True)}
    metadata[CHECKSUM] = sha256_of([tensors, metadata])
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))  # save_file makes a file that its owner alone may read


def load_weights(path: str | Path) -> tuple[Network, ModelConfig, dict[str, Any]]:
    """Build the network a weights file describes and fill it.

    A file of Cellpose 2 or 3 is read as :func:`cellseg.models.cellpose_files.read_cellpose` does by default.

    Returns
    -------
    model : Network
        On the CPU, in eval mode.
    config : ModelConfig
        Its configuration, normalisation rule and reference diameter included.
    about : dict
        Facts about its training, such as ``diameter``, the median cell diameter of the training images.

    Raises
    ------
    CellsegError
        If the file is missing, not a cellseg checkpoint, or holds tensors of another shape, NaN or infinity.
    """
    path = resolve_weights(path)
    if is_torch_file(path):
        return read_cellpose(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # a damaged file raises dozens of types
        raise CellsegError(f"{path}: cannot be read as safetensors weights ({str(error)[:200]})") from error
    if metadata.get("format") != "cellseg-1":
        raise CellsegError(f"{path}: safetensors weights, but not of cellseg; wanted a file that 'cellseg train' wrote")
    try:
        config = ModelConfig.model_validate_json(metadata["model"])
        about = _check_about(json.loads(metadata["about"]))
    except (KeyError, ValueError, RecursionError) as error:  # ValidationError and JSONDecodeError are ValueErrors
        raise CellsegError(f"{path}: damaged header, the model configuration cannot be read") from error
    with torch.device("meta"):  # no memory is taken before the file is known to fill it
        _check_tensors(build_model(config).state_dict(), tensors, str(path))
    _check_content(path, metadata.pop(CHECKSUM, None), [tensors, metadata], "copy it anew, or train again")
    model = build_model(config)
    model.load_state_dict(tensors)
    return model.eval(), config, about


def _check_content(path: Path, checksum: Any, content: Any, advice: str) -> None:
    if checksum is not None and checksum != sha256_of(content):
        raise CellsegError(f"{path}: damaged, it does not hold what was saved (its SHA-256 differs); {advice}")


def _check_about(about: Any) -> dict[str, Any]:
    """Return the facts about a training; raises ValueError where they are no table, or one is no sense."""
    diameter = about.get("diameter") if isinstance(about, Mapping) else math.nan
    if diameter is not None and not (isinstance(diameter, int | float) and 0 < diameter < math.inf):
        raise ValueError(f"diameter = {diameter!r}")
    rule = about.get("decoding", {})
    if not isinstance(rule, Mapping) or not set(rule) <= {"foreground", "min_score"} or None in rule.values():
        raise ValueError(f"decoding = {rule!r}")
    PredictConfig(**rule)  # raises ValueError where a number is out of range
    return dict(about)


def _check_tensors(wanted: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], where: str) -> None:
    for name, value in wanted.items():
        if name not in tensors:
            raise CellsegError(f"{where}: tensor '{name}' is missing; the checkpoint is of another network")
        if tensors[name].shape != value.shape:
            came, want = tuple(tensors[name].shape), tuple(value.shape)
            raise CellsegError(f"{where}: '{name}' has shape {came} but the network wants {want}")
    extra = sorted(set(tensors) - set(wanted))
    if extra:
        raise CellsegError(f"{where}: tensor '{extra[0]}' does not belong to the network; it is of another shape")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CellsegError(
                f"{where}: '{name}' holds NaN or infinity; the training went wrong or the file is damaged"
            )


def resolve_weights(model: str | Path) -> Path:
    """Find the weights file that a run folder, a file or the name of a shipped model means.

    ``teacher`` is always the shipped one; a folder of that name is ``./teacher``.

    Raises
    ------
    CellsegError
        If nothing is there; a run folder without finished weights is named as such.
    """
    if str(model) == TEACHER and (shipped := find_shipped(TEACHER)) is not None:
        return shipped
    path = Path(model)
    if os.path.isdir(path):  # noqa: PTH112 - pathlib raises where a name is too long
        for folder in (path, path / "s0"):
            if (folder / WEIGHTS_NAME).is_file():
                return folder / WEIGHTS_NAME
        raise CellsegError(f"{path}: no {WEIGHTS_NAME} in this folder; wanted a finished run (has it been trained?)")
    require_file(path)
    if os.path.isfile(path):  # noqa: PTH113
        return path
    if str(model) == TEACHER:
        raise CellsegError("model 'teacher': its weights are missing from the installed package; install cellseg again")
    raise CellsegError(
        f"{model}: no such model; wanted 'teacher', a weights file (*.safetensors), a run folder, or a "
        "file of Cellpose 2 or 3 (Cellpose keeps its own in ~/.cellpose/models)"
    )


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a resumable state of tensors and plain values atomically."""
    with atomic_path(path) as temporary:
        try:
            torch.save(state | {CHECKSUM: sha256_of(state)}, temporary)
        except RuntimeError as error:  # of a full disk it makes one of these, in many lines
            raise OSError(errno.EIO, "the state could not be written whole") from error


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a resumable state; raises CellsegError where it is missing or damaged. Nothing inside it is ever run."""
    path = Path(path)
    if not path.exists():
        raise CellsegError(f"{path}: no state to resume from; start without --resume")
    try:
        state = load_plain(path)
    except Exception as error:  # a damaged or foreign pickle raises dozens of types
        raise CellsegError(f"{path}: damaged, cannot resume from it; start without --resume") from error
    if not isinstance(state, dict):
        raise CellsegError(f"{path}: not the state of a run, cannot resume from it; start without --resume")
    _check_content(path, state.pop(CHECKSUM, None), state, "start without --resume")
    return state
