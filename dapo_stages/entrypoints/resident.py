"""Runs a command in a process that stays, and that keeps policies and optimizer states in memory between commands.

    python -m dapo_stages.entrypoints.resident rollout …

Same command line, streams, exit code, signals and outputs as `python -m dapo_stages`. The first command starts the
process (worker.py), which ends with make or after a while without commands. If there is none, it was killed, or it has
another environment or other permissions, the command runs in its own process as usual.

There is one worker for a Python and its GPUs: a second one would need the memory of the first. Without GPUs each make
has its own, so that runs side by side do not wait for one another.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

from dapo_stages.entrypoints.preload import MAKE, PARENT, Server, main

DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # of NVIDIA and AMD
DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def name(key: str) -> str:
    """The same for all commands with the same Python and GPUs, or without GPUs the same make, whatever else differs."""
    shared = any(os.path.exists(driver) for driver in DRIVERS)
    make = None if shared else os.environ.get(MAKE)
    place = [sys.executable, sys.prefix, make, *(os.environ.get(variable) for variable in DEVICES)]
    return "worker-" + hashlib.sha256(json.dumps(place).encode()).hexdigest()[:16]


WORKER = Server("dapo_stages.entrypoints.worker", PARENT.starts, name, follows=False)

if __name__ == "__main__":
    main(WORKER)
