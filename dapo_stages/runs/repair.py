"""Cleaning up a run folder: removes what interrupted processes left, and nothing that was ever published."""

from __future__ import annotations

from dapo_stages.errors import LockedError
from dapo_stages.handoff.unfinished import is_temporary, leftovers, remove_leftovers
from dapo_stages.runs.at_work import locked
from dapo_stages.runs.checkup import places
from dapo_stages.runs.run_folder import Run


def remove(run: Run) -> list[str]:
    """Remove temporary files and unpublished parts; returns their names, relative to the run.

    Outputs that are links, such as a policy that several runs start from, are left alone. Raises LockedError, and
    removes nothing, while a process writes anywhere in the run.
    """
    folders = [place.folder for place in places(run)]
    outputs = [folder for folder in folders if folder.resolve() == run.path.resolve() / folder.relative_to(run.path)]
    busy = next((folder for folder in outputs if locked(folder)), None)
    if busy is not None:
        raise LockedError(
            f"{busy}: a process is writing here. Wait for it, or stop it, and run the same command again."
        )
    removed = [path for folder in outputs if leftovers(folder) for path in remove_leftovers(folder)]
    for folder in (run.path, *map(run.folder, run.iterations())):
        for path in sorted(folder.iterdir()):
            if path.is_file() and is_temporary(path):
                path.unlink()
                removed.append(path)
    return [path.relative_to(run.path).as_posix() for path in removed]
