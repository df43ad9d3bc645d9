"""Output for people (progress on a terminal, plain lines in a log) and for programs (JSON).

If a stage runs in several processes, only rank 0 prints.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

from dapo_stages import ranks
from dapo_stages.terminal.unseen import STEERING, visible

if TYPE_CHECKING:
    from rich.progress import Task

Advance = Callable[[int, str], None]

_SECONDS_BETWEEN_LINES = 5.0
_STEERING = re.compile(f"[{STEERING}]")


def take_any_text() -> None:
    """Let stdout and stderr print every character: one that the locale lacks is written as `\\u2713`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def takes_unicode(stream: TextIO) -> bool:
    """Whether a stream can encode every character, so that a program that reads it gets the original text."""
    return (stream.encoding or "utf-8").lower().replace("_", "-").startswith("utf")


def say(text: str) -> None:
    """Print a line for people on stderr, so that stdout is free for --json."""
    if ranks.rank() == 0:
        print(visible(text), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Print the result of a command for people on stdout, without color."""
    print(visible(text))


def answer(result: Mapping[str, Any]) -> None:
    """Print the machine-readable result of a command on stdout."""
    if ranks.rank() == 0:
        text = json.dumps(result, allow_nan=False, ensure_ascii=not takes_unicode(sys.stdout), default=str)
        print(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)


def drawn(stream: TextIO) -> bool:
    """Whether to draw tables and images: on a terminal that is not dumb, or anywhere with FORCE_COLOR."""
    from rich.console import Console

    console = Console(file=stream)
    return console.is_terminal and not console.is_dumb_terminal


def colorful(stream: TextIO) -> bool:
    """Whether to print in color: where `drawn`, unless NO_COLOR is set, which overrides FORCE_COLOR."""
    from rich.console import Console

    console = Console(file=stream)
    return console.color_system is not None and not console.no_color


def painted(text: str, style: str) -> str:
    """Text for stdout in a rich style such as `bold red`; plain without color."""
    text = visible(text)
    if not style or not colorful(sys.stdout):
        return text
    from rich.color import ColorSystem
    from rich.style import Style

    return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)


def duration(seconds: float) -> str:
    """`45 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`: two parts at most."""
    rest = round(seconds)
    parts: list[tuple[int, str]] = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if (count := rest // size) or (unit == "s" and not parts):
            parts.append((size, f"{count} {unit}"))
        rest -= count * size
    first = parts[0][0]
    return " ".join(text for size, text in parts[:2] if first // size <= 60)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Advance]:
    """Progress of a long step: on a terminal a bar with rate and time left, else a line every few seconds.

    Call `advance(done, note)` with the number of newly finished items and a short note, such as the current accuracy.
    """
    if sys.stderr.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"} and ranks.rank() == 0:
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
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task.finished_speed or task.speed or 0.0))

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
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
        if now - last < _SECONDS_BETWEEN_LINES and (done_so_far != total or not done):
            return
        last = now
        rate = done_so_far / max(now - started, 1e-9)
        left = f", {duration((total - done_so_far) / rate)} left" if total and 0 < done_so_far < total else ""
        speed = f" ({_rate(rate)}{left})" if done_so_far else ""
        say(f"{what}: {done_so_far}{f'/{total}' if total else ''}{speed}{f' {note}' if note else ''}")

    yield advance


def _rate(per_second: float) -> str:
    """`3.2/s`, or `41.0 s each` if an item takes more than a second; empty if not known yet."""
    if per_second <= 0:
        return ""
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"
