"""Runs a command in a process that has already imported torch and the model classes.

    python -m dapo_stages.entrypoints.preload rollout …

Same command line, streams, exit code and signals as `python -m dapo_stages`. The first command that needs a model
starts a parent, which imports what stages import and forks a child per command; it exits after a while without
requests. If there is no parent, or it was killed or stopped, the command runs in its own process as usual. So it does
if it is unknown whether parent and command have the same permissions (dapo_stages/entrypoints/inherited.py).

This module imports only a little of the standard library, because every command waits for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from dapo_stages.entrypoints.inherited import inherited, is_stopped, look_into
from dapo_stages.processes.phases import BEGUN, begun

# Commands that start a parent; others only use an existing one.
STARTS = ("init-policy", "prepare-data", "rollout", "score-attention", "train-step", "evaluate")
STARTED = b"+"
PATIENCE = 5.0  # seconds that a command waits for something that takes milliseconds
_IMPORTING = 60.0  # seconds that a parent may take to import everything, on a slow disk
_TICK = 0.5  # seconds between checks of a parent that does not answer
_WORD = 16  # bytes of a message
# Variables of shells, make and our Makefile that differ between commands, and that no import reads.
_PASSING = {
    *("_", "SHLVL", "PWD", "OLDPWD", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKE_TERMOUT", "MAKE_TERMERR"),
    *("RUN", "CONFIG", "SET", "ITERS", "ITER", "EVAL_EVERY", "PRELOAD", "LAUNCH", "LAUNCH_ARGS"),
}


def main() -> None:
    """Ask a parent to run the command of `sys.argv`, or run it here."""
    arguments = sys.argv[1:]
    if (code := _ask(arguments)) is not None:
        _exit(code)
    from dapo_stages.entrypoints.cli import main as run

    sys.argv[0] = str(Path(__file__).parents[1] / "__main__.py")  # the program name in usage errors,
    sys.modules["__main__"].__package__ = "dapo_stages"  # and the package it belongs to
    run()


class _Stuck(OSError):
    """Something that should answer at once has not; the command continues without a parent."""


def _ask(arguments: list[str]) -> int | None:
    """The exit code of the command in a child of the parent, negative for a signal; None: run it here."""
    if sys.platform != "linux" or not arguments or "--help" in arguments:
        return None
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    stopped: list[int] = []
    try:
        connected = _connect(start=arguments[0] in STARTS)
        if connected is None:
            return None
        connection, parent = connected
        request = {
            "arguments": arguments,
            "environment": {**os.environ, BEGUN: begun()},
            "folder": os.getcwd(),
            "signals": numbers,
        }
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        said = _first_of(connection, parent)
        if not said.startswith(STARTED):
            return None
        child = int(said.removeprefix(STARTED))

        def forward(number: int, frame: FrameType | None) -> None:
            stopped.append(number)
            with suppress(OSError):
                os.kill(child, number)

        for number in numbers:
            signal.signal(number, forward)
        answer = _last_of(connection, child)
    except _Stuck as stuck:
        print(f"dapo-stages: {stuck}. This command continues in its own process.", file=sys.stderr, flush=True)
        answer = b""
    except OSError:
        answer = b""
    if answer:
        return int(answer)
    return -stopped[0] if stopped else None  # the parent was killed, and its child with it


def _first_of(connection: socket.socket, parent: int) -> bytes:
    """The parent's first message, that the command runs, and its process ID. The parent may have to import first."""
    begun = time.monotonic()
    connection.settimeout(_TICK)
    while True:
        try:
            return connection.recv(_WORD)
        except TimeoutError:
            waited = time.monotonic() - begun
            if waited < (PATIENCE if is_stopped(parent) else _IMPORTING):
                continue
        with suppress(OSError):  # then it exits, and the next command starts another one
            Path(connection.getpeername()).unlink()
        raise _Stuck(
            f"process {parent}, which commands are forked from, has not answered for {waited:.0f} s (`kill -KILL "
            f"{parent}` ends it)"
        )


def _last_of(connection: socket.socket, child: int) -> bytes:
    """The parent's last message, the exit code; empty if it has ended, and its children with it."""
    connection.settimeout(None)
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    with suppress(OSError):  # an old kernel, or the child has already ended
        waiting.register(os.pidfd_open(child), select.POLLIN)
    if connection.fileno() not in dict(waiting.poll()):
        connection.settimeout(PATIENCE)
    try:
        return connection.recv(_WORD)
    except TimeoutError:
        raise _Stuck(
            f"this command's process {child} has ended, but the process that it was forked from has not reported its "
            f"exit code for {PATIENCE:.0f} s"
        ) from None


def _connect(*, start: bool) -> tuple[socket.socket, int] | None:
    """A connection to the parent for commands like this one, started if necessary, and its process ID."""
    folder = _folder()
    path = folder / key()
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        _wait_for(lock)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            if not start:
                return None
            path.unlink(missing_ok=True)
            parent = _start(path)
            connection.connect(str(path))
        else:
            parent, _ = peer(connection)
            look_into(parent)
    return connection, parent


def _wait_for(lock: IO[str]) -> None:
    """Take a lock that others hold only for milliseconds."""
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() < end:
            time.sleep(0.02)
            continue
        raise _Stuck(
            f"{lock.name} has been locked by another process for {PATIENCE:.0f} s (`fuser {lock.name}` names it)"
        )


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process ID and user ID at the other end of a connection."""
    process, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user


def _start(path: Path) -> int:
    """Start a parent and return its process ID. Its socket already listens, so commands can connect at once."""
    import subprocess

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(64)
        return subprocess.Popen(
            [sys.executable, "-m", "dapo_stages.entrypoints.preloaded", str(listener.fileno()), str(path)],
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is only for the commands
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).pid


def _folder() -> Path:
    """A private folder with a short path (socket paths have at most 107 bytes). Raises OSError if it is not private."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"dapo-stages-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder")
    return folder


def key() -> str:
    """Hash of what a process inherits and imports: a parent serves only commands with the same hash."""
    environment = sorted((name, value) for name, value in os.environ.items() if name not in _PASSING)
    return hashlib.sha256(json.dumps([environment, inherited(), python()]).encode()).hexdigest()[:24]


def python() -> list[object]:
    """The interpreter, its packages and the files of this package."""
    packages = [Path(place) for place in sys.path if place.endswith("-packages") and os.path.isdir(place)]
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    changed = [(str(path), path.stat().st_mtime_ns) for path in (*packages, *files)]
    return [sys.executable, sys.version, sys.prefix, sys.path, list(sys.flags), sys.warnoptions, changed]


def _exit(code: int) -> NoReturn:
    """Exit as the child did, also by a signal."""
    if code < 0:
        with suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
