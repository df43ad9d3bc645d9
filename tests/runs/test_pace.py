"""Seconds per iteration and time left, by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from reporting import tiny_run
from typer.testing import CliRunner

from dapo_stages.handoff.manifests import read_manifest, write_manifest
from dapo_stages.runs.pace import Pace, busy, describe, pace, spent
from dapo_stages.runs.run_folder import Run
from dapo_stages.stages import report
from dapo_stages.terminal.console import duration

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


def took(folder: Path, start: int, end: int) -> None:
    """Say that an output was made from `start` to `end`, in seconds after midnight."""
    ended = (MIDNIGHT + timedelta(seconds=end)).isoformat(timespec="seconds")
    write_manifest(folder, read_manifest(folder).model_copy(update={"ended": ended, "seconds": float(end - start)}))


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """Iteration 1: 100 s with a gap of 5 s, iteration 2: 200 s, an hour later, its evaluation beside its training."""
    made = tiny_run.build(tmp_path / "tiny")
    names = ("rollout", "attention", "weights", "train", "eval")
    first = [(0, 30), (30, 50), (55, 60), (60, 90), (90, 100)]
    second = [(3700, 3760), (3760, 3800), (3800, 3810), (3810, 3900), (3850, 3900)]
    for number, times in ((1, first), (2, second)):
        for name, (start, end) in zip(names, times, strict=True):
            took(made / f"iter-000{number}" / name, start, end)
    return made


def test_overlaps_count_once_short_gaps_too_and_pauses_not() -> None:
    assert busy([(0.0, 10.0), (5.0, 20.0)]) == 20
    assert busy([(0.0, 20.0), (5.0, 10.0)]) == 20
    assert busy([(100.0, 110.0), (0.0, 40.0)]) == 110
    assert busy([(101.0, 111.0), (0.0, 40.0)]) == 50
    assert busy([]) == 0


def test_the_pace_of_a_run(run: Path) -> None:
    assert pace(Run(run), 6) == Pace(2, 6, 200.0, 150.0)
    assert str(pace(Run(run), 6)) == "iteration 2 of 6: 3 min 20 s, 2 min 30 s on average; about 10 min left"
    assert str(pace(Run(run), 2)) == "iteration 2 of 2: 3 min 20 s, 2 min 30 s on average"


def test_an_iteration_counts_once_it_is_trained_and_pruned_ones_do(run: Path) -> None:
    from dapo_stages.handoff.manifests import mark_pruned

    (run / "iter-0002/train/manifest.json").unlink()
    mark_pruned(run / "iter-0001/rollout")
    assert pace(Run(run), 2) == Pace(1, 2, 100.0, 100.0)
    (run / "iter-0001/train/manifest.json").unlink()
    assert pace(Run(run), 2) is None


def test_report_says_it_once_per_iteration(run: Path) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(report.main)
    options = ["--config", str(run / "config.yaml"), "--run", str(run), "--iteration", "2", "--of", "6"]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("iteration ")]
    assert line.startswith("iteration 2 of 6: ") and " on average; about " in line and line.endswith(" left")
    everything = CliRunner().invoke(app, options[:4], catch_exceptions=False)
    assert everything.stderr.count(" on average") == 1  # of two iterations that had no report yet
    assert " on average" not in CliRunner().invoke(app, options[:4], catch_exceptions=False).stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"), (45.4, "45 s"), (59.7, "1 min"), (125, "2 min 5 s"), (3600, "1 h"), (3612, "1 h"),
        (12_000, "3 h 20 min"), (187_200, "2 d 4 h"), (86_460, "1 d"),
    ],
)  # fmt: skip
def test_durations_have_two_parts_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_seconds_by_phase_are_those_of_all_stages(run: Path) -> None:
    for name, seconds in (
        ("rollout", {"start": 6.5, "work": 2.0}),
        ("train", {"start": 7.3, "hash": 2.2, "work": 4.0}),
    ):
        manifest = read_manifest(run / "iter-0002" / name)
        write_manifest(run / "iter-0002" / name, manifest.model_copy(update={"spent": seconds}))
    for name in ("attention", "weights", "eval"):
        manifest = read_manifest(run / "iter-0002" / name)
        write_manifest(run / "iter-0002" / name, manifest.model_copy(update={"spent": {}}))
    found = spent(Run(run), 2)
    assert found == {"start": pytest.approx(13.8), "verify": 0, "load": 0, "work": 6, "save": 0, "hash": 2.2}
    said = "22.0 s, 27.3% of it work (start 13.8, verify 0.0, load 0.0, save 0.0, hash 2.2)"
    assert describe(found) == said
    assert spent(Run(run), 9) == {}
