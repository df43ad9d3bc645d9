"""Commands that run one after another in this process, each as in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from dapo_stages.entrypoints.preloaded import Request, become, import_everything
from dapo_stages.handoff import behind, kept
from dapo_stages.processes import memory, phases

if TYPE_CHECKING:
    import torch


class Here:
    """Runs commands in the main thread, and keeps policies and states in between."""

    def __init__(self) -> None:
        self._seeded: torch.Tensor | None = None  # torch's generator, as it is in a new process

    def begin(self) -> None:
        """Import everything, and keep things from now on."""
        import_everything()
        kept.begin()

    def is_ready(self) -> bool:
        """Always: this process is here."""
        return True

    def run(self, request: Request) -> int:
        """Become the command; its exit code."""
        become(request)
        code = self._run()
        if (engine := kept.present("engine")) is not None:
            engine.rest()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # now: what is left would reach the next command's terminal
        return code

    def _run(self) -> int:
        import torch

        from dapo_stages.entrypoints.cli import main as run

        phases.forget()
        memory.forget_peak()
        if self._seeded is None:
            self._seeded = torch.get_rng_state()
        torch.set_rng_state(self._seeded)
        try:
            run()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return 0

    def stop(self, number: int) -> None:
        """Send a signal to the main thread."""
        os.kill(os.getpid(), number)

    def kill(self) -> None:
        """End at once."""
        os.kill(os.getpid(), signal.SIGKILL)

    def end(self) -> None:
        """Write the state that this process keeps, if it is not written."""
        from dapo_stages.training.kept_states import write_unwritten

        behind.finish()
        write_unwritten()


def rest() -> None:
    """Let go of what belonged to the last command: its folder, and its terminal, which libraries may have opened again
    (DeepSpeed keeps a copy of stderr)."""
    streams = [os.fstat(stream) for stream in range(3)]
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # that of the listing itself
                if int(name) in range(3) or any(os.path.samestat(os.fstat(int(name)), one) for one in streams):
                    os.dup2(nothing.fileno(), int(name), inheritable=int(name) in range(3))
    os.chdir("/")
