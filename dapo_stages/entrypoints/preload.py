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
from collections.abc import Callable
from contextlib import suppress
from errno import ECONNREFUSED
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple, NoReturn

from dapo_stages.entrypoints.inherited import inherited, is_stopped, look_into
from dapo_stages.processes.phases import BEGUN, begun

ASKED = b"?"  # for the request: sent earlier, its streams would stay open in the queue of a server that is stopped
STARTED = b"+"  # and the ID of the process that runs the command and gets its signals
TAKEN = b"="  # and the ID of a worker that will run it, and gets its signals through the connection
PATIENCE = 5.0  # seconds that a command waits for something that takes milliseconds
_IMPORTING = 60.0  # seconds that a parent may take to import everything, on a slow disk
_TICK = 0.5  # seconds between checks of a parent that does not answer
_WORD = 16  # bytes of a message
KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
MAKE = "DAPO_STAGES_MAKE"  # process ID of the make that a command belongs to
# Variables of shells, make and our Makefile that differ between commands, and that no import reads.
PASSING = {
    *("_", "SHLVL", "PWD", "OLDPWD", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKE_TERMOUT", "MAKE_TERMERR"),
    *("RUN", "CONFIG", "SET", "ITERS", "ITER", "EVAL_EVERY", "PRELOAD", "RESIDENT", "LAUNCH", "LAUNCH_ARGS"),
    *("GPUS", "SHARE_GPUS", BEGUN, MAKE),
}


class Server(NamedTuple):
    """A process that runs commands for others, and how it is found."""

    program: str  # the module that it runs
    starts: tuple[str, ...]  # commands that start it; others only use an existing one
    name: Callable[[str], str]  # of its socket, for commands with a certain key
    follows: bool  # whether another one may follow while it does not answer
    options: tuple[str, ...] = ()  # of the program


def main(server: Server | None = None) -> None:
    """Ask a server to run the command of `sys.argv`, or run it here."""
    ask(sys.argv[1:], server or PARENT)
    from dapo_stages.entrypoints.cli import main as run

    sys.argv[0] = str(Path(__file__).parents[1] / "__main__.py")  # the program name in usage errors,
    sys.modules["__main__"].__package__ = "dapo_stages"  # and the package it belongs to
    run()


class _Stuck(OSError):
    """Something that should answer at once has not; the command continues without a server."""


def ask(arguments: list[str], server: Server) -> None:
    """Exit as the command did that a server has run. Returns if none runs it."""
    if (code := _ask(arguments, server)) is not None:
        _exit(code)


def _ask(arguments: list[str], server: Server) -> int | None:
    """The exit code of the command as the server ran it, negative for a signal; None: run it here."""
    if sys.platform != "linux" or not arguments or "--help" in arguments:
        return None
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    stopped: list[int] = []
    try:
        ours = key()
        path = _folder() / server.name(ours)
        connected = _connect(server, path, start=arguments[0] in server.starts)
        if connected is None:
            return None
        connection, process = connected
        request = {
            "arguments": arguments,
            "environment": {**os.environ, BEGUN: begun()},
            "folder": os.getcwd(),
            "signals": numbers,
            "key": ours,
        }
        if _next_of(connection, process, server) != ASKED:
            return None
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        said = _next_of(connection, process, server)
        if not said.startswith((STARTED, TAKEN)):
            return None
        runs, is_child = int(said[1:]), said.startswith(STARTED)

        def forward(number: int, frame: FrameType | None) -> None:
            stopped.append(number)
            with suppress(OSError):
                if is_child:
                    os.kill(runs, number)
                else:
                    connection.send(str(number).encode())

        for number in numbers:
            signal.signal(number, forward)
        answer = _last_of(connection, runs)
        if not answer:
            _sweep(path, process)
    except _Stuck as stuck:
        print(f"dapo-stages: {stuck}. This command continues in its own process.", file=sys.stderr, flush=True)
        answer = b""
    except OSError:
        answer = b""
    if answer:
        return int(answer)
    return -stopped[0] if stopped else None  # the server was killed, and the command with it


def _next_of(connection: socket.socket, process: int, server: Server) -> bytes:
    """The server's next message, before the command runs. The server may have to import everything first."""
    begun = time.monotonic()
    connection.settimeout(_TICK)
    while True:
        try:
            return connection.recv(_WORD)
        except TimeoutError:
            waited = time.monotonic() - begun
            if waited < (PATIENCE if is_stopped(process) else _IMPORTING):
                continue
        if server.follows:
            with suppress(OSError):  # then it exits, and the next command starts another one
                Path(connection.getpeername()).unlink()
        raise _Stuck(
            f"process {process}, which runs commands, has not answered for {waited:.0f} s (`kill -KILL {process}` ends "
            "it)"
        )


def _last_of(connection: socket.socket, child: int) -> bytes:
    """The server's last message, the exit code; empty if it has ended, and its children with it."""
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
            f"this command's process {child} has ended, but the process that started it has not reported its exit code "
            f"for {PATIENCE:.0f} s"
        ) from None


def _connect(server: Server, path: Path, *, start: bool) -> tuple[socket.socket, int] | None:
    """A connection to the server for commands like this one, started if necessary, and its process ID."""
    with open(path.parent / "lock", "w", encoding="utf-8") as lock:
        _wait_for(lock)
        connection = socket.socket(*KIND)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            if not start:
                return None
            path.unlink(missing_ok=True)
            process = _start(server, path)
            connection.connect(str(path))
        else:
            process, _ = peer(connection)
            look_into(process)
    return connection, process


def _sweep(path: Path, server: int) -> None:
    """Remove the socket of a server that was killed."""
    ending = select.poll()
    with suppress(OSError):  # it has ended
        ending.register(os.pidfd_open(server), select.POLLIN)
        ending.poll(PATIENCE * 1000)
    with open(path.parent / "lock", "w", encoding="utf-8") as lock, socket.socket(*KIND) as connection:
        _wait_for(lock)
        if connection.connect_ex(str(path)) == ECONNREFUSED:
            path.unlink()


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


def _start(server: Server, path: Path) -> int:
    """Start a server and return its process ID. Its socket already listens, so commands can connect at once."""
    import subprocess

    with socket.socket(*KIND) as listener:
        listener.bind(str(path))
        listener.listen(64)
        return subprocess.Popen(
            [sys.executable, "-m", server.program, str(listener.fileno()), str(path), *server.options],
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
    """Hash of what a process inherits and imports: a server runs only commands with the same hash."""
    environment = sorted((name, value) for name, value in os.environ.items() if name not in PASSING)
    return hashlib.sha256(json.dumps([environment, inherited(), python()]).encode()).hexdigest()[:24]


def python() -> list[object]:
    """The interpreter and its files, before it has imported much: some packages change the path."""
    return [sys.executable, sys.version, sys.prefix, sys.path, list(sys.flags), sys.warnoptions, files()]


def files() -> list[object]:
    """The folders of installed packages and the files of this one, with the times of their last change."""
    packages = [Path(place) for place in sys.path if place.endswith("-packages") and os.path.isdir(place)]
    ours = sorted(Path(__file__).parents[1].rglob("*.py"))
    return [(str(path), path.stat().st_mtime_ns) for path in (*packages, *ours)]


def _exit(code: int) -> NoReturn:
    """Exit as the child did, also by a signal."""
    if code < 0:
        with suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


PARENT = Server(
    "dapo_stages.entrypoints.preloaded",
    ("init-policy", "prepare-data", "rollout", "score-attention", "train-step", "evaluate"),
    str,
    follows=True,
)

if __name__ == "__main__":
    main()
