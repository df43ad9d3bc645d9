"""SHA-256 of large files, each read once for as long as it stays as it is.

A file's hash is kept under its device, inode, size, and the times at which its content (mtime) and anything about it
(ctime) last changed. Programs can set mtime back, but not ctime. A file that changed within the last two seconds before
it was read could change again without its times telling, so its hash is not kept; git does the same with its index.

What this cannot see is a disk that returns other bytes than were written. Whoever must know reads the file again.
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

_LARGE = 1 << 20  # bytes; a smaller file is read faster than the list of hashes
_SETTLED = 2_000_000_000  # nanoseconds
_MOST = 4096  # files that are remembered
_BYTES = 2 << 20  # of the list; each line takes about 170
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_kept(path: Path, *, again: bool = False) -> str:
    """SHA-256 of a file, in hex; read only if it is not known from earlier, or if it is to be read `again`."""
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
    """The hash of a file, and what the system says of that very file before and after it was read."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, before, os.fstat(file.fileno())


def _key(found: os.stat_result) -> str:
    return "-".join(
        str(part) for part in (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    )


def place() -> Path | None:
    """The list's path, in a folder of the user's cache that nobody else can write into; None if there is none such."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "dapo-stages"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / "hashes.json" if _is_ours(folder.lstat(), stat.S_ISDIR) else None
    except (OSError, RuntimeError, ValueError):  # no home, a read-only one, a name that is none
        return None


def _is_ours(found: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Whether this is a file (or folder) of this user, and nobody else can write it."""
    return kind(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _load() -> dict[str, str]:
    """All that is kept; nothing where it is damaged, too large, or may be somebody else's."""
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
    """Add a hash, the oldest ones going. One that another process adds meanwhile may be lost: it is computed again."""
    path = place()
    kept = {**_load(), key: digest}
    if path is not None:
        with suppress(OSError):  # a full disk: it stays unknown
            write_text(path, json.dumps(dict(list(kept.items())[-_MOST:]), indent=0))
