"""Rows 1 and 2: a killed stage leaves nothing half-done that looks finished; run again, it ends as if undisturbed."""

from __future__ import annotations

import random
import time

import pytest

from faults.harness import Action, Ended, Fault
from faults.jobs import JOBS, Bench, Case
from faults.table import record

PARTS = 8  # a sweep is shared out over so many tests, so that it can be resumed and run in parallel
KILLED = -9


def killed_at(case: Case, fault: Fault) -> None:
    """Strike and finish; the result is that of an undisturbed run."""
    ended = case.strike(fault)
    assert ended.code == KILLED, (case.job, fault, ended.stderr)
    finished(case)


def finished(case: Case) -> None:
    ended = case.finish()
    case.is_as_undisturbed()
    check_generator(case, ended)


def check_generator(case: Case, ended: Ended) -> None:
    """train-step draws everything anew when it is run again, so its generator ends where it does undisturbed."""
    if case.job.startswith("train-step") and "unchanged" not in ended.stderr:
        assert ended.rng == case.bench.undisturbed(case.job).rng


def faults_of(bench: Bench, job: str) -> list[Fault]:
    """Killed before each operation and half-way through each write; the last: after all of them."""
    operations = bench.undisturbed(job).operations
    before = [Fault(Action.KILL, at) for at in range(len(operations))]
    torn = [Fault(Action.TEAR, at) for at, operation in enumerate(operations) if operation.startswith("write ")]
    return before + torn


@pytest.mark.parametrize(
    ("job", "share"),
    [
        ("weight-tokens", 5),
        ("weight-tokens, replaced", 5),
        ("prune", 4),
        ("config", 2),
        ("rollout", 1),
        ("train-step", 1),
        ("report", 1),
    ],
)
def test_a_kill_here_and_there(bench: Bench, job: str, share: int) -> None:
    everywhere = faults_of(bench, job)
    for number in range(share):
        with bench.case(job) as case:
            killed_at(case, everywhere[(2 * number + 1) * len(everywhere) // (2 * share)])


@pytest.mark.faults
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("job", JOBS)
def test_a_kill_at_every_operation(bench: Bench, job: str, part: int) -> None:
    mine = faults_of(bench, job)[part::PARTS]
    for fault in mine:
        with bench.case(job) as case:
            killed_at(case, fault)
    record(1, len(mine), "fixed")
    record(2, len(mine), "fixed, train-step" if job.startswith("train-step") else "fixed")


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(50))
def test_a_kill_at_a_random_time(bench: Bench, seed: int) -> None:
    """Most of a stage is computing, so most of these strike between operations."""
    generator, struck = random.Random(seed), 0
    while struck < 6:
        job = generator.choice([job for job in JOBS if job != "config"])
        seconds = bench.undisturbed(job).seconds
        with bench.case(job) as case:
            running = case.start()
            time.sleep(generator.uniform(0, seconds))
            running.kill()
            struck += running.wait().code == KILLED
            case.check_published()
            finished(case)
    record(1, struck, "at random times")
    record(2, struck, "at random times")


@pytest.mark.faults
@pytest.mark.parametrize("job", [job for job in JOBS if job != "config"])
def test_a_rerun_that_is_killed_too(bench: Bench, job: str) -> None:
    """Twice or three times at random operations."""
    everywhere, generator = faults_of(bench, job), random.Random(job)
    for _ in range(8):
        with bench.case(job) as case:
            case.strike(generator.choice(everywhere))
            for fault in generator.choices(everywhere, k=generator.choice((1, 2))):
                case.strike(fault)
            finished(case)
    record(1, 8, "killed again while resuming")
    record(2, 8, "killed again while resuming")
