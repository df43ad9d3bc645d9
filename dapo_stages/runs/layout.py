"""The folders of a run: which iterations and outputs exist, and the state of each."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dapo_stages.errors import DataError, ModelError
from dapo_stages.handoff.manifests import MANIFEST, Manifest, Source, read_manifest
from dapo_stages.handoff.referred import REFERENCE, differences, fetched, is_checked, refers
from dapo_stages.handoff.unfinished import LOCK, halted
from dapo_stages.runs.pipeline import FOLDERS, REPORTED, iteration_name

_ITERATION = re.compile(r"iter-(\d{4,})")
_INSIDE = re.compile(r"(?:.*/)?(iter-\d{4,}(?:/.*)?)", re.DOTALL)  # of a path: from the folder of its last iteration on

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


def iteration_folder(run: Path, iteration: int) -> Path:
    """`run`, 3 -> run/iter-0003."""
    return run / iteration_name(iteration)


def iterations(run: Path) -> list[int]:
    """Numbers of the iterations with a folder, in order."""
    if not run.is_dir():
        return []
    matches = (_ITERATION.fullmatch(path.name) for path in run.iterdir() if path.is_dir())
    return sorted(int(match.group(1)) for match in matches if match)


def manifest_of(folder: Path, stage: str | None = None) -> Manifest | None:
    """The manifest of an output, pruned or not; None if there is none yet."""
    return read_manifest(folder, stage) if os.path.exists(f"{folder}/{MANIFEST}") else None


def sources(run: Path, iteration: int) -> dict[str, Source]:
    """The finished outputs of an iteration that a report reads; pruned ones are left out."""
    found = {}
    for name in REPORTED:
        folder = iteration_folder(run, iteration) / name
        manifest = manifest_of(folder, FOLDERS[name])
        if manifest is not None and not manifest.pruned:
            found[name] = Source(folder, FOLDERS[name])
    return found


def pruned(run: Path, iteration: int) -> dict[str, Manifest]:
    """The outputs of an iteration whose files were removed on purpose."""
    folder = iteration_folder(run, iteration)
    manifests = {name: manifest_of(folder / name, FOLDERS[name]) for name in REPORTED}
    return {name: manifest for name, manifest in manifests.items() if manifest is not None and manifest.pruned}


def seconds_of(run: Path, iteration: int) -> dict[str, float]:
    """Seconds that each stage of an iteration took, from the manifests (they outlive pruned files)."""
    return {name: manifest.seconds for name, manifest in _manifests(run, iteration).items()}


def memory_of(run: Path, iteration: int) -> dict[str, float]:
    """Peak memory of each stage in GiB; manifests of older versions do not have it."""
    found = _manifests(run, iteration).items()
    return {name: manifest.memory / 2**30 for name, manifest in found if manifest.memory is not None}


def _manifests(run: Path, iteration: int) -> dict[str, Manifest]:
    folder = iteration_folder(run, iteration)
    found = {name: manifest_of(folder / name, FOLDERS[name]) for name in REPORTED}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def look(run: Path, folder: Path, stage: str, held: Collection[str] | None = None) -> OutputState:
    """The state of one output of a run. Only its manifest is read, and of a checkpoint that a policy refers to, the
    files that have changed since they were last hashed.

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
    changed = [reason for name in manifest.inputs if (reason := _changed(run, manifest, name))]
    state: State = "stale" if changed else "pruned" if manifest.pruned else "done"
    why = "; ".join(changed) or referred
    return OutputState(state, why, manifest.seconds, manifest.ended)


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


def locked(folder: Path, held: Collection[str] | None = None) -> bool:
    """Whether a local process holds the lock of an output; known on Linux only."""
    with suppress(OSError):
        number = str((folder / LOCK).stat().st_ino)
        return number in (held_locks() if held is None else held)
    return False


def held_locks() -> set[str]:
    """Inodes of the files that local processes have locked; empty on systems other than Linux."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    return {words[5].rpartition(":")[2] for line in lines if (words := line.split())[1] == "FLOCK"}


def place_of(run: Path, recorded: str) -> Path:
    """Where an input recorded in a manifest is now: in this run, even if the run was moved or copied."""
    if inside := _INSIDE.fullmatch(recorded):
        return run / inside[1]
    name = os.path.basename(recorded)
    return run / name if name in {"data", "policy"} and (run / name).is_dir() else Path(recorded)


def _changed(run: Path, manifest: Manifest, name: str) -> str:
    """How an input differs from the one that was read; empty if it does not, or if it no longer exists."""
    source = manifest.inputs[name]
    try:
        now = manifest_of(place_of(run, source.path))
    except DataError:
        return f"{name} is damaged"
    if now is None or now.content_hash == source.content_hash:
        return ""
    return f"{name} changed ({source.content_hash[:12]} -> {now.content_hash[:12]})"
