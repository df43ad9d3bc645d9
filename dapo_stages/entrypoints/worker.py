"""The process that resident.py hands commands to: `python -m dapo_stages.entrypoints.worker SOCKET PATH [LAUNCH …]`.

It runs one command after another, in the order in which they came: in its main thread or, with options of a launch, in
the ranks of one launch (resident_ranks.py). Each client has a thread here, which takes its command at once, passes on
its signals, and notices when it is gone. A command that fails ends the worker, so that nothing of it can reach another
command. It may be killed at any time: its clients then run their commands themselves, from files.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

from dapo_stages.entrypoints.here import Here, rest
from dapo_stages.entrypoints.preload import MAKE, TAKEN, files, key
from dapo_stages.entrypoints.preloaded import Request, inode_of, receive, remove
from dapo_stages.entrypoints.resident_ranks import Ranks

IDLE = "DAPO_STAGES_RESIDENT_IDLE"  # seconds without a command after which the worker ends, unless make is running
_IDLE_SECONDS = 300.0
_TICK = 0.5  # seconds between looks at the clock, make, and the files
_STUCK = 20.0  # seconds that a command whose client is gone may take to stop
_WORD = 16  # bytes of a message
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Run commands until make has ended, nobody has asked for a while, or one has failed."""
    listener, path = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])
    listener.listen()  # again, so that from now on commands see this process as their peer
    runner = Ranks(sys.argv[3:], path.parent) if sys.argv[3:] else Here()
    worker = _Worker(listener, key(), runner)
    worker.watch(os.environ.get(MAKE))  # the first command may be killed before it has said anything
    threading.Thread(target=worker.accept, daemon=True).start()
    inode, imported = path.stat().st_ino, files()
    runner.begin()
    worker.rest()

    def is_current() -> bool:
        return inode_of(path) == inode and files() == imported and runner.is_ready()

    while (command := worker.next(is_current)) is not None:
        worker.carry_out(command)
    with suppress(Exception):  # what is lost can be made again
        runner.end()
    remove(path, inode)
    os._exit(0)  # clients that are still waiting run their commands themselves


class Runner(Protocol):
    """Runs commands: in this process, or in the ranks of a launch."""

    def begin(self) -> None:
        """Get ready, before the first command."""

    def is_ready(self) -> bool:
        """Whether it can run another command."""

    def run(self, request: Request) -> int:
        """Run a command as a process of its own would; its exit code. It uses and closes the request's streams."""

    def stop(self, number: int) -> None:
        """From another thread: send a signal to the command that runs."""

    def kill(self) -> None:
        """From another thread: end the command that runs, and whatever runs it."""

    def end(self) -> None:
        """Finish what was left behind."""


class _Command:
    """A client's command."""

    def __init__(self, request: Request, connection: socket.socket) -> None:
        self.request, self._connection = request, connection

    def drop(self) -> None:
        """It is not going to run: let go of its streams."""
        for stream in self.request.streams:
            os.close(stream)

    def answer(self, code: int) -> None:
        """Tell the client the exit code; negative for a signal."""
        with suppress(OSError):
            self._connection.send(str(code).encode())


class _Worker:
    """Clients' threads put commands into a queue, the main thread takes them out."""

    def __init__(self, listener: socket.socket, key: str, runner: Runner) -> None:
        self._listener, self._key, self._runner = listener, key, runner
        self._turn = threading.Condition()
        self._waiting: deque[_Command] = deque()
        self._running: _Command | None = None
        self._makes: dict[str, int] = {}  # those that are running: process ID -> descriptor of the process
        self._had_make = False
        self._ends, self._used = False, time.monotonic()

    # ---- In the threads of clients -----------------------------------------------------------------------------------

    def accept(self) -> None:
        """Give each client a thread."""
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        try:
            command = _Command(receive(connection), connection)
        except (OSError, ValueError, TypeError):
            connection.close()
            return
        if command.request.key != self._key:  # it has another environment, or other permissions
            command.drop()
            connection.close()
            return
        connection.settimeout(None)
        with suppress(OSError):
            connection.send(TAKEN + str(os.getpid()).encode())
        with self._turn:
            self._waiting.append(command)
            self._turn.notify()
        while said := _heard(connection):
            self._stop(command, int(said))
        self._stop(command, None)

    def _stop(self, command: _Command, number: int | None) -> None:
        """Pass on a signal to a client's command; None: the client is gone."""
        with self._turn:
            if command in self._waiting:
                self._waiting.remove(command)
                command.drop()
                command.answer(-(number or signal.SIGTERM))
            elif command is self._running:
                self._runner.stop(number or signal.SIGTERM)
                if number is None:
                    threading.Timer(_STUCK, self._kill, (command,)).start()

    def _kill(self, command: _Command) -> None:
        if command is self._running:
            self._runner.kill()

    # ---- In the main thread ------------------------------------------------------------------------------------------

    def next(self, is_current: Callable[[], bool]) -> _Command | None:
        """The next command; None if there will be none."""
        with self._turn:
            while not (self._ends or self._waiting):
                if self._is_over() or not is_current():
                    return None
                self._turn.wait(_TICK)
            self._running = None if self._ends else self._waiting.popleft()
            return self._running

    def _is_over(self) -> bool:
        """Whether make has ended, or nobody has asked for a while."""
        for make in [make for make, descriptor in self._makes.items() if _has_ended(descriptor)]:
            os.close(self._makes.pop(make))
        if self._makes or self._had_make:
            return not self._makes
        return time.monotonic() - self._used >= float(os.environ.get(IDLE, _IDLE_SECONDS))

    def carry_out(self, command: _Command) -> None:
        """Run a command, and answer its client."""
        self.watch(command.request.environment.get(MAKE))
        code = 1
        try:
            code = self._runner.run(command.request)
        except BaseException:  # unforeseen, or a signal just before or after the command itself
            traceback.print_exc()
        self.rest()
        with self._turn:
            self._running, self._ends, self._used = None, code != 0, time.monotonic()
        command.answer(code)
        gc.collect()

    def watch(self, make: str | None) -> None:
        """End with a make, by its process ID; None: the command does not belong to one."""
        if make is not None and make not in self._makes:
            self._had_make = True
            with suppress(ValueError, OSError):  # it has ended
                self._makes[make] = os.pidfd_open(int(make))

    def rest(self) -> None:
        """Let go of what belonged to the last command."""
        for number in _SIGNALS:
            signal.signal(number, self._end)
        rest()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ends = True  # `next` looks soon


def _heard(connection: socket.socket) -> bytes:
    """A client's next message; empty if it is gone."""
    try:
        return connection.recv(_WORD)
    except OSError:
        return b""


def _has_ended(descriptor: int) -> bool:
    import select

    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(0))


if __name__ == "__main__":
    main()
