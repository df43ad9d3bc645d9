"""What is in an output folder besides published files: a lock, notes, leftovers; and the names that only stages use.

One run writes an output at a time, under `.lock`; `.partial*.json` list the shards that its processes have finished,
and `.next` holds an output that will replace the existing one (replacing.py).
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dapo_stages.errors import DataError, LockedError
from dapo_stages.handoff.manifests import MANIFEST, STATE, kind_of
from dapo_stages.handoff.shards import Shard
from dapo_stages.small_files import is_inside, read_json

LOCK = ".lock"
NEXT = ".next"
_NOTE = ".partial"  # .partial.json, .partial-00001.json, …: the finished shards, as noted by each process
HALTED = ".partial-halted.json"  # why there is no output; the next run removes it like other notes
SWAPPING = ".swapping"
OLD = ".old.json"  # the manifest of what is being replaced
WRITING = ".writing"  # files that are not finished yet
_OF_STATE = re.compile(r"state/(state\.json|optimizer-\d{5}-\d{5}\.safetensors)")
PARTS = frozenset({"policy", "reference", "state", WRITING})  # folders written into before their files are noted


def halted(out: Path | str) -> str:
    """Why the last run of a stage halted without an output; empty if it did not."""
    for path in (Path(name) for name in (f"{out}/{HALTED}", f"{out}/{NEXT}/{HALTED}") if os.path.exists(name)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(read_json(path)["why"])
    return ""


def is_temporary(path: Path) -> bool:
    """Whether this is a file that a process was writing when it ended; its name has the process id."""
    number = path.name.removesuffix(".tmp").rpartition(".")[2]
    if not (path.name.startswith(".") and path.name.endswith(".tmp") and number.isdigit()):
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's process
        pass
    return False


def is_swapping(out: Path) -> bool:
    """Whether a finished replacement is not (entirely) moved in yet: running the same command again does that."""
    return (out / NEXT / MANIFEST).exists()


def is_unfinished(out: Path) -> bool:
    """Whether a stage has begun to fill this folder and has not published it."""
    return bool(notes(out)) and not (out / MANIFEST).exists()


def leftovers(out: Path) -> list[Path]:
    """Files and folders that an interrupted run left in an output folder and that no reader uses, deepest first.

    Temporary files, notes, and parts that were never published, these only if they have a name that stages use.
    Never what a manifest lists, nor a finished replacement.
    """
    found = [path for path in out.rglob("*") if is_temporary(path)]
    if is_swapping(out):
        return found
    if (out / MANIFEST).exists():
        unpublished = [*notes(out), out / WRITING, out / NEXT, *([out / STATE] if _is_lost(out / STATE) else [])]
    elif not notes(out):  # nothing says that these files were not published
        unpublished = []
    else:
        noted = {shard.name for note in notes(out) for shard in read_note(note)[1]}
        tops = {name.split("/")[0] for name in noted}
        unpublished = [path for path in out.iterdir() if path.name in tops or is_written(path.name, noted)]
    found += [path for path in unpublished if path.exists() and path.name != LOCK]
    inside = {below for path in found if path.is_dir() for below in path.rglob("*")}
    return sorted({*found, *inside}, reverse=True)


def _is_lost(folder: Path) -> bool:
    """Whether a state was begun, but not finished, and nobody writes it."""
    return folder.is_dir() and not _is_held(folder / LOCK) and not (folder / MANIFEST).exists()


def _is_held(lock: Path) -> bool:
    """Whether a process holds a lock. Nothing is created or changed: `doctor` only looks."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_of_state(name: str) -> bool:
    """Whether a path in an output is that of a file of its state."""
    return _OF_STATE.fullmatch(name) is not None or (name.startswith(f"{STATE}/") and is_note(name[len(STATE) + 1 :]))


def is_ours(name: str) -> bool:
    return name in {LOCK, NEXT, SWAPPING, OLD} or is_note(name) or (name.startswith(".") and name.endswith(".tmp"))


def is_written(name: str, noted: set[str]) -> bool:
    """Whether the stage wrote the file with this name at the top of an unfinished output, noted or not yet."""
    from dapo_stages.handoff.schemas import SCHEMAS

    shard = name.endswith(".parquet") and kind_of(name) in SCHEMAS
    return shard or name in noted or name in PARTS or is_ours(name)


def note_name(rank: int) -> str:
    return f"{_NOTE}-{rank:05d}.json" if rank else f"{_NOTE}.json"


def is_note(name: str) -> bool:
    return name.startswith(_NOTE) and name.endswith(".json")


def notes(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_NOTE}*.json"))


def read_note(path: Path) -> tuple[str, list[Shard]]:
    """The fingerprint and the shards that a process noted; empty if the note is damaged."""
    try:
        state = read_json(path)
        shards = [Shard(**shard) for shard in state["shards"]]
        return state["fingerprint"], [shard for shard in shards if is_inside(shard.name)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", []


def forget(folder: Path, but: str = "") -> None:
    for note in notes(folder):
        if note.name != but:
            note.unlink()


def clear(folder: Path, keep: set[str], noted: set[str]) -> None:
    """Remove what the stage wrote, except some shards. Raises DataError, and removes nothing, if there is more."""
    strangers = sorted({path.name for path in folder.iterdir() if not is_written(path.name, noted)})
    if strangers:
        problem = f"must have only files of the stage, but has others ({shortened(strangers)})"
        raise DataError(folder, problem, "Move them elsewhere, or name another --out.")
    for path in sorted(folder.rglob("*"), key=manifests_last, reverse=True):  # a manifest before what it lists
        name = path.relative_to(folder).as_posix()
        if name in keep or name == LOCK or is_note(name) or name.split("/")[0] == NEXT:
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink()


def shortened(names: Sequence[str]) -> str:
    """The first three names."""
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def manifests_last(path: Path) -> tuple[bool, Path]:
    return path.name == MANIFEST, path


def remove_leftovers(out: Path) -> list[Path]:
    """Remove the leftovers, under the lock of the folder. Raises LockedError while another run writes there."""
    with locked(out):
        found = leftovers(out)
        for path in found:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return found


@contextmanager
def locked(out: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    fresh = not (out / LOCK).exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError(out, "cannot create the folder: a file is in the way", "Name another --out.") from None
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError):  # the latter if a run that failed has just removed the folder
        raise LockedError(f"{out}: another run is writing here. Wait for it, stop it, or name another --out.") from None
    try:
        yield
    except Exception:
        if fresh and not notes(out) and not (out / NEXT).exists():
            (out / LOCK).unlink(missing_ok=True)  # a process that waits for this very file notices that
            _remove_empty(made)
        raise
    finally:
        lock.release()


def leave_no_trace(folder: Path, out: Path) -> None:
    """Remove what a failed run without any finished shard has left in its folder."""
    with suppress(DataError):  # there are files that no stage wrote: they stay
        clear(folder, keep=set(), noted=set())
    forget(folder)
    if folder != out:
        _remove_empty([folder])


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # another process has written there meanwhile
            return
