"""Commands whose parent is stopped, or its lock held, say so and run in their own processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dapo_stages.entrypoints import preload
from dapo_stages.entrypoints.preloaded import receive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parents are for Linux")

ASKED = ["config", "--config", "pipelines/smoke.yaml"]


@pytest.fixture()
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where commands of this process look for a parent, with short waits. Restores signal handlers."""
    short = Path(tempfile.mkdtemp(prefix="stuck-"))  # the path of a socket has 107 bytes
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    monkeypatch.setattr(preload, "PATIENCE", 0.2)
    monkeypatch.setattr(preload, "_TICK", 0.05)
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield preload._folder()
    for number, handler in before:
        signal.signal(number, handler)
    shutil.rmtree(short)


def listening(folder: Path, then: Callable[[socket.socket], None]) -> int:
    """A process that listens where a parent would."""
    path = folder / preload.key()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    child = os.fork()
    if child == 0:
        try:
            listener.listen()
            then(listener)
        finally:
            os._exit(0)
    while refused(path):
        pass
    listener.close()
    return child


def refused(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        return connection.connect_ex(str(path)) != 0


def ended(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def stop(listener: socket.socket) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_stopped_parent_is_told_of_and_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = listening(folder, stop)
    try:
        assert preload._ask(ASKED, preload.PARENT) is None
        assert capsys.readouterr().err == (
            f"dapo-stages: process {child}, which runs commands, has not answered for 0 s (`kill -KILL "
            f"{child}` ends it). This command continues in its own process.\n"
        )
        assert not (folder / preload.key()).exists()  # the next command starts another one
    finally:
        ended(child)


def test_a_parent_that_says_nothing_is_left_after_a_while(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preload, "_IMPORTING", 0.3)
    child = listening(folder, lambda _: signal.pause())
    try:
        assert preload._ask(ASKED, preload.PARENT) is None
        assert f"process {child}, which runs commands, has not answered" in capsys.readouterr().err
    finally:
        ended(child)


def test_a_command_whose_process_ends_while_its_parent_is_stopped_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fork_and_stop(listener: socket.socket) -> None:
        listener.accept()  # of refused
        connection, _ = listener.accept()
        connection.send(preload.ASKED)
        connection.recv(1 << 20)
        if (forked := os.fork()) == 0:
            os._exit(0)
        connection.send(preload.STARTED + str(forked).encode())
        stop(listener)

    child = listening(folder, fork_and_stop)
    try:
        assert preload._ask(ASKED, preload.PARENT) is None
        assert (
            "has ended, but the process that started it has not reported its exit code for " in capsys.readouterr().err
        )
    finally:
        ended(child)


def test_a_lock_that_another_process_holds_is_told_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert preload._ask(ASKED, preload.PARENT) is None
    said = capsys.readouterr().err
    assert f"dapo-stages: {folder}/lock has been locked by another process for " in said
    assert said.endswith("This command continues in its own process.\n")


def test_a_lock_that_is_held_for_a_moment_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "PATIENCE", 30.0)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        release = threading.Timer(0.1, fcntl.flock, [lock, fcntl.LOCK_UN])
        release.start()
        assert preload._connect(preload.PARENT, folder / "none", start=False) is None  # there is no parent
        release.join()


def test_a_parent_that_may_not_be_looked_into_is_not_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a sandbox that cannot be detected."""

    def refuse(process: int) -> None:
        raise PermissionError(process)

    child = listening(folder, lambda _: signal.pause())
    monkeypatch.setattr(preload, "look_into", refuse)
    try:
        assert preload._ask(ASKED, preload.PARENT) is None
        assert (folder / preload.key()).exists()
    finally:
        ended(child)


def test_what_cannot_be_told_is_run_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> list[object]:
        raise PermissionError("hidden")

    monkeypatch.setattr(preload, "inherited", unknown)
    assert preload._ask(["rollout"], preload.PARENT) is None
    assert list(folder.iterdir()) == []


def test_a_command_that_has_gone_on_by_itself_is_not_run_again() -> None:
    """A stopped parent that continues finds the requests made in the meantime."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = b'{"arguments": [], "environment": {}, "folder": "/", "signals": [], "key": ""}'
    for asks in (True, False):
        socket.send_fds(there, [request], [0, 1, 2])
        if asks:
            for stream in receive(here).streams:
                os.close(stream)
    there.close()
    with here, pytest.raises(ConnectionResetError):
        receive(here)
