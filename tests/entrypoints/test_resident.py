"""Commands that a worker runs one after another behave like commands in their own processes, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import proc
from support.served import Place, place_of, wait, weigh

from dapo_stages.entrypoints import resident
from dapo_stages.entrypoints.preload import MAKE
from dapo_stages.entrypoints.worker import IDLE
from dapo_stages.handoff.manifests import read_manifest

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")]

CONFIG = ("config", "--config", "pipelines/smoke.yaml")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with place_of("dapo_stages.entrypoints.resident") as found:
        yield found


@pytest.fixture()
def worker(place: Place) -> int:
    """A worker that has imported everything."""
    return place.ready()


def sockets(place: Place) -> list[str]:
    return [path.name for path in place.folder.glob("dapo-stages-*/worker-*")]


def waiting(place: Place, tiny: Path, out: Path) -> subprocess.Popen[str]:
    """A command that the worker is running, stopped in its second file."""
    (place.folder / "wait").touch()
    process = place.start(*weigh(tiny, out))
    wait((place.folder / f"waiting-{out.name}").exists)
    return process


def queued(place: Place, worker: int, tiny: Path, out: Path) -> subprocess.Popen[str]:
    """Another one, once the worker has its connection and its three streams."""
    before = proc.opened(worker)
    process = place.start(*weigh(tiny, out))
    wait(lambda: proc.opened(worker) >= before + 4)
    return process


def test_all_commands_run_in_one_process_each_in_its_own_environment(place: Place, worker: int) -> None:
    for level in ("7", "8"):
        assert place.run(*CONFIG, MAKELEVEL=level).code == 0
        assert [place.last()[0], place.last()[3]] == [str(worker), level]


def test_another_environment_is_not_served_and_gets_no_worker_of_its_own(place: Place, worker: int) -> None:
    for other in ({"OMP_NUM_THREADS": "1"}, {"PYTHONHASHSEED": "0"}):
        place.try_out(**other)
        assert place.last()[0] != str(worker)
    assert place.servers() == [worker]


@pytest.mark.parametrize(
    ("code", "call"),
    [(0, CONFIG), (2, ("nonsense",)), (3, ("config", "--config", "none.yaml"))],
)
def test_output_and_exit_code_are_those_of_a_command_of_its_own(place: Place, code: int, call: tuple[str]) -> None:
    worker = place.ready()
    found = place.run(*call)
    assert place.last()[0] == str(worker)
    assert found == place.run(*call, program="dapo_stages") and found.code == code
    if code:  # nothing of a command that failed reaches another one
        wait(lambda: proc.of_session(worker) == [])
        assert sockets(place) == []


def test_what_a_command_prints_ends_with_it(place: Place, worker: int) -> None:
    """`make | tee` would wait for a worker that keeps a stream open."""
    process = place.start(*CONFIG)
    process.communicate(timeout=30)  # until end of file on both streams
    assert place.servers() == [worker]
    for stream in range(3):
        assert os.readlink(f"/proc/{worker}/fd/{stream}") == os.devnull
    assert os.readlink(f"/proc/{worker}/cwd") == "/"


def test_a_signal_reaches_the_command_and_nothing_is_lost(
    place: Place, worker: int, tiny: Path, tmp_path: Path
) -> None:
    process = waiting(place, tiny, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    said = "stopped by SIGINT; finished work is kept. Run the same command again to resume."
    assert (process.returncode, stderr.splitlines()[-1]) == (130, said)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", ".partial.json", "weights-00000.parquet"}
    wait(lambda: worker not in place.servers())
    (place.folder / "wait").unlink()
    assert place.ready() != worker and place.run(*weigh(tiny, tmp_path / "out")).code == 0


def test_a_killed_command_is_stopped(place: Place, worker: int, tiny: Path, tmp_path: Path) -> None:
    process = waiting(place, tiny, tmp_path / "out")
    process.kill()
    process.communicate()
    wait(lambda: worker not in place.servers())
    (place.folder / "wait").unlink()
    assert sockets(place) == []
    assert place.run(*weigh(tiny, tmp_path / "out")).code == 0


def test_a_command_whose_worker_is_killed_starts_over_by_itself(
    place: Place, worker: int, tiny: Path, tmp_path: Path
) -> None:
    process = waiting(place, tiny, tmp_path / "out")
    os.kill(worker, signal.SIGKILL)
    (place.folder / "wait").unlink()
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.splitlines()[-1].split(":")[0]) == (0, "weight-tokens")
    assert place.last()[0] == str(process.pid)
    assert read_manifest(tmp_path / "out", "weight-tokens").shards and sockets(place) == []


def test_commands_wait_for_one_another(place: Place, worker: int, tiny: Path, tmp_path: Path) -> None:
    first = waiting(place, tiny, tmp_path / "first")
    second = queued(place, worker, tiny, tmp_path / "second")
    assert first.poll() is second.poll() is None and not (tmp_path / "second").exists()
    (place.folder / "wait").unlink()
    for process in (first, second):
        process.communicate(timeout=30)
        assert process.returncode == 0
    hashes = {read_manifest(tmp_path / name).content_hash for name in ("first", "second")}
    assert len(hashes) == 1 and place.servers() == [worker]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_waiting_command_that_is_stopped_is_not_run(
    number: signal.Signals, place: Place, worker: int, tiny: Path, tmp_path: Path
) -> None:
    first = waiting(place, tiny, tmp_path / "first")
    second = queued(place, worker, tiny, tmp_path / "second")
    second.send_signal(number)
    second.communicate(timeout=30)
    assert second.returncode == -number
    (place.folder / "wait").unlink()
    first.communicate(timeout=30)
    assert first.returncode == 0
    assert place.run(*CONFIG).code == 0 and place.last()[0] == str(worker)
    assert not (tmp_path / "second").exists()


def test_a_worker_that_is_stopped_is_told_of_and_gets_no_other_beside_it(place: Place, worker: int) -> None:
    os.kill(worker, signal.SIGSTOP)
    try:
        code, _, stderr = place.run(*CONFIG)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert code == 0 and f"process {worker}, which runs commands, has not answered" in stderr
    assert place.servers() == [worker] and sockets(place)


def test_a_worker_ends_when_nobody_asks_any_more(place: Place) -> None:
    for worker in place.servers():
        os.kill(worker, signal.SIGTERM)
    wait(lambda: not place.servers() and not sockets(place))
    place.try_out(**{IDLE: "0.5"})
    wait(lambda: not place.servers() and not sockets(place))


def test_a_worker_stays_and_ends_with_make(place: Place) -> None:
    for worker in place.servers():
        os.kill(worker, signal.SIGTERM)
    wait(lambda: not place.servers())
    make = subprocess.Popen(["sleep", "600"])
    place.try_out(**{IDLE: "0.5", MAKE: str(make.pid)})
    time.sleep(2)
    assert len(place.servers()) == 1
    make.kill()
    make.wait()
    wait(lambda: not place.servers() and not sockets(place))


def test_without_gpus_each_make_has_a_worker(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def names() -> set[str]:
        found = set()
        for make in ("1", "2"):
            monkeypatch.setenv(MAKE, make)
            found.add(resident.name("key"))
        return found

    driver = tmp_path / "driver"
    monkeypatch.setattr(resident, "DRIVERS", (str(driver),))
    assert len(names()) == 2
    driver.touch()
    assert len(names()) == 1


@pytest.mark.skipif(any(map(os.path.exists, resident.DRIVERS)), reason="GPUs have one worker")
def test_two_runs_side_by_side_do_not_wait_for_each_other(place: Place, tiny: Path, tmp_path: Path) -> None:
    for worker in place.servers():
        os.kill(worker, signal.SIGTERM)
    wait(lambda: not place.servers())
    makes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    mine, other = ({MAKE: str(make.pid)} for make in makes)
    try:
        for environment in (mine, other):
            place.try_out(**environment)
        assert len(place.servers()) == 2
        (place.folder / "wait").touch()
        stopped = place.start(*weigh(tiny, tmp_path / "out"), **mine)
        wait((place.folder / "waiting-out").exists)
        assert place.run(*CONFIG, **other).code == 0 and stopped.poll() is None
        (place.folder / "wait").unlink()
        stopped.communicate(timeout=30)
        assert stopped.returncode == 0
    finally:
        (place.folder / "wait").unlink(missing_ok=True)
        for make in makes:
            make.kill()
            make.wait()
    wait(lambda: not place.servers())
