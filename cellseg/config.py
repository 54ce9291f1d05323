"""One run as nested, documented, strict dataclasses, read from TOML.

A run file states only its differences from the file its ``base`` key names, or from a list of them, a case and an
arm for example, laid one over the other. Unknown keys, wrong types and bad values are errors that name the dotted
key and the nearest known one; ``--set train.lr=3e-4`` passes through the same check. Relative paths are relative to
the working directory, which for every make target is the repository root.
"""

from __future__ import annotations

import difflib
import reprlib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cellseg.adapt_config import AdaptConfig
from cellseg.core import CellsegError
from cellseg.memory import require_file
from cellseg.regularizer_config import RegularizerConfig, from_old_words


class Strict(BaseModel):
    """Frozen settings that reject unknown keys and NaN, and do not convert strings or booleans to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NormalizeConfig(Strict):
    """How raw pixel values become network input (see :func:`cellseg.images.normalize`)."""

    rule: Literal["percentile", "percentile_nonzero", "none"] = "percentile"
    low: float = Field(1.0, ge=0, le=100)
    high: float = Field(99.0, ge=0, le=100)

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class Selection(Strict):
    """Which images of an index: all of a split, of some groups, or the first few of each group."""

    index: str
    split: str | None = None
    groups: tuple[str, ...] = Field((), strict=False)
    limit: int | None = Field(None, ge=1)
    """At most this many images, taken evenly over the groups in index order."""
    max_pixels: int | None = Field(None, ge=1)
    """Leave out larger images (height times width), such as whole slides from validation."""
    ids: tuple[str, ...] = Field((), strict=False)
    """Only these images."""
    without: tuple[str, ...] = Field((), strict=False)
    """All but these images; with ``ids`` elsewhere, one fold of a cross-validation."""
    listed: str | None = None
    """Only the images that a file names: one id a line, or a COCO file such as LIVECell's size splits."""


class EvaluationSet(Selection):
    """A selection that is scored after training, under a name that tables refer to."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")


class DataConfig(Strict):
    """What is trained on, validated on and scored on."""

    train: tuple[Selection, ...] = Field((), strict=False)
    val: tuple[Selection, ...] = Field((), strict=False)
    unlabelled: tuple[Selection, ...] = Field((), strict=False)
    """Images whose labels, if any, are never read; for adaptation."""
    replay: tuple[Selection, ...] = Field((), strict=False)
    """Labelled images of what the start already knows, some of which are in every batch of an adaptation."""
    fisher: tuple[Selection, ...] = Field((), strict=False)
    """Labelled images whose gradients weigh the pull of ``l2sp_fisher``: what the start learned from."""
    evaluate: tuple[EvaluationSet, ...] = Field((), strict=False)
    diameter: Annotated[float, Field(gt=0)] | Literal["index", "none"] = "index"
    """Cell diameter of training images in pixels: one number, each image's own from the index, or no rescaling."""
    balance: Literal["image", "root", "group"] = "image"
    """What crops are drawn evenly over: images; groups, whatever their size; or between the two, groups in
    proportion to the square root of their number of images."""
    cache_mb: int = Field(4096, ge=0)
    """Memory for decoded training images and their targets, of all kinds and all workers of a process together."""


class AugmentConfig(Strict):
    """Geometry shared by both views, and the strength of each view's intensity changes."""

    scale_min: float = Field(0.7, gt=0)
    scale_max: float = Field(1.4, gt=0)
    rotate: bool = True
    flip: bool = True
    weak: float = Field(0.3, ge=0, le=1)
    """Strength of the intensity changes of labelled images and of the teacher's view."""
    strong: float = Field(1.0, ge=0, le=1)
    """Strength of the intensity changes of the student's view of unlabelled images."""
    colour: float = Field(0.0, ge=0, le=1)
    """Probability of changing hue, saturation or the order of channels: only where colours mean nothing."""
    invert: float = Field(0.0, ge=0, le=1)
    """Probability of inverting an image: only where the modality allows it."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min ({self.scale_min}) must not exceed scale_max ({self.scale_max})")
        return self


_NETWORK_DEFAULTS: dict[str, dict[str, Any]] = {
    "flexible_unet": {"backbone": "efficientnet-b0", "norm": "batch"},
    "cellpose": {"widths": (32, 64, 128, 256), "channels": (0, 0), "norm": "batch", "reference_diameter": 30.0},
}
"""What a network has where nothing else is said; all others have a size."""


class ModelConfig(Strict):
    """A network and everything needed to feed it and read it; saved inside every checkpoint."""

    network: Literal["half_unet", "unet", "flexible_unet", "cellpose"] = "half_unet"
    """A U-Net at half resolution, MONAI's residual U-Net, MONAI's U-Net on a known backbone, or that of Cellpose 3."""
    size: Literal["tiny", "small", "base"] | None = None
    """Widths of ``half_unet`` and ``unet``, by default ``small``; a backbone fixes its own."""
    backbone: Literal["efficientnet-b0", "resnet18"] | None = None
    """Encoder of ``flexible_unet``, by default ``efficientnet-b0``; its weights start at random."""
    widths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] | None = Field(None, strict=False, max_length=8)
    """Channels of each level of ``cellpose``, finest first, by default Cellpose's own 32, 64, 128, 256."""
    channels: tuple[Annotated[int, Field(ge=0, le=3)], Annotated[int, Field(ge=0, le=3)]] | None = Field(
        None, strict=False
    )
    """What ``cellpose`` looks at, in Cellpose's words: the channel of the cells (0 grey, the mean of all; 1 red,
    2 green, 3 blue), then that of their nuclei (0 none); by default 0, 0."""
    representation: Literal["flow", "distance", "boundary"] = "flow"
    """How cells become maps and maps cells: flows to the centre, distances to the outline, or three classes."""
    norm: Literal["instance", "batch", "group"] = "instance"
    """By default ``instance``; a backbone and ``cellpose`` have ``batch``."""
    dropout: float = Field(0.0, ge=0, lt=1)
    adapter: bool = False
    """A square layer before the head of ``half_unet`` that starts as the identity; a start may lack it."""
    reference_diameter: float = Field(24.0, gt=0)
    """Images are scaled so that a median cell has this diameter in pixels; by default 30 for ``cellpose``."""
    normalize: NormalizeConfig = NormalizeConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_network(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        defaults = _NETWORK_DEFAULTS.get(str(values.get("network")), {"size": "small"})
        return dict(values) | {key: word for key, word in defaults.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _words_of_the_network(self) -> Self:
        if self.network != "flexible_unet" and self.backbone is not None:
            raise ValueError(f"backbone ('{self.backbone}') belongs to flexible_unet, not to {self.network}; remove it")
        if self.network == "flexible_unet" and self.size is not None:
            raise ValueError(f"size ('{self.size}') means nothing for flexible_unet: its backbone sets it; remove size")
        if self.network == "flexible_unet" and self.norm != "batch":
            raise ValueError(f"norm ('{self.norm}') cannot be chosen for flexible_unet: its backbone has batch norm")
        if self.adapter and self.network != "half_unet":
            raise ValueError(f"adapter belongs to half_unet, not to {self.network}; remove it")
        return self

    @model_validator(mode="after")
    def _words_of_cellpose(self) -> Self:
        own = {"widths": self.widths, "channels": self.channels}
        if self.network != "cellpose":
            for key, value in own.items():
                if value is not None:
                    raise ValueError(f"{key} ({list(value)}) belongs to cellpose, not to {self.network}; remove it")
            return self
        fixed = {"norm": "batch", "representation": "flow", "size": None, "dropout": 0.0}
        for key, wanted in fixed.items():
            value = getattr(self, key)
            if value != wanted:
                raise ValueError(f"{key} ({value!r}) cannot be chosen for cellpose, which fixes it; remove it")
        if self.channels is not None and self.channels[1] and not self.channels[0]:
            raise ValueError(f"channels ({list(self.channels)}): nuclei need the cells' own channel, not 0 for grey")
        if not self.widths:
            raise ValueError("widths: cellpose has at least one level, for example [32, 64, 128, 256]")
        return self


class TrainConfig(Strict):
    """The optimisation; ``steps`` (optimizer updates) is the only clock."""

    init: str | None = None
    """Checkpoint, run folder or model name to start from, and what ``regularizer`` pulls toward."""
    freeze_encoder: bool = False
    """Train decoder and head only; the encoder stays the one of ``init``."""
    freeze_norm_statistics: bool = False
    """Use and keep the batch-norm statistics of ``init``; weight and bias of those layers still learn."""
    steps: int = Field(2000, ge=1)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(1, ge=1)
    """Micro-batches an update; each holds ``batch_size`` crops."""
    crop_size: int = Field(256, ge=32, multiple_of=16)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    """Decay toward zero; applied only to weights that ``regularizer`` does not pull."""
    warmup_steps: int = Field(100, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float | None = Field(1.0, gt=0)
    regularizer: RegularizerConfig = RegularizerConfig()
    """What holds the weights; ``l2sp_alpha = 0.1`` is short for ``{ kind = "l2sp", alpha = 0.1 }``."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Largest momentum of the averaged weights that are validated and handed out; 0 hands out the raw ones."""
    precision: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Numbers that the network computes with: bf16 where the device has it (auto), or as told; off is float32."""
    channels_last: bool = True
    log_every: int = Field(10, ge=1)
    validate_every: int = Field(250, ge=1)
    save_every: int = Field(250, ge=1)
    workers: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _old_words(cls, values: Any) -> Any:
        return from_old_words(values) if isinstance(values, Mapping) else values


class PredictConfig(Strict):
    """Inference."""

    tile: int = Field(512, ge=64, multiple_of=16)
    overlap: float = Field(0.25, ge=0, lt=0.9)
    diameter: Annotated[float, Field(gt=0)] | Literal["auto", "model", "index"] = "auto"
    """Cell diameter in pixels: a number, a fast first pass (auto), that of the training images (model), or the
    median of the labelled training images of the index that names the image (index)."""
    tta: bool = False
    """Average the four flips and the two neighbouring scales: a little better, seven times as slow."""
    min_size: int = Field(30, ge=0)
    """Cells of fewer pixels are dropped, counted where a typical cell has the network's ``reference_diameter``."""
    foreground: float | None = Field(None, gt=0, lt=1)
    """A pixel may belong to a cell where its probability exceeds this; by default as the weights say, else 0.5."""
    min_score: float | None = Field(None, ge=0, le=1)
    """Cells of a lower mean probability are dropped; by default as the weights say, else none."""
    batch_size: int | None = Field(None, ge=1)
    """Windows that the network sees at once; by default one on a CPU, eight on a GPU; halved where memory ends."""
    precision: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Numbers that the network computes with: bf16 where the device has it (auto), or as told; off is float32."""


class RunConfig(Strict):
    """Everything a run depends on but its seed."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    augment_replay: AugmentConfig | None = None
    """Views of the images of ``data.replay``, best those that the start was trained with; by default ``augment``."""
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    adapt: AdaptConfig = AdaptConfig()
    predict: PredictConfig = PredictConfig()

    @model_validator(mode="after")
    def _statistics_to_freeze(self) -> Self:
        if self.train.freeze_norm_statistics and self.model.norm != "batch":
            raise ValueError(
                f"train.freeze_norm_statistics wants batch norm, but model.norm is '{self.model.norm}', "
                'which keeps no statistics; remove it or set model.norm = "batch"'
            )
        return self


_MOST_MISTAKES = 8
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 3


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read the bases that a run file names, one over the other, then the file, then ``key=value`` overrides.

    Parameters
    ----------
    path : str or Path
        TOML file; its optional ``base`` key names another or a list of others, relative to it.
    overrides : iterable of str
        ``dotted.key=value`` with the value in TOML; a bare word is taken as a string.

    Returns
    -------
    RunConfig
        The checked configuration.

    Raises
    ------
    CellsegError
        If a file is missing or not TOML, or a key or value is wrong; the message names the dotted key.
    """
    path = Path(path)
    own = _read_toml(path)
    bases = own.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise CellsegError(f"{path}: base = {_SHORT.repr(bases)}: wanted the name of a file or a list of names")
    values: dict[str, Any] = {}
    for base in bases:
        base_path = path.parent / base
        inherited = _read_toml(base_path)
        if "base" in inherited:
            raise CellsegError(f"{base_path}: a base file may not name another base")
        values = merge(values, inherited)
    values = merge(values, own)
    for override in overrides:
        values = merge(values, parse_override(override))
    return check_config(values, where=str(path))


def read_run(path: str | Path) -> RunConfig:
    """Read the resolved configuration that a run saved as JSON."""
    path = Path(path)
    try:
        return RunConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CellsegError(f"{path}: no such file; wanted a run folder that 'cellseg train' or 'adapt' wrote") from None
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        raise CellsegError(f"{path}: not the configuration of a run of this version") from error


def check_config(values: Mapping[str, Any], where: str = "configuration") -> RunConfig:
    """Validate plain nested values; raises CellsegError naming each wrong key and the nearest known one."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = "; ".join(_explain(detail) for detail in error.errors()[:_MOST_MISTAKES])
        more = error.error_count() - _MOST_MISTAKES
        raise CellsegError(f"{where}: {lines}" + (f"; and {more} more" if more > 0 else "")) from error


def parse_override(text: str) -> dict[str, Any]:
    """Turn ``train.lr=3e-4`` into ``{"train": {"lr": 3e-4}}``."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise CellsegError(f"--set {text}: wanted dotted.key=value, for example train.lr=3e-4")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value.strip()
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return typing.cast("dict[str, Any]", parsed)


def _read_toml(path: Path) -> dict[str, Any]:
    require_file(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CellsegError(f"{path}: no such configuration file") from None
    except (OSError, ValueError, RecursionError) as error:  # also a NUL in the name, a number of thousands of digits
        raise CellsegError(f"{path}: cannot be read as TOML ({str(error)[:200]})") from error


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with a change laid over them."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(detail: Any) -> str:
    location = tuple(detail["loc"])
    key = _cut(".".join(str(part) for part in location))
    if detail["type"] == "extra_forbidden":
        known = sorted(_known_keys(location[:-1]))
        near = difflib.get_close_matches(_cut(str(location[-1])), known, n=1, cutoff=0.0)
        return f"unknown key '{key}'; did you mean '{_cut('.'.join([*map(str, location[:-1]), *near]))}'?"
    message = detail["msg"].removeprefix("Value error, ")
    # Where a number or a word is wanted, the last part says which of them was tried and is no key.
    key = _cut(".".join(str(part) for part in location if not str(part).startswith(("constrained-", "literal["))))
    if not key:
        return str(message)
    return f"'{key}' = {_SHORT.repr(detail['input'])}: {message[:1].lower()}{message[1:]}"


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"


def _known_keys(location: tuple[Any, ...]) -> set[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_of(model.model_fields[part].annotation) or model
    return set(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Find the settings class inside an annotation such as ``tuple[Selection, ...]``."""
    inner = typing.get_args(annotation)
    if inner:
        return next((model for model in map(_model_of, inner) if model is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
