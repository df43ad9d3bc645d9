"""A lock for each GPU of this machine: two stages on one, each with a model, would run out of memory.

A lock is a file in /tmp, locked by `flock` until the process that took it has ended, however it ends. Processes in
other containers see other files, and do not wait.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from dapo_stages.terminal.safe_text import one_line

FOLDER = Path("/tmp")
_SHOWN = 100  # characters of a command


def visible(environment: str | None, there: int) -> list[str]:
    """The names of the GPUs that processes may use, of `there` GPUs: those of CUDA_VISIBLE_DEVICES if it is set."""
    if environment is None:
        return list(map(str, range(there)))
    return [name.strip() for name in environment.split(",") if name.strip() not in ("", "-1")]


def there() -> int:
    """NVIDIA GPUs of this machine, without asking the driver."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def take(gpus: Sequence[str], waiting: Callable[[str, str], None]) -> None:
    """Lock GPUs for this process and the program that it becomes; wait for those that others have locked.

    `waiting` is called before each wait, with the GPU and what uses it. All take GPUs in the same order, so none waits
    for another in a circle. Raises OSError if a lock can be neither opened nor made.
    """
    for gpu in sorted(set(gpus)):
        while not _locked(FOLDER / f"dapo-stages-gpu-{gpu}.lock", gpu, waiting):
            pass


def _locked(path: Path, gpu: str, waiting: Callable[[str, str], None]) -> bool:
    """Lock a file, which stays open; False if it was removed meanwhile, and another one has to be locked."""
    lock = _open(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting(gpu, _holder(os.fstat(lock).st_ino))
        fcntl.flock(lock, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(lock), os.lstat(path)):
            os.set_inheritable(lock, True)  # by the program that this process becomes; what that starts closes it
            return True
    os.close(lock)
    return False


def _open(path: Path) -> int:
    """Open a lock, or make one that all users can lock. Never through a link, which anybody could leave there."""
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with suppress(FileExistsError):
            lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(lock, 0o644)  # whatever the umask says
            return lock


def _holder(inode: int) -> str:
    """The process that has locked a file, as Linux knows it: `process 123 (python -m dapo_stages train-step …)`."""
    with suppress(OSError, IndexError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                told = Path(f"/proc/{words[4]}/cmdline").read_text(encoding="utf-8", errors="replace")
                command = one_line(told.replace("\0", " ")).strip()
                return f"process {words[4]} ({command[:_SHOWN]}{'…' if len(command) > _SHOWN else ''})"
    return "another process"
