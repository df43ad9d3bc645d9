"""Processes of one stage: who is who, what they tell each other, and what happens when one is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import fresh
from support.processes import forked

from dapo_stages import ranks
from dapo_stages.entrypoints import cli
from dapo_stages.errors import DapoStagesError, DataError, InterruptedStage
from dapo_stages.handoff import resuming
from dapo_stages.handoff.plans import Plan
from dapo_stages.processes import collectives

pytestmark = pytest.mark.long


def test_a_process_that_is_alone_imports_no_torch() -> None:
    code = """
import sys
from dapo_stages import ranks
from dapo_stages.processes import collectives
assert (ranks.rank(), ranks.count(), collectives.gather(5), collectives.broadcast("x")) == (0, 1, [5], "x")
assert list(ranks.part(range(4))) == [0, 1, 2, 3] and collectives.fail("why", 3)
collectives.barrier(), collectives.leave()
print("torch" in sys.modules)
"""
    assert fresh(code=code).stdout == "False\n"


def test_a_value_of_the_launcher_alone_does_not_make_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters set WORLD_SIZE for jobs of their own; without RANK nobody is launched."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert ranks.count() == 1


def test_values_reach_every_process_in_order() -> None:
    def talk() -> Any:
        found = [
            collectives.gather({"rank": ranks.rank()}),
            collectives.broadcast(ranks.rank() + 7),
            list(ranks.part("abcde")),
        ]
        collectives.barrier()
        collectives.leave()
        return found

    everyone = [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    assert forked(3, talk) == [[everyone, 7, ["a", "d"]], [everyone, 7, ["b", "e"]], [everyone, 7, ["c"]]]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_an_accelerator_lives_beside_it(before: bool) -> None:
    def total() -> float:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
        return float(accelerator.reduce(torch.tensor([accelerator.process_index + 1.0])).item())

    def talk() -> Any:
        sums = [total()] if before else []
        found = collectives.gather(ranks.rank())
        sums += [] if before else [total()]
        found += collectives.gather(ranks.rank())
        collectives.leave()
        return sums, found

    assert forked(2, talk) == [([3.0], [0, 1, 0, 1])] * 2


def waited(ready: float = 0.0) -> tuple[str, str, int, float]:
    """Wait for a process that does not come, or be interrupted at work: error, its text, exit code, seconds."""
    signal.signal(signal.SIGTERM, cli._interrupt)
    started = time.monotonic()
    try:
        if ready:
            collectives.barrier()
            with suppress(Exception):  # as around a user's reward function
                time.sleep(ready)
        collectives.barrier()
    except (DapoStagesError, InterruptedStage) as error:
        return type(error).__name__, str(error), error.exit_code, time.monotonic() - started
    finally:
        collectives.leave()
    raise AssertionError("the barrier held nobody up")


@pytest.mark.parametrize("at_work", [0.0, 60.0], ids=["waiting", "at work"])
def test_a_process_that_died_is_missed_by_name(at_work: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_BEAT", 0.2)
    monkeypatch.setattr(collectives, "_SILENT", 20)
    monkeypatch.setattr(collectives, "_LEAVE", 1.0)

    def talk() -> Any:
        if ranks.rank() == 2:
            collectives.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        return waited(at_work or 0.1)

    first, second, third = forked(3, talk)
    assert third is None
    for name, text, code, seconds in (first, second):
        assert (name, code) == ("InterruptedStage" if at_work else "RankError", 1) and seconds < 20
        assert text == (
            "rank 2 of 3: cannot be reached (no heartbeat for 4 s). Finished work is kept. Check why it ended, and run "
            "the same command again to resume."
        )


def test_a_process_that_never_came_is_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_BEAT", 0.2)
    monkeypatch.setattr(collectives, "_START", 1.0)
    monkeypatch.setattr(collectives, "_LEAVE", 0.0)
    found = forked(2, lambda: waited() if ranks.rank() == 0 else None)[0]
    assert found[0] == "RankError" and found[1].startswith("rank 1 of 2: cannot be reached (it did not start ")


def test_a_first_process_that_never_came_is_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_START", 1.0)

    def talk() -> Any:
        if ranks.rank() == 0:
            return None
        found, began = waited(), time.monotonic()
        assert collectives.fail("nobody there", 1) and time.monotonic() - began < 0.5  # it does not look for it again
        return found

    found = forked(2, talk)[1]
    assert found[0] == "RankError" and found[1].startswith("rank 0 of 2: cannot be reached (nothing answers at ")


def test_who_waits_for_the_first_process_hears_signals() -> None:
    def talk() -> Any:
        if ranks.rank() == 0:
            return None
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        found, began = waited(), time.monotonic()
        assert collectives.fail("stopped", 130) and time.monotonic() - began < 0.5  # it does not look for it again
        return found

    name, text, code, seconds = forked(2, talk)[1]
    assert (name, code) == ("InterruptedStage", 130) and text.startswith("stopped by SIGTERM") and seconds < 5


def test_who_fails_before_it_has_joined_looks_for_the_first_process_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has seen a mistake of its own, or was told to stop; the launcher ends the others, or they miss it."""
    monkeypatch.setattr(collectives, "_LEAVE", 0.5)

    def talk() -> Any:
        began = time.monotonic()
        return ranks.rank() == 0 or (collectives.fail("a mistake", 3), time.monotonic() - began)

    first, seconds = forked(2, talk)[1]
    assert first and 0.5 < seconds < 5


def test_who_is_stopped_while_it_looks_for_the_launcher_knows_that_another_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The launcher stops the others as soon as one has failed, which has said why."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(collectives, "_found", None)
    monkeypatch.setattr(collectives, "_ignore_signals", lambda: None)
    with monkeypatch.context() as stopped:
        stopped.setattr(collectives, "_await", lambda *where: (_ for _ in ()).throw(InterruptedStage("stopped")))
        with pytest.raises(InterruptedStage):
            collectives.join()
    PrefixStore("dapo_stages/0", store).add("failures", 1)
    assert collectives.fail("stopped", 130) is False
    collectives.leave()


@pytest.mark.parametrize("at_work", [0.0, 60.0], ids=["waiting", "at work"])
def test_a_failure_ends_the_others_with_its_exit_code(at_work: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_BEAT", 0.2)

    def talk() -> Any:
        if ranks.rank() == 0:
            return waited(at_work or 0.1)
        collectives.barrier()
        time.sleep(2.0)  # the other is at work, or waits
        first = collectives.fail("a file is gone", 3)
        collectives.leave()
        return first

    (name, text, code, seconds), first = forked(2, talk)
    assert first is True
    assert (text, code) == ("rank 1 failed: a file is gone", 3) and seconds < 20
    assert name == ("InterruptedStage" if at_work else "PeerError")


def test_who_joins_after_a_failure_ends_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first look may interrupt it while it is still joining."""
    start = threading.Thread.start

    def slowly(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "heartbeats":
            time.sleep(1.0)

    def talk() -> Any:
        if ranks.rank() == 0:
            assert collectives.fail("a file is gone", 3)
            (tmp_path / "failed").touch()
            collectives.leave()
            return None
        while not (tmp_path / "failed").exists():
            time.sleep(0.05)
        monkeypatch.setattr(threading.Thread, "start", slowly)
        return waited(60.0)

    _, text, code, seconds = forked(2, talk)[1]
    assert (text, code) == ("rank 0 failed: a file is gone", 3) and seconds < 20


def test_a_process_that_hears_no_signal_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits in NCCL for a process that has failed."""
    monkeypatch.setattr(collectives, "_BEAT", 0.2)
    monkeypatch.setattr(collectives, "_STUCK", 0.5)

    def talk() -> Any:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        collectives.barrier()
        if ranks.rank() == 1:
            collectives.fail("a file is gone", 3)
            collectives.leave()
            return "left"
        time.sleep(30)
        return "still here"

    assert forked(2, talk) == [None, "left"]


def test_processes_that_were_stopped_together_carry_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z and fg."""
    monkeypatch.setattr(collectives, "_BEAT", 0.2)
    monkeypatch.setattr(collectives, "_SILENT", 5)

    def talk() -> Any:
        pids = " ".join(map(str, collectives.gather(os.getpid())))
        if ranks.rank() == 0:
            subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -STOP {pids}; sleep 2; kill -CONT {pids}"])
        time.sleep(3)
        found = collectives.gather("here")
        collectives.leave()
        return found

    assert forked(2, talk) == [["here", "here"]] * 2


def test_who_has_joined_is_not_missed_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process may verify an output for longer than the others wait for one that starts."""
    monkeypatch.setattr(collectives, "_START", 1.0)
    really = resuming._open

    def slowly(*args: Any) -> Any:
        time.sleep(5)
        return really(*args)

    monkeypatch.setattr(resuming, "_open", slowly)

    def write() -> str:
        with resuming.open_output(Plan("rollout", tmp_path / "out", {}, 7)) as output:
            assert output is not None
            collectives.leave()
            return output.folder.name

    assert forked(2, write) == ["out", "out"]


def test_a_machine_without_the_folder_is_named(tmp_path: Path) -> None:
    def write() -> str:
        (tmp_path / str(ranks.rank())).mkdir()
        os.chdir(tmp_path / str(ranks.rank()))
        try:
            with resuming.open_output(Plan("rollout", Path("out"), {}, 7)):
                return "opened"
        except DataError as error:
            return str(error)
        finally:
            collectives.leave()

    assert forked(2, write) == [
        "opened",
        "out: no such folder on the machine of rank 1, but all machines must share it. Name an --out on a file system "
        "that all machines share.",
    ]


def test_of_several_failures_one_is_said() -> None:
    def talk() -> bool:
        first = collectives.fail("the same file is gone", 3)
        collectives.leave()
        return first

    assert sorted(forked(3, talk)) == [False, False, True]


def test_a_launcher_that_says_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def talk() -> Any:
        del os.environ["MASTER_ADDR"]
        return waited()

    for rank, found in enumerate(forked(2, talk)):
        assert found[1] == (
            f"rank {rank} of 2: no MASTER_ADDR in the environment to find rank 0. Start the stage with accelerate "
            "launch or torchrun."
        )
