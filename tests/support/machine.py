"""What stands for another machine in a test run: --threads and --base-seed (tests/conftest.py, `make test-seeds`).

They are in the environment, so that processes which tests start have them too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

THREADS, SEED = "DAPO_TESTS_THREADS", "DAPO_TESTS_SEED"


def threads() -> int:
    """Threads that torch computes with, in tests and in what they launch."""
    return int(os.environ.get(THREADS, "1"))


def seed() -> int:
    """The seed of the small run and of the checkpoints with random weights."""
    return int(os.environ.get(SEED, "42"))


def set_threads() -> None:
    """Hold torch to that number: two cost tiny models more than they give, and another number rounds otherwise."""
    import torch

    torch.set_num_threads(threads())


@contextmanager
def one_thread() -> Iterator[None]:
    """As forked processes have, whatever the number: to compare with theirs, and where every bit counts."""
    import torch

    torch.set_num_threads(1)
    yield
    set_threads()
