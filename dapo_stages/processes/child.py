"""A child process for what must not hang, crash or read secrets in this one: started once, killed when it is late.

It runs child_program.py, and answers each JSON line with a JSON line.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

PROGRAM = Path(__file__).with_name("child_program.py")
LONGEST_TIMEOUT = 3600.0 * 24  # seconds; timers take no infinity
_PIECE = 1 << 16  # bytes


class Lost(Exception):
    """The process did not answer and has been ended. `late`: it ran out of time."""

    def __init__(self, why: str, *, late: bool) -> None:
        super().__init__(why)
        self.late = late


class Child:
    """One process of child_program.py, in a process group of its own, so that what it starts can be ended with it.

    It ends with this process, however that ends. Forked copies of this process cannot end it.
    """

    def __init__(
        self,
        *arguments: str,
        program: Path | None = None,
        environment: Mapping[str, str] | None = None,
        speaks: bool = False,
    ) -> None:
        """`environment`: None for that of this process; `speaks`: whether its stderr is ours."""
        # -P: do not import modules next to it; -B: do not write bytecode next to a user's file, not even in a dry run.
        self._command = [sys.executable, "-B", "-P", str(program or PROGRAM), *arguments]
        self._environment = environment
        self._errors = None if speaks else subprocess.DEVNULL
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._end: weakref.finalize[..., Any] | None = None

    @property
    def process_id(self) -> int | None:
        """Process id; None before the start and after the end."""
        return self._process.pid if self._process is not None else None

    @property
    def runs(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float) -> dict[str, Any]:
        """Start the process (again) and return its first line. Raises Lost, and OSError."""
        self.kill()
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            self._command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=self._environment,
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _close, self._process, self._owner)
        return self._exchange(self._process, b"", timeout)

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to a request. Raises Lost after `timeout` seconds, and if the process ends instead of answering.

        After any exception the process is ended: a late answer must not be taken for that to the next request.
        """
        if self._process is None:
            raise Lost("is not running", late=False)
        return self._exchange(self._process, json.dumps(request, default=_bytes).encode() + b"\n", timeout)

    def interrupt(self) -> None:
        """End the process from a thread other than the one in `ask`, which then raises Lost and cleans up."""
        process = self._process
        if process is not None:
            _end(process, self._owner)

    def kill(self) -> None:
        """End the process, and what it has started, at once."""
        process, self._process = self._process, None
        if process is not None:
            _kill(process, self._owner)
        if self._end is not None:
            self._end.detach()

    def close(self) -> None:
        """Let the process end by itself; kill it after a second."""
        self._process = None
        if self._end is not None:
            self._end()

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes, timeout: float) -> dict[str, Any]:
        try:
            reply = json.loads(_exchange(process, line, min(timeout, LONGEST_TIMEOUT)))
            if not isinstance(reply, dict):
                raise ValueError
            return reply
        except TimeoutError:
            self.kill()
            raise Lost(f"took more than {timeout:g} s", late=True) from None
        except (OSError, ValueError):  # it ended, or something else wrote to its pipe
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            code = process.returncode
            self.kill()
            how = "" if not code else f" ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
            raise Lost(f"ended its process{how}", late=False) from None
        except BaseException:  # interrupted in between
            self.kill()
            raise


def _exchange(process: subprocess.Popen[bytes], line: bytes, timeout: float) -> bytes:
    """Write a line and read one, without deadlock on full pipes. Raises TimeoutError, OSError."""
    requests, replies = _pipes(process)
    os.set_blocking(requests.fileno(), False)
    end = time.monotonic() + timeout
    unwritten, received = memoryview(line), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(replies, selectors.EVENT_READ)
        if unwritten:
            selector.register(requests, selectors.EVENT_WRITE)
        while not received.endswith(b"\n"):
            left = end - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj is requests:
                    unwritten = unwritten[os.write(requests.fileno(), unwritten[:_PIECE]) :]
                    if not unwritten:
                        selector.unregister(requests)
                else:
                    piece = os.read(replies.fileno(), _PIECE)
                    if not piece:
                        raise BrokenPipeError
                    received += piece
    return bytes(received)


def _close(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    requests, _ = _pipes(process)
    with suppress(OSError, subprocess.TimeoutExpired):
        requests.close()
        process.wait(timeout=1)
    _kill(process, owner)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
    process.kill()
    process.wait()


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    _end(process, owner)
    for pipe in _pipes(process):
        with suppress(OSError):  # unwritten data cannot be flushed
            pipe.close()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _bytes(value: object) -> object:
    """Encodes images as Base64; child_program.py decodes them."""
    if isinstance(value, bytes):
        import base64

        return {"__bytes__": base64.b64encode(value).decode()}
    raise TypeError(f"cannot encode {type(value).__name__} as JSON")
