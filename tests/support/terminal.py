"""What commands show in a terminal as a drawing: their own colors, no font or other file from elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from io import StringIO

_FONT = re.compile(r"\s*@font-face \{.*?\}", re.S)
_HALF = re.compile(
    r'<text class="(?P<style>[\w-]+)" x="(?P<x>[\d.]+)" y="[\d.]+" textLength="(?P<width>[\d.]+)" '
    r'clip-path="url\(#terminal-line-(?P<line>\d+)\)">▀+</text>'
)
_LINE = 24.4  # height of a line in rich's drawing: 1.22 times the 20 of a character


def terminal(commands: list[str], width: int = 110) -> str:
    """SVG of `dapo-stages ARGS` typed one after the other, as they answer on a terminal with true color.

    Deterministic in what they print. Raises CalledProcessError where one fails.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=width, file=StringIO(), force_terminal=True, color_system="truecolor")
    for number, command in enumerate(commands):
        line = Text.assemble("\n" if number else "", ("$ ", "bold green"), (command, "bold"))
        console.print(line, highlight=False)
        console.print(Text.from_ansi(_shown(command, width)), highlight=False)
    drawn = console.export_svg(title="dapo-stages", unique_id="terminal")
    return re.sub(r"[ \t]+\n", "\n", _HALF.sub(_upper_half, _FONT.sub("", drawn)))


def _shown(command: str, width: int) -> str:
    """What a command writes to a terminal of this width that can show color and nothing else."""
    keep = {
        name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "TMUX", "STY", "TERM_PROGRAM"}
    }
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(width)}
    program, *arguments = shlex.split(command)
    assert program == "dapo-stages"
    made = subprocess.run(
        [sys.executable, "-m", "dapo_stages", *arguments],
        env=keep | terminal,
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout


def _upper_half(found: re.Match[str]) -> str:
    """Half blocks as what they stand for: a font's own do not meet those of the next line."""
    top = int(found["line"]) * _LINE + 1.5
    size = f'x="{found["x"]}" y="{top:g}" width="{found["width"]}" height="{_LINE / 2:g}"'
    return f'<rect class="{found["style"]}" {size} shape-rendering="crispEdges"/>'
