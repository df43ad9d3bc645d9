"""The optimizer's state as safetensors by weight name, the same for every launch: one process, DDP or any ZeRO stage.

Every rank writes the state of some weights, as whole tensors, so a state written by any number of ranks can be read by
any other; up to 2 GiB and one weight's state are held in memory. The frameworks' own checkpoints are tied to their
layout and are unpickled; these are not. Learning rate and seed are functions of the iteration and need no state.

state.json lists files and keys: on a network file system another machine may not see all files in the folder yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from dapo_stages.handoff import kept
from dapo_stages.handoff.manifests import Source
from dapo_stages.processes import collectives
from dapo_stages.processes.phases import phase
from dapo_stages.small_files import is_inside, read_json
from dapo_stages.training.launching.rank_workers import State, Worker

ABOUT = "state.json"
_MOST_BYTES = 2 << 30  # of a file, and of what is held in memory until it is written


class Kept(NamedTuple):
    """A state in memory, as a process keeps it between commands: what the files have."""

    optimizer: str
    tensors: dict[str, State]  # by weight


@phase("save")
def save_state(worker: Worker, folder: Path) -> list[str]:
    """Write this rank's share, and return the names of its files; every rank calls it."""
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


def keep_state(worker: Worker, content_hash: str) -> None:
    """Keep the state that was saved, in a process that runs several commands; not if it is split over ranks."""
    if kept.keeps() and worker.ranks == 1:
        tensors = {name: worker.state_of(name) for name in worker.trained}
        kept.give("state", content_hash, Kept(worker.optimizer, tensors))


@phase("load")
def resume(worker: Worker, state: Source) -> None:
    """Resume from a state, kept or from its files; every rank calls it.

    Raises ValueError if it is for another optimizer or other weights, or not what was written.
    """
    found: Kept | None = kept.take("state", state.manifest.content_hash)
    if found is None:
        kept.drop("state")
        load_state(worker, state.folder)
        return
    _check_fits(worker, found.optimizer, found.tensors)
    for name in list(found.tensors):  # none is held twice
        worker.set_state(name, found.tensors.pop(name))


def _check_fits(worker: Worker, optimizer: str, weights: Iterable[str]) -> None:
    if optimizer != worker.optimizer:
        raise ValueError(f"it is for {optimizer}, not {worker.optimizer}")
    if other := set(weights) ^ set(worker.trained):
        raise ValueError(f"it is for other weights, such as {min(other)}")


def load_state(worker: Worker, folder: Path) -> None:
    """The same from files."""
    about = read_json(folder / ABOUT)
    _check_fits(worker, about["optimizer"], about["weights"])
    if outside := [name for name in about["files"] if not is_inside(name)]:
        raise ValueError(f"{ABOUT} names {outside[0]!r}, which is outside this folder")
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


def _check_keys(path: Path, listed: list[str]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        if other := set(listed) ^ set(file.keys()):
            raise ValueError(f"{path.name} does not match {ABOUT}, such as in {min(other)}")


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
