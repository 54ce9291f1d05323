"""SHA-256 of what a checkpoint holds, kept inside it: a damaged file is noticed, wherever it was copied."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def sha256_of(content: Any) -> str:
    """Return the SHA-256 of tensors and plain values, nested in any way, as 64 hexadecimal digits.

    Parameters
    ----------
    content : Any
        Tensors of any shape, dtype and device, strings, numbers, None, and tables and lists of such. Tuples count as
        lists, and the order of a table does not count, for neither survives every file.

    Examples
    --------
    >>> sha256_of({"a": torch.zeros(2), "b": [1, "x"]}) == sha256_of({"b": (1, "x"), "a": torch.zeros(2)})
    True
    >>> sha256_of(torch.zeros(2)) == sha256_of(torch.zeros(3))
    False
    """
    known = hashlib.sha256()
    for part in _parts(content):
        known.update(part)
    return known.hexdigest()


def _parts(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, torch.Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)};".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, Mapping):
        yield f"table {len(value)};".encode()
        for key in sorted(value, key=repr):
            yield f"{key!r}:".encode("utf-8", "backslashreplace")
            yield from _parts(value[key])
    elif isinstance(value, list | tuple):
        yield f"list {len(value)};".encode()
        for part in value:
            yield from _parts(part)
    else:
        yield f"{value!r};".encode("utf-8", "backslashreplace")
