"""SHA-256 of large files, each read once as long as it does not change.

Hashes are cached by device, inode, size, and the times at which the content (mtime) and anything about the file (ctime)
last changed. Programs can set mtime back, but not ctime. A file that changed within the last two seconds before it was
read could change again without a change of its times, so its hash is not cached; git does the same with its index.

A disk that returns other bytes than were written is not noticed. To check for that, read the file again (`again`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dapo_stages.handoff.shards import write_text
from dapo_stages.small_files import read_json

_LARGE = 1 << 20  # bytes; a smaller file is read faster than the cache
_SETTLED = 2_000_000_000  # nanoseconds
_MOST = 4096  # cached hashes
_BYTES = 2 << 20  # largest size of the cache; each line takes about 170
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_kept(path: Path, *, again: bool = False) -> str:
    """SHA-256 of a file, in hex; the file is read only if its hash is not cached, or with `again`."""
    found = path.stat()
    if found.st_size < _LARGE:
        return _read(path)[0]
    known = _load()
    if not again and _key(found) in known:
        return known[_key(found)]
    started = time.time_ns()
    digest, before, after = _read(path)
    settled = max(before.st_mtime_ns, before.st_ctime_ns) < started - _SETTLED
    if settled and _key(before) == _key(after) and known.get(_key(before)) != digest:
        _keep(_key(before), digest)
    return digest


def _read(path: Path) -> tuple[str, os.stat_result, os.stat_result]:
    """The hash of a file, and its `stat` before and after it was read."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, before, os.fstat(file.fileno())


def _key(found: os.stat_result) -> str:
    return "-".join(
        str(part) for part in (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    )


def place() -> Path | None:
    """Path of the cache, in a folder of the user's that nobody else can write to; None if there is no such folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "dapo-stages"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / "hashes.json" if _is_ours(folder.lstat(), stat.S_ISDIR) else None
    except (OSError, RuntimeError, ValueError):  # no home, a read-only one, an invalid path
        return None


def _is_ours(found: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Whether this is a file (or folder) of this user that nobody else can write to."""
    return kind(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _load() -> dict[str, str]:
    """All cached hashes; none if the cache is damaged, too large, or may be somebody else's."""
    path = place()
    try:
        if path is None or not _is_ours(path.lstat(), stat.S_ISREG):
            return {}
        values = read_json(path, _BYTES)
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if isinstance(value, str) and _SHA256.fullmatch(value)}


def _keep(key: str, digest: str) -> None:
    """Add a hash and drop the oldest ones. One that another process adds meanwhile may be lost and computed again."""
    path = place()
    kept = {**_load(), key: digest}
    if path is not None:
        with suppress(OSError):  # the disk is full: it is not cached
            write_text(path, json.dumps(dict(list(kept.items())[-_MOST:]), indent=0))
