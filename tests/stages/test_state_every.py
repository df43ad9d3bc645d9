"""keep.state_every: a process that stays writes some states only; what is not written is trained again, not sampled."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from support.commands import keeping, run
from support.pipeline import Run

from dapo_stages.handoff import behind, kept
from dapo_stages.handoff.manifests import MANIFEST, read_manifest
from dapo_stages.runs.makefile import states
from dapo_stages.runs.run_folder import Run as RunFolder
from dapo_stages.training import kept_states
from dapo_stages.training.update import Trainer

update = Trainer.update


@pytest.fixture()
def here(small_run: Run, tmp_path: Path) -> Run:
    """A run of two iterations that lacks their train-steps."""
    parts = [f"iter-000{number}/{part}" for number in (1, 2) for part in ("rollout", "attention", "weights")]
    for name in ("policy", "data", "config.yaml", *parts):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(small_run.folder / name)
    return Run(tmp_path, small_run.settings)


def train(run: Run, number: int, every: int = 5, **settings: Any) -> str:
    """Train, and give the last line that the command said."""
    state = ["--state", run.at(1) / "train/state"] if number == 2 else []
    out = ["--out", run.at(number) / "train"]
    said = run.command("train-step", *run.train_inputs(number), *state, *out, keep__state_every=every, **settings)
    return said.stderr.splitlines()[-1]


def state_is_written(run: Run, number: int) -> bool:
    behind.finish()
    return (run.at(number) / "train/state" / MANIFEST).exists()


def hashes(run: Run) -> dict[str, str]:
    """Content hashes of what train-steps have written."""
    found = {path.parent for number in (1, 2) for path in (run.at(number) / "train").rglob(MANIFEST)}
    return {str(path.relative_to(run.folder)): read_manifest(path).content_hash for path in found}


def findings(run_: Run) -> list[tuple[str, str, str]]:
    said = json.loads(run("doctor", "--run", run_.folder, "--json").stdout)["findings"]
    return [(one["state"], one["where"], one["problem"]) for one in said]


def test_a_state_that_is_not_written_is_taken_from_memory(here: Run, small_run: Run) -> None:
    with keeping():
        train(here, 1, every=2)
        assert not state_is_written(here, 1)
        train(here, 2, every=2)
        assert state_is_written(here, 2) and not state_is_written(here, 1)
    expected = hashes(small_run)
    del expected["iter-0001/train/state"]
    assert hashes(here) == expected
    recorded = read_manifest(here.at(2) / "train").inputs["state"].content_hash
    assert recorded == read_manifest(here.policy(1)).content_hash
    assert states(RunFolder(here.folder))["iter-0002/train"] == "sound"
    assert RunFolder(here.folder).state(here.at(1) / "train", "train-step").state == "done"  # nobody needs its state
    assert not [one for one in findings(here) if "train" in one[1]]
    assert train(here, 2).startswith("train-step: unchanged")  # also for a process that never had the first state


def test_asked_again_it_is_written_only_if_that_is_asked_for(here: Run, small_run: Run) -> None:
    with keeping():
        train(here, 1)
        assert train(here, 1).startswith("train-step: unchanged") and not state_is_written(here, 1)
        assert train(here, 1, every=1).startswith("train-step: unchanged") and state_is_written(here, 1)
        train(here, 2)
    assert hashes(here) == {name: one for name, one in hashes(small_run).items() if name != "iter-0002/train/state"}


def test_a_dry_run_writes_nothing(here: Run) -> None:
    with keeping():
        train(here, 1)
        behind.finish()
        out = ["--out", here.folder / "other"]
        here.command("train-step", *here.train_inputs(1), *out, "--dry-run", keep__state_every=5)
        assert not state_is_written(here, 1)


@pytest.mark.parametrize("stays", [True, False])
def test_after_a_crash_the_train_steps_since_the_last_state_are_made_again(
    here: Run, small_run: Run, stays: bool
) -> None:
    with keeping():  # and then it is killed
        train(here, 1)
        train(here, 2)
    written = hashes(here)
    assert not state_is_written(here, 1) and not state_is_written(here, 2)
    lost = "the optimizer state was not written; the next train-step needs it"
    problems = [where for _, where, problem in findings(here) if problem == lost]
    assert problems == ["iter-0001/train/state", "iter-0002/train/state"]

    inputs = [*here.train_inputs(2), "--state", here.at(1) / "train/state", "--out", here.at(2) / "train"]
    result = here.attempt("train-step", *inputs)
    assert result.code == 3 and result.stderr.splitlines()[-1] == (
        f"{here.at(1)}/train/state/manifest.json: the optimizer state was not written, and no process keeps it any "
        "more. Run make iterate, or the train-step that left it: either trains again on what was sampled before."
    )
    with keeping() if stays else nullcontext():
        assert train(here, 1).startswith("train-step: done")
        assert train(here, 2).startswith("train-step: done")
        if stays:
            assert hashes(here) == written
            assert train(here, 2, every=1).startswith("train-step: unchanged")
    expected = hashes(small_run)
    if stays:
        del expected["iter-0001/train/state"]
    assert hashes(here) == expected


def test_a_process_that_does_not_stay_writes_every_state(here: Run, small_run: Run) -> None:
    train(here, 1)
    train(here, 2)
    assert hashes(here) == hashes(small_run)


def test_it_is_written_before_the_process_trains_something_else(here: Run, small_run: Run) -> None:
    with keeping():
        train(here, 1)
        here.command("train-step", *here.train_inputs(1), "--out", here.folder / "other", train__learning_rate=1e-3)
        assert state_is_written(here, 1)
    state = "iter-0001/train/state"
    assert hashes(here)[state] == hashes(small_run)[state]


@pytest.mark.parametrize("meanwhile", ["another policy", "the state"])
def test_at_its_end_a_process_writes_only_what_still_belongs_there(here: Run, small_run: Run, meanwhile: str) -> None:
    with keeping():
        train(here, 1)
        behind.finish()
        mine, policy = kept.present("state"), read_manifest(here.policy(1)).content_hash
        kept.end()  # as another process
        if meanwhile == "another policy":
            out = ["--out", here.at(1) / "train", "--overwrite"]
            here.command("train-step", *here.train_inputs(1), *out, train__learning_rate=1e-3)
        else:
            train(here, 1)
        before = hashes(here)
        kept.begin()
        kept.give("state", policy, mine)
        kept_states.write_unwritten()
        assert hashes(here) == before and kept.present("state") is None


def test_what_the_guard_counts_goes_on_without_the_manifest_of_the_state(here: Run, small_run: Run) -> None:
    with keeping():
        train(here, 1)
        train(here, 2)
    for number in (1, 2):
        counts = [read_manifest(run.at(number) / "train").counts["guard"] for run in (here, small_run)]
        assert counts[0] == counts[1]


def test_made_again_with_other_results_each_replaces_what_was_lost(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the second train-step is made again from what the first has now, and the rollouts stay."""
    with keeping():  # and then it is killed
        train(here, 1)
        train(here, 2)
    lost = [read_manifest(here.policy(number)).content_hash for number in (1, 2)]
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", lambda *args: update(args[0], args[1], args[2] * 1.01))
        train(here, 1)
    again = here.command(
        "train-step", *here.train_inputs(2), "--state", here.at(1) / "train/state", "--out", here.at(2) / "train"
    )
    told = "train-step: the policy that sampled was lost, and trained again it is another; importance weights correct"
    assert told in again.stderr
    for number in (1, 2):
        policy = read_manifest(here.policy(number))
        assert policy.replaces == [lost[number - 1]] and policy.content_hash != lost[number - 1]
    folder = RunFolder(here.folder)
    found = folder.state(here.at(2) / "rollout", "rollout")
    now = read_manifest(here.policy(1)).content_hash[:12]
    assert (found.state, found.why) == ("done", f"sampled by a policy that was lost ({lost[0][:12]}, now {now})")
    assert ("note", "iter-0002/rollout", found.why) in findings(here)
    assert set(states(folder).values()) == {"sound"}
    stale = {name for name, state in states(folder, strict=True).items() if state == "stale"}
    assert stale == {"iter-0002/rollout", "iter-0002/attention", "iter-0002/weights", "iter-0002/train"}
