"""What ranks send one another, counted where torch.distributed is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Of each call the place of the tensor that is whole, and how often a share of it is sent: around a ring of n ranks
# what is gathered or scattered travels (n − 1) / n of its bytes from each, what is all-reduced twice that.
_CALLS = {"all_reduce": (0, 2), "reduce_scatter_tensor": (1, 1), "all_gather_into_tensor": (0, 1)}


class Sent:
    """Bytes that this rank sends from now on. DeepSpeed looks the functions up when it starts: be before it."""

    def __init__(self, ranks: int) -> None:
        self._share, self._bytes = (ranks - 1) / ranks, 0.0
        for name, (place, times) in _CALLS.items():
            setattr(torch.distributed, name, self._counting(getattr(torch.distributed, name), place, times))

    def clear(self) -> float:
        """Those since the last time."""
        found, self._bytes = self._bytes, 0.0
        return found

    def _counting(self, function: Callable[..., Any], place: int, times: int) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            tensors = [value for value in (*args, *options.values()) if isinstance(value, torch.Tensor)]
            self._bytes += times * self._share * tensors[place].nbytes
            return function(*args, **options)

        return counted
