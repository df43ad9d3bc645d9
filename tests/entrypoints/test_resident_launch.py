"""Commands in the ranks of one launch that stays write what launches of their own write, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import proc
from support.commands import ROOT
from support.pipeline import Run
from support.served import CUSTOMISED, Place, place_of, wait

from dapo_stages.entrypoints.worker import IDLE
from dapo_stages.handoff.manifests import MANIFEST, Source, read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")]

LAUNCHES = ["ddp-cpu", "zero2-cpu", "zero3-cpu"]
RANK = "resident_rank"


@pytest.fixture()
def place() -> Iterator[Place]:
    with place_of("dapo_stages.entrypoints.resident_launch") as found:
        yield found
    wait(lambda: not proc.serving(found.folder, RANK))


def options(launch: str) -> list[object]:
    return ["--config_file", ROOT / f"pipelines/accelerate/{launch}.yaml", "--num_processes", 2]


def train_step(run: Run, data: int, policy: Path, out: Path, **settings: object) -> list[object]:
    """On the completions of an iteration of the small run; with the state beside the policy, if there is one."""
    here, state = run.at(data), policy.parent / "state"
    inputs = ["--policy", policy, "--rollouts", here / "rollout", "--weights", here / "weights", "--out", out]
    carry_on = ["--state", state] if state.exists() and not settings else []  # other settings train other weights
    return ["train-step", *run.options(**settings), *inputs, *carry_on]


def chain(place: Place, run: Run, launch: str, folder: Path, program: str | None = None) -> list[str]:
    """Train, sample, score, train in another type, train with a frozen tower; the content hashes of all outputs."""
    place.environment["OMP_NUM_THREADS"] = "1"
    sampled = ["--policy", folder / "1/policy", "--data", run.folder / "data", "--iteration", 2]
    scored = ["--policy", folder / "1/policy", "--rollouts", folder / "rollout"]
    for words in (
        train_step(run, 1, run.policy(0), folder / "1"),
        ["rollout", *run.options(), *sampled, "--out", folder / "rollout"],
        ["score-attention", *run.options(), *scored, "--out", folder / "attention"],
        train_step(run, 2, folder / "1/policy", folder / "2"),
        train_step(run, 1, folder / "2/policy", folder / "3", train__freeze_vision=True),
    ):
        done = place.run(*options(launch), *words, program=program)
        assert done.code == 0, done.stderr
    wait((folder / "3/state" / MANIFEST).exists)  # it is written behind
    parts = ["1/policy", "1/state", "1", "rollout", "attention", "2/policy", "2/state", "3/policy", "3/state"]
    return [read_manifest(folder / part).content_hash for part in parts]


@pytest.mark.parametrize("launch", LAUNCHES)
def test_the_outputs_are_those_of_launches_of_their_own(
    place: Place, small_run: Run, launch: str, tmp_path: Path
) -> None:
    stayed = chain(place, small_run, launch, tmp_path / "stays")
    assert len(proc.serving(place.folder, RANK)) == 2 and len(place.servers()) == 1
    assert stayed == chain(place, small_run, launch, tmp_path / "plain", "dapo_stages.entrypoints.launch")


# The optimizer's state waits to be written while there is a file `hold`, and cannot be by rank 1 while there is `full`.
HELD = """
def held():
    import safetensors.torch
    if not hasattr(safetensors.torch, "plain"):
        plain = safetensors.torch.plain = safetensors.torch.save_file
        def save_file(tensors, path, *rest, **more):
            while "optimizer" in str(path) and (here / "hold").exists():
                time.sleep(0.02)
            if "optimizer" in str(path) and (here / "full").exists() and os.environ["RANK"] == "1":
                raise OSError(28, "No space left on device", str(path))
            plain(tensors, path, *rest, **more)
        safetensors.torch.save_file = save_file
    noted()
cli.main = held
"""


def holding(place: Place, what: str) -> Path:
    (place.folder / "sitecustomize.py").write_text(CUSTOMISED + HELD)
    (place.folder / what).touch()
    return place.folder / what


@pytest.mark.parametrize("launch", ["ddp-cpu", "zero3-cpu"])
def test_the_state_is_written_while_another_command_runs(
    place: Place, small_run: Run, launch: str, tmp_path: Path
) -> None:
    hold = holding(place, "hold")
    first, second = (train_step(small_run, 1, small_run.policy(0), tmp_path / name) for name in ("1", "2"))
    done = place.run(*options(launch), *first)
    assert done.code == 0 and not (tmp_path / "1/state" / MANIFEST).exists()
    rollout = ["rollout", *small_run.options(), "--policy", tmp_path / "1/policy", "--data", small_run.folder / "data"]
    done = place.run(*options(launch), *rollout, "--iteration", 2, "--out", tmp_path / "rollout")
    assert done.code == 0 and not (tmp_path / "1/state" / MANIFEST).exists()
    waiting = place.start(*options(launch), *second)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(2)
    assert not (tmp_path / "2").exists()
    hold.unlink()
    assert waiting.wait(120) == 0
    waiting.communicate()
    plain = place.run(*options(launch), *first[:-1], tmp_path / "plain", program="dapo_stages.entrypoints.launch")
    assert plain.code == 0
    assert {read_manifest(tmp_path / name / "state").content_hash for name in ("1", "plain")} == {
        read_manifest(tmp_path / "plain/state").content_hash
    }


def test_the_state_is_written_before_the_launch_ends(place: Place, small_run: Run, tmp_path: Path) -> None:
    hold = holding(place, "hold")
    done = place.run(*options("ddp-cpu"), *train_step(small_run, 1, small_run.policy(0), tmp_path / "1"))
    assert done.code == 0
    [worker] = place.servers()
    os.kill(worker, signal.SIGTERM)
    with pytest.raises(AssertionError):
        wait(lambda: not proc.serving(place.folder, RANK), 2)
    hold.unlink()
    wait(lambda: not proc.serving(place.folder, RANK) and not place.servers())
    Source(tmp_path / "1/state", "state").verify_all()


def test_a_state_that_cannot_be_written_is_told_by_the_next_train_step(
    place: Place, small_run: Run, tmp_path: Path
) -> None:
    full = holding(place, "full")
    words = train_step(small_run, 1, small_run.policy(0), tmp_path / "1")
    assert place.run(*options("ddp-cpu"), *words).code == 0
    done = place.run(*options("ddp-cpu"), *words)
    assert done.code == 3 and "no space left on the disk. Free some, then run the command again." in done.stderr
    full.unlink()
    assert place.run(*options("ddp-cpu"), *words).code == 0
    wait((tmp_path / "1/state" / MANIFEST).exists)


def started(place: Place, run: Run, out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A train-step that rank 0 is writing, and the ranks."""
    (place.folder / "wait").touch()
    process = place.start(*options("ddp-cpu"), *train_step(run, 1, run.policy(0), out))
    wait((place.folder / f"waiting-{out.name}").exists, 120)
    return process, sorted(proc.serving(place.folder, RANK))


def test_a_lost_rank_ends_the_launch_and_the_next_command_carries_on(
    place: Place, small_run: Run, tmp_path: Path
) -> None:
    process, ranks = started(place, small_run, tmp_path / "out")
    os.kill(ranks[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL
    assert "was killed by SIGKILL (out of memory?); finished work is kept." in stderr
    wait(lambda: not proc.serving(place.folder, RANK) and not place.servers())
    (place.folder / "wait").unlink()
    done = place.run(*options("ddp-cpu"), *train_step(small_run, 1, small_run.policy(0), tmp_path / "out"))
    assert done.code == 0, done.stderr
    assert not set(ranks) & set(proc.serving(place.folder, RANK))


def test_a_rank_that_is_lost_between_commands_costs_no_command(place: Place, small_run: Run, tmp_path: Path) -> None:
    words = ["rollout", *small_run.options(), *small_run.rollout_inputs(1), "--out", tmp_path / "out"]
    assert place.run(*options("ddp-cpu"), *words, "--dry-run").code == 0
    os.kill(max(proc.serving(place.folder, RANK)), signal.SIGKILL)
    wait(lambda: not proc.serving(place.folder, RANK) and not place.servers())
    assert place.run(*options("ddp-cpu"), *words, "--dry-run").code == 0


def test_a_signal_stops_the_command_and_the_launch(place: Place, small_run: Run, tmp_path: Path) -> None:
    process, _ = started(place, small_run, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and "finished work is kept" in stderr
    wait(lambda: not proc.serving(place.folder, RANK) and not place.servers())


def test_ranks_do_not_outlive_the_worker(place: Place, small_run: Run, tmp_path: Path) -> None:
    process, _ = started(place, small_run, tmp_path / "out")
    [worker] = place.servers()
    os.kill(worker, signal.SIGKILL)
    (place.folder / "wait").unlink()
    _, stderr = process.communicate(timeout=180)  # launched by itself
    assert process.returncode == 0, stderr
    wait(lambda: not proc.serving(place.folder, RANK))


EARLY = """
def early():
    while (here / "hold").exists():
        (here / f"held-{os.environ['RANK']}").touch()
        time.sleep(0.02)
    noted()
if "dapo_stages.entrypoints.resident_rank" in sys.orig_argv:
    cli.main = early
"""


def test_ranks_that_have_not_begun_a_command_do_not_outlive_the_worker(
    place: Place, small_run: Run, tmp_path: Path
) -> None:
    """They do not watch each other yet."""
    (place.folder / "sitecustomize.py").write_text(CUSTOMISED + EARLY)
    (place.folder / "hold").touch()
    process = place.start(*options("ddp-cpu"), *train_step(small_run, 1, small_run.policy(0), tmp_path / "out"))
    wait(lambda: all((place.folder / f"held-{rank}").exists() for rank in (0, 1)), 120)
    [worker] = place.servers()
    os.kill(worker, signal.SIGKILL)
    wait(lambda: not proc.serving(place.folder, RANK), 5)
    _, stderr = process.communicate(timeout=180)  # launched by itself
    assert process.returncode == 0, stderr


def test_the_launch_ends_when_nobody_asks(place: Place, small_run: Run, tmp_path: Path) -> None:
    place.environment[IDLE] = "1"
    done = place.run(*options("ddp-cpu"), "rollout", "--help")
    assert done.code == 0 and not place.servers()  # for help, nothing is launched that stays
    words = ["rollout", *small_run.options(), *small_run.rollout_inputs(1), "--out", tmp_path / "out"]
    assert place.run(*options("ddp-cpu"), *words, "--dry-run").code == 0
    wait(lambda: not proc.serving(place.folder, RANK) and not place.servers())


def test_a_command_that_fails_ends_the_launch(place: Place, small_run: Run, tmp_path: Path) -> None:
    words = ["rollout", *small_run.options(train__nonsense=1), *small_run.rollout_inputs(1), "--out", tmp_path / "out"]
    done = place.run(*options("ddp-cpu"), *words)
    assert done.code == 3 and done.stderr.count("train.nonsense") == 1  # one of the ranks says it
    wait(lambda: not proc.serving(place.folder, RANK) and not place.servers())


def test_a_launch_that_cannot_start_is_bad_input(place: Place) -> None:
    done = place.run("--config_file", place.folder / "none.yaml", "rollout", "--config", "run.yaml")
    assert done.code == 3 and "accelerate launch: cannot start" in done.stderr
    wait(lambda: not place.servers())
