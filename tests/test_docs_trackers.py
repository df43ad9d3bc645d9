"""docs/trackers.md: its commands run, and the files it names are there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from reporting import tiny_run
from support.commands import ROOT, run

pytestmark = pytest.mark.long

PAGE = (ROOT / "docs/trackers.md").read_text(encoding="utf-8")


def test_its_commands_run_and_make_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tiny_run.build(tmp_path / "training_logs/first")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for command in block.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command)
        assert program == ".venv/bin/dapo-stages"
        assert (result := run(*arguments)).code == 0, result.stderr
    for name in re.findall(r"^\| `([^|]*)` \|", PAGE, re.M):
        assert all((folder / one).exists() for one in name.split("`, `"))
    figures = json.loads((folder / "iter-0001/report/figures.json").read_text())
    for name in re.findall(r"`((?:rollout|eval|train)/\w+)`", PAGE):
        part, key = name.split("/")
        assert isinstance(figures[part][key], float)
