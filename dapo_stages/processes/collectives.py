"""Small messages between the processes of one stage.

A launcher (`accelerate launch`, `torchrun`) starts the processes and sets their ranks in the environment (ranks.py).
They communicate through torch's key-value store at the launcher's address, without CUDA or a process group, so a stage
can set up what it likes for its model (NCCL, gloo, DeepSpeed). A single process does not import torch.

All processes call `gather`, `broadcast` and `barrier` the same number of times, in the same order.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from dapo_stages import ranks
from dapo_stages.errors import DapoStagesError, DataError, PeerError, RankError
from dapo_stages.terminal.unseen import visible

_BEAT = 2.0  # seconds between heartbeats
_SILENT = 22  # checks without a heartbeat until a process counts as lost; not seconds, since all may have been paused
_START = 300.0  # seconds that processes may start apart: nodes differ in how fast they load torch
_STUCK = 20.0  # seconds that a process may ignore SIGTERM, as one that waits in NCCL does; then it is ended
_LEAVE = 10.0  # seconds to wait at the end: the store's host for the other processes, a failing process for the store
_POLL = (0.002, 0.1)  # seconds between checks: the first, and the longest


def join() -> None:
    """Send heartbeats from here on: the next step may take longer than the others wait for a process to start.

    Raises RankError if the others cannot be reached.
    """
    if ranks.count() > 1:
        _channel()


def gather(value: Any) -> list[Any]:
    """The values (serializable as JSON) of all processes, by rank, in each of them.

    Waits as long as the others are alive. Raises PeerError if one has failed, RankError if one is lost.
    """
    return [value] if ranks.count() == 1 else _channel().gather(value, range(ranks.count()))


def broadcast(value: Any) -> Any:
    """The value of rank 0, in each process; the values of the others are ignored. Waits like `gather`."""
    return value if ranks.count() == 1 else _channel().gather(value, [0])[0]


def barrier() -> None:
    """Wait until every process is here. Waits like `gather`."""
    gather(None)


def fail(message: str, code: int) -> bool:
    """Tell the others that this process ends with an error, and which.

    True for the first process that fails: it prints the error. Signals are ignored from here on, so that nothing
    interrupts that: a launcher sends them to all processes as soon as one ends.
    """
    global _found
    _ignore_signals()
    if ranks.count() == 1:
        return True
    if isinstance(_found, _InterruptedSearch) and _has_agent():
        _found = None  # the launcher hosts the store, and it knows whether another process has failed before
    try:
        return _channel(_LEAVE).fail(message, code)
    except RankError:
        return True


def trouble() -> DapoStagesError | None:
    """Why this process was interrupted (by SIGTERM), if it was because of another one."""
    joined = _joined()
    return joined.trouble if joined else None


def leave() -> None:
    """Disconnect: this process needs nothing more from the others."""
    if joined := _joined():
        _ignore_signals()
        joined.leave()


def forget() -> None:
    """After `leave`: the next command of this process connects anew, under another TORCHELASTIC_RESTART_COUNT."""
    global _found
    _found = None


class Meeting:
    """What the processes of a launch say to each other in threads, while they run other commands.

    All of them open one in the same command, and then call `gather` in their threads, in the same order. If a process
    is lost, the launch ends, and the threads with it.
    """

    def __init__(self) -> None:
        self.rank = ranks.rank()
        self._channel = _Channel(self.rank, ranks.count(), _START, "/behind") if ranks.count() > 1 else None

    def gather(self, value: Any) -> list[Any]:
        """The values (serializable as JSON) of all processes, by rank. Raises PeerError if one has given up."""
        if self._channel is None:
            return [value]
        found = self._channel.gather({"value": value}, range(ranks.count()))
        for rank, one in enumerate(found):
            if "why" in one:
                raise PeerError(f"rank {rank} failed: {one['why']}", DataError.exit_code)
        return [one["value"] for one in found]

    def give_up(self, why: str) -> None:
        """In place of the next `gather`: the others learn why this process cannot go on."""
        if self._channel is not None:
            with suppress(DapoStagesError):
                self._channel.gather({"why": why}, [self.rank])


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _channel(patience: float | None = None) -> _Channel:
    """Raises RankError if the others cannot be reached, or could not be before: this waits for them only once."""
    found = _connection(_START if patience is None else patience)
    if isinstance(found, RankError):
        raise found
    found.listen()  # not before `trouble` can find it: its first check may interrupt this process
    return found


def _joined() -> _Channel | None:
    return None if isinstance(_found, RankError) else _found


class _InterruptedSearch(RankError):
    """A signal arrived before it was known whether the others can be reached."""


_found: _Channel | RankError | None = None


def _connection(patience: float) -> _Channel | RankError:
    global _found
    if _found is None:
        _found = _InterruptedSearch(_lost(_host(ranks.count()), "a signal interrupted the search"))  # if one does
        try:
            _found = _Channel(ranks.rank(), ranks.count(), patience)
        except RankError as error:
            _found = error
    return _found


class _Channel:
    """One process's connection to the store, and a thread that sends heartbeats and watches those of the others."""

    def __init__(self, rank: int, count: int, patience: float, name: str = "") -> None:
        self._rank, self._count, self._said = rank, count, 0
        self._store, self._hosts = _connect(rank, count, patience, name)
        self.trouble: DapoStagesError | None = None
        self._waiting, self._turn, self._over = False, threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="heartbeats", daemon=True)
        self._listens = False

    def listen(self) -> None:
        """Start the thread, once."""
        if not self._listens:
            self._listens = True  # first: a signal may interrupt the start, and its handler comes here again
            self._thread.start()

    def gather(self, value: Any, of: Sequence[int]) -> list[Any]:
        """Publish this process's value, and wait for those of the ranks in `of`."""
        self._said += 1
        keys = [f"{self._said}/{rank}" for rank in of]
        try:
            if self._rank in of:
                self._store.set(f"{self._said}/{self._rank}", json.dumps(value))
            self._wait(keys)
            return [json.loads(self._store.get(key)) for key in keys]
        except RuntimeError as error:  # of torch.distributed
            with self._turn:
                self.trouble = self.trouble or self._silent_store(error)
            raise self.trouble from None

    def fail(self, message: str, code: int) -> bool:
        """Publish an error; True if it is the first."""
        try:
            if self._store.add("failures", 1) > 1:
                return False
            self._store.set("failure", json.dumps({"rank": self._rank, "message": message, "code": code}))
        except RuntimeError:  # the store ended with its host; there is nobody to tell
            pass
        return True

    def leave(self) -> None:
        """Stop. The process that hosts the store leaves last, or the others would lose the store while they use it."""
        self._over.set()
        with suppress(RuntimeError):  # a signal kept the thread from starting, or the store no longer exists
            if self._listens:
                self._thread.join(_BEAT)
            gone = self._store.add("gone", 1)
            end = time.monotonic() + _LEAVE
            while self._hosts and gone < self._count and time.monotonic() < end:
                time.sleep(_POLL[0])
                gone = self._store.add("gone", 0)

    def _wait(self, keys: list[str]) -> None:
        pause, longest = _POLL
        with self._turn:
            self._waiting = True
        try:
            while not self.trouble and not self._store.check(keys):
                time.sleep(pause)
                pause = min(2 * pause, longest)
        finally:
            with self._turn:
                self._waiting, trouble = False, self.trouble
        if trouble:
            raise trouble

    def _live(self) -> None:
        """In the thread: trouble interrupts the process, unless it is in `_wait`, which checks for itself."""
        beats = dict.fromkeys(range(self._count), (0, 0))  # by rank: heartbeats so far, and checks since the last one
        while (trouble := self._beat(beats)) is None:
            if self._over.wait(_BEAT):
                return
        with self._turn:  # either it is raised in `_wait`, or it interrupts; never both
            raised, self.trouble = self._waiting or self.trouble is not None, trouble
            if not raised and not self._over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
        if not self._over.wait(_STUCK):
            if self.fail(str(trouble), trouble.exit_code):
                print(visible(str(trouble)), file=sys.stderr, flush=True)
            os._exit(trouble.exit_code)

    def _beat(self, beats: dict[int, tuple[int, int]]) -> DapoStagesError | None:
        try:
            self._store.add(f"beat/{self._rank}", 1)
            return self._look(beats)
        except RuntimeError as error:
            return self._silent_store(error)

    def _look(self, beats: dict[int, tuple[int, int]]) -> DapoStagesError | None:
        """The failure of another process, or that one is lost."""
        if self._store.check(["failure"]):
            note = json.loads(self._store.get("failure"))
            return PeerError(f"rank {note['rank']} failed: {note['message']}", note["code"])
        for rank, (before, looks) in beats.items():
            beat = self._store.add(f"beat/{rank}", 0)
            beats[rank] = (beat, 0 if beat != before else looks + 1)
            if not beat and looks * _BEAT > _START:
                return RankError(_lost(f"rank {rank} of {self._count}", f"it did not start within {_START:.0f} s"))
            if beat == before and beat and looks >= _SILENT:
                silent = f"no heartbeat for {_SILENT * _BEAT:.0f} s"
                return RankError(_lost(f"rank {rank} of {self._count}", silent))
        return None

    def _silent_store(self, error: Exception) -> RankError:
        return RankError(_lost(_host(self._count), f"its store does not answer ({_first_line(error)})"))


def _connect(rank: int, count: int, patience: float, name: str = "") -> tuple[Any, bool]:
    """The store of this stage, or of what has a name beside it, and whether this process hosts it: under torchrun, the
    launcher's agent does."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    agent = _has_agent()
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if rank > 0 or agent:
            _await(address, port, patience)
        shared = TCPStore(
            address,
            port,
            count,
            is_master=rank == 0 and not agent,
            timeout=timedelta(seconds=_STUCK),
            wait_for_workers=False,
            multi_tenant=not agent,  # a process group in this process may share it
        )
        store = PrefixStore(f"dapo_stages/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}{name}", shared)
        store.add(f"beat/{rank}", 1)  # from now on the others notice if this process ends
    except KeyError as missing:
        raise RankError(
            f"rank {rank} of {count}: no {missing.args[0]} in the environment to find rank 0. Start the stage with "
            "accelerate launch or torchrun."
        ) from None
    except (RuntimeError, ValueError, OSError, OverflowError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankError(_lost(_host(count), f"nothing answers at {where} ({_first_line(error)})")) from None
    return store, rank == 0 and not agent


def _await(address: str, port: int, patience: float) -> None:
    """Wait until the store can be reached. torch would wait, too, but without handling signals. Raises OSError."""
    end = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection((address, port), timeout=_BEAT).close()
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(_POLL[1])


def _has_agent() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _host(count: int) -> str:
    return "the launcher" if _has_agent() else f"rank 0 of {count}"


def _lost(who: str, why: str) -> str:
    return (
        f"{who}: cannot be reached ({why}). Finished work is kept. Check why it ended, and run the same command again "
        "to resume."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]
