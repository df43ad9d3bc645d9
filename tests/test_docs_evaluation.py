"""The commands of docs/evaluation.md run, and it names every figure that there is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from support.commands import ROOT, run
from support.pipeline import Run

pytestmark = pytest.mark.long

PAGE = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")


def test_its_commands_run(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "training_logs").mkdir()
    (tmp_path / "training_logs/first").symlink_to(small_run.folder)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for command in block.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command)
        assert program == ".venv/bin/dapo-stages"
        result = run(*arguments)
        assert result.code == 0, result.stderr
    found = json.loads(Path("training_logs/evaluated/metrics.json").read_text())
    assert found["blank_accuracy"] is not None
    for name in found.keys() - {"questions", "interval"}:
        assert f"`{name}`" in PAGE, name
