"""What stands for another machine in a test run: --threads and --base-seed (tests/conftest.py, `make test-seeds`).

They are in the environment, so that processes which tests start have them too.
"""

from __future__ import annotations

import os

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
