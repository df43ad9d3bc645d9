"""Peak memory of stages, measured: `python -m support.memory COMMANDS.json` in a process that has everything imported.

Each command is forked from it, so that what is measured is what the command needs beside its program: resident memory
at its highest, above what the process held when it was forked. glibc is told to give back what is
freed; by itself it keeps pieces, up to half as much again.
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

TESTS = Path(__file__).resolve().parents[1]
QUIET = {
    "MALLOC_MMAP_THRESHOLD_": str(128 * 1024),
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def peaks(commands: list[tuple[Path, list[str]]], note: Path) -> list[float]:
    """MiB of each command, run in its folder, one after the other; `note` is a file for both sides to write to."""
    note.write_text(json.dumps([(str(folder), words) for folder, words in commands]), encoding="utf-8")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.memory", str(note)],
        env={**os.environ, **QUIET, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: list[float] = json.loads(note.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Import what stages import, then fork a child per command."""
    from PIL import Image

    from dapo_stages.entrypoints import cli
    from dapo_stages.entrypoints.preloaded import MODULES

    for name in (*MODULES, "dapo_stages.training.update", "deepspeed"):  # transformers imports the last when it saves
        import_module(name)
    Image.init()
    import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen2_5_vl")
    fork = get_context("fork")
    note, found = Path(sys.argv[1]), []
    for folder, words in json.loads(note.read_text(encoding="utf-8")):
        import_module(cli.module_of(words[0]))
        gc.collect()
        gc.freeze()
        here, there = fork.Pipe()
        child = fork.Process(target=_measured, args=(there, folder, words))
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(child.exitcode)
        found.append(here.recv())
    note.write_text(json.dumps(found), encoding="utf-8")


def _measured(answer: Connection, folder: str, words: list[str]) -> None:
    from benchmarks.measure import peak_above_now

    from support.commands import Result, run

    os.chdir(folder)
    results: list[Result] = []
    answer.send(peak_above_now(lambda: results.append(run(*words))))
    if results[0].code:
        print(results[0].stderr, file=sys.stderr)
    sys.exit(results[0].code)


if __name__ == "__main__":
    main()
