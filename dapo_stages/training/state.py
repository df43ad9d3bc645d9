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
from typing import Any, NamedTuple

import torch

from dapo_stages.handoff import kept
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.unfinished import locked
from dapo_stages.processes import collectives
from dapo_stages.processes.phases import phase
from dapo_stages.small_files import is_inside, read_json
from dapo_stages.training.launching.rank_workers import Worker
from dapo_stages.training.stored_state import InFile, InMemory, State, Stored

ABOUT = "state.json"
_MOST_BYTES = 2 << 30  # of a file, and of what is held in memory until it is written


class Kept(NamedTuple):
    """A state in memory, as a process keeps it between commands: what the files have."""

    optimizer: str
    tensors: dict[str, State]  # by weight


@phase("save")
def save_state(worker: Worker, folder: Path) -> list[str]:
    """Write this rank's share, and return the names of its files; every rank calls it."""
    files = _Files(folder, worker.rank)
    for number, name in enumerate(worker.trained):
        state = worker.state_of(name)
        if number % worker.ranks == worker.rank:
            files.add(name, state)
    files.close()
    everywhere = {name: keys for of_rank in collectives.gather(files.written) for name, keys in of_rank.items()}
    if worker.rank != 0:
        return list(files.written)
    _write_about(folder, worker.optimizer, list(worker.trained), everywhere)
    return [ABOUT, *files.written]


def state_of(worker: Worker) -> Kept:
    """The state of a worker that has no other ranks."""
    return Kept(worker.optimizer, {name: worker.state_of(name) for name in worker.trained})


def write_behind(plan: Plan, state: Kept, policy: dict[str, Any], counts: dict[str, Any]) -> None:
    """Write a state as an output of its own, then keep it. Nobody may change it meanwhile.

    Its manifest has the same fields, and so the same hash, as one that is written together with the train-step's.
    """
    folder = plan.out
    with locked(folder):
        output = Output(plan, folder, [])
        output.policy, output.counts = policy, counts
        try:
            files = _Files(folder, 0)
            for name, tensors in state.tensors.items():
                files.add(name, tensors)
            files.close()
            _write_about(folder, state.optimizer, list(state.tensors), files.written)
            output.add_files(ABOUT, *files.written)
            manifest = output.publish()
        finally:
            output.close()
        output.keep_hashes()
    kept.give("state", manifest.content_hash, state)


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
        worker.set_state(name, InMemory(found.tensors.pop(name)))


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

    def close(self) -> None:
        """Write the rest."""
        if self._waiting:
            self._write()

    def _write(self) -> None:
        from safetensors.torch import save_file

        name = f"optimizer-{self._rank:05d}-{len(self.written):05d}.safetensors"
        save_file(self._waiting, self._folder / name)
        self.written[name] = sorted(self._waiting)
        self._waiting.clear()


def _write_about(folder: Path, optimizer: str, weights: list[str], files: dict[str, list[str]]) -> None:
    about = {"optimizer": optimizer, "weights": weights, "files": files}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


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
