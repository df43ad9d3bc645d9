"""docs/terminal.md: its commands run, and what it says of JSON, states and options is so."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from reporting import tiny_run
from support.commands import ROOT, run

from dapo_stages.processes import machine_check
from dapo_stages.processes.machine_check import Check
from dapo_stages.runs.run_folder import State

PAGE = (ROOT / "docs/terminal.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that the page speaks of."""
    folder = tmp_path_factory.mktemp("project")
    tiny_run.build(folder / "training_logs/first")
    return folder


@pytest.mark.parametrize("command", [line for line in COMMANDS if "completion" not in line])
def test_commands_run(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(machine_check, "probe", lambda: {"torch": "2.13.0", "cuda": None, "threads": 2, "devices": []})
    program, *arguments = shlex.split(command)
    result = run(*arguments)
    assert (program, result.code) == ("dapo-stages", 0), result.stderr
    if "--json" in arguments:
        json.loads(result.stdout)


def test_the_completion_that_is_installed_completes_in_bash(tmp_path: Path) -> None:
    """In a home of its own, with a program on the PATH as an environment has it."""
    (command,) = [line for line in COMMANDS if "completion" in line]
    program = tmp_path / "bin/dapo-stages"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom dapo_stages.entrypoints.cli import main\nmain()\n")
    program.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{program.parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    script = f"""
        {command} > /dev/null
        source {tmp_path}/.bashrc
        complete -p dapo-stages
        COMP_WORDS=(dapo-stages inspect --find w); COMP_CWORD=3
        _dapo_stages_completion dapo-stages; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (
        "complete -o default -F _dapo_stages_completion dapo-stages\nworst\n",
        "",
    )


def test_every_state_is_explained() -> None:
    assert [state for state in get_args(State) if f"| `{state}`" not in PAGE and f", `{state}`" not in PAGE] == []


def test_the_keys_of_json_are_named() -> None:
    assert [name for name in Check.__dataclass_fields__ if f"`{name}`" not in PAGE] == []
