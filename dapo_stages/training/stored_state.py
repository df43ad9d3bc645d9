"""The optimizer's state of one weight, in memory or in a file: each rank reads only the part that it holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

State = dict[str, torch.Tensor]
STEP = "step"  # a number; all other tensors have the shape of the weight


class Stored(ABC):
    """Tensors by name: moments, the exact weight (`master`), and the number of steps."""

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raise ValueError unless they are for a weight of this shape."""
        for key, found in self._shapes().items():
            if key != STEP and list(found) != list(shape):
                raise ValueError(f"{key} of {name} has shape {list(found)}, but must have {list(shape)}")

    @abstractmethod
    def on_host(self) -> Stored:
        """The same in host memory."""

    @abstractmethod
    def whole(self) -> State:
        """All of it."""

    @abstractmethod
    def part(self, start: int, stop: int) -> State:
        """Elements `start` to `stop` of each tensor, flattened, and the number of steps."""

    @abstractmethod
    def _shapes(self) -> Mapping[str, Sequence[int]]: ...


class InMemory(Stored):
    """A state that a process has kept."""

    def __init__(self, state: State) -> None:
        self._state = state

    def on_host(self) -> InMemory:
        return InMemory(_on_host(self._state))

    def whole(self) -> State:
        return self._state

    def part(self, start: int, stop: int) -> State:
        return {key: value if key == STEP else value.flatten()[start:stop] for key, value in self._state.items()}

    def _shapes(self) -> Mapping[str, Sequence[int]]:
        return {key: value.shape for key, value in self._state.items()}


class OtherPartError(ValueError):
    """What was kept is not the part that is asked for: the ranks split the weights in another way now."""


class PartInMemory(Stored):
    """The part that a rank has kept: elements `start` to `stop` of a weight of this shape, flattened."""

    def __init__(self, state: State, start: int, stop: int, shape: Sequence[int]) -> None:
        self._state, self._range, self._shape = state, (start, stop), list(shape)

    def on_host(self) -> PartInMemory:
        return PartInMemory(_on_host(self._state), *self._range, self._shape)

    def whole(self) -> State:
        part = self.part(0, prod(self._shape))
        return {key: value if key == STEP else value.reshape(self._shape) for key, value in part.items()}

    def part(self, start: int, stop: int) -> State:
        if (start, stop) != self._range:
            raise OtherPartError(f"elements {self._range} were kept, not {(start, stop)}")
        return self._state

    def _shapes(self) -> Mapping[str, Sequence[int]]:
        return dict.fromkeys(self._state, self._shape)


class InFile(Stored):
    """Tensors NAME/KEY of an open safetensors file."""

    def __init__(self, file: Any, name: str, keys: Sequence[str]) -> None:
        self._file, self._name, self._keys = file, name, keys

    def whole(self) -> State:
        return {key: self._file.get_tensor(f"{self._name}/{key}") for key in self._keys}

    def part(self, start: int, stop: int) -> State:
        return {key: self._elements(key, start, stop) for key in self._keys}

    def _elements(self, key: str, start: int, stop: int) -> torch.Tensor:
        if key == STEP:
            step: torch.Tensor = self._file.get_tensor(f"{self._name}/{key}")
            return step
        stored = self._file.get_slice(f"{self._name}/{key}")
        rows, *rest = stored.get_shape()
        width = prod(rest)
        first = min(start // width, rows) if width else 0
        last = -(-stop // width) if width and stop > start else first
        found: torch.Tensor = stored[first:last].flatten()  # whole rows: files are sliced along the first dimension
        return found[start - first * width : stop - first * width]

    def on_host(self) -> Stored:
        return InMemory(self.whole())

    def _shapes(self) -> Mapping[str, Sequence[int]]:
        return {key: self._file.get_slice(f"{self._name}/{key}").get_shape() for key in self._keys if key != STEP}


def _on_host(state: State) -> State:
    return {key: value.cpu() for key, value in state.items()}
