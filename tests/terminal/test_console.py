"""What people see: color where it is wanted, progress with rate and time left, no control characters from data."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from support.commands import ROOT, fresh

from dapo_stages.terminal import console

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def on_terminal(code: str, **environment: str) -> str:
    """What Python code prints on a terminal, stdout and stderr together, with only the given environment."""
    ours, theirs = pty.openpty()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env={**kept, **environment}
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert child.wait(timeout=60) == 0, said
    return said.decode()


PAINT = """
import sys
from dapo_stages.terminal.console import colorful, drawn, painted
print(painted("word", "red"), drawn(sys.stdout), colorful(sys.stdout))
"""
RED, PLAIN = "\x1b[31mword\x1b[0m", "word"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TERM": "xterm-256color"}, f"{RED} True True"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, f"{PLAIN} True False"),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, f"{RED} True True"),  # no-color.org: when not an empty string
        ({"TERM": "xterm-256color", "NO_COLOR": "1", "FORCE_COLOR": "1"}, f"{PLAIN} True False"),
        ({"TERM": "dumb"}, f"{PLAIN} False False"),
    ],
)
def test_color_on_a_terminal(environment: dict[str, str], said: str) -> None:
    assert on_terminal(PAINT, **environment).strip() == said


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, f"{PLAIN} False False"),
        ({"FORCE_COLOR": "1"}, f"{RED} True True"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, f"{PLAIN} True False"),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, f"{PLAIN} False False"),
    ],
)
def test_color_in_a_pipe(environment: dict[str, str], said: str) -> None:
    assert (
        fresh(code=PAINT, **{"TERM": "xterm", "FORCE_COLOR": "", "NO_COLOR": "", **environment}).stdout.strip() == said
    )


STEPS = """
import time
from dapo_stages.terminal.console import progress
with progress("stage: things", 4) as advance:
    for step in range(4):
        time.sleep(0.05)
        advance(1, f"loss {step}")
"""


def test_a_bar_on_a_terminal_has_rate_and_time_left() -> None:
    said = on_terminal(STEPS, TERM="xterm-256color", COLUMNS="120")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert re.search(r"stage: things ━+ 4/4 \d+\.\d/s 0:00:00 0:00:00 loss 3", plain), plain
    assert "\x1b[38;" not in on_terminal(STEPS, TERM="xterm-256color", NO_COLOR="1")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_terminal_that_cannot_draw_gets_lines(environment: dict[str, str]) -> None:
    assert re.fullmatch(r"stage: things: 4/4 \(\d+\.\d/s\) loss 3", on_terminal(STEPS, **environment).strip())


def test_lines_in_a_log_have_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of 41 s each: of 100 steps 98 are left after two, 4018 s."""
    clock = iter([0.0, 41.0, 82.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with console.progress("stage: things", 100) as advance:
        advance(1, "")
        advance(1, "loss 0.5")
    assert capsys.readouterr().err == (
        "stage: things: 1/100 (41.0 s each, 1 h 7 min left)\n"
        "stage: things: 2/100 (41.0 s each, 1 h 6 min left) loss 0.5\n"
    )


def test_lines_without_a_total_or_a_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 10.0, 20.0, 20.1])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with console.progress("stage: things", None) as advance:
        advance(0, "")
        advance(50, "")
    assert capsys.readouterr().err == "stage: things: 0\nstage: things: 50 (2.5/s)\n"


HOSTILE = (
    "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) + "\u061c\u200e\u200f\u2028\u2029\u202e\u2066 \x1b]8;;x\x07"
)


def test_json_is_the_same_text_and_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.answer({"text": HOSTILE, HOSTILE: "红色"})
    said = capsys.readouterr().out
    assert json.loads(said) == {"text": HOSTILE, HOSTILE: "红色"} and "红色" in said
    assert STEERING.findall(said) == []


def test_an_error_that_quotes_data_steers_no_terminal() -> None:
    code = """
from dapo_stages import errors
from dapo_stages.entrypoints import cli
def fail():
    raise errors.DataError("file", "bad row \\x1b]0;title\\x07 \\x9b2J \\u202e", "Fix it.")
cli.app = fail
cli.main()
"""
    result = fresh(code=code)
    assert (result.code, result.stderr) == (
        3,
        "file: bad row ␛]0;title␇ ⟨U+009B⟩2J ⟨U+202E⟩. Fix it.\n",
    )
