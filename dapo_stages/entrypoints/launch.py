"""Starts a stage in several processes.

    python -m dapo_stages.entrypoints.launch [options of accelerate launch] STAGE …

It is `accelerate launch … -m dapo_stages STAGE …`, with the exit code of the process that failed first instead of 1
and a stack trace, and with the cores divided among the processes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from subprocess import CalledProcessError
from typing import TYPE_CHECKING

from dapo_stages.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from dapo_stages.processes.phases import BEGUN, begun
from dapo_stages.terminal.console import take_any_text

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(module: str = "dapo_stages") -> None:
    """Run the launcher on `sys.argv`, with a module that gets what follows its options; if it cannot launch, that is
    bad input."""
    from yaml import YAMLError

    take_any_text()
    try:
        _launch(module)
    except (ImportError, ValueError, OSError, YAMLError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        print(
            f"accelerate launch: cannot start ({reason}). Install accelerate, or use a configuration from "
            "pipelines/accelerate.",
            file=sys.stderr,
        )
        sys.exit(EXIT_BAD_INPUT)


def _launch(module: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch import cuda
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault(BEGUN, begun())
    logging.disable(logging.ERROR)  # the processes print their own errors
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    args = launch_command_parser().parse_args()
    args.training_script_args = [args.training_script, *args.training_script_args]
    args.training_script, args.module = module, True
    processes, machines = args.num_processes, args.num_machines
    if args.config_file:
        defaults = load_config_from_file(args.config_file)
        processes, machines = processes or defaults.num_processes, machines or defaults.num_machines
    if processes:
        os.environ["DAPO_STAGES_PROCESSES"] = str(processes)  # accelerate may start fewer without saying so
    cores = len(os.sched_getaffinity(0)) * (machines or 1) // max(processes or 1, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores, 1)))
    if not cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        launch_command(args)
    except ChildFailedError as error:
        sys.exit(_exit_code(*_first_failure(error)))
    except CalledProcessError as error:  # with a configuration for one process
        sys.exit(_exit_code(0, error.returncode))
    except SignalException:
        sys.exit(EXIT_INTERRUPTED)


def _first_failure(error: ChildFailedError) -> tuple[int, int]:
    """The rank that failed first, and its exit code.

    Torch's times are in seconds. Of several failures in the same second, prefer a rank that was killed, because the
    others fail at once when they wait for it; but the launcher's own SIGTERM does not count.
    """
    first, failure = error.get_first_failure()
    for rank, other in error.failures.items():
        if other.timestamp == failure.timestamp and other.exitcode < 0 and other.exitcode != -signal.SIGTERM:
            return rank, other.exitcode
    return first, failure.exitcode


def _exit_code(rank: int, code: int) -> int:
    """The exit code as in a shell. Prints a message for a killed process, which could not print one itself."""
    if code >= 0:
        return code
    print(
        f"rank {rank} was killed by {signal.Signals(-code).name} (out of memory?); finished work is kept. Run the same "
        "command again to resume.",
        file=sys.stderr,
    )
    return 128 - code


if __name__ == "__main__":
    main()
