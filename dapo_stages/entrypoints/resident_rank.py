"""A rank of a launch that stays: `accelerate launch … -m dapo_stages.entrypoints.resident_rank SOCKET`.

It runs the commands that come through the socket (resident_ranks.py) until one fails or the socket closes.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress

from dapo_stages import ranks
from dapo_stages.entrypoints import launch as launcher
from dapo_stages.entrypoints.here import Here, rest
from dapo_stages.entrypoints.preload import KIND, PASSING
from dapo_stages.entrypoints.preloaded import Request, die_with
from dapo_stages.processes import collectives
from dapo_stages.processes.phases import BEGUN

_MOST = 1 << 20  # bytes of a request


def launch() -> None:
    """In the launcher, which must not outlive the worker."""
    die_with(os.getppid())
    launcher.main(__name__)


def main() -> None:
    """Run commands."""
    die_with(os.getppid())  # the launcher; a command that waits for the others to start would not notice its end
    launched = {name: value for name, value in os.environ.items() if name not in PASSING and name != BEGUN}
    runner, number = Here(), 0
    with socket.socket(*KIND) as connection:
        connection.connect(sys.argv[1])
        connection.send(str(ranks.count()).encode())
        runner.begin()
        _rest()
        while (request := _next(connection)) is not None:
            number += 1
            own = launched | {"TORCHELASTIC_RESTART_COUNT": str(number)}  # what ranks say to each other is per command
            code = 1
            try:
                code = runner.run(request._replace(environment=request.environment | own))
            except BaseException:  # unforeseen, or a signal just before or after the command itself
                traceback.print_exc()
            _rest()
            collectives.forget()
            gc.collect()
            _free()
            connection.send(str(code).encode())
            if code != 0:
                break
    with suppress(Exception):  # what is lost can be made again
        runner.end()
    os._exit(0)


def _next(connection: socket.socket) -> Request | None:
    """The next command; None if there will be none."""
    try:
        data, streams, _, _ = socket.recv_fds(connection, _MOST, 3)
    except OSError:
        return None
    return Request(**json.loads(data) | {"streams": streams}) if data else None


def _free() -> None:
    """Give back what torch has reserved of the GPU and doesn't use: the other launch works on it next."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _rest() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    rest()


if __name__ == "__main__":
    main()
