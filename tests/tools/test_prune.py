"""prune: how many iterations' files stay, and which stay longer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from reporting import tiny_run
from support.commands import run as command

from dapo_stages.errors import LockedError
from dapo_stages.handoff.manifests import Input, Source, read_manifest, write_manifest
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.resuming import open_output
from dapo_stages.handoff.unfinished import locked


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """Four reported iterations whose held-out accuracy is best after the second."""
    folder = tiny_run.build(tmp_path / "run")
    for number, greedy in ((1, 0.5), (2, 0.75), (3, 0.5), (4, 0.25)):
        checkpoint(folder, number)
        tiny_run.evaluation(folder, number, greedy)
        tiny_run.publish(Plan("report", folder / f"iter-{number:04d}/report", {}, 1), lambda output: None)
    return folder


def checkpoint(run: Path, number: int, **about: Any) -> None:
    """A train-step's policy and state, each with a file."""
    tiny_run.publish(Plan("train-step", run / f"iter-{number:04d}/train", {}, number), lambda output: None)
    for part in ("policy", "state"):

        def fill(output: Output, part: str = part) -> None:
            (output.folder / f"{part}.bin").write_bytes(b"weights")
            output.add_files(f"{part}.bin")
            output.policy = {"version": number, **about}

        tiny_run.publish(Plan(part, run / f"iter-{number:04d}/train/{part}", about, number), fill)


def prune(run: Path, *arguments: str) -> str:
    result = command("prune", "--config", run / "config.yaml", "--run", run, *arguments)
    assert result.code == 0, result.stderr
    return result.stderr


def left(run: Path, part: str) -> list[int]:
    return [int(path.parts[-4][5:]) for path in sorted(run.glob(f"iter-*/train/{part}/{part}.bin"))]


def test_the_best_policy_stays_beside_the_newest(run: Path) -> None:
    said = prune(run, "--set", "keep.policies=1", "--set", "keep.states=1")
    assert left(run, "policy") == [2, 4]
    assert left(run, "state") == [4]
    assert f"prune: removing the files of {run}/iter-0003/train/policy" in said
    assert read_manifest(run / "iter-0003/train/policy").pruned
    Source(run / "iter-0002/train/policy").verify_all()


def test_the_best_policy_goes_where_keep_best_is_off(run: Path) -> None:
    prune(run, "--set", "keep.policies=1", "--set", "keep.best=false")
    assert left(run, "policy") == [4]


def test_a_policy_that_lagging_rollouts_still_need_stays(run: Path) -> None:
    prune(run, "--set", "keep.policies=1", "--set", "keep.best=false", "--set", "lag=1")
    assert left(run, "policy") == [3, 4]


def test_rollouts_stay_where_a_curriculum_goes_by_them(run: Path) -> None:
    """`run` has rollouts of iterations 1 and 2. One that goes while a later iteration samples could not be resumed."""
    parts = ("rollout", "attention", "weights")
    keep = ("--set", "keep.rollouts=2", "--set", "keep.best=false")
    prune(run, *keep, "--set", "rollout.curriculum={}")
    assert [read_manifest(run / "iter-0001" / part).pruned for part in parts] == [False, True, True]
    Source(run / "iter-0001/rollout").verify_all()
    prune(run, *keep)
    assert read_manifest(run / "iter-0001/rollout").pruned


@pytest.mark.parametrize("lost", [[4], [3, 4]])
def test_what_the_train_steps_since_the_last_state_are_made_from_stays(run: Path, lost: list[int]) -> None:
    """Until a state is written again: the rollouts, the policies and the last state that they read."""
    for number in lost:
        here, before = run / f"iter-{number:04d}", run / f"iter-{number - 1:04d}/train"
        tiny_run.rollout(run, number)
        read = {"policy": before / "policy", "rollouts": here / "rollout", "state": before / "state"}
        hashes = {name: read_manifest(folder).content_hash for name, folder in read.items()}
        inputs = {name: Input(path=str(folder), content_hash=hashes[name]) for name, folder in read.items()}
        write_manifest(here / "train", read_manifest(here / "train").model_copy(update={"inputs": inputs}))
    for number in lost:
        shutil.rmtree(run / f"iter-{number:04d}/train/state")
    keep = [word for part in ("policies", "states", "rollouts") for word in ("--set", f"keep.{part}=1")]
    prune(run, *keep, "--set", "keep.best=false")
    assert left(run, "policy") == [lost[0] - 1, *lost] and left(run, "state") == [lost[0] - 1]
    pruned = {number: read_manifest(run / f"iter-{number:04d}/rollout").pruned for number in (1, 2, *lost)}
    assert pruned == {number: number not in lost for number in pruned}
    tiny_run.publish(Plan("state", run / "iter-0004/train/state", {}, 2), lambda output: None)
    prune(run, *keep, "--set", "keep.best=false")
    assert left(run, "policy") == [4] and left(run, "state") == []


def test_what_a_lost_state_was_made_from_goes_once_a_later_one_is_written(run: Path) -> None:
    shutil.rmtree(run / "iter-0002/train/state")
    prune(run, "--set", "keep.policies=1", "--set", "keep.states=1", "--set", "keep.best=false")
    assert left(run, "policy") == left(run, "state") == [4]


def test_a_better_policy_takes_its_place(run: Path) -> None:
    prune(run, "--set", "keep.policies=1")
    checkpoint(run, 5)
    tiny_run.evaluation(run, 5, greedy=1.0)
    prune(run, "--set", "keep.policies=1")
    assert left(run, "policy") == [5]


def test_a_dry_run_names_what_would_go_and_removes_nothing(run: Path) -> None:
    said = prune(run, "--set", "keep.policies=1", "--dry-run")
    policies = [line for line in said.splitlines() if line.endswith("/policy")]
    assert policies == [f"prune: would remove the files of {run}/iter-000{n}/train/policy" for n in (1, 3)]
    assert left(run, "policy") == [1, 2, 3, 4]


def test_a_policy_under_an_adapter_stays_as_long_as_the_adapter(run: Path) -> None:
    """The adapter of iteration 4 was begun on the whole policy of iteration 1; that of iteration 3 goes."""
    checkpoint(run, 3, base="../../../iter-0002/train/policy")
    checkpoint(run, 4, base="../../../iter-0001/train/policy")
    keep = ("--set", "keep.policies=1", "--set", "keep.best=false")
    prune(run, *keep)
    assert left(run, "policy") == [1, 4]
    checkpoint(run, 5)
    prune(run, *keep)
    assert left(run, "policy") == [5]


@pytest.mark.parametrize(("part", "output"), [("rollout", "rollout"), ("train/state", "train")])
def test_what_another_run_writes_is_left_alone(run: Path, part: str, output: str) -> None:
    """As an old iteration that is made again: its old files are its output until the new ones are."""
    out, before = run / "iter-0001" / output, tree(run / "iter-0001" / part)
    replacement = out / ".next/prompts-00000.parquet"
    with locked(out):
        replacement.parent.mkdir()
        replacement.touch()
        said = prune(run, "--set", "keep.rollouts=1", "--set", "keep.states=1")
        assert f"prune: skipping {run}/iter-0001/{part}: another process is writing there" in said
        with pytest.raises(LockedError), locked(out):  # nobody writes beside it
            pass
        assert tree(run / "iter-0001" / part).items() >= before.items() and replacement.exists()
        assert read_manifest(run / "iter-0001/attention").pruned  # which nobody writes
    assert f"prune: removing the files of {run}/iter-0001/{part}" in prune(
        run, "--set", "keep.rollouts=1", "--set", "keep.states=1"
    )
    assert replacement.exists()  # what an interrupted run has finished


def test_the_lock_that_others_wait_for_stays(run: Path) -> None:
    """A process that has opened it, and one that comes later, must mean the same file."""
    lock = run / "iter-0001/rollout/.lock"
    before = lock.stat().st_ino
    prune(run, "--set", "keep.rollouts=1")
    assert read_manifest(run / "iter-0001/rollout").pruned and lock.stat().st_ino == before


def test_a_finished_replacement_is_not_lost(run: Path) -> None:
    """Its run was killed before it moved it in: the same command does that."""
    out = run / "iter-0001/rollout"
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patched:
        patched.setattr("dapo_stages.handoff.outputs.finish_replacement", lambda out: None)
        plan = Plan("rollout", out, {"iteration": 1, "rollout": {"prompts_per_iteration": 3}}, 1)
        with open_output(plan, overwrite=True) as output:
            assert output is not None
            output.write("prompts", 0, [tiny_run.prompt(1, 0, correct=2)])
            output.publish()
            raise KeyboardInterrupt
    before = tree(out)
    assert f"prune: skipping {out}: its finished replacement is not moved in yet" in prune(
        run, "--set", "keep.rollouts=1"
    )
    assert tree(out) == before


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
