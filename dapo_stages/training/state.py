"""The optimizer's state as safetensors by weight name, the same for every launch: one process, DDP or any ZeRO stage.

Every rank writes the state of some weights, as whole tensors, so a state written by any number of ranks can be read by
any other; up to 2 GiB and one weight's state are held in memory. The frameworks' own checkpoints are tied to their
layout and are unpickled; these are not. Learning rate and seed are functions of the iteration and need no state.

state.json lists files and keys: on a network file system another machine may not see all files in the folder yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dapo_stages.processes import collectives
from dapo_stages.processes.phases import phase
from dapo_stages.small_files import is_inside, read_json
from dapo_stages.training.launching.rank_workers import Worker
from dapo_stages.training.stored_state import InFile, InMemory, State, Stored

ABOUT = "state.json"
_MOST_BYTES = 2 << 30  # of a file, and of what is held in memory until it is written


@phase("save")
def save_state(worker: Worker, folder: Path) -> list[str]:
    """Write this rank's share, and return the names of its files; every rank calls it."""
    files = _Files(folder, worker.rank)
    for number, name in enumerate(worker.trained):
        state = worker.state_of(name)
        if number % worker.ranks == worker.rank:
            files.add(name, state)
    return files.close(worker.optimizer, worker.trained, collectives.gather)


def share_of(worker: Worker, held: Mapping[str, Stored]) -> dict[str, Stored]:
    """This rank's share in host memory, as whole tensors, to be written later; every rank calls it.

    `held` is what the rank holds of each weight, in host memory.
    """
    share: dict[str, Stored] = {}
    for number, name in enumerate(worker.trained):
        whole = held[name] if isinstance(held[name], InMemory) else InMemory(worker.state_of(name))
        if number % worker.ranks == worker.rank:
            share[name] = whole.on_host()
    return share


def write_share(
    optimizer: str, weights: Sequence[str], share: Mapping[str, Stored], folder: Path, meeting: collectives.Meeting
) -> list[str]:
    """Write this rank's share from memory, and return the names of its files, which are those of save_state."""
    files = _Files(folder, meeting.rank)
    for name, stored in share.items():
        files.add(name, stored.whole())
    return files.close(optimizer, weights, meeting.gather)


def check_fits(worker: Worker, optimizer: str, weights: Iterable[str]) -> None:
    """Raise ValueError if a state is for another optimizer or other weights."""
    if optimizer != worker.optimizer:
        raise ValueError(f"it is for {optimizer}, not {worker.optimizer}")
    if other := set(weights) ^ set(worker.trained):
        raise ValueError(f"it is for other weights, such as {min(other)}")


def load_state(worker: Worker, folder: Path) -> None:
    """Resume from the files of a state; every rank calls it.

    Raises ValueError if it is for another optimizer or other weights, or not what was written.
    """
    about = read_json(folder / ABOUT)
    check_fits(worker, about["optimizer"], about["weights"])
    if outside := [name for name in about["files"] if not is_inside(name)]:
        raise ValueError(f"{ABOUT} names {outside[0]!r}, which is outside this folder")
    files = [folder / name for name in about["files"]]
    for path, keys in zip(files, about["files"].values(), strict=True):
        _check_keys(path, keys)
    with torch.no_grad():
        for name, stored in _read(files):
            worker.set_state(name, stored)


class _Files:
    """Files of up to 2 GiB; what does not fill one is held in memory."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._rank = folder, rank
        self._waiting: dict[str, torch.Tensor] = {}
        self.written: dict[str, list[str]] = {}  # the keys in each file

    def add(self, name: str, state: State) -> None:
        """Take the state of a weight."""
        self._waiting |= {f"{name}/{key}": value.detach().cpu().contiguous() for key, value in state.items()}
        if sum(value.nbytes for value in self._waiting.values()) >= _MOST_BYTES:
            self._write()

    def close(self, optimizer: str, weights: Sequence[str], gather: Callable[[Any], list[Any]]) -> list[str]:
        """Write the rest, and on rank 0 the list of all ranks' files. The names of those that this rank wrote."""
        if self._waiting:
            self._write()
        everywhere = {name: keys for of_rank in gather(self.written) for name, keys in of_rank.items()}
        if self._rank != 0:
            return list(self.written)
        about = {"optimizer": optimizer, "weights": list(weights), "files": everywhere}
        (self._folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return [ABOUT, *self.written]

    def _write(self) -> None:
        from safetensors.torch import save_file

        name = f"optimizer-{self._rank:05d}-{len(self.written):05d}.safetensors"
        save_file(self._waiting, self._folder / name)
        self.written[name] = sorted(self._waiting)
        self._waiting.clear()


def _check_keys(path: Path, listed: list[str]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        if other := set(listed) ^ set(file.keys()):
            raise ValueError(f"{path.name} does not match {ABOUT}, such as in {min(other)}")


def _read(files: Iterable[Path]) -> Iterator[tuple[str, Stored]]:
    """The state of each weight, one at a time, in the same order for all ranks."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            keys: dict[str, list[str]] = {}
            for key in sorted(file.keys()):
                keys.setdefault(key.rpartition("/")[0], []).append(key)
            for name, of_name in keys.items():
                yield name, InFile(file, name, [key.rpartition("/")[2] for key in of_name])
