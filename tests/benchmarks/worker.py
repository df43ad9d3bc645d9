"""One measurement in a fresh process: `python -m benchmarks.worker peak|row NAME …` writes JSON to a file."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, Side, peak_above_now

TESTS = Path(__file__).resolve().parents[1]


def call(*args: str, **environment: str) -> Any:
    """Run the worker in a fresh process with quiet threads; -> what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = {
            "PYTHONPATH": path,
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(os.cpu_count() or 1),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", *args, "--answer", str(answer)]
        subprocess.run(command, check=True, env={**os.environ, **settings, **environment})
        return json.loads(answer.read_text(encoding="utf-8"))


def duel(name: str, repetitions: int | None = None, *, memory: bool = True) -> list[Figure]:
    """All of a two-sided row: its peaks, each in a process of its own, then its seconds."""
    sides: tuple[Side, ...] = ("ours", "theirs") if memory else ()
    peaks = {side: call("peak", name, side) for side in sides}
    return [
        Figure(**{key: value for key, value in line.items() if key != "met"})
        for line in call("row", name, json.dumps({"repetitions": repetitions, "peaks": peaks}))
    ]


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=sorted(_JOBS))
    parser.add_argument("name")
    parser.add_argument("rest")
    parser.add_argument("--answer", type=Path, required=True)
    asked = parser.parse_args()
    answer = _JOBS[asked.what](asked.name, asked.rest)
    asked.answer.write_text(json.dumps(answer, allow_nan=False), encoding="utf-8")


def _peak(name: str, side: str) -> float:
    from benchmarks.rows import duels

    contest = duels()[name].build()
    return peak_above_now(contest.ours if side == "ours" else contest.theirs)


def _row(name: str, settings: str) -> list[dict[str, Any]]:
    from benchmarks.rows import duels, measure_duel

    return [figure.as_dict() for figure in measure_duel(name, duels()[name], **json.loads(settings))]


def _load(name: str, folder: str) -> float:
    from benchmarks.stages import load_seconds

    return load_seconds(Path(folder))


def _trl_iteration(name: str, folder: str) -> dict[str, float]:
    from benchmarks.iteration import SIZES, trl_iteration

    return trl_iteration(SIZES[name], Path(folder))


def _trl_accuracy(rate: str, folder: str) -> list[float | None]:
    from benchmarks.accuracy import trl_accuracy

    return trl_accuracy(float(rate), Path(folder))


_JOBS: dict[str, Callable[[str, str], Any]] = {
    "peak": _peak,
    "row": _row,
    "load": _load,
    "trl-iteration": _trl_iteration,
    "trl-accuracy": _trl_accuracy,
}

if __name__ == "__main__":
    main()
