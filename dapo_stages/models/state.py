"""The optimiser's state as safetensors by weight name, the same whoever trained: one process, DDP or any ZeRO stage.

Every rank writes a share of the weights' state and holds little more than one weight's at a time, so that a state
written by any number of ranks is read by any other. Frameworks' own checkpoints bind it to their layout and are
unpickled; these are not. Learning rate and seed are functions of the iteration and need no state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from dapo_stages.models.parallel import State, Worker

ABOUT = "state.json"
_MOST_BYTES = 2 << 30  # of a file, and of what waits in memory to be written


def save_state(worker: Worker, folder: Path) -> None:
    """Write this rank's share; every rank calls it. The folder is whole when all have returned."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting: dict[str, torch.Tensor] = {}
    written = 0
    for number, name in enumerate(worker.trained):
        state = worker.state_of(name)
        if number % worker.ranks == worker.rank:
            waiting |= {f"{name}/{key}": value.detach().cpu().contiguous() for key, value in state.items()}
        if sum(value.nbytes for value in waiting.values()) >= _MOST_BYTES:
            written = _write(waiting, folder, worker.rank, written)
    if waiting:
        _write(waiting, folder, worker.rank, written)
    if worker.rank == 0:
        about = {"optimizer": worker.optimizer, "weights": list(worker.trained)}
        (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load_state(worker: Worker, folder: Path) -> None:
    """Carry on from a state; every rank calls it. Raises ValueError if it is of another optimiser or other weights."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if about["optimizer"] != worker.optimizer:
        raise ValueError(f"that of {about['optimizer']}")
    if other := set(about["weights"]) ^ set(worker.trained):
        raise ValueError(f"that of other weights, such as {min(other)}")
    with torch.no_grad():
        for name, state in _read(folder):
            worker.set_state(name, state)


def _write(tensors: dict[str, torch.Tensor], folder: Path, rank: int, number: int) -> int:
    from safetensors.torch import save_file

    save_file(tensors, folder / f"optimizer-{rank:05d}-{number:05d}.safetensors")
    tensors.clear()
    return number + 1


def _read(folder: Path) -> Iterator[tuple[str, State]]:
    """The state of each weight, one at a time, in the same order for all ranks."""
    from safetensors import safe_open

    for path in sorted(folder.glob("optimizer-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys: dict[str, list[str]] = {}
            for key in file.keys():  # noqa: SIM118 (it is no dictionary)
                keys.setdefault(key.rpartition("/")[0], []).append(key)
            for name, of_name in keys.items():
                yield name, {key.rpartition("/")[2]: file.get_tensor(key) for key in of_name}
