"""Prepares images in processes of their own: small ones cost more Python than pixels, and threads share one Python.

    python -m dapo_stages.data.image_workers SOCKET

A worker ends when its socket closes, so none outlives the command. Requests are pickled; answers are not, because a
worker decodes what a dataset contains: they are JSON and PNG.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from dapo_stages.data.images import BadImage, Limits, Prepared, prepared

if TYPE_CHECKING:
    from PIL import Image

_MOST = 8  # workers
_FEW = 256  # images that are prepared before workers are started


class Job(NamedTuple):
    """An image to prepare, and where it is from, for messages."""

    image: bytes | Path | Image.Image
    where: str


class ImageWorkers:
    """A pool of workers, one per core, started when there are images enough; several threads may use it.

    Until then, on a single core, and where a worker was killed, images are prepared in the calling thread.
    """

    def __init__(self, number: int, few: int = _FEW) -> None:
        self._number, self._left = number, few
        self._workers: list[_Worker] = []
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        self._starting = Lock()

    def prepare(self, jobs: Sequence[Job], limits: Limits) -> list[Prepared | BadImage]:
        """Each image prepared, or why it cannot be."""
        decoded = any(not isinstance(job.image, bytes | Path) for job in jobs)  # by the datasets library
        if decoded or not self._has_started(len(jobs)):
            return [_here(job, limits) for job in jobs]
        worker = self._free.get()
        try:
            return worker.ask(jobs, limits)
        finally:
            self._free.put(worker)

    def _has_started(self, images: int) -> bool:
        with self._starting:
            self._left -= images
            if self._left < 0 and not self._workers:
                self._workers = [_Worker() for _ in range(self._number)]
                for worker in self._workers:
                    self._free.put(worker)
            return bool(self._workers)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()


@contextmanager
def image_workers() -> Iterator[ImageWorkers]:
    """A pool that ends with the block."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = ImageWorkers(min(_MOST, cores) if cores > 1 else 0)
    try:
        yield workers
    finally:
        workers.close()


class _Worker:
    """The side of the command."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        self._connection: Connection | None = Connection(ours.detach())

    def ask(self, jobs: Sequence[Job], limits: Limits) -> list[Prepared | BadImage]:
        if self._connection is not None:
            try:
                self._connection.send((list(jobs), limits))
                header = json.loads(self._connection.recv_bytes())
                return list(self._read(jobs, header))
            except (OSError, EOFError, ValueError):  # it was killed, for memory perhaps
                self.close()
        return [_here(job, limits) for job in jobs]

    def _read(self, jobs: Sequence[Job], header: list[Any]) -> Iterator[Prepared | BadImage]:
        assert self._connection is not None
        for job, (where, said) in zip(jobs, header, strict=True):
            if isinstance(said, str):
                yield BadImage(where if where is not None else job.where, said)
            else:
                yield Prepared(self._connection.recv_bytes(), (int(said[0]), int(said[1])))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._process.wait()


def _here(job: Job, limits: Limits) -> Prepared | BadImage:
    try:
        return prepared(job.image, job.where, limits)
    except BadImage as bad:
        return bad


def main() -> None:
    """Serve requests until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which closes the socket
    connection = Connection(int(sys.argv[1]))
    with suppress(EOFError, OSError):
        while True:
            jobs, limits = connection.recv()
            found = [_here(job, limits) for job in jobs]
            header = [(one.where, one.problem) if isinstance(one, BadImage) else (None, one.size) for one in found]
            connection.send_bytes(json.dumps(header).encode())
            for one in found:
                if not isinstance(one, BadImage):
                    connection.send_bytes(one.png)


if __name__ == "__main__":
    main()
