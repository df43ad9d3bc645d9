"""Where a command's time goes: each second belongs to one phase.

    start    the process, imports and opening what is there, up to the stage's own work
    verify   reading inputs to compare them with their manifests
    load     weights and the optimizer's state into memory
    work     what the stage is for
    save     writing outputs
    hash     SHA-256 of outputs

A phase inside another one takes its time from that. Only the main thread is timed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PHASES = ("start", "verify", "load", "work", "save", "hash")
# Seconds since boot at which the command began, if an earlier process began it (a launcher, the client of a parent).
BEGUN = "DAPO_STAGES_BEGUN"


class _Clock:
    def __init__(self, since: float) -> None:
        self.now, self.since = "start", since
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def turn_to(self, name: str) -> str:
        """Book the time since the last turn, go over to a phase, and return the one before."""
        now, before = _boottime(), self.now
        self.seconds[before] += max(now - self.since, 0.0)
        self.now, self.since = name, now
        return before


def begun() -> str:
    """When the command began, for the environment of the processes that it starts (BEGUN)."""
    return f"{_begun():.3f}"


def now() -> str:
    """The same for a command that begins now, because this process has waited before it becomes the command."""
    return f"{_boottime():.3f}"


def begin_command() -> None:
    """A command begins: with its process, or now if the process has already run one."""
    process = os.getpid()
    if process in _clocks:
        _clocks[process] = _Clock(_boottime())
    else:
        _clock()


def forget() -> None:
    """Before another command of the same process: it begins when its environment says so (BEGUN)."""
    _clocks.clear()


def begin_work() -> None:
    """The stage's own work begins."""
    _clock().turn_to("work")


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Time a part of the work; also a decorator."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    clock = _clock()
    before = clock.turn_to(name)
    try:
        yield
    finally:
        clock.turn_to(before)


def spent() -> dict[str, float]:
    """Seconds by phase until now, to the millisecond; none in another thread than the main one, which is not timed."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    clock = _clock()
    clock.turn_to(clock.now)
    return {name: round(seconds, 3) for name, seconds in clock.seconds.items()}


_clocks: dict[int, _Clock] = {}


def _clock() -> _Clock:
    """One for each process: a forked one begins anew."""
    process = os.getpid()
    if process not in _clocks:
        _clocks.clear()
        _clocks[process] = _Clock(_begun())
    return _clocks[process]


def _begun() -> float:
    with suppress(ValueError, KeyError):
        return float(os.environ.pop(BEGUN))
    return _process_start()


def _process_start() -> float:
    """When this process was started, by the kernel's account; now, if that is unknown."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return _boottime()


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
