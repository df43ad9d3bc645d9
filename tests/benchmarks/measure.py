"""Seconds of two sides by turns, and the peak memory of one of them in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

MIB = 2**20
Side = Literal["ours", "theirs"]


class Contest(Protocol):
    """The same work by two sides, on the same inputs."""

    def check(self) -> dict[str, float]:
        """Assert that both sides give the same result; -> how far apart they are, by name."""

    def ours(self) -> None:
        """The work once, by this project."""

    def theirs(self) -> None:
        """The work once, by what it is compared with."""


@dataclass(frozen=True)
class Comparison:
    """Seconds of each repetition, ours and theirs by turns."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """Median of theirs over median of ours: how many times faster we are."""
        return statistics.median(self.theirs) / statistics.median(self.ours)


@dataclass
class Figure:
    """One line of the table."""

    name: str
    work: str
    against: str
    value: float
    target: float | None
    bound: Literal["at least", "at most"] = "at least"
    unit: str = "×"
    ours_seconds: list[float] = field(default_factory=list)
    theirs_seconds: list[float] = field(default_factory=list)
    ours_mib: float | None = None  # peak above the loaded model
    theirs_mib: float | None = None
    ours_computes: str = ""
    theirs_computes: str = ""
    checks: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"met": self.met}


def compare(contest: Contest, repetitions: int) -> Comparison:
    """Warm both sides up once, then time them by turns: ours, theirs, ours, theirs …"""
    contest.ours()
    contest.theirs()
    found = Comparison([], [])
    for _ in range(repetitions):
        found.ours.append(seconds(contest.ours))
        found.theirs.append(seconds(contest.theirs))
    return found


def seconds(work: Callable[[], None]) -> float:
    """Wall-clock seconds of a call: the mean of as many as fill a second, so that the first one after the other side's
    turn, with cold caches and memory, does not stand for all. Garbage of earlier calls is collected before."""
    gc.collect()
    calls, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < 1.0 or not calls:
        work()
        calls += 1
    return took / calls


def peak_above_now(work: Callable[[], None]) -> float:
    """MiB by which resident memory rises above its present level while `work` runs. Call it in a fresh process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts again here
    before = _resident("VmRSS")
    work()
    return (_resident("VmHWM") - before) / MIB


def _resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
