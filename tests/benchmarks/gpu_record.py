"""What gpu-check found, on disk after every line: one JSON file, and the same as tables of Markdown."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NAME = "gpu-check"


@dataclass
class Line:
    """One thing that was checked or measured."""

    part: str
    name: str
    values: dict[str, Any]  # plain values by name, with their units
    ok: bool | None = None  # whether it is right; None where nothing is checked
    met: bool | None = None  # whether a target is reached; None without one
    note: str = ""


@dataclass
class Record:
    """Everything so far. Whatever ends the process, the files hold all lines up to that."""

    folder: Path
    head: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    state: str = "cut off"  # until something else is known
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, line: Line) -> None:
        """Write everything, then print the line: what was printed is kept."""
        self.lines.append(line)
        self._write()
        verdict = {True: "ok", False: "WRONG", None: "  "}[line.ok]
        told = ", ".join(f"{name} {shown(value)}" for name, value in line.values.items())
        met = {True: " (target met)", False: " (target missed)", None: ""}[line.met]
        print(
            f"[{self.seconds:5.0f} s] {verdict:5} {line.part}: {line.name}: {told}{met}{_after(line.note)}", flush=True
        )

    def end(self, state: str) -> None:
        """Say how it ended: `complete`, or why not."""
        self.state = state
        self._write()
        print(f"[{self.seconds:5.0f} s] {state}: {self.folder / NAME}.json, {self.folder / NAME}.md", flush=True)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    @property
    def sound(self) -> bool:
        """Whether it is complete, and nothing is wrong."""
        return self.state == "complete" and all(line.ok is not False for line in self.lines)

    def _write(self) -> None:
        found = {**self.head, "state": self.state, "seconds": round(self.seconds, 1)}
        lines = [asdict(line) for line in self.lines]
        text = json.dumps({**found, "lines": _plain(lines)}, indent=1, allow_nan=False)
        _replace(self.folder / f"{NAME}.json", text + "\n")
        _replace(self.folder / f"{NAME}.md", markdown(found, self.lines))


def markdown(head: dict[str, Any], lines: list[Line]) -> str:
    """A table for the machine and one for each part, with the columns that its lines have."""
    parts: dict[str, list[Line]] = {}
    for line in lines:
        parts.setdefault(line.part, []).append(line)
    text = ["# gpu-check", _table(["", ""], [[name, shown(value)] for name, value in head.items()])]
    for part, own in parts.items():
        names = list(dict.fromkeys(name for line in own for name in line.values))
        rows = [[line.name, *(shown(line.values.get(name, "")) for name in names), _verdict(line)] for line in own]
        text += [f"## {part}", _table(["", *names, ""], rows)]
    return "\n\n".join(text) + "\n"


def shown(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4f}".rstrip("0").rstrip(".")


def _verdict(line: Line) -> str:
    words = [
        {True: "ok", False: "wrong", None: ""}[line.ok],
        {True: "target met", False: "target missed", None: ""}[line.met],
    ]
    return ", ".join(word for word in [*words, line.note] if word)


def _after(note: str) -> str:
    return f" [{note}]" if note else ""


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    """The old content or the new one, at any moment."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
