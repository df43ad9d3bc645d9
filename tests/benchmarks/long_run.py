"""A run of a thousand iterations against one of a hundred: seconds of the commands that look at all of a run."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from support.commands import Result, fresh
from support.long_run import lengthen
from support.pipeline import Run

from benchmarks.measure import Figure
from benchmarks.stages import ROOT

FEW, MANY = 100, 1000
TURNS = 5


def measure(repetitions: int | None) -> list[Figure]:
    """status, one more report, and doctor."""
    with tempfile.TemporaryDirectory(prefix="bench-long-") as place, mock.patch("os.fsync"):
        runs = _runs(Path(place))
        turns = repetitions or TURNS
        status = _by_turns(runs, lambda run, last: _command(run, "status"), turns)
        report = _by_turns(runs, _report, turns)
        doctor = _by_turns(runs, lambda run, last: _command(run, "doctor"), 1)
        files = {last: sum(path.is_file() for path in run.rglob("*")) for last, run in runs.items()}
    ratio = statistics.median(report[MANY]) / statistics.median(report[FEW])
    return [
        _seconds("status", "looks at every manifest and the size of every file", status, files, 3.0),
        Figure(
            "long-report",
            f"one more report after {MANY} iterations, smallest policy",
            f"the same after {FEW}",
            ratio,
            1.5,
            "at most",
            ours_seconds=report[MANY],
            theirs_seconds=report[FEW],
            ours_computes="wall-clock seconds of the whole process, by turns; no tracker",
        ),
        _seconds("doctor", "compares every file with its checksum", doctor, files, 60.0),
    ]


def _seconds(name: str, what: str, took: dict[int, list[float]], files: dict[int, int], target: float) -> Figure:
    return Figure(
        f"long-{name}",
        f"{name} of a run of {MANY} iterations ({files[MANY]} files), smallest policy",
        f"the same of {FEW} ({files[FEW]} files)",
        statistics.median(took[MANY]),
        target,
        "at most",
        unit="s",
        ours_seconds=took[MANY],
        theirs_seconds=took[FEW],
        ours_computes=f"wall-clock seconds of the whole process, which {what}",
    )


class _Processes(Run):
    """A run whose stages are processes of their own."""

    def attempt(self, stage: object, *args: object, **settings: Any) -> Result:
        return fresh(stage, *self.options(**settings), *args, OMP_NUM_THREADS="1")


def _runs(place: Path) -> dict[int, Path]:
    """Two real iterations of the smallest run, and from there on the second again and again, its large files linked."""
    begun = _Processes(place / "begun")
    begun.start()
    begun.command(
        "evaluate", "--policy", begun.policy(0), "--data", begun.folder / "data", "--out", begun.at(0) / "eval"
    )
    for number in (1, 2):
        begun.iteration(number)
    begun.command("config", "--out", begun.folder / "config.yaml")
    runs = {}
    for last in (FEW, MANY):
        runs[last] = place / f"run-{last}"
        shutil.copytree(begun.folder, runs[last])
        _command(runs[last], "report", "--config", runs[last] / "config.yaml")
        lengthen(runs[last], last)
        _command(runs[last], "report", "--config", runs[last] / "config.yaml")
    return runs


def _by_turns(runs: dict[int, Path], work: Callable[[Path, int], float], turns: int) -> dict[int, list[float]]:
    """Seconds of each run, side by side: what slows the machine for minutes slows both."""
    took: dict[int, list[float]] = {last: [] for last in runs}
    for _ in range(turns):
        for last, run in runs.items():
            took[last].append(work(run, last))
    return took


def _report(run: Path, last: int) -> float:
    shutil.rmtree(run / f"iter-{last:04d}/report")
    return _command(run, "report", "--config", run / "config.yaml", "--iteration", last)


def _command(run: Path, name: str, *arguments: object) -> float:
    """Wall-clock seconds of `python -m dapo_stages NAME --run RUN …`."""
    words = [sys.executable, "-m", "dapo_stages", name, "--run", str(run), *map(str, arguments)]
    started = time.perf_counter()
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started
