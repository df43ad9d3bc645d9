"""Equality of expressions by math-verify, in a process of its own that is killed when it takes too long."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from pathlib import Path

from dapo_stages.errors import DapoStagesError
from dapo_stages.processes.child import LONGEST_TIMEOUT, PROGRAM, Child, Lost
from dapo_stages.rewards.secrecy import without_secrets

START_LIMIT = 60.0  # seconds to import math-verify, on a busy machine too
LONGEST = 1000  # characters; no final answer is longer, and hostile ones are

log = logging.getLogger(__name__)


def equal(solution: str, answer: str, timeout: float = 5.0) -> bool:
    """Whether two LaTeX expressions are equal, by this process's child process (started by the first call).

    False if it finds them different, cannot read them, dies over them, or takes more than `timeout` seconds. Raises
    DapoStagesError if it cannot be started at all.
    """
    return _worker(os.getpid()).equal(solution, answer, timeout)


def close() -> None:
    """End the child process; the next call of `equal` starts another. Happens by itself at exit."""
    _worker(os.getpid()).close()


@functools.cache
def _worker(process_id: int) -> Worker:
    """One per process: a forked process must not write into its parent's pipe."""
    return Worker()


class Worker:
    """A child process that compares one pair at a time; restarted after it was killed or died."""

    def __init__(self, program: Path | None = None) -> None:
        self._program = program or PROGRAM
        self._child = Child("symbolic", program=program, environment=without_secrets(os.environ))
        self._lock = threading.Lock()

    @property
    def process_id(self) -> int | None:
        """The running child, None before the first comparison and after a kill."""
        return self._child.process_id

    def equal(self, solution: str, answer: str, timeout: float) -> bool:
        """See the function of the same name."""
        if max(len(solution), len(answer)) > LONGEST:
            return False
        with self._lock:
            if not self._child.runs:
                self._start()
            limit = min(timeout, LONGEST_TIMEOUT)
            try:
                reply = self._child.ask({"solution": solution, "answer": answer, "limit": limit}, limit)
            except Lost as lost:
                log.warning("comparing %r with %r %s; counted as not equal", answer[:80], solution[:80], lost)
                return False
        return reply.get("equal") is True

    def close(self) -> None:
        """Let the child exit by itself, kill it after a second. Does nothing in a process that did not start it."""
        self._child.close()

    def _start(self) -> None:
        try:
            reply = self._child.start(START_LIMIT)
        except Lost as lost:
            reply = {"error": f"it {lost}"}
        if not reply.get("ready"):
            self._child.kill()
            raise DapoStagesError(
                f"{self._program}: cannot start the process that compares expressions "
                f"({reply.get('error', 'no reason given')}). Install math-verify in {sys.executable}, or set "
                "rewards.symbolic=false."
            )
