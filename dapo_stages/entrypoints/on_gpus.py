"""Runs a command with GPUs of its own.

    python -m dapo_stages.entrypoints.on_gpus [--share] GPUS STAGE COMMAND …

GPUS are names as in CUDA_VISIBLE_DEVICES, or `all`: those that are visible. The command waits until no other that was
started like this uses one of them, and sees only these; --share: it does not wait. Same streams, exit code, signals and
process ID as the command itself, which this process becomes. make starts all stages with a model like this.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from functools import partial
from typing import NoReturn

from dapo_stages.errors import EXIT_BAD_INPUT, ConfigError
from dapo_stages.processes import gpu_locks
from dapo_stages.processes.phases import BEGUN, now

VISIBLE = "CUDA_VISIBLE_DEVICES"
ALL = "all"
_NAME = re.compile(r"[A-Za-z0-9-]+")


def main() -> None:
    """Lock the GPUs of `sys.argv`, and become its command."""
    arguments = sys.argv[1:]
    shares = arguments[:1] == ["--share"]
    gpus, stage, *command = arguments[shares:]
    try:
        names = gpus_of(gpus, stage)
        if gpus != ALL:
            os.environ[VISIBLE] = ",".join(names)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while it waits, without a traceback
        if not shares:
            _take(names, stage)
        _become(command, stage)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def gpus_of(text: str, stage: str) -> list[str]:
    """`0,1` -> their names; `all`: those that this process may use. Raises ConfigError for anything else."""
    if text == ALL:
        return gpu_locks.visible(os.environ.get(VISIBLE), gpu_locks.there())
    names = [name.strip() for name in text.split(",")]
    strange = [name for name in names if not _NAME.fullmatch(name)]
    if strange or len(set(names)) < len(names):
        raise ConfigError(
            f"{stage}_GPUS: expected different GPUs as in {VISIBLE}, such as 0,1, got {text!r}. Correct it."
        )
    return names


def _take(gpus: list[str], stage: str) -> None:
    try:
        gpu_locks.take(gpus, partial(_say_who, stage))
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot lock a GPU by this file ({error.strerror}). Remove it, or set SHARE_GPUS=1."
        ) from None


def _become(command: list[str], stage: str) -> NoReturn:
    os.environ[BEGUN] = now()  # what it waited is not its own time
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and other programs don't
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise ConfigError(
            f"{stage}_PYTHON: {command[0]}: cannot be run ({error.strerror}). Correct the path."
        ) from None


def _say_who(stage: str, gpu: str, holder: str) -> None:
    print(
        f"{stage}: waiting for GPU {gpu}, which is in use by {holder}. To run both at the same time, give each its own "
        "GPUs (ROLLOUT_GPUS=0 TRAIN_GPUS=1,2,3), or set SHARE_GPUS=1 if dapo-stages plan says that both fit.",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
