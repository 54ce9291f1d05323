"""Cellpose's own weight files, read into :class:`cellseg.models.cellpose.CellposeNet` and written back.

A file of Cellpose 2 or 3 is a PyTorch state dict. Tensors are kept as they are; only their names change, by one rule
(:func:`cellpose_name`), where ``n`` is a level and ``t`` a convolution, both from 0:

======================================  =============================================================
here                                    there
======================================  =============================================================
``down.n.convs.t.norm``, ``.conv``      ``downsample.down.res_down_n.conv.conv_t.0``, ``.2``
``up.n.convs.0.norm``, ``.conv``        ``upsample.up.res_up_n.conv.conv_0.0``, ``.2``
``up.n.convs.t.norm``, ``.conv``        ``upsample.up.res_up_n.conv.conv_t.conv.0``, ``.conv.2`` (t > 0)
``up.n.convs.t.style``                  ``upsample.up.res_up_n.conv.conv_t.full``
``down.n.shortcut.norm``, ``.conv``     ``downsample.down.res_down_n.proj.0``, ``.1`` (likewise for ``up``)
``head.norm``, ``.conv``                ``output.0``, ``.2``
``diam_mean``, ``diam_labels``          the same
======================================  =============================================================

Not read: the networks of Cellpose 4 (SAM) and of Cellpose 3's transformer, image restoration, volumes, and networks
trained in Cellpose 1 or 2 without residual units or with concatenation, which Cellpose 3 does not read either.
"""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cellseg.config import ModelConfig, check_config
from cellseg.core import CellsegError
from cellseg.files import atomic_path
from cellseg.instances import representation
from cellseg.memory import require_file
from cellseg.models.cellpose import CellposeNet

DIAMETER, NUCLEI_DIAMETER = 30.0, 17.0
"""What the files of Cellpose's first models, which hold no diameters, were trained at: cells and nuclei."""

_TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02")
_DIAMETERS = ("diam_mean", "diam_labels")
_CHANNELS = (0, 0)


def cellpose_name(name: str) -> str:
    """Return Cellpose's name of one of our tensors; the table of this module is the rule."""
    side, *rest = name.split(".")
    if side == "head":
        return f"output.{ {'norm': 0, 'conv': 2}[rest[0]] }.{rest[1]}"
    if side not in {"down", "up"}:
        return name
    level, block, *rest = rest
    prefix = f"{side}sample.{side}.res_{side}_{level}"
    if block == "shortcut":
        layer, leaf = rest
        return f"{prefix}.proj.{ {'norm': 0, 'conv': 1}[layer] }.{leaf}"
    t, layer, leaf = rest
    inside = "conv." if side == "up" and t != "0" else ""
    part = "full" if layer == "style" else inside + {"norm": "0", "conv": "2"}[layer]
    return f"{prefix}.conv.conv_{t}.{part}.{leaf}"


def is_torch_file(path: Path) -> bool:
    """Tell from the first bytes whether ``torch.save`` wrote a file, as Cellpose does."""
    try:
        with path.open("rb") as handle:
            return handle.read(4).startswith(_TORCH_MAGIC)
    except OSError:
        return False


def load_plain(path: Path) -> Any:
    """Load what ``torch.save`` wrote: tensors and plain values; nothing inside is ever run.

    Raises
    ------
    Exception
        Of many types where the file is damaged or holds anything else; ValueError where it is compressed, and so
        might unpack to anything: ``torch.save`` does not compress.
    """
    require_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as members:
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                raise ValueError("its members are compressed")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_cellpose(
    path: str | Path, *, channels: tuple[int, int] = _CHANNELS, diam_mean: float | None = None
) -> tuple[CellposeNet, ModelConfig, dict[str, Any]]:
    """Read a weights file of Cellpose 2 or 3; nothing inside it is ever run.

    Parameters
    ----------
    path : str or Path
        Such as ``cyto3``, ``cytotorch_0``, ``nucleitorch_0``, or what Cellpose's training wrote.
    channels : (int, int)
        ``model.channels``: cells (0 grey) and nuclei (0 none).
    diam_mean : float, optional
        Cell diameter in pixels that the network was trained at. By default what the file says; 17 for
        ``nucleitorch_0``, whatever it says, as in Cellpose; 30 where it says nothing.

    Returns
    -------
    model : CellposeNet
        On the CPU, in eval mode.
    config : ModelConfig
        Its reference diameter is ``diam_mean``; percentiles 1 and 99, as in Cellpose.
    about : dict
        ``diameter``, the mean one of the training images where the file tells it; name and SHA-256 of the file.

    Raises
    ------
    CellsegError
        If the file cannot be read, or holds another network.
    """
    path = Path(path)
    state = _read_tensors(path)
    _refuse_other_networks(state, path)
    widths = _widths(state, path)
    mean = _diameters(state, path, diam_mean)
    words = {"network": "cellpose", "widths": widths, "channels": channels, "reference_diameter": mean}
    config = check_config({"model": words}, where=str(path)).model
    n_maps = representation(config.representation).N_MAPS
    with torch.device("meta"):  # no memory is taken before the file is known to fill it
        _check(CellposeNet(n_maps, config), state, path)
    model = CellposeNet(n_maps, config)
    _fill(model, state, path)
    about = {
        "diameter": float(state["diam_labels"]),
        "source": path.name,
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return model.eval(), config, about


def cellpose_state(model: nn.Module, about: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Return the state dict that Cellpose loads, tensors on the CPU, in Cellpose's names and order.

    Parameters
    ----------
    model : Module
        A :class:`CellposeNet`.
    about : mapping, optional
        Facts about its training: ``diameter`` becomes ``diam_labels``, the diameter that Cellpose assumes where its
        user gives none.

    Raises
    ------
    CellsegError
        If the network is another one.
    """
    if not isinstance(model, CellposeNet):
        raise CellsegError(
            f"a {type(model).__name__} cannot become a Cellpose file; only network = 'cellpose' has its form"
        )
    state = {cellpose_name(name): value.detach().cpu().clone() for name, value in model.state_dict().items()}
    if about and about.get("diameter"):
        state["diam_labels"].fill_(float(about["diameter"]))
    return state


def write_cellpose(path: str | Path, model: nn.Module, about: Mapping[str, Any] | None = None) -> None:
    """Write the file that ``cellpose.models.CellposeModel(pretrained_model=path)`` of version 2 or 3 loads."""
    state = cellpose_state(model, about)
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CellsegError(f"{path}: no such file; wanted the weights of a Cellpose 2 or 3 network")
    if not is_torch_file(path):
        raise CellsegError(f"{path}: not a file that PyTorch saved; wanted the weights of a Cellpose 2 or 3 network")
    try:
        state = load_plain(path)
    except Exception as error:  # a damaged or foreign pickle raises dozens of types
        reason = str(error).strip().split("\n")[0][:150]
        if "Weights only" in reason:  # PyTorch's own advice is to run it
            reason = "it holds something else, perhaps code, which is not run"
        raise CellsegError(
            f"{path}: cannot be read as Cellpose weights; wanted a PyTorch file of tensors alone, as Cellpose's own "
            f"training writes it ({reason or type(error).__name__})"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CellsegError(
            f"{path}: a PyTorch file, but not the weights of a network of Cellpose 2 or 3; "
            "of a run of cellseg give the folder"
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise CellsegError(f"{path}: '{name}' says it is larger than what the file holds of it; it is damaged")
    return dict(state)


def _refuse_other_networks(state: Mapping[str, torch.Tensor], path: Path) -> None:
    names = {name.removeprefix("module.") for name in state}
    if "W2" in names or any(name.startswith("encoder.blocks.") for name in names):
        raise CellsegError(
            f"{path}: weights of Cellpose 4 (SAM), which cellseg cannot run; give those of a Cellpose 2 or 3 network, "
            "such as cyto3, or one fine-tuned with cellpose<4"
        )
    if any(name.startswith("net.") or ".encoder." in f".{name}" for name in names):
        raise CellsegError(
            f"{path}: weights of Cellpose 3's transformer, which cellseg cannot run; "
            "give a network of the default backbone, such as cyto3"
        )
    output = state.get("output.2.weight")
    if output is None or "downsample.down.res_down_0.proj.1.weight" not in state:
        raise CellsegError(
            f"{path}: not a residual network of Cellpose 2 or 3 (its first tensor is '{next(iter(state), 'none')}')"
        )
    if output.ndim != 4 or output.shape[0] != 3:
        raise CellsegError(
            f"{path}: wanted a network with 2-D convolutions and 3 maps (dy, dx, cell probability), but its last "
            f"weights have shape {tuple(output.shape)}; networks of image restoration and of volumes are not read"
        )


def _widths(state: Mapping[str, torch.Tensor], path: Path) -> tuple[int, ...]:
    widths: list[int] = []
    while (weights := state.get(f"downsample.down.res_down_{len(widths)}.proj.1.weight")) is not None:
        if not widths and weights.shape[1] != 2:
            raise CellsegError(
                f"{path}: its network sees {weights.shape[1]} channels, but 2 are wanted (cells, nuclei)"
            )
        widths.append(int(weights.shape[0]))
    return tuple(widths)


def _diameters(state: dict[str, torch.Tensor], path: Path, diam_mean: float | None) -> float:
    """Find ``diam_mean`` by the rule of :func:`read_cellpose` and add to the state what it lacks."""
    for name in _DIAMETERS:
        value = state.get(name)
        if value is not None and (value.numel() != 1 or not math.isfinite(value) or float(value) <= 0):
            raise CellsegError(f"{path}: '{name}' must be one number above 0, but is {value.tolist()}; damaged?")
    nuclei = path.name == "nucleitorch_0"
    if diam_mean is None:
        stored = float(state.get("diam_mean", torch.tensor(DIAMETER)))
        diam_mean = NUCLEI_DIAMETER if nuclei else stored
    if not (math.isfinite(diam_mean) and diam_mean > 0):
        raise CellsegError(f"diam_mean = {diam_mean:g}: wanted a diameter in pixels, above 0")
    state["diam_mean"] = torch.tensor([diam_mean])
    state.setdefault("diam_labels", torch.tensor([diam_mean]))
    return float(state["diam_mean"])


def _check(model: CellposeNet, state: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, value in model.state_dict().items():
        theirs = cellpose_name(name)
        came = state.get(theirs)
        if came is None or came.shape != value.shape:
            what = "is missing" if came is None else f"has shape {tuple(came.shape)}, wanted {tuple(value.shape)}"
            raise CellsegError(
                f"{path}: '{theirs}' {what}; not the network of Cellpose 3 "
                "(one trained without residual units or with concatenation?)"
            )
        if not torch.isfinite(came).all():
            raise CellsegError(f"{path}: '{theirs}' holds NaN or infinity; the file is damaged")


def _fill(model: CellposeNet, state: Mapping[str, torch.Tensor], path: Path) -> None:
    theirs = {name: cellpose_name(name) for name in model.state_dict()}
    extra = sorted(set(state) - set(theirs.values()))
    if extra:
        warnings.warn(f"{path}: '{extra[0]}' is left out, as Cellpose 3 does not know it either", stacklevel=3)
    model.load_state_dict({name: state[their] for name, their in theirs.items()})
