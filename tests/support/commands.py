"""The command line as a person meets it: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from dapo_stages.entrypoints import cli
from dapo_stages.handoff import behind, kept

ROOT = Path(__file__).resolve().parents[2]


class Result(NamedTuple):
    """What a command left."""

    code: int
    stdout: str
    stderr: str


def run(*args: object) -> Result:
    """`dapo-stages ARGS` in this process, through the function of the console script."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["dapo-stages", *(str(arg) for arg in args)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _signals_kept(),
    ):
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Result(code, out.getvalue(), err.getvalue())


def start(*args: object, code: str | None = None, **environment: str) -> subprocess.Popen[str]:
    """`python -m dapo_stages ARGS`, or other Python code, in a fresh process; text on both pipes."""
    what = ["-m", "dapo_stages"] if code is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *what, *(str(arg) for arg in args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def fresh(*args: object, code: str | None = None, **environment: str) -> Result:
    """The same, waited for."""
    process = start(*args, code=code, **environment)
    stdout, stderr = process.communicate(timeout=120)
    return Result(process.returncode, stdout, stderr)


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """This process keeps policies and states between commands, as one that stays does."""
    kept.begin()
    try:
        yield
        behind.finish()
    finally:
        kept.end()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """The console script sets handlers of its own; the test runner's come back afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    hook = sys.unraisablehook
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
