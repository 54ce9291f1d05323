"""Checkpoints: ``*.safetensors`` are weights with everything needed to use them, ``last.pt`` is a run to resume.

A weights file holds the tensors and, as JSON in its header, the model configuration and what is known of
its training. Both kinds are written atomically; anything pickled is loaded with ``weights_only=True``.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cellseg.config import ModelConfig
from cellseg.core import CellsegError
from cellseg.files import atomic_path
from cellseg.models.build import build_model
from cellseg.models.cellpose_files import is_torch_file, read_cellpose
from cellseg.models.network import Network

WEIGHTS_NAME = "best.safetensors"
STATE_NAME = "last.pt"


def save_weights(path: str | Path, model: nn.Module, config: ModelConfig, about: dict[str, Any]) -> None:
    """Write weights, model configuration and plain facts about the training as one safetensors file."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": "cellseg-1", "model": config.model_dump_json(), "about": json.dumps(about, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


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
        If the file is missing, not a cellseg checkpoint, or holds tensors of another shape.
    """
    path = resolve_weights(path)
    if is_torch_file(path):
        return read_cellpose(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CellsegError(f"{path}: cannot be read as safetensors weights ({error})") from error
    if metadata.get("format") != "cellseg-1":
        raise CellsegError(f"{path}: safetensors weights, but not of cellseg; wanted a file that 'cellseg train' wrote")
    try:
        config = ModelConfig.model_validate_json(metadata["model"])
        about = json.loads(metadata["about"])
    except (KeyError, ValidationError, json.JSONDecodeError) as error:
        raise CellsegError(f"{path}: damaged header, the model configuration cannot be read") from error
    model = build_model(config)
    _fill(model, tensors, str(path))
    return model.eval(), config, about


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in tensors:
            raise CellsegError(f"{where}: tensor '{name}' is missing; the checkpoint is of another network")
        if tensors[name].shape != value.shape:
            came, want = tuple(tensors[name].shape), tuple(value.shape)
            raise CellsegError(f"{where}: '{name}' has shape {came} but the network wants {want}")
    extra = sorted(set(tensors) - set(wanted))
    if extra:
        raise CellsegError(f"{where}: tensor '{extra[0]}' does not belong to the network; it is of another shape")
    model.load_state_dict(tensors)


def resolve_weights(model: str | Path) -> Path:
    """Find the weights file a name, file or run folder means.

    Raises
    ------
    CellsegError
        If nothing is there; a run folder without finished weights is named as such.
    """
    path = Path(model)
    if path.is_dir():
        for folder in (path, path / "s0"):
            if (folder / WEIGHTS_NAME).is_file():
                return folder / WEIGHTS_NAME
        raise CellsegError(f"{path}: no {WEIGHTS_NAME} in this folder; wanted a finished run (has it been trained?)")
    if path.is_file():
        return path
    if str(model) == "teacher":
        raise CellsegError("model 'teacher': no pretrained teacher is shipped yet; give a weights file or a run folder")
    raise CellsegError(
        f"{model}: no such model; wanted a weights file (*.safetensors), a run folder, or a "
        "file of Cellpose 2 or 3 (Cellpose keeps its own in ~/.cellpose/models)"
    )


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a resumable state of tensors and plain values atomically."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a resumable state; raises CellsegError where it is missing or damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CellsegError(f"{path}: no state to resume from; start without --resume") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CellsegError(f"{path}: damaged, cannot resume from it; start without --resume") from error
    return state
