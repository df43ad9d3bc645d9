"""A GPU is used by one command at a time. No GPU is needed: what is locked is a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dapo_stages.processes import gpu_locks

START = [sys.executable, "-m", "dapo_stages.entrypoints.on_gpus"]


@pytest.fixture()
def gpus() -> Iterator[list[str]]:
    """Names that no GPU and no other test has; not those of real ones, which may be in use."""
    names = [f"test-{os.getpid()}-{number}" for number in range(3)]
    yield names
    for name in names:
        (gpu_locks.FOLDER / f"dapo-stages-gpu-{name}.lock").unlink(missing_ok=True)


def start(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*START, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def holder(*gpus: str) -> subprocess.Popen[str]:
    """A command that has these GPUs until its input ends."""
    process = start(",".join(gpus), "TRAIN", "sh", "-c", "echo begun; cat")
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_a_command_waits_for_the_gpus_of_another_one(gpus: list[str], tmp_path: Path, ends: str) -> None:
    first = holder(gpus[0], gpus[1])
    second = start(",".join(gpus[:0:-1]), "ROLLOUT", "touch", str(tmp_path / "ran"))
    assert second.stderr is not None
    said = second.stderr.readline()
    assert said.startswith(f"ROLLOUT: waiting for GPU {gpus[1]}, which is in use by process {first.pid} (sh -c ")
    assert "ROLLOUT_GPUS=0 TRAIN_GPUS=1,2,3" in said and "SHARE_GPUS=1" in said
    assert not (tmp_path / "ran").exists() and second.poll() is None
    if ends == "killed":
        first.kill()
    first.communicate()
    assert second.wait(20) == 0 and (tmp_path / "ran").exists()


def test_others_and_those_that_share_do_not_wait(gpus: list[str]) -> None:
    first = holder(gpus[0])
    assert start(gpus[1], "ROLLOUT", "true").communicate() == ("", "")
    assert start("--share", gpus[0], "ROLLOUT", "true").communicate() == ("", "")
    first.communicate()


def test_a_process_that_a_command_leaves_behind_does_not_keep_the_gpu(gpus: list[str]) -> None:
    """As the one that stays for the next stage, and that the next stage waits for."""
    leaves = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    said, _ = start(gpus[0], "TRAIN", sys.executable, "-c", leaves).communicate()
    try:
        assert start(gpus[0], "ROLLOUT", "true").communicate(timeout=20) == ("", "")
    finally:
        os.kill(int(said), signal.SIGKILL)


def test_a_command_sees_only_its_gpus_and_ends_as_it_ends(gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus[2])
    for asked, seen in ((f"{gpus[1]},{gpus[0]}", f"{gpus[1]},{gpus[0]}"), ("all", gpus[2])):
        process = start(asked, "SCORE", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exit 5")
        assert process.communicate() == (seen + "\n", "") and process.returncode == 5


def test_the_time_a_command_waited_is_not_its_own(gpus: list[str]) -> None:
    """Its phases begin when it has the GPU (processes/phases.py), in seconds since boot."""
    first = holder(gpus[0])
    code = "from dapo_stages.processes import phases; print(phases.begun())"
    second = start(gpus[0], "ROLLOUT", sys.executable, "-c", code)
    assert second.stderr is not None and second.stderr.readline().startswith("ROLLOUT: waiting")
    waited = time.clock_gettime(time.CLOCK_BOOTTIME)
    first.communicate()
    assert float(second.communicate()[0]) > waited - 0.001


def test_what_is_no_gpu_and_what_is_no_command_is_refused(gpus: list[str]) -> None:
    for bad in ("0,0", "../../etc", ""):
        process = start(bad, "TRAIN", "true")
        _, said = process.communicate()
        assert process.returncode == 3 and said.startswith("TRAIN_GPUS: expected different GPUs as in CUDA_VISIBLE_")
    process = start(gpus[0], "TRAIN", "no-such-python", "-m", "dapo_stages")
    assert process.communicate()[1] == (
        "TRAIN_PYTHON: no-such-python: cannot be run (No such file or directory). Correct the path.\n"
    )
    assert process.returncode == 3


def test_without_a_choice_all_gpus_that_can_be_seen_are_taken() -> None:
    assert gpu_locks.visible(None, 3) == ["0", "1", "2"]
    assert gpu_locks.visible("2, GPU-8932f937", 8) == ["2", "GPU-8932f937"]
    assert gpu_locks.visible("-1", 8) == gpu_locks.visible("", 8) == []
