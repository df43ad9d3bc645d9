"""SHA-256 of large files, each read once as long as it does not change.

Hashes are cached by device, inode, size, and the times at which the content (mtime) and anything about the file (ctime)
last changed. Programs can set mtime back, but not ctime. A file that changed just before it was read could change again
without a change of its times, so its hash is not cached; git does the same with its index. How long before depends on
the file system's clock: two seconds if it counts whole seconds.

A disk that returns other bytes than were written is not noticed. To check for that, read every file again
(`reading_again`, `verify: always`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dapo_stages.handoff.shards import write_text
from dapo_stages.small_files import read_json

_LARGE = 1 << 20  # bytes; a smaller file is read faster than the cache
_SECOND = 1_000_000_000  # nanoseconds
_SETTLED = 2 * _SECOND  # after which another change has another time, where times are in seconds
_SETTLED_FINELY = 50_000_000  # the same where they are in ticks of the kernel, which are 10 ms at most
_MOST = 4096  # cached hashes
_BYTES = 2 << 20  # largest size of the cache; each line takes about 170
_SHA256 = re.compile(r"[0-9a-f]{64}")


_again = False


@contextmanager
def reading_again(on: bool) -> Iterator[None]:
    """A context in which every file is read, if `on`."""
    global _again
    before, _again = _again, on
    try:
        yield
    finally:
        _again = before


def sha256_kept(path: Path, *, again: bool = False) -> str:
    """SHA-256 of a file, in hex; the file is read only if its hash is not cached, or with `again`."""
    found = _stat(path)
    if found.st_size < _LARGE:
        return _read(path)[0]
    known = _load()
    again = again or _again
    if not again and _key(found) in known:
        return known[_key(found)]
    started = time.time_ns()
    digest, before, after = _read(path)
    settled = _unsettled(before, started) <= 0
    if settled and _key(before) == _key(after) and known.get(_key(before)) != digest:
        _keep({_key(before): digest})
    return digest


def keep_written(files: Mapping[Path, tuple[os.stat_result, str]]) -> None:
    """Cache the hashes of files that this process has written, each with its `stat` when it was hashed.

    A file may have been renamed since. One that has changed, or is small, is left out.
    """
    found: dict[str, str] = {}
    now = time.time_ns()
    wait = 0
    for path, (before, digest) in files.items():
        with suppress(OSError):
            after = _stat(path)
            if after.st_size >= _LARGE and _content(after) == _content(before):
                wait = max(wait, _unsettled(after, now))
                found[_key(after)] = digest
    if found and wait <= _SETTLED_FINELY:
        time.sleep(max(wait, 0) / _SECOND)
        _keep(found)


def _unsettled(found: os.stat_result, now: int) -> int:
    """Nanoseconds until any other change of a file gets another time."""
    in_seconds = all(time % _SECOND == 0 for time in (found.st_mtime_ns, found.st_ctime_ns))
    return max(found.st_mtime_ns, found.st_ctime_ns) + (_SETTLED if in_seconds else _SETTLED_FINELY) - now


def _stat(path: Path) -> os.stat_result:
    """The `stat` of a file that is opened for it: network file systems then ask their server."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _content(found: os.stat_result) -> tuple[int, ...]:
    """What stays the same if a file is renamed."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


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
    global _loaded
    if (path := place()) is None:
        return {}
    try:
        found = path.lstat()
        if not _is_ours(found, stat.S_ISREG):
            return {}
        if _loaded is None or _loaded[0] != _key(found):
            _loaded = _key(found), _valid(read_json(path, _BYTES))
    except (OSError, ValueError):
        return {}
    return _loaded[1]


_loaded: tuple[str, dict[str, str]] | None = None  # the cache as it was last read, and which file that was


def _valid(values: object) -> dict[str, str]:
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if isinstance(value, str) and _SHA256.fullmatch(value)}


def _keep(hashes: Mapping[str, str]) -> None:
    """Add hashes and drop the oldest ones."""
    if (path := place()) is None:
        return
    with suppress(OSError), open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:  # the disk may be full
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = {**_load(), **hashes}
        write_text(path, json.dumps(dict(list(kept.items())[-_MOST:]), indent=0))
