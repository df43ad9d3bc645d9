"""docs/policies.md: what it shows of using a policy runs as it is, in the environment of the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from support.commands import ROOT
from support.pipeline import Run

PAGE = (ROOT / "docs/policies.md").read_text(encoding="utf-8")


def test_a_policy_is_loaded_and_asked(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision", reason="make setup installs it", exc_type=ImportError)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.split("## Use a policy")[1].split("\n## ")[0], re.DOTALL)
    place = "training_logs/first/iter-0006/train/policy"
    assert place in block
    Image.new("RGB", (84, 84), "red").save(tmp_path / "question.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block.replace(place, str(small_run.policy(2))), names)
    completion = names["completion"]
    assert 1 <= len(completion) <= 64  # type: ignore[arg-type]
    assert capsys.readouterr().out.endswith("\n")
