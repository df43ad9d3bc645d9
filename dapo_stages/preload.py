"""Runs a command in a process that has torch and the model classes already: `python -m dapo_stages.preload rollout …`.

Same command line, streams, exit code and signals as `python -m dapo_stages`. The first command that needs a model
starts a parent, which imports what stages import and forks a child per command; it ends when nobody has asked for
anything for a while. Where there is no parent, or it is killed, the command runs in its own process as ever.

This module imports little of the standard library and nothing else: it is what a command waits for.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import signal
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

# Commands that start a parent; the others use one that is there.
STARTS = ("init-policy", "prepare-data", "rollout", "score-attention", "train-step", "evaluate")
STARTED = b"+"
# Of shells, of make and of our Makefile: other for every command, and read by nothing that is imported.
_PASSING = {
    *("_", "SHLVL", "PWD", "OLDPWD", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKE_TERMOUT", "MAKE_TERMERR"),
    *("RUN", "CONFIG", "SET", "ITERS", "ITER", "EVAL_EVERY", "PRELOAD", "LAUNCH", "LAUNCH_ARGS"),
}


def main() -> None:
    """Ask a parent to run the command of `sys.argv`, or run it here."""
    arguments = sys.argv[1:]
    if (code := _ask(arguments)) is not None:
        _exit(code)
    from dapo_stages.cli import main as run

    sys.argv[0] = str(Path(__file__).with_name("__main__.py"))  # what usage errors call this program
    run()


def _ask(arguments: list[str]) -> int | None:
    """The exit code of the command in a child of the parent, negative for a signal; None: run it here."""
    if sys.platform != "linux" or not arguments or "--help" in arguments:
        return None
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    try:
        connection = _connect(start=arguments[0] in STARTS)
        if connection is None:
            return None
        request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "signals": numbers}
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        if connection.recv(1) != STARTED:
            return None
    except OSError:
        return None
    stopped: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        with suppress(OSError):
            connection.send(bytes([number]))

    for number in numbers:
        signal.signal(number, forward)
    try:
        answer = connection.recv(16)
    except OSError:
        answer = b""
    if answer:
        return int(answer)
    return -stopped[0] if stopped else None  # the parent was killed, and the child with it


def _connect(*, start: bool) -> socket.socket | None:
    """A connection to the parent of commands such as this one, started if need be."""
    folder = _folder()
    path = folder / key()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(path))
        except OSError:
            if not start:
                return None
            path.unlink(missing_ok=True)
            _start(path)
            connection.connect(str(path))
    return connection


def _start(path: Path) -> None:
    """Start a parent. It is handed a socket that listens already, so nobody has to wait until it is ready."""
    import subprocess

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(64)
        subprocess.Popen(
            [sys.executable, "-m", "dapo_stages.preloaded", str(listener.fileno()), str(path)],
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the commands
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _folder() -> Path:
    """A folder of this user alone, with a short path: that of a socket has 107 bytes. OSError if there is none."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"dapo-stages-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder")
    return folder


def key() -> str:
    """Hash of what a process inherits and of what it imports: a parent serves commands that have the same."""
    mask = os.umask(0o077)
    os.umask(mask)
    inherited = {
        "environment": sorted((name, value) for name, value in os.environ.items() if name not in _PASSING),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT_" in name},
        "group": Path("/proc/self/cgroup").read_text(),
        "cores": sorted(os.sched_getaffinity(0)),
        "rest": [mask, os.getpriority(os.PRIO_PROCESS, 0), os.getgroups()],
    }
    return hashlib.sha256(json.dumps([inherited, python()]).encode()).hexdigest()[:24]


def python() -> list[object]:
    """The interpreter, its packages and the files of this one."""
    packages = [Path(place) for place in sys.path if place.endswith("-packages") and os.path.isdir(place)]
    files = sorted(Path(__file__).parent.rglob("*.py"))
    changed = [(str(path), path.stat().st_mtime_ns) for path in (*packages, *files)]
    return [sys.executable, sys.version, sys.prefix, sys.path, list(sys.flags), sys.warnoptions, changed]


def _exit(code: int) -> NoReturn:
    """End as the child did, by a signal too."""
    if code < 0:
        with suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
