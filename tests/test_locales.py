"""Commands under locales of few characters: they say what they say elsewhere, and what programs read is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from reporting import tiny_run
from support.commands import ROOT, Result

pytestmark = pytest.mark.long

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
LOCALES = {
    "C": PLAIN,
    "ascii": PLAIN | {"PYTHONIOENCODING": "ascii"},
    "Latin-1": PLAIN | {"PYTHONIOENCODING": "iso-8859-1"},
    "GBK": PLAIN | {"PYTHONIOENCODING": "gbk:strict"},
}


def fresh(*args: object, code: str | None = None, **locale: str) -> Result:
    """A command, or other Python code, in a process of its own; its output decoded as it is meant."""
    what = ["-m", "dapo_stages"] if code is None else ["-c", code]
    encoding = locale.get("PYTHONIOENCODING", "").partition(":")[0] or "utf-8"
    done = subprocess.run(
        [sys.executable, *what, *(str(arg) for arg in args)],
        capture_output=True,
        encoding=encoding,
        cwd=ROOT,
        env=os.environ | locale,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.build(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(params=["C", "GBK"])
def locale(request: pytest.FixtureRequest) -> dict[str, str]:
    return LOCALES[request.param]


def test_the_reports_of_a_run_are_written_and_read(locale: dict[str, str], run: Path) -> None:
    config = ["--config", run / "config.yaml", "--run", run]
    here, elsewhere = (fresh("report", *config, "--overwrite", **found) for found in (locale, {"PYTHONUTF8": "1"}))
    assert (here.code, elsewhere.code) == (0, 0), here.stderr
    assert here.stdout.count("\n") == elsewhere.stdout.count("\n")
    assert "标题" in (run / "rollout_results.md").read_text(encoding="utf-8")  # its data have Chinese in them
    for command in (["status", "--run", run], ["inspect", "--run", run, "--find", "best"], ["doctor", "--run", run]):
        result = fresh(*command, **locale)
        assert "Error" not in result.stderr and result.stdout, (command, result.stderr)


@pytest.mark.parametrize("name", LOCALES)
@pytest.mark.parametrize("words", ["--help", "plan --model Qwen/Qwen2.5-VL-3B-Instruct"])
def test_help_and_other_words_are_said(words: str, name: str) -> None:
    result = fresh(*words.split(), **LOCALES[name])
    assert result.code == 0
    assert "Traceback" not in result.stderr


def test_what_programs_read_is_the_same(locale: dict[str, str], run: Path, tmp_path: Path) -> None:
    here = tmp_path / "found.yaml"
    here.write_text("data: {system_prompt: '看 → \U0001f600', columns: {image: 图}}\n", encoding="utf-8")
    said = fresh("config", "--config", here, **locale)
    assert said.code == 0
    data = yaml.safe_load(said.stdout)["data"]
    assert (data["system_prompt"], data["columns"]["image"]) == ("看 → \U0001f600", "图")
    found = [
        json.loads(fresh("inspect", "--run", run, "--find", "best", "--json", **one).stdout)
        for one in (locale, {"PYTHONUTF8": "1"})
    ]
    assert found[0] == found[1]


def test_a_name_that_the_locale_has_not_is_bad_input(tmp_path: Path) -> None:
    here = tmp_path / "found.yaml"
    here.write_text("{}\n", encoding="utf-8")
    code = (
        "import sys; from dapo_stages.entrypoints import cli; from dapo_stages.tools import config\n"
        "config.load_config = lambda *_: open(chr(0x6570) + chr(0x636e))\n"
        f"sys.argv = ['dapo-stages', 'config', '--config', {str(here)!r}]\n"
        "cli.main()"
    )
    result = fresh(code=code, **PLAIN)
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr == (
        "'\\u6570\\u636e': has characters that the locale's encoding ascii lacks. "
        "Set PYTHONUTF8=1, or LC_ALL=C.UTF-8, then run the command again.\n"
    )


def test_a_plug_in_prints_what_it_likes(tmp_path: Path) -> None:
    """Its output goes to ours."""
    (tmp_path / "mine.py").write_text(
        "def f(completions, rows):\n    print('看 →')\n    return [1.0]\n", encoding="utf-8"
    )
    code = (
        "from pathlib import Path; from dapo_stages.config import RewardsConfig\n"
        "from dapo_stages.rewards.isolated.plugins import Plugins\n"
        f"plugins = Plugins(RewardsConfig(plugins={{'mine': 'mine.py:f'}}), Path({str(tmp_path)!r}))\n"
        "print(plugins.score(['one'], [1], {'prompt_id': 'p'}))"
    )
    result = fresh(code=code, **PLAIN)
    assert (result.code, result.stdout) == (0, "{'mine': [1.0]}\n"), result.stderr
    assert "\\u770b \\u2192" in result.stderr
