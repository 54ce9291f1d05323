"""The words of ``train.regularizer``: what holds the weights, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["none", "l2", "l1", "elastic_net", "l2sp", "l1sp", "elastic_net_sp", "l2sp_fisher", "spd"]
Convention = Literal["sum", "paper"]

L1_SHARES = {"l1": 1.0, "l1sp": 1.0, "elastic_net": None, "elastic_net_sp": None}
"""Part of alpha on the absolute value; None where it is chosen, 0 for all other kinds."""

TOWARD_ZERO = frozenset({"l2", "l1", "elastic_net"})
"""Kinds that pull toward zero; all others pull toward the start."""


class RegularizerConfig(BaseModel):
    """A penalty on the trained weights w, with r the values they start from (SP) or zero.

    ``l2sp``, ``l2``: alpha Σ(w − r)². ``l1sp``, ``l1``: alpha Σ|w − r|. ``elastic_net_sp``, ``elastic_net``: the share
    ``l1_share`` of alpha on the second sum, the rest on the first. ``l2sp_fisher``: alpha Σ F (w − r)², F the diagonal
    Fisher information of ``data.fisher``, scaled to mean 1. ``spd`` is no penalty but a rule after the optimizer
    step: what a step moved a tensor away from r is taken back where the gradient points back to r; alpha = 1 takes
    back all of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: Kind = "none"
    alpha: float = Field(0.0, ge=0)
    """Strength; 0 is training without the penalty, bit for bit."""
    beta: float = Field(0.0, ge=0)
    """Strength of beta Σw² on the parameters that ``new`` names."""
    form: Literal["loss", "decoupled"] | None = None
    """By default ``loss``: the penalty's gradient is added to that of the loss, and the optimizer scales both;
    ``decoupled``: weights are pulled after the optimizer step by lr times that gradient. ``spd`` has neither."""
    convention: Convention = "sum"
    """``paper`` halves the squares, as Li et al. (ICML 2018) write them: their alpha is twice that of ``sum``."""
    l1_share: float | None = Field(None, ge=0, le=1)
    """Of ``elastic_net`` and ``elastic_net_sp``, by default 0.5."""
    include: str = "all"
    """``all`` trained parameters, ``weights`` (of two dimensions or more: no biases, no norms), or a pattern of names
    such as ``head.*``. What is left out is neither pulled nor spared ``train.weight_decay``."""
    new: tuple[str, ...] = Field((), strict=False)
    """Patterns of names of parameters that the start says nothing about: alpha spares them, beta pulls them to 0."""
    factors: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Pattern of names to a factor on alpha; the first pattern that fits counts, and 1 where none does."""
    fisher_crops: int = Field(64, ge=1)
    """Crops of ``data.fisher`` that ``l2sp_fisher`` measures."""

    @property
    def is_active(self) -> bool:
        """Whether anything is pulled at all."""
        return self.alpha > 0 or self.beta > 0

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kind, values = values.get("kind", "none"), dict(values)
        if kind != "none" and values.get("alpha") is None:
            raise ValueError(f"kind '{kind}' wants alpha, its strength, for example alpha = 0.01")
        if kind not in ("none", "spd") and values.get("form") is None:
            values["form"] = "loss"
        if kind in ("elastic_net", "elastic_net_sp") and values.get("l1_share") is None:
            values["l1_share"] = 0.5
        return values

    @model_validator(mode="after")
    def _words_of_the_kind(self) -> Self:
        if self.kind == "none" and self.is_active:
            raise ValueError("kind is 'none' but alpha or beta is not 0; name a kind, for example kind = \"l2sp\"")
        if self.l1_share is not None and L1_SHARES.get(self.kind, 0.0) is not None:
            raise ValueError(f"l1_share ({self.l1_share}) belongs to the elastic nets, not to '{self.kind}'; remove it")
        if self.beta > 0 and not self.new:
            raise ValueError(f'beta ({self.beta}) pulls what new names, and it names nothing; say new = ["head.*"]')
        if self.kind == "spd":
            for word in ("form", "beta", "new"):
                if getattr(self, word):
                    raise ValueError(
                        f"{word} ({getattr(self, word)!r}) means nothing for 'spd', a rule of its own; remove it"
                    )
        return self


def from_old_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``l2sp_alpha`` and ``l2sp_convention`` of ``train``, short for an L2-SP, into its ``regularizer``.

    Raises
    ------
    ValueError
        If both ways are used at once.
    """
    old = {key: values[key] for key in ("l2sp_alpha", "l2sp_convention") if key in values}
    rest = {key: value for key, value in values.items() if key not in old}
    if old and "regularizer" in rest:
        raise ValueError(f"{next(iter(old))} is short for a word of regularizer, given too; say one of the two")
    alpha = old.get("l2sp_alpha", 0.0)
    if alpha == 0 and alpha is not False:
        return rest
    return rest | {"regularizer": {"kind": "l2sp", "alpha": alpha, "convention": old.get("l2sp_convention", "sum")}}
