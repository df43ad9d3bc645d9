"""What was checked before and found right, in a file of the user's cache: while nothing has changed, it is right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dapo_stages import __version__
from dapo_stages.handoff import hashes
from dapo_stages.handoff.shards import write_text
from dapo_stages.small_files import read_json

_MOST = 512  # checks
_BYTES = 1 << 16


class Checked:
    """Keys of checks that passed. A key names the check, what it was told, and the times of the files that it read."""

    def __init__(self) -> None:
        cache = hashes.place()
        self._path = None if cache is None else cache.with_name("checked.json")
        self._known = self._load()
        self._new: list[str] = []

    @contextmanager
    def once(self, name: str, told: Any, files: Sequence[Path]) -> Iterator[bool]:
        """Yields whether the check is to be made; if the block raises nothing, it counts as passed."""
        stats = [(str(file.absolute()), *_times(file)) for file in files]
        text = json.dumps([__version__, name, told, stats], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        yield key not in self._known
        self._new.append(key)

    def keep(self) -> None:
        """Write what passed, unless it is there already."""
        known = list(dict.fromkeys([*self._new, *self._known]))[:_MOST]
        if self._path is not None and set(known) != set(self._known):
            with suppress(OSError):
                write_text(self._path, json.dumps(known))

    def _load(self) -> list[str]:
        with suppress(OSError, ValueError):
            if self._path is not None and isinstance(found := read_json(self._path, _BYTES), list):
                return [str(one) for one in found]
        return []


def _times(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino
