"""What make is told of a run's outputs: whether they are made from what their inputs hold now, whatever the times."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from reporting import tiny_run
from support.commands import run as command

from dapo_stages.handoff.manifests import MANIFEST, mark_pruned
from dapo_stages.runs.makefile import again, states
from dapo_stages.runs.run_folder import Run

NAMES = ("rollout", "attention", "weights", "train", "eval", "report")


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """An evaluated start and two iterations, with reports."""
    run = tiny_run.build(tmp_path / "tiny")
    assert command("report", "--config", run / "config.yaml", "--run", run).code == 0
    return run


def everything() -> set[str]:
    first = {"policy", "data", "iter-0000/eval", "iter-0000/report"}
    return first | {f"iter-000{number}/{name}" for number in (1, 2) for name in NAMES}


def test_every_output_of_an_undisturbed_run_is_sound_whatever_its_time(run: Path) -> None:
    for path in run.rglob(MANIFEST):
        when = random.Random(str(path)).randrange(10**9)
        os.utime(path, (when, when))
    assert states(Run(run)) == dict.fromkeys(everything(), "sound")


def test_what_was_pruned_is_sound(run: Path) -> None:
    for part in ("rollout", "attention", "weights", "train/policy"):
        mark_pruned(run / "iter-0001" / part)
    assert states(Run(run)) == dict.fromkeys(everything(), "sound")


def test_what_was_made_from_other_inputs_is_stale_and_what_comes_after_it_is_not_sound(run: Path) -> None:
    tiny_run.rollout(run, 2, seed=7)
    stale = {f"iter-0002/{name}" for name in ("attention", "weights", "train", "report")}
    sound = everything() - stale - {"iter-0002/eval"}  # of the policy that is there, but that will be made again
    assert states(Run(run)) == dict.fromkeys(sound, "sound") | dict.fromkeys(stale, "stale")


def test_nothing_is_said_of_what_is_missing_or_damaged_and_of_what_is_made_from_it(run: Path) -> None:
    (run / "iter-0002/attention" / MANIFEST).unlink()
    text = (run / "iter-0001/train" / MANIFEST).read_text()
    (run / "iter-0001/train" / MANIFEST).write_text(text.replace('"seed": 1', '"seed": 2'))
    unknown = {f"iter-0002/{name}" for name in NAMES} | {f"iter-0001/{name}" for name in ("train", "eval", "report")}
    assert states(Run(run)) == dict.fromkeys(everything() - unknown, "sound")


def test_a_report_is_stale_once_its_iteration_has_more(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="train")
    assert command("report", "--config", run / "config.yaml", "--run", run).code == 0
    assert states(Run(run))["iter-0002/report"] == "sound"
    tiny_run.evaluation(run, 2, greedy=0.5)
    assert states(Run(run))["iter-0002/report"] == "stale"
    mark_pruned(run / "iter-0002/rollout")  # it cannot be made again
    assert states(Run(run))["iter-0002/report"] == "sound"


def test_a_copy_is_judged_by_itself_and_not_by_what_it_was_copied_from(run: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = run.rename(tmp_path / "copy/tiny")
    assert states(Run(copy)) == dict.fromkeys(everything(), "sound")


@pytest.mark.parametrize(
    ("written", "stale", "expected"),
    [
        ("1 2 3 4 5 6 7", "", ""),
        ("5", "", "6 7"),
        ("5 7", "", ""),  # nobody needs that of 6
        ("", "", "1 2 3 4 5 6 7"),
        ("5 7", "7", "6"),
        ("2 5 7", "5", "3 4"),
        ("2 7", "6", "3 4 5"),
    ],
)
def test_train_steps_since_the_last_written_state_are_made_again(
    tmp_path: Path, written: str, stale: str, expected: str
) -> None:
    for number in range(1, 8):
        state = tmp_path / f"iter-000{number}/train/state"
        state.mkdir(parents=True)
        (state.parent / MANIFEST).touch()
        if str(number) in written.split():
            (state / MANIFEST).touch()
    (tmp_path / "iter-0008/rollout").mkdir(parents=True)
    found = again(Run(tmp_path), {f"iter-000{number}/train": "stale" for number in stale.split()})
    assert found == [f"iter-000{number}" for number in expected.split()]
