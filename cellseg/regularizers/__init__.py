"""Penalties that hold the weights of a network near zero or near their starting point.

One penalty, ``c1 Σ|w − r| + c2 Σ F (w − r)²`` over the trained parameters, with the words of
:class:`cellseg.regularizer_config.RegularizerConfig`: L1, L2 and elastic net toward r = 0, their relatives toward the
start (L2-SP and L1-SP of Li, Grandvalet, Davoine, ICML 2018, arXiv 1802.01483; with F also the penalty of elastic
weight consolidation, Kirkpatrick et al., PNAS 2017), and any other r; and one rule after the optimizer step, SPD.

A penalty can be had as a differentiable value, as the same gradient injected, or as a pull on the weights after the
step. The three differ: an injected gradient is not clipped with that of the loss; under Adam both are divided by √v,
which a decoupled pull is not. What is given up: a copy of the trained weights is always held, also by penalties
toward zero, so that every run can say how far it went.
"""

from __future__ import annotations

from torch import nn

from cellseg.regularizer_config import RegularizerConfig
from cellseg.regularizers.anchored import Tensors
from cellseg.regularizers.penalty import L2SP, Penalty
from cellseg.regularizers.spd import SPD
from cellseg.regularizers.tensors import diagonal_fisher, identity_like

__all__ = ["L2SP", "SPD", "Penalty", "build_regularizer", "diagonal_fisher", "identity_like"]


def build_regularizer(
    model: nn.Module, settings: RegularizerConfig, references: Tensors | None = None, fisher: Tensors | None = None
) -> Penalty | SPD:
    """Make what ``settings`` describe from a model at its starting point; of kind ``none`` it only measures."""
    if settings.kind == "spd":
        return SPD(model, settings, references)
    return Penalty(model, settings, references, fisher)
