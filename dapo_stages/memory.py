"""How much memory a stage took, for its manifest."""

from __future__ import annotations

import sys


def peak() -> int | None:
    """Most bytes this process has held so far: allocated by torch on its GPU, else resident. None on Windows.

    A process forked from one that has torch already counts the pages it shares with that.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
