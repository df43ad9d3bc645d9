"""Each point reaches a tracker once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dapo_stages.reporting.figures import Figures
from dapo_stages.reporting.trackers import news, points, track

FIRST: Figures = {"iteration": 1, "rollout": {"accuracy": 0.5}, "train": {"loss": 0.3, "updates": [{"loss": 0.3}]}}
SECOND: Figures = {"iteration": 2, "rollout": {"accuracy": 0.625}, "train": {"updates": [{"loss": 0.1}, {"loss": 0.2}]}}


def events(run: Path) -> Counter[tuple[str, int, float]]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: Counter[tuple[str, int, float]] = Counter()
    for path in (run / "runs").glob("events.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            found.update((value.tag, event.step, round(value.simple_value, 6)) for value in event.summary.value)
    return found


def test_points_carry_iterations_and_optimiser_steps() -> None:
    assert points([FIRST, SECOND]) == {
        ("rollout/accuracy", 1): 0.5,
        ("train/loss", 1): 0.3,
        ("update/loss", 1): 0.3,
        ("rollout/accuracy", 2): 0.625,
        ("update/loss", 2): 0.1,
        ("update/loss", 3): 0.2,
    }


def test_a_changed_point_means_starting_afresh() -> None:
    assert news({("a", 1): 1.0, ("a", 2): 2.0}, {("a", 1): 1.0}) == (False, {("a", 2): 2.0})
    assert news({("a", 1): 1.5}, {("a", 1): 1.0}) == (True, {("a", 1): 1.5})


def test_tensorboard_gets_each_point_once(tmp_path: Path) -> None:
    track(tmp_path, ["tensorboard"], "p", [FIRST])
    track(tmp_path, ["tensorboard"], "p", [FIRST, SECOND])
    before = sorted((tmp_path / "runs").iterdir())
    track(tmp_path, ["tensorboard"], "p", [FIRST, SECOND])
    assert sorted((tmp_path / "runs").iterdir()) == before
    found = events(tmp_path)
    assert set(found.values()) == {1}
    assert ("rollout/accuracy", 2, 0.625) in found and ("update/loss", 3, 0.2) in found


def test_an_iteration_done_again_replaces_its_tensorboard_points(tmp_path: Path) -> None:
    track(tmp_path, ["tensorboard"], "p", [FIRST])
    track(tmp_path, ["tensorboard"], "p", [{"iteration": 1, "rollout": {"accuracy": 0.75}}])
    assert events(tmp_path) == {("rollout/accuracy", 1, 0.75): 1}


def test_wandb_works_offline_and_sends_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    track(tmp_path, ["wandb"], "p", [FIRST])
    track(tmp_path, ["wandb"], "p", [FIRST])
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
    state = json.loads((tmp_path / "wandb" / "dapo-stages.json").read_text())
    assert ["rollout/accuracy", 1, 0.5] in state["logged"]


def test_a_tracker_that_is_not_installed_is_named_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    track(tmp_path, ["wandb"], "p", [FIRST])
    assert "wandb gets nothing, it is not installed" in (said := capsys.readouterr().err)
    assert "pip install wandb tensorboard" in said


def test_trackers_do_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dapo_stages.reporting.trackers import track;"
        f"track(Path({str(tmp_path)!r}), ['tensorboard'], 'p', [{FIRST!r}]);"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
