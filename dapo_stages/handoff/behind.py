"""Work that a command leaves behind: a thread of this process does it, while other commands run.

At most one piece at a time. Whoever needs the result calls `finish` first, and so does a process before it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_pending: Future[None] | None = None


def begin(work: Callable[[], None]) -> None:
    """Do some work in a thread, after what is left to do."""
    global _pending
    finish()
    pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
    _pending = pool.submit(work)
    pool.shutdown(wait=False)


def finish() -> None:
    """Wait until nothing is left to do. Raises what the work raised, once."""
    global _pending
    pending, _pending = _pending, None
    if pending is not None:
        pending.result()
