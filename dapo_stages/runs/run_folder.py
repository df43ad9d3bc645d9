"""The folder of a run: its configuration, which iterations and outputs exist, and the state of each."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from dapo_stages.config import Config, load_config
from dapo_stages.errors import ConfigError, DataError, ModelError
from dapo_stages.handoff.manifests import MANIFEST, Manifest, Source, manifest_of
from dapo_stages.handoff.referred import REFERENCE, differences, fetched, is_checked, refers
from dapo_stages.handoff.unfinished import LOCK, halted
from dapo_stages.runs.at_work import locked
from dapo_stages.runs.pipeline import BESIDE, FOLDERS, REPORTED, iteration_name

CONFIG = "config.yaml"
_ITERATION = re.compile(r"iter-(\d{4,})")
_INSIDE = re.compile(r"(?:.*/)?(iter-\d{4,}(?:/.*)?)", re.DOTALL)  # of a path: from the folder of its last iteration on

_USED = {"rollout": "sampled by", "train-step": "trained from", "evaluate": "an evaluation of"}

State = Literal["done", "pruned", "stale", "running", "unfinished", "halted", "missing", "damaged"]


@dataclass(frozen=True)
class OutputState:
    """The state of one output, and why it is not simply done."""

    state: State
    why: str = ""
    seconds: float | None = None
    ended: str | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Run:
    """The folder of a run, which need not exist. Nothing is read until it is asked for; its configuration is read once.

    What reads manifests raises DataError for a damaged one, except `state`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config_file(self) -> Path:
        """Where its configuration is, if it has one."""
        return self.path / CONFIG

    @property
    def config(self) -> Config | None:
        """Its configuration; None if there is none, or it is not valid."""
        return self._loaded[0]

    @property
    def trouble(self) -> str | None:
        """What is wrong with its configuration; None if that is valid, or does not exist yet."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Config | None, str | None]:
        try:
            return (load_config(self.config_file), None) if self.config_file.exists() else (None, None)
        except ConfigError as error:
            return None, str(error)

    @property
    def planned_iterations(self) -> int | None:
        """Iterations that it is configured for; None without a valid configuration."""
        return self.config.planned_iterations if self.config is not None else None

    def iterations(self) -> list[int]:
        """Numbers of the iterations with a folder, in order."""
        if not self.path.is_dir():
            return []
        matches = (_ITERATION.fullmatch(path.name) for path in self.path.iterdir() if path.is_dir())
        return sorted(int(match.group(1)) for match in matches if match)

    def folder(self, number: int) -> Path:
        """The folder of an iteration: 3 -> run/iter-0003."""
        return self.path / iteration_name(number)

    def place(self, recorded: str) -> Path:
        """Where an input recorded in a manifest is now: in this run, even if the run was moved or copied."""
        if inside := _INSIDE.fullmatch(recorded):
            return self.path / inside[1]
        name = os.path.basename(recorded)
        return self.path / name if name in {"data", "policy"} and (self.path / name).is_dir() else Path(recorded)

    def lacks_state(self, train: Path) -> bool:
        """Whether a train-step is made again before the next one: neither its state nor a later one is written.

        `train`: its output, which exists.
        """
        number = int(train.parent.name.removeprefix("iter-"))
        while (train / MANIFEST).exists():
            if (train / BESIDE["train-step"] / MANIFEST).exists():
                return False
            number += 1
            train = self.folder(number) / train.name
        return True

    def lost_inputs(self, manifest: Manifest) -> list[str]:
        """The inputs of an output that were lost and made again with another result: `sampled by a policy that …`."""
        found = []
        for name, source in manifest.inputs.items():
            try:
                now = manifest_of(self.place(source.path))
            except DataError:
                continue
            if now is not None and source.content_hash in now.replaces:
                lost, found_now = source.content_hash[:12], now.content_hash[:12]
                found.append(
                    f"{_USED.get(manifest.stage, 'made with')} a {name} that was lost ({lost}, now {found_now})"
                )
        return found

    def manifests(self, number: int) -> dict[str, Manifest]:
        """The manifests of the outputs of an iteration that a report reads, pruned or not."""
        folder = self.folder(number)
        found = {name: manifest_of(folder / name, FOLDERS[name]) for name in REPORTED}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def sources(self, number: int) -> dict[str, Source]:
        """The finished outputs of an iteration that a report reads; pruned ones are left out."""
        there = [name for name, manifest in self.manifests(number).items() if not manifest.pruned]
        return {name: Source(self.folder(number) / name, FOLDERS[name]) for name in there}

    def state(self, folder: Path, stage: str, held: Collection[str] | None = None) -> OutputState:
        """The state of one output. Only its manifest is read, and of a checkpoint that a policy refers to, the files
        that have changed since they were last hashed.

        `held`: the locks that are held, if the caller looks at many folders.
        """
        if locked(folder, held):
            return OutputState("running", "a process is writing here")
        try:
            manifest = manifest_of(folder, stage)
            misses = Source(folder).misses() if manifest is not None else []
        except DataError as error:
            return OutputState("damaged", error.problem)
        if why := halted(folder):
            return OutputState("halted", why, *((manifest.seconds, manifest.ended) if manifest else ()))
        if manifest is None:
            if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
                return OutputState("unfinished", "interrupted, or running on another machine")
            return OutputState("missing")
        if misses:
            which = misses[0] if len(misses) == 1 else f"{misses[0]} and {len(misses) - 1} more"
            return OutputState("damaged", f"missing or truncated: {which}", manifest.seconds, manifest.ended)
        referred = _referred(manifest)
        if isinstance(referred, DataError):
            return OutputState("damaged", f"{referred.where}: {referred.problem}", manifest.seconds, manifest.ended)
        changed = [reason for name in manifest.inputs if (reason := self._changed(manifest, name))]
        state: State = "stale" if changed else "pruned" if manifest.pruned else "done"
        why = "; ".join(changed) or referred or "; ".join(self.lost_inputs(manifest))
        beside = BESIDE.get(stage)
        if state == "done" and beside is not None and self.lacks_state(folder):
            if locked(folder / beside, held):
                return OutputState("running", f"a process is writing its {beside}")
            state, why = "unfinished", f"its {beside} was not written"
        return OutputState(state, why, manifest.seconds, manifest.ended)

    def _changed(self, manifest: Manifest, name: str) -> str:
        """How an input differs from the one that was read; empty if it does not, or if it no longer exists."""
        source = manifest.inputs[name]
        try:
            now = manifest_of(self.place(source.path))
        except DataError:
            return f"{name} is damaged"
        if now is None or manifest.still_has(name, now):
            return ""
        return f"{name} changed ({source.content_hash[:12]} -> {now.content_hash[:12]})"


def _referred(manifest: Manifest) -> DataError | str:
    """What is wrong with the checkpoint that a policy refers to, or why it cannot be checked; empty if it is intact."""
    about = manifest.policy
    if not refers(about):
        return ""
    if not is_checked(about):
        return f"{about[REFERENCE]}, which it refers to, cannot be checked: an older version recorded no hashes"
    try:
        return next(differences(about, fetched(about, download=False)), "")
    except ModelError:
        return f"{about[REFERENCE]}, which it refers to, is not on this machine"
    except DataError as error:
        return error
