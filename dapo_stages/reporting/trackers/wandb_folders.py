"""The folders of a W&B run. Offline there is one, which has everything: it is written anew beside the one before it,
and takes its place when it is complete. W&B cannot continue an offline folder, and `wandb sync` of several with one id
leaves only what the last of them has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "wandb"
_OFFLINE, _ONLINE, _UNFINISHED, _STAGED = "offline-run-", "run-", "unfinished", "staged"


class Folders:
    """What W&B keeps in the folder of a run."""

    def __init__(self, run: Path) -> None:
        self.root = run.resolve() / FOLDER

    def offline(self, identity: str) -> list[Path]:
        """Folders of an id that wait for `wandb sync`, or had it."""
        return [path for path in self._of(identity) if path.name.startswith(_OFFLINE)]

    def uploaded(self, identity: str) -> bool:
        """Whether the service may have something of this id: it was sent or synced, or nobody can tell."""
        folders = self._of(identity)
        online = len(self.offline(identity)) < len(folders)
        return not folders or online or any(self.synced(path) for path in folders)

    @staticmethod
    def synced(folder: Path) -> bool:
        """Whether `wandb sync` has uploaded it."""
        return any(folder.glob("run-*.wandb.synced"))

    @contextmanager
    def anew(self, identity: str) -> Iterator[Path]:
        """Where to write a whole run offline; in the end that replaces every other folder of this id.

        `wandb sync` does not look where it is written, so one that was cut off is never uploaded.
        """
        place = self.root / _UNFINISHED
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        with self._staging(f"{_STAGED}/{os.getpid()}-{os.urandom(4).hex()}") as staged:
            yield place
        (made,) = (place / FOLDER).glob(f"{_OFFLINE}*")
        target, earlier = self.root / made.name, self._of(identity)
        if target.exists():  # begun in the same second
            earlier.remove(target)
            target.rename(place / target.name)
        made.rename(target)
        for folder in earlier:
            shutil.rmtree(folder)
        for folder in staged.parent.glob("*") if staged is not None else ():
            if folder != staged:
                shutil.rmtree(folder)
        shutil.rmtree(place)

    @contextmanager
    def continued(self, identity: str) -> Iterator[Path]:
        """Where to log what is sent at once; in the end its folder is the only one of this id."""
        with self._staging(_STAGED):
            yield self.root.parent
        for folder in self._of(identity)[:-1]:
            shutil.rmtree(folder)

    def _of(self, identity: str) -> list[Path]:
        """All folders of an id: offline ones first, each in the order of their times."""
        kinds = (_OFFLINE, _ONLINE)
        found = (
            [path for path in self.root.iterdir() if path.name.endswith(f"-{identity}")] if self.root.is_dir() else []
        )
        return sorted(path for path in found if path.name.startswith(kinds) and path.is_dir())

    @contextmanager
    def _staging(self, name: str) -> Iterator[Path | None]:
        """What W&B stages for uploading is kept in the run, where `wandb sync` finds it; None: the user says where."""
        self.root.mkdir(exist_ok=True)
        if os.environ.get("WANDB_DATA_DIR"):
            yield None
            return
        os.environ["WANDB_DATA_DIR"] = str(self.root / name)
        try:
            yield self.root / name
        finally:
            del os.environ["WANDB_DATA_DIR"]
