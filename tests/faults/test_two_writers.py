"""Row 5: of two runs on one output one commits; the other exits 4, or finds the work done if it comes late enough."""

from __future__ import annotations

import random
import re
import time

import pytest

from faults.harness import NONE, Action, Ended, Fault, Running
from faults.jobs import Bench, Case
from faults.table import record

JOB = "weight-tokens"
# Where the first of two runs waits while the second runs: the operation it is about to do.
BEFORE_THE_LOCK = ("mkdir out$", r"open out/\.lock$")
WITH_THE_LOCK = (
    r"open out/\.\.partial\.json\.\d+\.tmp$",  # the first note
    r"rename out/weights-00000\.parquet$",
    r"rename out/\.partial\.json$",
    r"rename out/manifest\.json$",
    r"unlink out/\.partial\.json$",  # published already
)
SWAPPING = r"unlink out/weights-00000\.parquet$"  # the old manifest is gone, and the new one not there


def paused(case: Case, operation: str) -> Running:
    """The command, waiting before the first operation of a kind."""
    operations = case.bench.undisturbed(case.job).operations
    at = next(number for number, one in enumerate(operations) if re.match(operation, one))
    running = case.start(Fault(Action.PAUSE, at))
    while len(running.operations()) <= at:
        time.sleep(0.005)
    assert re.match(operation, running.operations()[at]), running.operations()[at]
    return running


def outcome(ended: Ended) -> str:
    """done, unchanged (it was there already) or locked."""
    if ended.code == 4:
        assert ended.stderr.splitlines()[-1].endswith(
            "/out: another run is writing here. Wait for it, stop it, or name another --out."
        )
        return "locked"
    assert ended.code == 0, ended.stderr
    said = re.search(r"^[a-z-]+: (done|unchanged) in ", ended.stderr, re.M)
    assert said is not None, ended.stderr
    return said[1]


@pytest.mark.parametrize("operation", BEFORE_THE_LOCK)
def test_one_that_comes_to_the_lock_late_finds_the_work_done(bench: Bench, operation: str) -> None:
    with bench.case(JOB) as case:
        first = paused(case, operation)
        assert outcome(case.strike(NONE)) == "done"
        first.go_on()
        assert outcome(first.wait()) == "unchanged"
        case.is_as_undisturbed()
    record(5, 1, "fixed")


@pytest.mark.parametrize("operation", WITH_THE_LOCK)
def test_nobody_writes_beside_the_one_that_has_the_lock(bench: Bench, operation: str) -> None:
    with bench.case(JOB) as case:
        first = paused(case, operation)
        assert outcome(case.strike(NONE)) == "locked"
        first.go_on()
        assert outcome(first.wait()) == "done"
        assert outcome(case.strike(NONE)) == "unchanged"
        case.is_as_undisturbed()
    record(5, 1, "fixed")


def test_nobody_writes_while_an_output_is_swapped_for_another(bench: Bench) -> None:
    with bench.case(f"{JOB}, replaced") as case:
        first = paused(case, SWAPPING)
        assert outcome(case.strike(NONE)) == "locked"
        first.go_on()
        assert outcome(first.wait()) == "done"
        case.is_as_undisturbed()
    record(5, 1, "fixed")


def test_a_killed_run_leaves_its_place_to_the_next(bench: Bench) -> None:
    with bench.case(JOB) as case:
        first = paused(case, WITH_THE_LOCK[2])
        assert outcome(case.strike(NONE)) == "locked"
        first.kill()
        assert first.wait().code == -9
        assert outcome(case.strike(NONE)) == "done"
        case.is_as_undisturbed()
    record(5, 1, "fixed")


def test_a_late_run_carries_on_what_another_had_begun(bench: Bench) -> None:
    with bench.case(JOB) as case:
        first = paused(case, BEFORE_THE_LOCK[1])
        second = paused(case, WITH_THE_LOCK[3])
        second.kill()
        second.wait()
        first.go_on()
        assert outcome(first.wait()) == "done"
        case.is_as_undisturbed()
    record(5, 1, "fixed")


def race(bench: Bench, job: str, generator: random.Random) -> None:
    """Two runs, the second a little later; neither knows of the other."""
    with bench.case(job) as case:
        first = case.start()
        time.sleep(generator.choice((0.0, generator.uniform(0, bench.undisturbed(job).seconds))))
        second = case.start()
        outcomes = sorted([outcome(second.wait()), outcome(first.wait())])
        assert outcomes in (["done", "locked"], ["done", "unchanged"]), (job, outcomes)
        case.check_published()
        case.is_as_undisturbed()


def test_a_few_races(bench: Bench) -> None:
    generator = random.Random(0)
    for _ in range(2):
        race(bench, JOB, generator)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 11))
def test_races(bench: Bench, seed: int) -> None:
    generator = random.Random(seed)
    jobs = [JOB] * 7 + [f"{JOB}, replaced", "rollout", "train-step"]
    for job in jobs:
        race(bench, job, generator)
    record(5, len(jobs), "races")
