"""The optimiser's state as safetensors by weight name, the same whoever trained: one process, DDP or any ZeRO stage.

Every rank writes a share of the weights' state, whole tensors, so that a state written by any number of ranks is read
by any other; up to 2 GiB and one weight's state wait in its memory. Frameworks' own checkpoints bind it to their
layout and are unpickled; these are not. Learning rate and seed are functions of the iteration and need no state.

state.json lists files and keys: a machine that shares the folder over a network may list it before all is to be seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from dapo_stages.processes import collectives
from dapo_stages.small_files import is_inside, read_json
from dapo_stages.training.launching.rank_workers import State, Worker

ABOUT = "state.json"
_MOST_BYTES = 2 << 30  # of a file, and of what waits in memory to be written


def save_state(worker: Worker, folder: Path) -> list[str]:
    """Write this rank's share, and give the names of its files; every rank calls it."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting: dict[str, torch.Tensor] = {}
    written: dict[str, list[str]] = {}  # the keys in each file
    for number, name in enumerate(worker.trained):
        state = worker.state_of(name)
        if number % worker.ranks == worker.rank:
            waiting |= {f"{name}/{key}": value.detach().cpu().contiguous() for key, value in state.items()}
        if sum(value.nbytes for value in waiting.values()) >= _MOST_BYTES:
            _write(waiting, folder, worker.rank, written)
    if waiting:
        _write(waiting, folder, worker.rank, written)
    files = {name: keys for of_rank in collectives.gather(written) for name, keys in of_rank.items()}
    if worker.rank != 0:
        return list(written)
    about = {"optimizer": worker.optimizer, "weights": list(worker.trained), "files": files}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return [ABOUT, *written]


def load_state(worker: Worker, folder: Path) -> None:
    """Carry on from a state; every rank calls it.

    Raises ValueError if it is of another optimiser or other weights, or not what was written.
    """
    about = read_json(folder / ABOUT)
    if about["optimizer"] != worker.optimizer:
        raise ValueError(f"that of {about['optimizer']}")
    if other := set(about["weights"]) ^ set(worker.trained):
        raise ValueError(f"that of other weights, such as {min(other)}")
    if outside := [name for name in about["files"] if not is_inside(name)]:
        raise ValueError(f"{ABOUT} names {outside[0]!r}, a file elsewhere")
    files = [folder / name for name in about["files"]]
    for path, keys in zip(files, about["files"].values(), strict=True):
        _check_keys(path, keys)
    with torch.no_grad():
        for name, state in _read(files):
            worker.set_state(name, state)


def _write(tensors: dict[str, torch.Tensor], folder: Path, rank: int, written: dict[str, list[str]]) -> None:
    from safetensors.torch import save_file

    name = f"optimizer-{rank:05d}-{len(written):05d}.safetensors"
    save_file(tensors, folder / name)
    written[name] = sorted(tensors)
    tensors.clear()


def _check_keys(path: Path, needed: list[str]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        if other := set(needed) ^ set(file.keys()):
            raise ValueError(f"{path.name} differs from what {ABOUT} lists, such as in {min(other)}")


def _read(files: Iterable[Path]) -> Iterator[tuple[str, State]]:
    """The state of each weight, one at a time, in the same order for all ranks."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            keys: dict[str, list[str]] = {}
            for key in sorted(file.keys()):
                keys.setdefault(key.rpartition("/")[0], []).append(key)
            for name, of_name in keys.items():
                yield name, {key.rpartition("/")[2]: file.get_tensor(key) for key in of_name}
