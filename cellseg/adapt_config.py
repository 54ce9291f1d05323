"""The words of ``adapt``: what adaptation does with unlabelled images, and which weights it hands out."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AdaptConfig(BaseModel):
    """What adaptation adds: unlabelled images, what is made of them, and which weights are handed out."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    method: Literal["pseudo", "mixed", "consistency", "none"] = "mixed"
    """Learn the teacher's surest cells as labels (``pseudo``), agree with its maps pixel by pixel (``consistency``),
    learn those cells and agree with the maps everywhere else (``mixed``), or only watch the images (``none``)."""
    teacher: Literal["ema", "frozen"] = "ema"
    """What makes the targets: the averaged student (momentum ``train.ema``) or the unchanged start."""
    batch_size: int = Field(8, ge=1)
    """Unlabelled crops a micro-batch; ``train.batch_size`` counts the labelled ones, where there are any."""
    replay: float = Field(0.5, ge=0, lt=1)
    """Share of a micro-batch that comes from ``data.replay``, where that names images."""
    labels_first: float = Field(0.0, ge=0, lt=1)
    """Share of the updates in which the labelled images, where there are any, are learned without the unlabelled ones:
    a network that knows some labels makes better ones."""
    diameter: Annotated[float, Field(gt=0)] | Literal["auto", "index"] = "auto"
    """Cell diameter of unlabelled images: a number, the teacher's own estimate, or the index."""
    round_steps: int = Field(200, ge=1)
    """``pseudo``, ``mixed``: updates after which the teacher, or a student without average, labels the images anew."""
    views: Literal["flips", "scales", "both"] = "both"
    """``pseudo``, ``mixed``: what a cell must be found again in: four flips, two neighbouring scales, or both."""
    agreement: float = Field(0.75, gt=0, le=1)
    """``pseudo``, ``mixed``: share of the views in which a cell must be found again to be learned."""
    background: float = Field(0.05, ge=0, le=0.5)
    """``pseudo``: pixels with a mean foreground probability below this are learned as background."""
    rim: int = Field(2, ge=0)
    """``mixed``: so many pixels inside the outline of a cell, at the network's scale, are left to the maps. Learned as
    cell beside pixels that only the maps know, they make cells grow from round to round."""
    consistency_weight: float = Field(1.0, ge=0)
    """``consistency``: its weight in the loss, after ``ramp_steps`` updates; ``mixed``: weight of the other pixels."""
    ramp_steps: int = Field(200, ge=0)
    confidence: float = Field(0.0, ge=0, le=1)
    """``consistency``, ``mixed``: pixels of less confidence, by the rule of the representation, are ignored."""
    cutmix: float = Field(0.0, ge=0, le=1)
    """Probability of pasting a rectangle of another unlabelled crop into one."""
    watch: int = Field(8, ge=0)
    """Unlabelled images, evenly over groups, on which the label-free criteria are computed; 0 watches none."""
    criterion: Literal["auto", "flips", "scales", "cycle", "confidence", "consensus", "last"] = "auto"
    """What picks the weights that are handed out, the start among them: a label-free criterion, the last step,
    or (auto) validation F1 where ``data.val`` names images, the last step where ``data.train`` does, else
    ``consensus``."""
    least_gain: float = Field(0.1, ge=0, lt=1)
    """The start is kept unless a label-free criterion gains this share of what it lacks of 1."""
    patience: int = Field(4, ge=0)
    """Looks, one every ``train.validate_every`` updates, without better weights until a run stops; 0 never stops."""
    wise: float | None = Field(None, ge=0, le=1)
    """WiSE-FT: share of the adapted weights in what is handed out; the rest is the start."""

    @model_validator(mode="after")
    def _something_to_watch(self) -> Self:
        if self.watch == 0 and self.criterion not in {"auto", "last"}:
            raise ValueError(f"criterion ('{self.criterion}') wants images to watch; set watch to at least 1")
        return self
