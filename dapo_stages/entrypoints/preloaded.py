"""The parent that preload.py forks commands from: `python -m dapo_stages.entrypoints.preloaded SOCKET PATH`.

It may be killed at any time: its children die with it, and their commands start over in their own processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from selectors import EVENT_READ, PollSelector
from typing import NamedTuple

from dapo_stages.entrypoints.inherited import look_into
from dapo_stages.entrypoints.preload import ASKED, STARTED, files, key, peer

# What stages import when they run. No torch operation may run before the fork, or OpenMP would not work after it.
MODULES = (
    "dapo_stages.entrypoints.cli",
    "dapo_stages.engines.transformers_engine",
    "filelock",
    "jinja2",
    "pandas",  # imported by pyarrow if installed
    "pyarrow.parquet",
    "safetensors.torch",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
)
PACKAGES = (
    "data", "groups", "handoff", "maths", "models", "planning", "reporting", "rewards", "runs", "stages", "terminal",
    "tools", "training",
)  # our own, with all their modules  # fmt: skip
IDLE = "DAPO_STAGES_PRELOAD_IDLE"  # seconds without a command after which the parent exits
_IDLE_SECONDS = 120.0
_TICK = 1.0  # seconds between checks of the clock and the files
_MOST = 1 << 20  # bytes of a request
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Fork a child per connection, until there are no more requests."""
    listening, path = int(sys.argv[1]), Path(sys.argv[2])
    listener = socket.socket(fileno=listening)
    if key() != path.name:
        return
    listener.listen()  # again, so that from now on commands see this process as their peer
    imported, inode = files(), path.stat().st_ino
    idle = float(os.environ.get(IDLE, _IDLE_SECONDS))
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the CUDA driver does not survive a fork
    import_everything()
    os.chdir("/")
    parent = _Parent(listener)
    while parent.children or (
        time.monotonic() - parent.used < idle and inode_of(path) == inode and files() == imported
    ):
        parent.turn()
    remove(path, inode)


def remove(path: Path, inode: int) -> None:
    """Remove a server's own socket, unless a command is just looking for it."""
    with open(path.parent / "lock", "w", encoding="utf-8") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if inode_of(path) == inode:
            path.unlink()


class Request(NamedTuple):
    """What a server should run, and its streams."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    signals: list[int]  # signals that the command handles; others are ignored
    key: str
    streams: list[int]


class _Child(NamedTuple):
    process: ForkProcess
    connection: socket.socket  # to the command's own process


def import_everything() -> None:
    """Import what stages import, without garbage collection, now or later: there is no garbage in it."""
    import gc

    from dapo_stages.terminal.console import take_any_text

    take_any_text()  # commands replace the files below these streams, not the streams
    gc.disable()
    root = Path(__file__).parents[2]
    files = [file for part in PACKAGES for file in sorted((root / "dapo_stages" / part).rglob("[!_]*.py"))]
    ours = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    for name in (*MODULES, *ours):
        with suppress(ImportError):
            import_module(name)
    with suppress(ImportError, AttributeError, TypeError):  # compiled by transformers for its first checkpoint
        import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen2_5_vl")
    gc.freeze()
    gc.enable()


def inode_of(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


class _Parent:
    """The loop of the parent: connections in, children out, signals in, exit codes out."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener, self._selector = listener, PollSelector()
        self._selector.register(listener, EVENT_READ)
        self.children: list[_Child] = []
        self.used = time.monotonic()

    def turn(self) -> None:
        """Handle pending events, or wait a moment for one."""
        for event, _ in self._selector.select(_TICK):
            self.used = time.monotonic()
            child: _Child | None = event.data
            if child is None:
                self._accept()
            elif child not in self.children:  # it ended in this turn
                continue
            elif event.fileobj == child.process.sentinel:
                self._ended(child)
            else:
                self._left(child)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        try:
            request = receive(connection)
            process = get_context("fork").Process(target=self._run, args=(request, os.getpid()))
            process.start()
        except (OSError, ValueError, TypeError):
            connection.close()
            return
        for stream in request.streams:
            os.close(stream)
        child = _Child(process, connection)
        self.children.append(child)
        self._selector.register(process.sentinel, EVENT_READ, child)
        self._selector.register(connection, EVENT_READ, child)
        with suppress(OSError):
            connection.send(STARTED + str(process.pid).encode())

    def _left(self, child: _Child) -> None:
        """A command's own process was killed: kill its child too."""
        if child.process.pid is not None:
            os.kill(child.process.pid, signal.SIGKILL)
        self._selector.unregister(child.connection)

    def _ended(self, child: _Child) -> None:
        child.process.join()
        with suppress(OSError):
            child.connection.send(str(child.process.exitcode).encode())
        self._selector.unregister(child.process.sentinel)
        with suppress(KeyError):
            self._selector.unregister(child.connection)
        child.process.close()
        child.connection.close()
        self.children.remove(child)

    def _run(self, request: Request, parent: int) -> None:
        """In a child: run the command as its own process would, and die with the parent."""
        from dapo_stages.entrypoints.cli import main as run

        die_with(parent)
        self._selector.close()
        self._listener.close()
        for child in self.children:
            child.connection.close()
        become(request)
        run()


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def receive(connection: socket.socket) -> Request:
    """The request of a command's own process. Raises OSError, ValueError or TypeError if the command has gone, belongs
    to another user, or cannot be inspected."""
    connection.settimeout(_TICK)
    process, user = peer(connection)
    if user != os.getuid():
        raise PermissionError("another user's command")
    look_into(process)
    waiting = select.poll()
    waiting.register(connection, 0)
    if waiting.poll(0):
        raise ConnectionResetError("the command has waited too long, and runs in its own process")
    connection.send(ASKED)
    data, streams, _, _ = socket.recv_fds(connection, _MOST, 3)
    return Request(**json.loads(data), streams=streams)


def become(request: Request) -> None:
    """Make this process equal to the command's own."""
    os.environ.update(request.environment)
    for name in os.environ.keys() - request.environment.keys():  # what stays is never missing: a thread may read it
        del os.environ[name]
    os.chdir(request.folder)
    for target, stream in enumerate(request.streams):
        os.dup2(stream, target)
        os.close(stream)
    sys.stdin = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115 (open as long as the process)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=os.isatty(1))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if number in request.signals else signal.SIG_IGN)
    sys.argv = [str(Path(__file__).parents[1] / "__main__.py"), *request.arguments]
    sys.modules["__main__"].__package__ = "dapo_stages"


if __name__ == "__main__":
    main()
