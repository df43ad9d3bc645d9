"""Commands in a child process that may not have more memory than so much: what needs more fails there and then."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from support.commands import Result, run

MIB = 1 << 20


def limited(mib: int, *args: object, before: Callable[[], None] = lambda: None) -> Result:
    """`dapo-stages ARGS` in a fork of this process with `mib` MiB of address space beyond what this one has.

    `before` runs in the child first, such as to stand in for a model.
    """
    here, there = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=_child, args=(there, mib, args, before))
    process.start()
    there.close()
    try:
        assert here.poll(100), f"no result of {args[0]} in 100 s"
        result: Result = here.recv()
    finally:
        process.kill()
        process.join()
    return result


def _child(answer: Connection, mib: int, args: tuple[object, ...], before: Callable[[], None]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    before()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + mib * MIB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    answer.send(run(*args))


def sparse(path: Path, size: int) -> Path:
    """A file of so many bytes, all zero, that takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path
