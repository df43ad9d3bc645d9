"""How much memory a stage used, for its manifest."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


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


class Gpu(NamedTuple):
    """Bytes of this process on its GPU, what is free there (for all, and reserved by this process), and all it has."""

    peak: int
    allocated: int
    free: int
    total: int

    @property
    def others(self) -> int:
        """What is taken by other processes, and by what torch does not allocate."""
        return self.total - self.free - self.allocated


def gpu() -> Gpu | None:
    """The memory of the current GPU; None if this process uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    cuda = torch.cuda
    allocated, (free, total) = int(cuda.memory_allocated()), cuda.mem_get_info()
    return Gpu(
        int(cuda.max_memory_allocated()), allocated, int(free) + int(cuda.memory_reserved()) - allocated, int(total)
    )


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
