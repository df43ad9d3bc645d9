"""The optimizer state is an output of its own: written behind by a process that stays, made again if it was lost."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from support.commands import keeping, run
from support.pipeline import Run

from dapo_stages.errors import LockedError
from dapo_stages.handoff import behind
from dapo_stages.handoff.manifests import MANIFEST, Source, read_manifest
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.unfinished import leftovers, locked
from dapo_stages.processes.collectives import Meeting
from dapo_stages.runs.makefile import states
from dapo_stages.runs.run_folder import Run as RunFolder
from dapo_stages.training import kept_states
from dapo_stages.training.update import Trainer

update = Trainer.update


@pytest.fixture()
def stays() -> Iterator[None]:
    """This process is one that stays."""
    with keeping():
        yield


@pytest.fixture()
def here(small_run: Run, tmp_path: Path) -> Run:
    """A run with what the first train-step reads."""
    (tmp_path / "iter-0001").mkdir()
    for name in (
        "policy",
        "data",
        "config.yaml",
        *(f"iter-0001/{part}" for part in ("rollout", "attention", "weights")),
    ):
        (tmp_path / name).symlink_to(small_run.folder / name)
    return Run(tmp_path, small_run.settings)


def train(run: Run, **settings: Any) -> Path:
    run.command("train-step", *run.train_inputs(1), "--out", run.at(1) / "train", **settings)
    return run.at(1) / "train"


def state_of_train(here: Run) -> tuple[str, str]:
    """What `status` says of the train-step: its state, and why."""
    said = json.loads(run("status", "--run", here.folder, "--json").stdout)
    (iteration,) = (one for one in said["iterations"] if one["iteration"] == 1)
    found = iteration["stages"]["train"]
    return found["state"], found["why"]


def hashes(train: Path) -> list[str]:
    return [read_manifest(train / part).content_hash for part in (".", "policy", "state")]


def test_the_train_step_does_not_list_its_state(small_run: Run) -> None:
    step = Source(small_run.at(1) / "train")
    assert {shard.name.split("/")[0] for shard in step.manifest.shards} == {"policy", "metrics.parquet"}
    state = Source(small_run.at(1) / "train/state", "state")
    assert {shard.name for shard in state.manifest.shards} == {"optimizer-00000-00000.safetensors", "state.json"}
    assert state.manifest.policy["policy_hash"] == step.manifest.policy["content_hash"]
    assert "guard" in state.manifest.counts


@pytest.mark.parametrize("left", ["nothing", "files without a manifest"])
def test_a_lost_state_is_made_again_with_the_same_content_and_the_times_of_before(
    here: Run, small_run: Run, left: str
) -> None:
    step = train(here)
    before, time = hashes(step), (step / MANIFEST).stat().st_mtime_ns
    (step / "state" / MANIFEST).unlink()
    if left == "nothing":
        shutil.rmtree(step / "state")
    said = here.command("train-step", *here.train_inputs(1), "--out", step, "--dry-run").stderr
    assert said.startswith(f"train-step would make again, as an output beside it is missing, {step}\n")
    assert (
        here.command("train-step", *here.train_inputs(1), "--out", step)
        .stderr.splitlines()[-1]
        .startswith("train-step: done")
    )
    assert hashes(step) == before == hashes(small_run.at(1) / "train")
    assert (step / MANIFEST).stat().st_mtime_ns == time
    assert here.command("train-step", *here.train_inputs(1), "--out", step).stderr.startswith("train-step: unchanged")
    assert leftovers(step) == []


def test_what_was_made_from_a_lost_policy_is_not_outdated(
    here: Run, small_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the same train-step may give another policy."""
    step = train(here)
    here.command("rollout", *here.rollout_inputs(2), "--out", here.at(2) / "rollout")
    first = read_manifest(step / "policy").content_hash
    shutil.rmtree(step / "state")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", lambda *args: update(args[0], args[1], args[2] * 1.01))
        here.command("train-step", *here.train_inputs(1), "--out", step)
    policy = read_manifest(step / "policy")
    assert policy.content_hash != first and policy.replaces == [first]
    assert states(RunFolder(here.folder))["iter-0002/rollout"] == "sound"
    assert RunFolder(here.folder).state(here.at(2) / "rollout", "rollout").state == "done"
    shutil.rmtree(step / "state")
    here.command("train-step", *here.train_inputs(1), "--out", step)
    assert read_manifest(step / "policy").content_hash == first
    assert read_manifest(step / "policy").replaces == [policy.content_hash]


def test_status_and_doctor_say_that_a_state_is_missing(here: Run) -> None:
    """What is left of it is a leftover that --repair removes; nothing else is touched."""
    step = train(here)
    assert state_of_train(here)[0] == "done"
    (step / "state" / MANIFEST).unlink()
    assert state_of_train(here) == ("unfinished", "its state was not written")
    left = ["state", "state/optimizer-00000-00000.safetensors", "state/state.json"]
    before = {path for path in here.folder.rglob("*") if path.name != ".lock"}
    missing = ("problem", "iter-0001/train/state", "the optimizer state was not written; the next train-step needs it")
    unpublished = ("leftover", "iter-0001/train/state", "left by an interrupted run, never published")
    said = json.loads(run("doctor", "--run", here.folder, "--json").stdout)["findings"]
    assert {(one["state"], one["where"], one["problem"]) for one in said} == {missing, unpublished}
    assert not (step / "state/.lock").exists()  # it only looks
    run("doctor", "--run", here.folder, "--repair")
    after = {path for path in here.folder.rglob("*") if path.name != ".lock"}
    assert before - after == {step / name for name in left} and after <= before


def test_a_state_that_another_process_writes_is_not_made_again(here: Run) -> None:
    step = train(here)
    shutil.rmtree(step / "state")
    with locked(step / "state"):
        result = here.attempt("train-step", *here.train_inputs(1), "--out", step)
    assert result.code == 4 and f"{step}/state: another run is writing here" in result.stderr


def test_another_train_step_replaces_the_state_too(here: Run) -> None:
    step = train(here)
    other = ["--out", step, "--overwrite"]
    here.command("train-step", *here.train_inputs(1), *other, train__lora="{rank: 2, target_modules: [q_proj]}")
    files = {path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file()}
    listed = {shard.name for shard in read_manifest(step).shards} | {"state/optimizer-00000-00000.safetensors"}
    assert files - {".lock"} == listed | {"state/state.json", *(f"{p}{MANIFEST}" for p in ("", "policy/", "state/"))}
    Source(step / "state").verify_all()


def test_it_is_written_while_other_commands_run(
    here: Run, small_run: Run, stays: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, write = threading.Event(), safetensors.torch.save_file

    def slowly(tensors: Any, path: Any, *rest: Any) -> None:
        if "optimizer" in Path(path).name:
            assert goes_on.wait(60)
        write(tensors, path, *rest)

    monkeypatch.setattr(safetensors.torch, "save_file", slowly)
    step = train(here)
    assert read_manifest(step).content_hash == read_manifest(small_run.at(1) / "train").content_hash
    assert not (step / "state" / MANIFEST).exists()
    until = time.monotonic() + 30
    while state_of_train(here)[0] != "running":  # the thread has just begun
        assert time.monotonic() < until
    assert state_of_train(here) == ("running", "a process is writing its state")
    here.command("rollout", *here.rollout_inputs(2), "--out", here.at(2) / "rollout")
    assert not (step / "state" / MANIFEST).exists()
    threading.Timer(0.2, goes_on.set).start()
    here.command("train-step", *here.train_inputs(1), "--out", step)  # waits
    assert hashes(step) == hashes(small_run.at(1) / "train")
    rollout = [read_manifest(run.at(2) / "rollout").content_hash for run in (here, small_run)]
    assert rollout[0] == rollout[1]


def test_a_rank_that_cannot_begin_to_write_tells_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Meeting, "give_up", lambda self, why: told.append(why))
    about = kept_states.Unwritten(Plan("state", tmp_path / "state", {}, 1), {}, {})
    with locked(tmp_path / "state"), pytest.raises(LockedError):
        kept_states.write(about, kept_states.Kept("adamw", {}, {}), Meeting())
    assert told == [f"{tmp_path}/state: another run is writing here. Wait for it, stop it, or name another --out."]


def test_what_goes_wrong_meanwhile_is_told_by_the_next_train_step(
    here: Run, small_run: Run, stays: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Any, *rest: Any) -> None:
        if "optimizer" in Path(path).name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(tensors, path, *rest)

    write = safetensors.torch.save_file
    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", full)
        step = train(here)
        result = here.attempt("train-step", *here.train_inputs(1), "--out", step)
    assert result.code == 3 and "no space left on the disk. Free some, then run the command again." in result.stderr
    train(here)
    behind.finish()
    assert hashes(step) == hashes(small_run.at(1) / "train")
