"""The commands and the code of docs/weighting.md run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.commands import ROOT, run
from support.pipeline import Run

from dapo_stages.config import RewardsConfig, WeightsConfig, load_config
from dapo_stages.groups.scheme_file import SchemeFile
from dapo_stages.maths import schemes
from dapo_stages.tools import compare_weights

PAGE = (ROOT / "docs/weighting.md").read_text(encoding="utf-8")


def blocks(language: str) -> str:
    return "".join(re.findall(rf"```{language}\n(.*?)```", PAGE, re.S))


def test_the_commands_run(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "training_logs/first").mkdir(parents=True)
    (tmp_path / "training_logs/first/policy").symlink_to(small_run.policy(0))
    for number, after in ((1, 1), (2, 2), (5, 1), (6, 2)):
        (tmp_path / f"training_logs/first/iter-000{number}").symlink_to(small_run.at(after))
    monkeypatch.setattr(compare_weights, "TOKENS", 50)  # as good as 5000 here
    small_run.command("config", "--out", tmp_path / "training_logs/first/config.yaml")
    monkeypatch.chdir(tmp_path)
    for command in blocks("bash").replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command)
        assert program == ".venv/bin/dapo-stages"
        result = run(*arguments)
        assert result.code == 0, result.stderr
    assert "visual\\_kl" in (tmp_path / "training_logs/compared/comparison/comparison.md").read_text(encoding="utf-8")


def test_the_scheme_that_is_added_works(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    exec(blocks("python"), made)
    monkeypatch.setitem(schemes.SCHEMES, "visual_ratio", made["visual_ratio"])
    assert schemes.columns("visual_ratio") == ("logprobs", "blank_logprobs")
    row = {"logprobs": [-0.5, -2.0], "blank_logprobs": [-1.5, -0.5]}
    np.testing.assert_allclose(schemes.raw_weights("visual_ratio", row, 2), [1.0, 1.5])


def test_the_scheme_works_from_a_file(tmp_path: Path) -> None:
    """As the page names it: the second token has no logprob without the image."""
    (tmp_path / "schemes.py").write_text(blocks("python"))
    (tmp_path / "run.yaml").write_text(blocks("yaml"))
    where = load_config(tmp_path / "run.yaml").weights.scheme
    scheme = SchemeFile(where, RewardsConfig(), tmp_path, ("logprobs", "blank_logprobs"))
    row = {"completion_id": "c", "logprobs": [-0.5, -2.0], "blank_logprobs": [-1.5, float("nan")]}
    np.testing.assert_array_equal(scheme.raw_weights(row, 2), [1.0, np.nan])
    scheme.close()


def test_methods_as_published_are_settings() -> None:
    rows = re.findall(r"^\| (\S+) \| `(\{scheme.*?\})`", PAGE, re.M)
    assert [name for name, _ in rows] == ["VPPO", "PGPO", "ToR", "VEPO", "80/20", "PEPO", "VGPO", "DyCo-RL"]
    for _, settings in rows:
        WeightsConfig(**yaml.safe_load(settings))


def test_the_table_names_every_scheme() -> None:
    named = re.findall(r"^\| `(\w+)`", PAGE, re.M)
    assert named == list(schemes.SCHEMES)


def test_every_link_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^):#]+)[^):]*\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
