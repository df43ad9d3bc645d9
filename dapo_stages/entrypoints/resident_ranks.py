"""Commands that run one after another in the ranks of one launch on this machine, which stays in between.

The worker starts the launch with its first command. The ranks (resident_rank.py) connect to a socket of the worker, get
each command with its streams, and answer with its exit code. If one is lost, the launcher ends the others and says why.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dapo_stages.entrypoints.preload import KIND, peer
from dapo_stages.entrypoints.preloaded import Request

_ENDING = 60.0  # seconds that the launcher may take to end the others after a rank is lost
_WORD = 64  # bytes of a message
_TICK = 0.5  # seconds between looks at the launcher
_LAUNCH = "from dapo_stages.entrypoints import resident_rank; resident_rank.launch()"


class _Rank:
    """A rank's connection and what it has said of the command that runs."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.process, user = peer(connection)
        if user != os.getuid():
            raise PermissionError("another user's process")
        self.count = int(connection.recv(_WORD))  # of all ranks
        self.code: int | None = None
        self.lost = False

    def listen(self) -> None:
        """Take its exit code, or notice that it is gone."""
        try:
            said = self.connection.recv(_WORD)
        except OSError:
            said = b""
        self.code, self.lost = (int(said), False) if said else (None, True)


class Ranks:
    """Runs commands in a launch with these options of `accelerate launch`."""

    def __init__(self, options: Sequence[str], folder: Path) -> None:
        self._options, self._path = list(options), folder / f"ranks-{os.getpid()}"
        self._launcher: subprocess.Popen[str] | None = None
        self._ranks: list[_Rank] = []

    def begin(self) -> None:
        """Start the launch."""
        with socket.socket(*KIND) as listener:
            listener.bind(str(self._path))
            listener.listen(64)
            self._launcher = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, *self._options, str(self._path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            listener.settimeout(_TICK)
            try:
                while not self._ranks or len(self._ranks) < self._ranks[0].count:
                    self._accept(listener, self._launcher)
            finally:
                self._path.unlink()

    def _accept(self, listener: socket.socket, launcher: subprocess.Popen[str]) -> None:
        """The next rank. Raises OSError if the launcher has ended, so that the command is launched by itself."""
        try:
            self._ranks.append(_Rank(listener.accept()[0]))
        except TimeoutError:
            if launcher.poll() is not None:
                raise ChildProcessError("the launcher has ended") from None

    def is_ready(self) -> bool:
        """Whether all ranks are there; between commands they say nothing, so what can be read is an end."""
        return not select.select([rank.connection for rank in self._ranks], [], [], 0)[0]

    def run(self, request: Request) -> int:
        """Have all ranks run a command; the exit code as the launcher would give it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: self.stop(number))
        asked = json.dumps(request._asdict() | {"streams": []}).encode()
        for rank in self._ranks:
            rank.code, rank.lost = None, False
            with suppress(OSError):  # it is gone, as is noticed below
                socket.send_fds(rank.connection, [asked], request.streams)
        try:
            self._wait()
            if any(rank.lost for rank in self._ranks):
                return self._why(request.streams[2])
        finally:
            for stream in request.streams:
                os.close(stream)
        return next((rank.code for rank in self._ranks if rank.code), 0)

    def _wait(self) -> None:
        """Until each rank has answered, or is gone."""
        waiting = select.poll()
        by_descriptor = {rank.connection.fileno(): rank for rank in self._ranks}
        for descriptor in by_descriptor:
            waiting.register(descriptor, select.POLLIN)
        while by_descriptor:
            for descriptor, _ in waiting.poll(_TICK * 1000):
                by_descriptor.pop(descriptor).listen()
                waiting.unregister(descriptor)

    def _why(self, stream: int) -> int:
        """The launcher's exit code, after it has ended the ranks that are left; what it said goes to the stream."""
        assert self._launcher is not None
        try:
            _, said = self._launcher.communicate(timeout=_ENDING)
        except subprocess.TimeoutExpired:
            self.kill()
            _, said = self._launcher.communicate()
        os.write(stream, said.encode(errors="replace"))
        return self._launcher.returncode or 1

    def stop(self, number: int) -> None:
        """What a launcher does with a signal: it sends SIGTERM to its ranks."""
        for rank in self._ranks:
            _kill(rank.process, signal.SIGTERM)

    def kill(self) -> None:
        """End the launcher and all ranks."""
        if self._launcher is not None:
            self._launcher.kill()
        for rank in self._ranks:
            _kill(rank.process, signal.SIGKILL)

    def end(self) -> None:
        """The ranks end when their connections do and what they write is written, and the launcher with them."""
        for rank in self._ranks:
            rank.connection.close()
        if self._launcher is not None:
            self._launcher.communicate()


def _kill(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)
