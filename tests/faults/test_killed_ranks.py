"""Rows 1 and 2 for a stage of several processes: one of them, or all, end at any moment; run again, nothing differs.

The launcher's part is played here: as soon as one process has failed, the others are told to stop.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
from support.processes import environment_of, free_port

from faults.harness import NONE, Action, Ended, Fault, Running
from faults.jobs import Bench, Case
from faults.table import record

RANKS = 2
JOBS = ["rollout", "score-attention", "evaluate", "train-step"]
PATIENCE = 90.0  # seconds: a rank that waits in C++ hears no signal; it is ended 64 s after the other was last heard of


def start(case: Case, fault: Fault = NONE, struck: int = -1) -> list[Running]:
    """The processes of a command; the fault is of one of them."""
    parent, port = case.bench.parent, free_port()
    return [
        parent.start(
            case.command,
            case.folder,
            fault if rank == struck else NONE,
            case.folder,
            **environment_of(rank, RANKS, port),
        )
        for rank in range(RANKS)
    ]


def wait(running: list[Running]) -> list[Ended]:
    """Until all have ended, be it because one has failed."""
    told, end = False, time.monotonic() + PATIENCE
    while None in (codes := [one.code for one in running]):
        assert time.monotonic() < end, [(one.code, one.place) for one in running]
        if any(codes) and not told:
            tell(running)
            told = True
        time.sleep(0.02)
    return [one.wait() for one in running]


def tell(running: list[Running], number: int = signal.SIGTERM) -> None:
    for one in running:
        if one.code is None:
            os.kill(one.process, number)


def check_struck(case: Case, ended: list[Ended]) -> None:
    """What is published is whole, and nobody answers with a traceback."""
    case.check_published()
    for one in ended:
        assert one.code in {0, 1, 130, -signal.SIGKILL}, (case.job, str(case.folder), ended)
        assert "Traceback" not in one.stderr, (case.job, str(case.folder), *(other.stderr for other in ended))


def finish(case: Case) -> list[Ended]:
    ended = wait(start(case))
    assert [one.code for one in ended] == [0] * RANKS, (case.job, str(case.folder), ended)
    return ended


@dataclass(frozen=True)
class Undisturbed:
    """What a job in several processes leaves, and how they come to it."""

    contents: dict[str, str]
    operations: list[list[str]]  # by rank
    seconds: float


@pytest.fixture(scope="session")
def undisturbed(bench: Bench) -> Callable[[str], Undisturbed]:
    """Each job once. What a stage generates or measures is what one process does; gradients add up in another order."""

    @cache
    def of(job: str) -> Undisturbed:
        with bench.case(job) as case:
            started = time.monotonic()
            ended = finish(case)
            seconds = time.monotonic() - started
            if job != "train-step":
                case.is_as_undisturbed()
            return Undisturbed(case.contents(), [one.operations for one in ended], seconds)

    return of


def carries_on(case: Case, wanted: Undisturbed) -> None:
    """The same command, with nothing in its way."""
    finish(case)
    case.is_as_undisturbed(wanted.contents)


@pytest.mark.faults
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("rank", range(RANKS))
def test_a_rank_that_is_killed_at_an_operation(
    bench: Bench, undisturbed: Callable[[str], Undisturbed], job: str, rank: int
) -> None:
    wanted, cases = undisturbed(job), 12
    everywhere = len(wanted.operations[rank])
    for number in range(cases):
        with bench.case(job) as case:
            ended = wait(start(case, Fault(Action.KILL, (2 * number + 1) * everywhere // (2 * cases)), rank))
            check_struck(case, ended)
            carries_on(case, wanted)
    record(1, cases, "fixed, one of two processes")
    record(2, cases, "fixed, one of two processes")


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(16))
def test_ranks_that_end_at_a_random_time(bench: Bench, undisturbed: Callable[[str], Undisturbed], seed: int) -> None:
    """One is killed, or all are told to stop, as by make."""
    generator, cases = random.Random(seed), 6
    for number in range(cases):
        job = JOBS[(seed + number) % len(JOBS)]
        wanted = undisturbed(job)
        with bench.case(job) as case:
            running = start(case)
            time.sleep(generator.uniform(0, wanted.seconds))
            if generator.random() < 0.5:
                generator.choice(running).kill()
            else:
                tell(running, generator.choice([signal.SIGTERM, signal.SIGINT]))
            check_struck(case, wait(running))
            carries_on(case, wanted)
    record(1, cases, "at random times, one or both of two processes")
    record(2, cases, "at random times, one or both of two processes")
