"""Peak memory of stages: `python -m support.memory COMMANDS.json` in a fresh process that has everything imported.

A stage is forked from it, so that what is measured is what the stage needs beside its program: resident memory at its
highest, above what the process held when it was forked.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.measure import MIB, peak_above_now

from dapo_stages.preloaded import MODULES

TESTS = Path(__file__).resolve().parents[1]


def peaks(folder: Path, commands: list[list[str]]) -> list[float]:
    """MiB of each command, run in `folder` one after the other."""
    (folder / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.memory", "commands.json"],
        cwd=folder,
        env={**os.environ, **quiet, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Import what stages import, then fork a child per command."""
    for name in MODULES:
        import_module(name)
    import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen2_5_vl")
    for command in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        import_module(f"dapo_stages.stages.{command[0].replace('-', '_')}")
        gc.collect()
        gc.freeze()
        here, there = get_context("fork").Pipe()
        child = get_context("fork").Process(target=_measured, args=(there, command))
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(child.exitcode)
        print(here.recv(), flush=True)


def _measured(answer: Connection, command: list[str]) -> None:
    from support.commands import run

    results = []
    answer.send(peak_above_now(lambda: results.append(run(*command))))
    if results[0].code:
        print(results[0].stderr, file=sys.stderr)
    sys.exit(results[0].code)


if __name__ == "__main__":
    main()
