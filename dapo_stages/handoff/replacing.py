"""Replacing an output: the old one stays complete until the new one is, and no reader sees a mixture."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dapo_stages.handoff.manifests import MANIFEST, read_manifest
from dapo_stages.handoff.shards import fsync_folder, write_text
from dapo_stages.handoff.unfinished import (
    LOCK,
    NEXT,
    OLD,
    PARTS,
    SWAPPING,
    is_of_state,
    is_ours,
    is_written,
    manifests_last,
)
from dapo_stages.small_files import read_json

_PREPARED = ".swapping.tmp"


def finish_replacement(out: Path) -> None:
    """Swap in a finished replacement (one with a manifest in .next), or finish a swap that was interrupted.

    The old manifest is removed first and the new one is moved in last, so that no reader ever sees a mixture. Files
    that no stage wrote stay where they are.
    """
    waiting = out / NEXT
    swapping = waiting / SWAPPING
    if not (waiting / MANIFEST).exists():
        left = {path.name for path in waiting.rglob("*") if not path.is_dir()}
        if waiting.is_dir() and (SWAPPING in left or left <= {OLD}):  # interrupted after the last move
            shutil.rmtree(waiting)
        return
    read_manifest(waiting)
    if not swapping.exists():
        write_text(waiting / _PREPARED, "")  # while the old output is complete: the disk may be full
        if (out / MANIFEST).exists():
            os.replace(out / MANIFEST, waiting / OLD)
            fsync_folder(out)
        _remove(out, _listed(waiting / OLD))
        os.replace(waiting / _PREPARED, swapping)
        fsync_folder(waiting)
    for path in sorted(waiting.rglob("*"), key=manifests_last):
        target = out / path.relative_to(waiting)
        if path.is_file() and not is_ours(path.name) and target != out / MANIFEST:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            fsync_folder(target.parent)
    fsync_folder(out)
    os.replace(waiting / MANIFEST, out / MANIFEST)
    fsync_folder(out)
    shutil.rmtree(waiting)


def _listed(manifest: Path) -> set[str] | None:
    """Names of the files of an output that is being replaced; None if its manifest is damaged."""
    try:
        return {str(shard["name"]) for shard in read_json(manifest)["shards"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(out: Path, listed: set[str] | None) -> None:
    """Remove the files of an old output, the manifests of its parts, and what interruptions left.

    Without a list, the files with names that only stages use.
    """
    parts = PARTS | {name.split("/")[0] for name in listed or () if "/" in name}
    for path in sorted(out.rglob("*"), key=manifests_last, reverse=True):
        name = path.relative_to(out).as_posix()
        top = name.split("/")[0]
        if top == NEXT or name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            if top in parts and not any(path.iterdir()):
                path.rmdir()
        else:
            written = is_of_state(name) or (is_written(name, set()) if listed is None else name in listed)
            if written or is_ours(name) or (top in parts and path.name == MANIFEST):
                path.unlink()
