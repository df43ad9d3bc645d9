"""What a person sees: progress on a terminal, plain lines in a log, JSON where a program asked for it.

Of several processes of one stage, the first speaks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dapo_stages import ranks

Advance = Callable[[int, str], None]

_SECONDS_BETWEEN_LINES = 5.0


def say(text: str) -> None:
    """A plain line for people, on stderr, so that stdout stays for --json."""
    if ranks.rank() == 0:
        print(text, file=sys.stderr, flush=True)


def answer(result: Mapping[str, Any]) -> None:
    """The machine-readable result of a command, on stdout."""
    if ranks.rank() == 0:
        print(json.dumps(result, allow_nan=False, ensure_ascii=False, default=str), flush=True)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Advance]:
    """Progress of a long step: a bar with rate and time left on a terminal, else a line every few seconds.

    Call `advance(done, note)` with how much more is done and a short note such as the current accuracy.
    """
    if sys.stderr.isatty() and ranks.rank() == 0:
        with _bar(what, total) as advance:
            yield advance
    else:
        with _lines(what, total) as advance:
            yield advance


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda done, note: bar.update(task, advance=done, note=note)


@contextmanager
def _lines(what: str, total: int | None) -> Iterator[Advance]:
    started = last = time.monotonic()
    done_so_far = 0

    def advance(done: int, note: str) -> None:
        nonlocal last, done_so_far
        done_so_far += done
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES and done_so_far != total:
            return
        last = now
        rate = done_so_far / max(now - started, 1e-9)
        left = f", {(total - done_so_far) / rate:.0f} s left" if total and 0 < done_so_far < total else ""
        of = f"/{total}" if total else ""
        say(f"{what}: {done_so_far}{of} ({rate:.1f}/s{left}){f' {note}' if note else ''}")

    yield advance
