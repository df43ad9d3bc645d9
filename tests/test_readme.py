"""The README is short, the code in docs/working.md runs; the commands and files named in them and in docs/ exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.commands import ROOT, run
from support.pipeline import Run

README = (ROOT / "README.md").read_text(encoding="utf-8")


WORKING = (ROOT / "docs/working.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", WORKING, re.S)


def test_the_readme_is_a_few_screens() -> None:
    assert len(README.splitlines()) <= 200


@pytest.fixture()
def first(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which training_logs/first is a finished run."""
    (tmp_path / "training_logs").mkdir()
    (tmp_path / "training_logs/first").symlink_to(small_run.folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(first: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[number], f"docs/working.md, block {number}", "exec"), {})
    assert capsys.readouterr().out


def test_the_commands_for_one_stage_run(first: Path) -> None:
    commands = next(block for block in blocks("bash") if "weight-tokens" in block).replace("\\\n", " ").splitlines()
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == ".venv/bin/dapo-stages"
        result = run(*arguments)
        assert result.code == 0, result.stderr
    assert (first / "training_logs/smoothed/train/policy/model.safetensors").exists()


DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")), *DOCS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link.partition("#")[0]).exists(), link


# Files of users, examples and other programs.
NOT_OURS = ("path/to/file.py", "dapo_stages/stages/measure_lengths.py", "ours/", "linked/", "custom_generate/", "verl/")


def test_every_file_of_ours_that_is_named_exists() -> None:
    """By its path, or the end of it, in pages, comments and messages."""
    places = [ROOT / name for name in ("dapo_stages", "tests", "docs", "pipelines")]
    found = {path.relative_to(ROOT).as_posix() for place in places for path in place.rglob("*.py")}
    wrong = []
    for path in [*PAGES, *(ROOT / name for name in sorted(found)), ROOT / "Makefile", ROOT / "pyproject.toml"]:
        named = re.findall(r"(?<![\w/.-])(?:\.\./|[ab]/)*((?:\w+/)+\w+\.py)\b", path.read_text(encoding="utf-8"))
        wrong += [
            f"{path.name}: {name}"
            for name in named
            if not name.startswith(NOT_OURS) and not any(f"/{one}".endswith(f"/{name}") for one in found)
        ]
    assert wrong == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    for page in DOCS:
        assert f"(docs/{page.name})" in README, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_and_configuration_exists(page: Path) -> None:
    makefile = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "pipelines/run.mk"))
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|[`$] ?)make (?:-j2 )?([a-z][a-z-]+)\b(?!/)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for config in re.findall(r"CONFIG=(\S+yaml)", text):
        shown = f"\n`{config}`:\n" in text  # a file that the page has whole
        assert shown or (ROOT / config).exists(), config


def test_there_is_a_chinese_section() -> None:
    assert len(re.findall(r"[\u4e00-\u9fff]", README)) > 150
