"""What `make study` is told to run, and what is refused before it takes time."""

from __future__ import annotations

from pathlib import Path

import pytest
from study.planted import DESIGN, SEEDS, every_run, pilot, plant, result
from typer.testing import CliRunner

from dapo_stages.errors import DataError
from pipelines.study import __main__ as study
from pipelines.study.design import Design


@pytest.fixture(autouse=True)
def _planted_design(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Design, "read", lambda: DESIGN)


def told(command: str, folder: Path, *arguments: str) -> list[str]:
    found = CliRunner().invoke(study.app, [command, *arguments, "--results", str(folder)], catch_exceptions=False)
    return [line.removeprefix(f"{folder}/") for line in found.stdout.splitlines()]


def test_the_pilot_wants_every_rate_and_then_what_lies_beyond_an_edge(tmp_path: Path) -> None:
    first = told("wanted", tmp_path, "--pilot")
    assert len(first) == 4 * 3 * 2 and first[:2] == ["pilot/places/a-0.0001-1.json", "pilot/places/a-0.0003-1.json"]
    plant(tmp_path, pilot({("a", 0.001): 0.7}))
    assert told("wanted", tmp_path, "--pilot") == [f"pilot/places/a-0.003-{seed}.json" for seed in (1, 2)]
    with pytest.raises(
        DataError, match=r"places: the pilot has chosen no learning rates yet: 2 of its runs are missing"
    ):
        told("wanted", tmp_path)


def test_test_seeds_come_whole_one_after_another_at_the_chosen_rate(tmp_path: Path) -> None:
    plant(tmp_path, pilot())
    first = [f"places/{scheme}-{seed}.json" for seed in (101, 102) for scheme in ("uniform", "a", "b", "c")]
    assert told("wanted", tmp_path)[:8] == first
    plant(tmp_path, every_run()[1:])
    assert told("wanted", tmp_path) == ["places/uniform-101.json"]
    assert told("wanted", tmp_path, "--seeds", "111", "--schemes", "a b") == ["places/a-111.json", "places/b-111.json"]
    with pytest.raises(DataError, match="SEEDS: expected test seeds, from 101 on, got 2"):
        told("wanted", tmp_path, "--seeds", "2 101")
    (options,) = told("settings", tmp_path, f"{tmp_path}/places/a-111.json")
    assert options == "--set seed=111 --set train.learning_rate=0.0003"


def test_a_run_that_could_not_be_compared_is_refused_before_it_is_made(tmp_path: Path) -> None:
    plant(tmp_path, [*pilot(), result("uniform", SEEDS[0], 0.5)])  # by a machine that this one is not
    with pytest.raises(DataError, match=r"uniform-101\.json was made elsewhere \(Abacus"):
        told("settings", tmp_path, f"{tmp_path}/places/a-101.json")


def test_a_model_of_ones_own_needs_no_pilot(tmp_path: Path) -> None:
    files = [f"mine/{scheme}-{seed}.json" for seed in (1, 2, 3) for scheme in ("uniform", "a")]
    assert told("wanted", tmp_path, "--own", "mine") == files
    assert told("settings", tmp_path, f"{tmp_path}/mine/a-1.json", "--own", "mine") == ["--set seed=1"]
