"""prune: remove large files of old iterations; their manifests stay, so that make redoes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dapo_stages.config import KeepConfig, load_config
from dapo_stages.errors import LockedError
from dapo_stages.handoff.manifests import MANIFEST, mark_pruned, read_manifest, remembered
from dapo_stages.handoff.unfinished import LOCK, NEXT, is_swapping, locked
from dapo_stages.runs.pipeline import FOLDERS
from dapo_stages.runs.run_folder import Run
from dapo_stages.terminal.console import say
from dapo_stages.terminal.options import ConfigFile, DryRun, Overrides, RunFolder

# The folders of an iteration that each `keep` setting covers.
PARTS = {
    "rollouts": ("rollout", "attention", "weights"),
    "states": ("train/state",),
    "policies": ("train/policy", "train/reference"),
}
# Never removed. If a lock were deleted while a process holds it or waits for it, two could write at the same time.
_STAYS = frozenset({MANIFEST, LOCK, NEXT})


def main(
    config_file: ConfigFile,
    folder: RunFolder,
    set_: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Remove large files of old iterations, as the keep section says; their manifests stay.

    The newest trained iterations are kept, and (keep.best) the policy with the best held-out accuracy. Rollouts and
    policies are only removed once their iteration has a report. A policy that an adapter needs stays as long as the
    adapter. With a curriculum (rollout.curriculum), which reads them, all rollouts stay. An output that another process
    is writing is left alone.

    Example: dapo-stages prune --config run.yaml --run training_logs/first --set keep.policies=3 --dry-run
    """
    config = load_config(config_file, set_)
    with remembered():
        going = prunable(Run(folder), config.keep, config.lag, curriculum=config.rollout.curriculum is not None)
    for one in going:
        if dry_run:
            say(f"prune: would remove the files of {one}")
        else:
            _prune(one)


def prunable(run: Run, keep: KeepConfig, lag: int = 0, *, curriculum: bool = False) -> list[Path]:
    """Folders that are older than what is kept and not pruned yet. Rollouts need a policy `lag` train-steps old.

    With a curriculum every rollout is an input of all later ones, including one that is being sampled. If one were
    removed meanwhile, an interrupted rollout could not resume, and its prompts would depend on when that happened.
    """
    folders = [run.folder(number) for number in run.iterations()]
    trained = [folder for folder in folders if (folder / "train" / MANIFEST).exists()]
    found = []
    for name, parts in PARTS.items():
        newest = getattr(keep, name)
        if newest is not None and name == "policies":
            newest = max(newest, 1 + lag)
        for iteration in trained[:-newest] if newest is not None else []:
            going = [iteration / part for part in parts if not (curriculum and part == "rollout")]
            going = [folder for folder in going if _has_files(folder)]
            if going and (name == "states" or (iteration / "report" / MANIFEST).exists()):
                found += going
    again = _for_lost_states(run, trained)
    found = [folder for folder in found if folder.resolve() not in again]
    needed = _needed(run, keep, found)
    going = [folder for folder in found if folder.resolve() not in needed]
    for folder in going:  # before anything is removed: a damaged manifest cannot be marked
        read_manifest(folder)
    return going


def _needed(run: Run, keep: KeepConfig, going: list[Path]) -> set[Path]:
    """Policies that stay at any age: the best one, the reference, and the bases of adapters that stay."""
    from dapo_stages.runs.best import find_best

    if not any(folder.name in {"policy", "reference"} for folder in going):
        return set()
    best = find_best(run) if keep.best else None
    needed = {(run.path / best.policy).resolve()} if best else set()
    references = [folder for folder in going if folder.name == "reference"]
    if references:  # the newest of them is the reference of the oldest train-step that stays
        needed.add(references[-1].resolve())
    gone = {folder.resolve() for folder in going} - needed
    for number in run.iterations():
        folder = run.folder(number) / "train" / "policy"
        adapter = read_manifest(folder) if _has_files(folder) else None
        if adapter and "base" in adapter.policy and not adapter.pruned and folder.resolve() not in gone:
            needed.add((folder / adapter.policy["base"]).resolve())
    return needed


def _for_lost_states(run: Run, trained: list[Path]) -> set[Path]:
    """What the train-steps since the last written state need to be made again."""
    needed: set[Path] = set()
    for folder in trained:
        if run.lacks_state(folder / "train"):
            sources = read_manifest(folder / "train").inputs.values()
            needed |= {run.place(source.path).resolve() for source in sources}
    return needed


def _has_files(folder: Path) -> bool:
    """Whether a published folder has more than its manifest; also true after an interrupted prune."""
    try:
        names = set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return MANIFEST in names and not names <= _STAYS


def _prune(folder: Path) -> None:
    """Remove the files of an output, or of a part of one, under the lock of its stage.

    The manifest is marked before any file is removed, so that an interrupted prune never looks like damage. What an
    interrupted run has written for a replacement (.next) stays.
    """
    out = folder if folder.name in FOLDERS else folder.parent
    try:
        with locked(out):
            if is_swapping(out):
                say(f"prune: skipping {folder}: its finished replacement is not moved in yet; run its stage again")
            elif _has_files(folder):  # nobody has replaced or pruned it meanwhile
                say(f"prune: removing the files of {folder}")
                _remove(folder)
    except LockedError:
        say(f"prune: skipping {folder}: another process is writing there")


def _remove(folder: Path) -> None:
    if not read_manifest(folder).pruned:
        mark_pruned(folder)
    for path in folder.iterdir():
        if path.name not in _STAYS:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
