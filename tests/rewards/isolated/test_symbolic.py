"""The child process that compares expressions: answers, timeouts, deaths, restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dapo_stages.errors import DapoStagesError
from dapo_stages.rewards.isolated import symbolic
from dapo_stages.rewards.isolated.symbolic import Worker

# Speaks the protocol; the answer says what to do, so that a test can cause each kind of failure.
JOB = """
import json, os, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    answer = json.loads(line)["answer"]
    if answer == "hang":
        time.sleep(60)
    if answer == "die":
        os._exit(1)
    print(json.dumps({"equal": answer == "yes"}), flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    program = tmp_path / "job.py"
    program.write_text(JOB, encoding="utf-8")
    worker = Worker(program)
    yield worker
    worker.close()


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_process_answers_many_questions(worker: Worker) -> None:
    assert worker.process_id is None
    assert worker.equal("1", "yes", 5)
    first = worker.process_id
    assert not worker.equal("1", "no", 5)
    assert worker.process_id == first


def test_a_hanging_comparison_is_killed_within_the_time_out(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    assert worker.equal("1", "yes", 5)
    first = worker.process_id
    assert first is not None
    start = time.monotonic()
    assert not worker.equal("1", "hang", 0.2)
    assert time.monotonic() - start < 5
    assert not alive(first)
    assert caplog.messages == ["comparing 'hang' with '1' took more than 0.2 s; counted as not equal"]
    assert worker.equal("1", "yes", 5)
    assert worker.process_id not in (None, first)


def test_a_worker_that_dies_is_started_again(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    assert not worker.equal("1", "die", float("inf"))
    assert caplog.messages == ["comparing 'die' with '1' ended its process (exit code 1); counted as not equal"]
    assert worker.equal("1", "yes", 5)


def test_a_worker_killed_between_questions_costs_no_answer(worker: Worker) -> None:
    assert worker.equal("1", "yes", 5)
    process_id = worker.process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGKILL)
    os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)
    assert worker.equal("1", "yes", 5)


def test_closing_ends_the_process(worker: Worker) -> None:
    assert worker.equal("1", "yes", 5)
    process_id = worker.process_id
    assert process_id is not None
    worker.close()
    worker.close()
    assert not alive(process_id)
    assert worker.process_id is None


def test_a_program_that_cannot_start_is_an_error_and_not_a_wrong_answer(tmp_path: Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text('print(\'{"ready": false, "error": "No module named math_verify"}\')', encoding="utf-8")
    with pytest.raises(DapoStagesError) as raised:
        Worker(program).equal("1", "1", 5)
    assert str(raised.value) == (
        f"{program}: cannot start the process that compares expressions (No module named math_verify). Install "
        f"math-verify in {sys.executable}, or set rewards.symbolic=false."
    )


def test_a_real_runaway_comparison_is_killed() -> None:
    worker = Worker()
    assert worker.equal("1", "1", 20)
    start = time.monotonic()
    assert not worker.equal("7", "9^{9^{9^{9}}}", 0.3)
    assert time.monotonic() - start < 5
    worker.close()


def test_nothing_is_left_running_and_torch_stays_out() -> None:
    code = (
        "import sys; from dapo_stages.rewards import accuracy, registry\n"
        "from dapo_stages.rewards.isolated import symbolic\n"
        "assert symbolic.equal('1/2', '0.5', 20)\n"
        "assert 'torch' not in sys.modules and 'sympy' not in sys.modules\n"
        "import os; print(symbolic._worker(os.getpid()).process_id)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not alive(int(done.stdout))


def test_a_forked_child_has_a_worker_of_its_own() -> None:
    assert symbolic.equal("1/2", "0.5", 20)
    parents = symbolic._worker(os.getpid()).process_id
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_ask_in_child, args=(sender,))
    child.start()
    answered, childs = receiver.recv()
    child.join()
    assert answered
    assert childs != parents
    assert symbolic.equal("1/2", "0.50", 20)
    assert symbolic._worker(os.getpid()).process_id == parents


def _ask_in_child(sender: Connection) -> None:
    answered = symbolic.equal("1/4", "0.25", 20)
    sender.send((answered, symbolic._worker(os.getpid()).process_id))
    symbolic.close()
