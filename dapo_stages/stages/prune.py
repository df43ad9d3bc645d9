"""prune: large files of old iterations out; their manifests stay, so that make redoes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from dapo_stages.config import KeepConfig, load_config
from dapo_stages.console import say
from dapo_stages.manifests import MANIFEST, mark_pruned, read_manifest
from dapo_stages.stages.options import ConfigFile, DryRun, Overrides

# What each `keep` setting is about: folders of an iteration, relative to it.
PARTS = {
    "rollouts": ("rollout", "attention", "weights"),
    "states": ("train/state",),
    "policies": ("train/policy", "train/reference"),
}


def main(
    config: ConfigFile,
    run: Annotated[Path, typer.Option("--run", help="Folder of the run.", metavar="DIR", exists=True, file_okay=False)],
    set_: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Remove large files of old iterations, as the keep section says; their manifests stay.

    The newest trained iterations are kept, and (keep.best) the policy with the best held-out accuracy. Rollouts and
    policies go only once their iteration is reported; a policy that an adapter needs stays as long as the adapter, and
    all rollouts under a curriculum (rollout.curriculum), which goes by them.

    Example: dapo-stages prune --config run.yaml --run training_logs/first --set keep.policies=3 --dry-run
    """
    settings = load_config(config, set_)
    for folder in prunable(run, settings.keep, settings.lag, curriculum=settings.rollout.curriculum is not None):
        say(f"prune: {'would remove' if dry_run else 'removing'} the files of {folder}")
        if not dry_run:
            _prune(folder)


def prunable(run: Path, keep: KeepConfig, lag: int = 0, *, curriculum: bool = False) -> list[Path]:
    """Folders that are older than what is kept and not pruned yet. Rollouts need a policy `lag` train-steps old.

    Under a curriculum every rollout is an input of all later ones, of one that is being sampled too: would one go
    meanwhile, an interrupted rollout could not carry on, and what is asked would depend on when it went.
    """
    trained = sorted(path.parent.parent for path in run.glob("iter-[0-9]*/train/manifest.json"))
    found = []
    for name, parts in PARTS.items():
        newest = getattr(keep, name)
        if newest is not None and name == "policies":
            newest = max(newest, 1 + lag)
        for iteration in trained[:-newest] if newest is not None else []:
            reported = (iteration / "report" / MANIFEST).exists()
            if name != "states" and not reported:
                continue
            folders = [iteration / part for part in parts if not (curriculum and part == "rollout")]
            found += [folder for folder in folders if (folder / MANIFEST).exists() and not _is_pruned(folder)]
    needed = _needed(run, keep, found)
    return [folder for folder in found if folder.resolve() not in needed]


def _needed(run: Path, keep: KeepConfig, going: list[Path]) -> set[Path]:
    """Policies that stay however old they are: the best one, the reference, and those under adapters that stay."""
    from dapo_stages.reporting.best import find_best

    best = find_best(run) if keep.best else None
    needed = {(run / best.policy).resolve()} if best else set()
    references = [folder for folder in going if folder.name == "reference"]
    if references:  # the newest of them is that of the first train-step after the policies that stay
        needed.add(references[-1].resolve())
    gone = {folder.resolve() for folder in going} - needed
    for path in run.glob("iter-[0-9]*/train/policy/" + MANIFEST):
        adapter = read_manifest(path.parent)
        if "base" in adapter.policy and not adapter.pruned and path.parent.resolve() not in gone:
            needed.add((path.parent / adapter.policy["base"]).resolve())
    return needed


def _is_pruned(folder: Path) -> bool:
    """Whether nothing is left but the manifest; a prune that was cut off is not done."""
    return read_manifest(folder).pruned and all(path.name == MANIFEST for path in folder.iterdir())


def _prune(folder: Path) -> None:
    """The manifest says so before anything goes: a cut-off prune never looks like damage."""
    if not read_manifest(folder).pruned:
        mark_pruned(folder)
    for path in folder.iterdir():
        if path.name != MANIFEST:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
