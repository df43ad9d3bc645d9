"""Parts of a stored state are those of the whole one, and no more of a file is read than the rows that they lie in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dapo_stages.training.stored_state import InFile, InMemory, OtherPartError, PartInMemory, State

SHAPES = [(7,), (1,), (4, 3), (5, 2, 3), (1, 6), (3, 0)]
KEYS = ["exp_avg", "master", "step"]


def state_of(shape: tuple[int, ...]) -> State:
    count = int(torch.Size(shape).numel())
    numbers = torch.arange(count, dtype=torch.float32).reshape(shape)
    return {"exp_avg": numbers, "master": 100 + numbers, "step": torch.tensor(3.0)}


@pytest.fixture(params=SHAPES, ids=str)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[State, InFile]]:
    state = state_of(request.param)
    save_file({f"a/{key}": value for key, value in state.items()}, tmp_path / "state.safetensors")
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        yield state, InFile(file, "a", KEYS)


def test_every_part_is_that_of_the_flattened_tensor(stored: tuple[State, InFile]) -> None:
    state, in_file = stored
    count = state["exp_avg"].numel()
    for start in range(count + 1):
        for stop in range(start, count + 1):
            for found in (in_file.part(start, stop), InMemory(state).part(start, stop)):
                assert found["exp_avg"].tolist() == list(range(start, stop))
                assert found["master"].tolist() == [100 + number for number in range(start, stop)]
                assert found["step"] == 3


def test_the_whole_is_what_was_stored(stored: tuple[State, InFile]) -> None:
    state, in_file = stored
    for found in (in_file.whole(), InMemory(state).whole()):
        assert all(torch.equal(found[key], state[key]) for key in KEYS) and found.keys() == state.keys()


def test_another_shape_is_refused(stored: tuple[State, InFile]) -> None:
    state, in_file = stored
    for one in (in_file, InMemory(state)):
        one.check("a", state["exp_avg"].shape)
        with pytest.raises(ValueError, match=r"^exp_avg of a has shape \[.*\], but must have \[2, 2\]$"):
            one.check("a", (2, 2))


def test_a_kept_part_answers_for_itself_alone(stored: tuple[State, InFile]) -> None:
    state, in_file = stored
    shape, count = state["exp_avg"].shape, state["exp_avg"].numel()
    half = PartInMemory(in_file.part(0, count // 2), 0, count // 2, shape).on_host()
    half.check("a", shape)
    with pytest.raises(ValueError, match="must have"):
        half.check("a", (2, 2))
    assert half.part(0, count // 2)["master"].tolist() == [100 + number for number in range(count // 2)]
    for start, stop in ((0, count + 1), (1, count // 2)):
        with pytest.raises(OtherPartError):
            half.part(start, stop)
    everything = PartInMemory(in_file.part(0, count), 0, count, shape)
    assert all(torch.equal(everything.whole()[key], state[key]) for key in KEYS)


class Recorded:
    """A file of one tensor of 8 rows, and the rows that were read of it."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def get_slice(self, name: str) -> Any:
        return self

    def get_shape(self) -> list[int]:
        return [8, 4]

    def __getitem__(self, rows: slice) -> torch.Tensor:
        self.read.append((rows.start, rows.stop))
        return torch.zeros(rows.stop - rows.start, 4)


@pytest.mark.parametrize(("part", "rows"), [((0, 8), (0, 2)), ((9, 12), (2, 3)), ((6, 22), (1, 6)), ((0, 0), (0, 0))])
def test_only_the_rows_of_a_part_are_read(part: tuple[int, int], rows: tuple[int, int]) -> None:
    file = Recorded()
    InFile(file, "a", ["exp_avg"]).part(*part)
    assert file.read == [rows]
