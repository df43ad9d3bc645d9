"""How much memory a stage took, for its manifest."""

from __future__ import annotations

import sys
from pathlib import Path


def peak() -> int | None:
    """Most bytes this process has held so far: allocated by torch on its GPU, else resident. None if nobody tells.

    A process forked from one that has torch already counts the pages it shares with that.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        return _resident()
    except OSError:
        return None


def _resident() -> int | None:
    """Of this program alone: getrusage would count what its parent held when it started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
