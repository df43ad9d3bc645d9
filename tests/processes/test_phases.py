"""Where a command's time goes, on a clock set by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reporting import tiny_run

from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.shards import Row
from dapo_stages.processes import phases
from dapo_stages.processes.phases import PHASES, phase, spent

Pass = Callable[[float], None]


@pytest.fixture()
def wait(monkeypatch: pytest.MonkeyPatch) -> Pass:
    """Let seconds pass; a command begins at 100."""
    now = [100.0]
    monkeypatch.setattr(phases, "_boottime", lambda: now[0])
    phases.begin_command()
    if phases.spent()["start"]:  # the first command of this process began with it
        phases.begin_command()

    def pass_(seconds: float) -> None:
        now[0] += seconds

    return pass_


def test_each_second_belongs_to_the_innermost_phase(wait: Pass) -> None:
    wait(6)
    phases.begin_work()
    wait(1)
    with phase("load"):
        wait(2)
        with phase("verify"):
            wait(3)
        wait(0.5)
    with pytest.raises(ValueError, match="full"), phase("save"):
        wait(4)
        raise ValueError("full")
    wait(0.25)
    assert spent() == {"start": 6, "verify": 3, "load": 2.5, "work": 1.25, "save": 4, "hash": 0}
    phases.begin_command()
    assert spent() == dict.fromkeys(PHASES, 0)


def test_rows_are_made_in_the_time_of_the_work_and_written_in_another(
    wait: Pass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases.begin_work()
    row = tiny_run.completion(1, 1, 0)

    def hashed(path: Path) -> str:
        wait(8)
        return "0" * 64

    monkeypatch.setattr("dapo_stages.handoff.shards.sha256_of", hashed)
    monkeypatch.setattr("dapo_stages.handoff.shards.fsync_file", lambda path: wait(2))

    def rows() -> Iterator[Row]:
        for number in range(3):
            wait(5)
            yield row | {"completion_id": f"c{number}"}

    def fill(output: Output) -> None:
        before = spent()
        output.write("completions", 0, rows())
        took = {name: seconds - before[name] for name, seconds in spent().items() if seconds > before[name]}
        assert took == {"work": 15, "save": 4 * 2, "hash": 8}  # file and folder, of the shard and of the note of it

    tiny_run.publish(Plan("rollout", tmp_path / "out", {}, 1), fill)


def test_other_threads_take_no_time(wait: Pass) -> None:
    def other() -> None:
        with phase("hash"):
            wait(3)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert spent()["hash"] == 0 and spent()["start"] == 3


def test_a_process_began_when_the_kernel_started_it_or_as_it_is_told() -> None:
    """A second before it looks, or a hundred seconds before that. Nothing of a launch in this process is passed on."""
    code = "import time; time.sleep(1); from dapo_stages.processes.phases import spent; print(spent()['start'])"
    alone = {name: value for name, value in os.environ.items() if name != phases.BEGUN}
    told = alone | {phases.BEGUN: str(phases._boottime() - 100)}
    for environment, least in ((alone, 1), (told, 101)):
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        assert least <= float(found.stdout) < least + 60
