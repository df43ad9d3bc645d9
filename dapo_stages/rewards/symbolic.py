"""Equality of expressions by math-verify, in a process of its own that is killed when it takes too long."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dapo_stages.errors import DapoStagesError

PROGRAM = Path(__file__).with_name("worker.py")
START_LIMIT = 60.0  # seconds to import math-verify, on a busy machine too
LONGEST_TIMEOUT = 3600.0  # seconds; timers take no infinity
LONGEST = 1000  # characters; no final answer is longer, and hostile ones are

log = logging.getLogger(__name__)


def equal(solution: str, answer: str, timeout: float = 5.0) -> bool:
    """Whether two LaTeX expressions are equal, asked of this process's worker (started at the first question).

    False where the worker finds them different or cannot read them, dies over them, or takes more than `timeout`
    seconds. Raises DapoStagesError where no worker can be started at all.
    """
    return _worker(os.getpid()).equal(solution, answer, timeout)


def close() -> None:
    """End this process's worker; the next question starts another. Runs by itself at exit."""
    _worker(os.getpid()).close()


@functools.cache
def _worker(process_id: int) -> Worker:
    """One worker per process: a forked child must not talk into its parent's pipe."""
    worker = Worker()
    atexit.register(worker.close)
    return worker


class Worker:
    """A child process that answers one question at a time; restarted after it was killed or died."""

    def __init__(self, program: Path | None = None) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    @property
    def process_id(self) -> int | None:
        """The running child, None before the first question and after a kill."""
        return self._process.pid if self._process is not None else None

    def equal(self, solution: str, answer: str, timeout: float) -> bool:
        """See the function of the same name."""
        if max(len(solution), len(answer)) > LONGEST:
            return False
        with self._lock:
            try:
                return self._ask(solution, answer, min(timeout, LONGEST_TIMEOUT))
            except BaseException:  # an interruption half-way: the reply must not answer the next question
                self._kill()
                raise

    def close(self) -> None:
        """Let the child leave by itself, kill it after a second. Only the process that started it may."""
        process, self._process = self._process, None
        if process is None or os.getpid() != self._owner:
            return
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
            process.wait(timeout=1)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        process.stdout.close()

    def _ask(self, solution: str, answer: str, timeout: float) -> bool:
        process = self._started()
        assert process.stdin is not None
        start = time.monotonic()
        request = json.dumps({"solution": solution, "answer": answer, "limit": timeout})
        try:
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
            reply = _read_reply(process, timeout)
        except OSError:  # it died at that moment
            reply = None
        if reply is None:
            late = time.monotonic() - start >= timeout
            why = f"took more than {timeout:g} s" if late else "ended its process"
            log.warning("comparing %r with %r %s; counted as not equal", answer[:80], solution[:80], why)
            self._kill()
            return False
        return reply.get("equal") is True

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        program = self._program or PROGRAM
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program)],  # -P: the modules beside the program must not hide others
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        reply = _read_reply(self._process, START_LIMIT)
        if reply is None or not reply.get("ready"):
            self._kill()
            found = reply.get("error", "no reason") if reply else f"no sign of life within {START_LIMIT:g} s"
            raise DapoStagesError(
                f"{program}: the process for symbolic answers did not start: found {found}; needed math-verify in "
                f"{sys.executable}. Install math-verify, or set rewards.symbolic=false."
            )
        return self._process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was left to write has nowhere to go
                continue


def _read_reply(process: subprocess.Popen[bytes], timeout: float) -> dict[str, Any] | None:
    """One JSON line, None after the time-out or at the end of the stream."""
    assert process.stdout is not None
    end = time.monotonic() + timeout
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not received.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not selector.select(left):
                return None
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                return None
            received += piece
    reply = json.loads(received)
    return reply if isinstance(reply, dict) else None
