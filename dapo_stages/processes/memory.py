"""How much memory a stage used, for its manifest."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def peak() -> int | None:
    """Peak bytes of this process so far: allocated by torch on its GPU, otherwise resident. None if unknown.

    In a process forked from one that has loaded torch, shared pages count, too.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        return _resident()
    except OSError:
        return None


def forget_peak() -> None:
    """Begin anew, in a process that runs several commands: what it holds then counts, what it held before does not."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident() -> int | None:
    """Of this program alone: getrusage would include its parent's memory at the time of the fork."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
