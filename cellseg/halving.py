"""Show a network as many images at once as memory holds: where it ends, half as many, and the work goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.core import CellsegError, Image

Look = Callable[[NDArray[np.float32]], torch.Tensor]
"""A network: images ``(B, h, w, 3)`` of one size in, raw maps ``(B, K, h, w)`` of any float type out."""

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "_STATUS_ALLOC_FAILED")
"""What a RuntimeError says of PyTorch's allocators of the CPU, of Windows and of other devices, of cuBLAS and cuDNN."""

_NO_ENGINE = ("Unable to find a valid cuDNN algorithm", "unable to find an engine")
"""What cuDNN says where memory ends, and also where it cannot compute at all: only fewer images tell which it is."""


@dataclass
class Most:
    """How many images a network is shown at once; halved for good where memory ends."""

    count: int = 1


def look_in_batches(look: Look, images: Sequence[Image], most: Most) -> Iterator[torch.Tensor]:
    """Show images of one size to a network, a few at once.

    Parameters
    ----------
    look : callable
        The network.
    images : sequence of float32 (h, w, 3)
        Of one size.
    most : Most
        How many at once. Where that is more than memory holds, half as many from then on, with one warning.

    Yields
    ------
    Tensor, shape (K, h, w)
        The maps of each image in order, in memory of the CPU that they share with no others.

    Raises
    ------
    CellsegError
        If memory ends with a single image.
    """
    done, wanted = 0, min(most.count, len(images))
    while done < len(images):
        batch = np.stack(images[done : done + most.count])
        maps = _maps_or_nothing(look, batch)
        if maps is None:
            if len(batch) == 1:
                size = " x ".join(map(str, batch.shape[1:3]))
                raise CellsegError(
                    f"out of memory while the network sees {size} pixels; a smaller --block or a smaller network needs "
                    "less, or another --device has more"
                )
            most.count = len(batch) // 2
            continue
        if most.count < wanted:
            warnings.warn(f"out of memory with {wanted} windows at once, going on with {most.count}", stacklevel=2)
            wanted = most.count
        done += len(batch)
        yield from ((maps[0].contiguous(),) if len(maps) == 1 else (one.clone() for one in maps.contiguous()))


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory of the CPU or of another device ended."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _maps_or_nothing(look: Look, batch: NDArray[np.float32]) -> torch.Tensor | None:
    """Return maps on the CPU, or None where memory ended; what the error held is free again then."""
    try:
        return look(batch).cpu()
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error) and (len(batch) == 1 or all(sign not in str(error) for sign in _NO_ENGINE)):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
