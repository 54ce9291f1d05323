"""What training minimises: supervised and consistency losses on raw maps, as each representation declares them."""

from __future__ import annotations

import torch
from torch.nn import functional

from cellseg.instances import representation as find
from cellseg.instances.interface import Representation, Term

Parts = dict[str, torch.Tensor]


def representation_loss(
    maps: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, representation: str
) -> tuple[torch.Tensor, Parts]:
    """Sum the terms that a representation declares.

    Parameters
    ----------
    maps : Tensor (B, K, H, W)
        Raw network output.
    target : Tensor (B, K, H, W)
        Targets, or the soft targets of :func:`consistency_target`.
    weight : Tensor (B, 2, H, W) or (B, 1, H, W)
        Channel 0 weighs the foreground term, channel 1 what only instances can tell; one channel weighs both.
        0 where a pixel is ignored; each term is the mean over its weight.
    representation : str
        ``model.representation``.

    Returns
    -------
    loss : scalar Tensor
        The sum of the parts.
    parts : dict of scalar Tensors
        Each term by name, detached, for the log.

    Notes
    -----
    Where channel 1 is 0 the gradient is exactly 0 on all maps but the foreground. A softmax over classes has no map
    of its own for it: there, all classes but background get one and the same gradient, so that the labels do not
    prefer one to another.
    """
    maps = maps.float()
    totals = weight.sum(dim=(0, 2, 3)).clamp(min=1.0)
    parts: Parts = {}
    for index, term in enumerate(find(representation).LOSS):
        channel = 0 if index == 0 else -1
        error = _error(term, maps[:, term.maps], target[:, term.maps], weight[:, -1:] > 0)
        parts[term.name] = term.weight * (error * weight[:, [channel]]).sum() / totals[channel]
    return sum(parts.values(), start=maps.new_zeros(())), {name: part.detach() for name, part in parts.items()}


def consistency_target(maps: torch.Tensor, threshold: float, representation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a teacher's raw maps into a soft target and a weight.

    Parameters
    ----------
    maps : Tensor (B, K, H, W)
        Raw output of the teacher.
    threshold : float
        Pixels whose confidence, by the rule of the representation, is below are ignored.
    representation : str
        ``model.representation``.

    Returns
    -------
    target : Tensor (B, K, H, W)
        Probabilities, distances and unit vectors, as :func:`representation_loss` wants them; what only cells have
        is 0 outside.
    weight : Tensor (B, 1, H, W)
        1 where the teacher is trusted.
    """
    maps, module = maps.float(), find(representation)
    target = torch.zeros_like(maps)
    classes = module.LOSS[0].maps
    logits = maps[:, classes]
    target[:, classes] = torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)
    inside = foreground_target(target, representation) > 0.5
    for term in module.LOSS[1:]:
        if term.kind == "mse":
            value = maps[:, term.maps] / term.scale
            target[:, term.maps] = (_unit(value) if module.VECTORS else value.clamp(0, 1)) * inside
    return target, (confidence(maps, module) >= threshold).float()


def foreground_target(target: torch.Tensor, representation: str) -> torch.Tensor:
    """Return the foreground probability ``(B, 1, H, W)`` that targets ``(B, K, H, W)`` hold."""
    return _foreground_probability(target[:, find(representation).LOSS[0].maps])


def confidence(maps: torch.Tensor, module: Representation) -> torch.Tensor:
    """Return how sure raw maps ``(B, K, H, W)`` are, ``(B, 1, H, W)``: ``module.confidence`` for tensors.

    The norm of a predicted flow is not clipped at 1 here, which no threshold notices.
    """
    logits = maps[:, module.LOSS[0].maps]
    if module.CONFIDENCE == "probability":
        likeliest: torch.Tensor = torch.softmax(logits, dim=1).amax(dim=1, keepdim=True)
        return likeliest
    probability = torch.sigmoid(logits)
    if module.CONFIDENCE == "margin":
        return (2 * probability - 1).abs()
    vectors = maps[:, list(module.VECTORS)] / module.LOSS[1].scale
    norm: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(probability > 0.5, norm, 1 - probability)


def _error(term: Term, maps: torch.Tensor, target: torch.Tensor, has_instances: torch.Tensor) -> torch.Tensor:
    """Error of one term at every pixel, ``(B, 1, H, W)``."""
    if term.kind == "mse":
        return functional.mse_loss(maps, term.scale * target, reduction="none").mean(dim=1, keepdim=True)
    if term.kind == "cross_entropy":
        entropy: torch.Tensor = -(target * functional.log_softmax(maps, dim=1)).sum(dim=1, keepdim=True)
        return entropy
    logit = maps if maps.shape[1] == 1 else _rest_against_first(maps, has_instances)
    return functional.binary_cross_entropy_with_logits(logit, _foreground_probability(target), reduction="none")


def _rest_against_first(maps: torch.Tensor, has_instances: torch.Tensor) -> torch.Tensor:
    """Logit of all classes but the first; without instances its gradient is spread evenly over them."""
    rest = torch.logsumexp(maps[:, 1:], dim=1, keepdim=True)
    mean = maps[:, 1:].mean(dim=1, keepdim=True)
    return torch.where(has_instances, rest, mean + (rest - mean).detach()) - maps[:, :1]


def _foreground_probability(probabilities: torch.Tensor) -> torch.Tensor:
    """Foreground of one map, or of classes the first of which is background."""
    return probabilities if probabilities.shape[1] == 1 else 1 - probabilities[:, :1]


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / norm.clamp(min=1e-6)
