"""The process that compares expressions: JSON lines in on stdin, JSON lines out on stdout.

Run by its path, it imports nothing of this package: it starts fast and can be killed at any moment. The kernel's alarm
ends it too, so that a comparison that never returns does not outlive a killed parent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import TextIO

MEMORY = 2 * 1024**3  # bytes; a tower of powers would take all there is
GRACE = 2.0  # seconds that the parent has to notice a time-out before the alarm rings


def main() -> None:
    """Say `ready`, then answer each request {solution, answer, limit} with {equal}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it then closes our stdin
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints may reach the replies
    logging.disable(logging.CRITICAL)
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        _reply(replies, {"ready": False, "error": str(error)})
        return
    _limit_memory()
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _alarm(request["limit"] + GRACE)
        try:
            equal = compare(request["solution"], request["answer"])
        except Exception:  # RecursionError, MemoryError and whatever hostile LaTeX finds: it is not equal
            equal = False
        _alarm(0)
        _reply(replies, {"equal": equal})


def compare(solution: str, answer: str) -> bool:
    """Whether math-verify finds the two LaTeX expressions equal, each read as one whole expression.

    Its own time-outs are off: they are SIGALRM handlers in Python, which never run while C code does.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    reading = [LatexExtractionConfig()]
    gold, given = (
        parse(f"${text}$", reading, fallback_mode="no_fallback", parsing_timeout=None) for text in (solution, answer)
    )
    return bool(gold and given and verify(gold, given, timeout_seconds=None))


def _reply(replies: TextIO, values: dict[str, object]) -> None:
    replies.write(json.dumps(values) + "\n")
    replies.flush()


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, OSError, ValueError):  # not on this system: the time-out remains
        pass


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
