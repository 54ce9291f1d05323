"""Which image crop number ``n`` is cut from, a pure function of the seed; and how large its cells are taken to be."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from cellseg.core import Record


def draw_image(number: int, n_images: int, seed: int) -> int:
    """Return the image of crop ``number``: every image once an epoch, in an order that changes with the epoch."""
    epoch, place = divmod(number, n_images)
    return int(np.random.default_rng([seed, 1, epoch]).permutation(n_images)[place])


def draw_from_groups(number: int, groups: Sequence[Sequence[int]], seed: int) -> int:
    """Return the image of crop ``number``: every group once a turn, and of each group one image after the other.

    Parameters
    ----------
    number : int
        Number of the crop.
    groups : sequence of sequence of int
        The images of each group; see :func:`group_members`.
    seed : int
        Seed of the order of groups in a turn, and of images in a group.

    Returns
    -------
    int
        Over ``n`` crops each of ``g`` groups gives ``n / g``, rounded up or down, however few images it has; no
        image of a group comes again before all of them came.
    """
    turn, place = divmod(number, len(groups))
    group = int(np.random.default_rng([seed, 3, turn]).permutation(len(groups))[place])
    epoch, place = divmod(turn, len(groups[group]))
    order = np.random.default_rng([seed, 4, group, epoch]).permutation(len(groups[group]))
    return groups[group][int(order[place])]


def draw_by_root(number: int, groups: Sequence[Sequence[int]], seed: int) -> int:
    """Return the image of crop ``number``: a group in proportion to the square root of its size, then one of it."""
    share = np.sqrt([len(group) for group in groups])
    rng = np.random.default_rng([seed, 5, number])
    return int(rng.choice(groups[rng.choice(len(groups), p=share / share.sum())]))


def group_members(records: Sequence[Record]) -> list[list[int]]:
    """List the places of the images of each group, groups sorted by data set and name."""
    members: dict[tuple[str, str], list[int]] = {}
    for index, record in enumerate(records):
        members.setdefault((record.dataset, record.group), []).append(index)
    return [members[name] for name in sorted(members)]


def known_diameters(records: Sequence[Record]) -> list[float | None]:
    """List the cell diameter of each image in pixels: its own, or for a foreground mask the median of its group.

    A mask does not tell cells apart, so its image has no diameter of its own; None where its group has none either.
    """
    by_group: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record.diameter:
            by_group.setdefault((record.dataset, record.group), []).append(record.diameter)
    borrowed = {group: median(values) for group, values in by_group.items()}
    return [
        borrowed.get((record.dataset, record.group)) if record.label_kind == "foreground" else record.diameter
        for record in records
    ]
