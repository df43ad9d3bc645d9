"""Stages in several processes: the same files as in one, and errors that end them all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from support import machine
from support.answers import right_as_read
from support.commands import ROOT, Result
from support.pipeline import Run
from support.processes import together

from dapo_stages.errors import InterruptedStage
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output

# A reward that does to rank 1 what the files beside it say, at the first group of its second shard.
PLUGIN = """
import os, signal, time
from pathlib import Path

if os.environ.get("RANK") == "1" and Path("broken").exists():
    raise RuntimeError("not on this machine")

def length(completions, rows):
    if os.environ.get("RANK") == "1" and rows[0]["group_id"] == "i0001-g000012":
        if Path("kill").exists():
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        if Path("fail").exists():
            raise ValueError("no length today")
    return [float(len(text)) for text in completions]
"""
FOUR_SHARDS = {
    "rewards__plugins": "{length: length.py:length}",
    "rollout__prompts_per_iteration": 16,
    "rollout__dynamic_sampling": "false",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with machine.one_thread():
        yield


@pytest.fixture(scope="module")
def alone(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process with one thread makes in iteration 1: its rollout, and the attention of the small run's."""
    if machine.threads() == 1:
        return small_run.at(1)
    folder = tmp_path_factory.mktemp("alone")
    rollouts = ["--policy", small_run.policy(0), "--rollouts", small_run.at(1) / "rollout"]
    with machine.one_thread():
        small_run.command("rollout", *small_run.rollout_inputs(1), "--out", folder / "rollout")
        small_run.command("score-attention", *rollouts, "--out", folder / "attention")
    return folder


def hash_of(folder: Path) -> str:
    """The content hash of a whole output that has no other files than those of its manifest."""
    source = Source(folder)
    source.verify_all()
    files = {path.name for path in folder.iterdir()} - {".lock", "manifest.json"}
    assert files == {shard.name for shard in source.manifest.shards}
    return source.manifest.content_hash


def succeed(count: int, *args: object) -> list[Result]:
    """Run a command in some processes; the first alone has said anything."""
    results = together(count, *args)
    assert [result.code for result in results] == [0] * count, results
    assert results[0].stderr and not any(result.stderr or result.stdout for result in results[1:])
    return results


def launch(folder: Path, *args: object) -> Result:
    """The command in two processes, through the launcher, as the Makefile calls it."""
    processes = ["--config_file", ROOT / "pipelines/accelerate/processes.yaml", "--num_processes", 2]
    done = subprocess.run(
        [sys.executable, "-m", "dapo_stages.entrypoints.launch", *map(str, [*processes, *args])],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return Result(done.returncode, done.stdout, done.stderr)


# The same files


@pytest.mark.parametrize("count", [2, 3])
def test_rollout_keeps_the_same_groups(count: int, small_run: Run, alone: Path, tmp_path: Path) -> None:
    succeed(count, "rollout", *small_run.options(), *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    assert hash_of(tmp_path / "r") == hash_of(alone / "rollout")


@pytest.mark.parametrize("surplus", ["keep", "discard"])
def test_oversampling_and_a_curriculum_keep_the_same_groups(surplus: str, small_run: Run, tmp_path: Path) -> None:
    """Three processes sample in threes what is asked for in other portions."""
    settings = {"rollout__oversample": 1.3, "rollout__surplus": surplus, "rollout__groups_per_shard": 2}
    settings |= {"rollout__curriculum": "{floor: 0.3}"}
    inputs = [*small_run.rollout_inputs(2), "--history", small_run.folder]
    small_run.command("rollout", *inputs, "--out", tmp_path / "alone", **settings)
    for count in (2, 3):
        succeed(count, "rollout", *small_run.options(**settings), *inputs, "--out", tmp_path / f"r{count}")
        assert hash_of(tmp_path / f"r{count}") == hash_of(tmp_path / "alone")


def test_score_attention_gives_the_same_rows(small_run: Run, alone: Path, tmp_path: Path) -> None:
    rollout = small_run.at(1) / "rollout"
    inputs = ["--policy", small_run.policy(0), "--rollouts", rollout, "--out", tmp_path / "a"]
    succeed(2, "score-attention", *small_run.options(), *inputs)
    assert hash_of(tmp_path / "a") == hash_of(alone / "attention")


def test_evaluate_gives_the_same_rows_and_figures(small_run: Run, tmp_path: Path) -> None:
    inputs = ["--policy", small_run.policy(1), "--data", small_run.folder / "data"]
    parts = {"evaluate__questions_per_shard": 5}  # of 12
    small_run.command("evaluate", *inputs, "--out", tmp_path / "alone", **parts)
    succeed(2, "evaluate", *small_run.options(**parts), *inputs, "--out", tmp_path / "e")
    assert len(Source(tmp_path / "e").shards("completions")) == 3
    assert hash_of(tmp_path / "e") == hash_of(tmp_path / "alone")
    assert (tmp_path / "e/metrics.json").read_bytes() == (tmp_path / "alone/metrics.json").read_bytes()


def test_one_process_speaks_for_all(small_run: Run, tmp_path: Path) -> None:
    rollout = ["rollout", *small_run.options(), *small_run.rollout_inputs(1), "--out"]
    assert succeed(2, *rollout, tmp_path / "r", "--dry-run")[0].stderr.startswith("rollout would write")
    assert not (tmp_path / "r").exists()
    shutil.copytree(small_run.at(1) / "rollout", tmp_path / "done")
    assert "rollout: unchanged" in succeed(2, *rollout, tmp_path / "done")[0].stderr


# What ends them


def test_shards_sampled_in_vain_are_dropped_by_whoever_carries_on(
    small_run: Run, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many processes sample as many at a time, and one more than is needed; stopped before they remove it."""
    needed = len(Source(small_run.at(1) / "rollout").shards("prompts"))
    count = next(count for count in (3, 2, 4) if needed % count)

    def cut(*_: object) -> None:
        raise InterruptedStage("here")

    monkeypatch.setattr(Output, "keep", cut)
    results = together(count, "rollout", *small_run.options(), *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    assert [result.code for result in results] == [130] * count
    monkeypatch.undo()
    assert (tmp_path / f"r/completions-{needed:05d}.parquet").exists()
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    assert hash_of(tmp_path / "r") == hash_of(alone / "rollout")


@pytest.mark.faults
def test_a_killed_process_ends_the_stage_and_any_number_carries_on(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("length.py").write_text(PLUGIN)
    inputs = small_run.rollout_inputs(1)
    with right_as_read():  # as in the launched processes
        small_run.command("rollout", *inputs, "--out", "undisturbed", **FOUR_SHARDS)
    Path("kill").touch()
    killed = launch(tmp_path, "rollout", *small_run.options(**FOUR_SHARDS), *inputs, "--out", "r")
    assert killed.code == 137
    assert killed.stderr.endswith(
        "rank 1 was killed by SIGKILL (out of memory?); finished work is kept. Run the same command again to resume.\n"
    )
    assert "Traceback" not in killed.stderr
    assert not Path("r/manifest.json").exists()
    first = Path("r/completions-00001.parquet").stat().st_mtime_ns  # of the process that was killed
    shutil.copytree("r", "r3")
    Path("kill").unlink()
    with right_as_read():
        small_run.command("rollout", *inputs, "--out", "r", **FOUR_SHARDS)
        succeed(3, "rollout", *small_run.options(**FOUR_SHARDS), *inputs, "--out", "r3")
    assert hash_of(Path("r")) == hash_of(Path("r3")) == hash_of(Path("undisturbed"))
    assert Path("r/completions-00001.parquet").stat().st_mtime_ns == first


def test_an_error_of_one_process_is_said_once_and_ends_all(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a launcher that ends the others, they hear of it from each other."""
    monkeypatch.chdir(tmp_path)
    Path("length.py").write_text(PLUGIN)
    Path("fail").touch()
    settings = small_run.options(**FOUR_SHARDS)
    other, failed = together(2, "rollout", *settings, *small_run.rollout_inputs(1), "--out", "r")
    assert (other.code, failed.code) == (3, 3)
    assert "got ValueError: no length today" in failed.stderr and "no length today" not in other.stderr
    assert not Path("r/manifest.json").exists()


def test_the_launcher_ends_with_the_exit_code_of_the_process_that_failed(small_run: Run, tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(PLUGIN)
    (tmp_path / "broken").touch()
    settings = small_run.options(**FOUR_SHARDS)
    result = launch(tmp_path, "rollout", *settings, *small_run.rollout_inputs(1), "--out", "r")
    assert result.code == 3
    assert result.stderr.count("not on this machine") == 1
    assert "Traceback" not in result.stderr and "SIGTERM" not in result.stderr


def test_an_output_that_another_run_writes_is_locked_for_all(small_run: Run, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with FileLock(tmp_path / "r/.lock"):
        results = together(2, "rollout", *small_run.options(), *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    assert [result.code for result in results] == [4, 4]
    said = "".join(result.stderr for result in results)
    assert said == f"{tmp_path}/r: another run is writing here. Wait for it, stop it, or name another --out.\n"


def test_fewer_processes_than_asked_for_are_refused(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate starts one process for MULTI_CPU, whatever num_processes says."""
    monkeypatch.setenv("DAPO_STAGES_PROCESSES", "2")
    result = small_run.attempt("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    assert result.code == 3
    assert "expected 2 process(es), as configured, got 1. For several on CPUs, set " in result.stderr
    assert not (tmp_path / "r").exists()


def test_a_stage_that_shares_nothing_out_is_refused(small_run: Run, tmp_path: Path) -> None:
    inputs = ["--policy", small_run.policy(0), "--out", tmp_path / "d"]
    results = together(2, "prepare-data", *small_run.options(), *inputs)
    assert [result.code for result in results] == [3, 3]
    assert "".join(result.stderr for result in results) == (
        "prepare-data: runs in a single process, but 2 were launched. Start it without a launcher.\n"
    )
    assert not (tmp_path / "d").exists()
