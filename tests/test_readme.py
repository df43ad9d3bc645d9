"""The README's code runs, and its commands and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.commands import ROOT, run
from support.pipeline import Run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture()
def first(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which training_logs/first is a finished run."""
    (tmp_path / "training_logs").mkdir()
    (tmp_path / "training_logs/first").symlink_to(small_run.folder)
    small_run.command("config", "--out", small_run.folder / "config.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(first: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[number], f"README block {number}", "exec"), {})
    assert capsys.readouterr().out


def test_the_commands_for_one_stage_run(first: Path) -> None:
    commands = next(block for block in blocks("bash") if "weight-tokens" in block).replace("\\\n", " ").splitlines()
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == ".venv/bin/dapo-stages"
        result = run(*arguments)
        assert result.code == 0, result.stderr
    assert (first / "training_logs/smoothed/train/policy/model.safetensors").exists()


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_make_target_and_configuration_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|[`$] ?)make (?:-j2 )?([a-z][a-z-]+)\b", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for config in re.findall(r"CONFIG=(\S+yaml)", README):
        assert (ROOT / config).exists(), config


def test_there_is_a_chinese_section() -> None:
    assert len(re.findall(r"[\u4e00-\u9fff]", README)) > 150
