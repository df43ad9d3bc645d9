"""Several processes of one stage, as a launcher starts them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from support.commands import Result, run


def together(count: int, *args: object) -> list[Result]:
    """`dapo-stages ARGS` in so many processes at once."""
    return forked(count, lambda: run(*args))


def forked(count: int, function: Callable[[], Any]) -> list[Any]:
    """What a function gives in each of so many processes; None for one that was killed.

    They are forked from this one, so that none has to import torch.
    """
    port, context = free_port(), get_context("fork")
    started = []
    for rank in range(count):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(there, environment_of(rank, count, port), function))
        process.start()
        there.close()
        started.append((process, here))
    results: list[Any] = []
    for process, here in started:
        assert here.poll(120), f"rank {len(results)} of {count} gave no result"
        try:
            results.append(here.recv())
        except EOFError:
            results.append(None)
        process.join()
    return results


def _child(results: Connection, variables: dict[str, str], function: Callable[[], Any]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)  # threads that the parent may have started are not there after a fork
    if "accelerate" in sys.modules:  # a test before this one may have made an Accelerator of one process
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    results.send(function())


def environment_of(rank: int, count: int, port: int) -> dict[str, str]:
    """What a launcher on one machine tells a process."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), **where}


def free_port() -> int:
    """One of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
