"""How fast a run goes: seconds per iteration so far, and what is left, from the times in the manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Manifest, manifest_of
from dapo_stages.processes.phases import PHASES
from dapo_stages.runs.pipeline import FOLDERS
from dapo_stages.runs.run_folder import Run
from dapo_stages.terminal.console import duration
from dapo_stages.terminal.safe_text import percent

PAUSE = 60.0  # seconds without a stage: a longer gap counts as an interruption, a shorter one as start-up time
_WINDOW = 10  # iterations in the mean: completions get longer or shorter while a policy learns


@dataclass(frozen=True)
class Pace:
    """The newest trained iteration, the planned number, its seconds, and the mean of the last ten."""

    iteration: int
    of: int
    last: float
    mean: float

    @property
    def left(self) -> float:
        """Seconds until the last iteration is trained, at the mean pace; 0 once it is."""
        return self.mean * max(self.of - self.iteration, 0)

    def __str__(self) -> str:
        pace = f"iteration {self.iteration} of {self.of}: {duration(self.last)}, {duration(self.mean)} on average"
        return f"{pace}; about {duration(self.left)} left" if self.left else pace


def pace(run: Run, of: int) -> Pace | None:
    """The pace of a run with `of` planned iterations; None before the first is trained. Only manifests are read."""
    times: dict[int, list[tuple[float, float]]] = {}  # newest first
    for number in reversed(run.iterations()):
        made = _made(run.folder(number))
        if number and "train" in made:
            times[number] = [_interval(manifest) for manifest in made.values()]
        if len(times) == _WINDOW:
            break
    if not times:
        return None
    newest = max(times)
    mean = busy(interval for intervals in times.values() for interval in intervals) / len(times)
    return Pace(newest, of, busy(times[newest]), mean)


def spent(run: Run, iteration: int) -> dict[str, float]:
    """Seconds of an iteration's stages by phase; empty for manifests of versions that did not record them."""
    return summed(_made(run.folder(iteration)).values())


def summed(manifests: Iterable[Manifest]) -> dict[str, float]:
    """The same for these manifests."""
    total: Counter[str] = Counter()
    for manifest in manifests:
        total.update(manifest.spent)
    return {name: total[name] for name in PHASES} if total.total() else {}


def describe(spent: Mapping[str, float]) -> str:
    """`58.8 s, 27% of it work (start 28.1, verify 5.1, …)`."""
    whole = sum(spent.values())
    rest = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items() if name != "work")
    return f"{whole:.1f} s, {percent(spent['work'] / whole)} of it work ({rest})"


def busy(intervals: Iterable[tuple[float, float]]) -> float:
    """Seconds covered by intervals of (start, end): overlaps count once, gaps up to PAUSE count, longer ones do not."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        begin = reached if start - reached <= PAUSE else start
        total += max(end - begin, 0.0)
        reached = max(reached, end)
    return total


def _made(folder: Path) -> dict[str, Manifest]:
    found = {}
    for name, stage in FOLDERS.items():
        try:
            manifest = manifest_of(folder / name, stage)
        except DataError:  # damaged; status reports it
            continue
        if manifest is not None:
            found[name] = manifest
    return found


def _interval(manifest: Manifest) -> tuple[float, float]:
    """When a stage started and ended, in seconds; of a resumed stage, its last session only."""
    ended = datetime.fromisoformat(manifest.ended).timestamp()
    return ended - manifest.seconds, ended
