"""Which processes work on a run: its configuration must not change meanwhile.

A stage that writes holds the lock of its output. Between two stages nothing is locked, so each make leaves a note of
its process: a file RUN-PROCESS, beside the file of that run that it includes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from dapo_stages.errors import LockedError
from dapo_stages.handoff.shards import write_text
from dapo_stages.handoff.unfinished import LOCK


def join(note: Path) -> None:
    """Leave the note of a make, and remove those of makes that have ended."""
    note.parent.mkdir(parents=True, exist_ok=True)
    for other in _notes(note):
        if not _is_alive(other):
            other.unlink(missing_ok=True)
    write_text(note, _started(_process(note)))


def check_idle(run: Path, note: Path | None) -> None:
    """Raise LockedError while an output of a run is written, or a make other than the one of this note is running."""
    makes = [other for other in _notes(note) if other != note and _is_alive(other)] if note is not None else []
    locks = (lock.parent for pattern in (f"*/{LOCK}", f"*/*/{LOCK}") for lock in run.glob(pattern))
    held = held_locks()
    at_work = [f"make (process {_process(make)})" for make in makes] + [str(out) for out in locks if locked(out, held)]
    if at_work:
        raise LockedError(
            f"{run}: in use with other settings ({', '.join(at_work)}). Wait for that to end, stop it, or name another "
            "run (RUN=…)."
        )


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


def _notes(note: Path) -> Iterator[Path]:
    run = note.name.rpartition("-")[0]
    return (path for path in note.parent.iterdir() if path.name.rpartition("-")[::2] == (run, str(_process(path))))


def _is_alive(note: Path) -> bool:
    with suppress(OSError, ValueError):
        return note.read_text(encoding="utf-8") == _started(_process(note)) != ""
    return False


def _process(note: Path) -> int:
    number = note.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _started(process: int) -> str:
    """When a local process started, in clock ticks since boot; empty if there is no such process, or no /proc."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        return fields.split()[19]
    return ""
