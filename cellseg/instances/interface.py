"""What every instance representation offers: a module that encodes labels, decodes maps and declares its loss.

The loss is declared as data, because the modules of this floor know nothing of torch; one function,
:func:`cellseg.losses.representation_loss`, executes any of them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Labels

Maps = NDArray[np.float32]
"""Targets or raw network output, float32 ``(K, H, W)``."""

ConfidenceRule = Literal["direction", "margin", "probability"]
"""How sure a network is of a pixel with foreground probability p.

``direction``: norm of the predicted unit vector on cells, 1 − p elsewhere; ``margin``: abs(2p − 1);
``probability``: that of the likeliest class.
"""

IDEAL_LOGIT = 8.0
"""Logit of a certain pixel in ideal network output."""


class Term(NamedTuple):
    """One term of a loss; the first term of every representation is its foreground.

    Attributes
    ----------
    name : str
        Name in the log.
    kind : {"bce", "mse", "cross_entropy"}
        ``bce`` of one logit, or of several whose first is the background of a softmax: the first against the rest.
        ``mse``: the mean over the term's maps. ``cross_entropy`` among the term's maps alone; together with ``bce``
        of all classes it is the cross-entropy of all classes, by the chain rule of probability.
    maps : slice
        The maps it reads, of network output and target alike.
    scale : float
        The network predicts this multiple of the target (``mse`` only).
    weight : float
        Factor of the term in the sum.
    """

    name: str
    kind: Literal["bce", "mse", "cross_entropy"]
    maps: slice
    scale: float = 1.0
    weight: float = 1.0


class Representation(Protocol):
    """A module of :mod:`cellseg.instances`."""

    N_MAPS: int
    """Number of maps K of targets and of network output."""
    LOSS: tuple[Term, ...]
    VECTORS: tuple[int, ...]
    """The maps that hold (dy, dx), which turn and flip with their pixels; empty where none does."""
    CONFIDENCE: ConfidenceRule

    def encode(self, labels: Labels) -> Maps:
        """Make the targets ``(K, H, W)`` of an instance image ``(H, W)``."""

    def encode_foreground(self, mask: NDArray[np.bool_]) -> Maps:
        """Make the targets of a foreground mask ``(H, W)``; what only instances could tell is a placeholder."""

    def ideal_maps(self, target: Maps) -> Maps:
        """Return the raw output of a perfect network."""

    def decode(self, maps: Maps, *, foreground_threshold: float = 0.0, min_size: int = 10) -> Labels:
        """Turn raw output ``(K, H, W)`` into labels ``(H, W)`` without cells of fewer than ``min_size`` pixels.

        A pixel is foreground where the logit of its probability exceeds ``foreground_threshold``.
        """

    def foreground(self, maps: Maps) -> NDArray[np.float32]:
        """Return the foreground probability ``(H, W)`` of raw output."""

    def confidence(self, maps: Maps) -> NDArray[np.float32]:
        """Return the confidence ``(H, W)`` in [0, 1] of raw output, by the rule ``CONFIDENCE``."""

    def warp(self, target: Maps, matrix: NDArray[np.floating]) -> Maps:
        """Turn the vectors of targets whose pixels were already moved by ``matrix`` (2 × 2, offsets (dy, dx))."""


def sigmoid(logit: Maps) -> NDArray[np.float32]:
    """Return 1 / (1 + exp(−x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logit)), np.float32)


def renumber(labels: Labels, kept: NDArray[np.bool_]) -> Labels:
    """Blank the ids that are not kept and renumber the rest from 1.

    Parameters
    ----------
    labels : ndarray of int32, shape (H, W)
        Instance image.
    kept : ndarray of bool, shape (largest id + 1,)
        Whether an id stays; the first entry, background, is not looked at.
    """
    kept = kept.copy()
    kept[:1] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return np.asarray(numbers[labels], np.int32)


def drop_small(labels: Labels, min_size: int) -> Labels:
    """Drop cells of fewer than ``min_size`` pixels and renumber the rest from 1."""
    return renumber(labels, np.bincount(labels.ravel(), minlength=1) >= max(min_size, 1))
