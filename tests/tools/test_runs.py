"""runs: hand-made runs in, what is said of each out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from reporting import tiny_run
from support.commands import fresh
from support.commands import run as command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, two of them in a folder of their own: finished, unfinished, and one that only has its settings."""
    folder = tmp_path_factory.mktemp("logs")
    for name, last, settings in (("a", "eval", ""), ("study/b", "train", "train: {beta: 0.125}\n")):
        run = tiny_run.build(folder / name, last=last)
        with (run / "config.yaml").open("a") as file:
            file.write(f"planned_iterations: 2\n{settings}")
    (folder / "study/c").mkdir()
    (folder / "study/c/config.yaml").write_text("planned_iterations: 2\nseed: 7\nmodel: {name: '[/box]<b>'}\n")
    return folder


def listed(*arguments: object) -> list[dict[str, Any]]:
    result = command("runs", *arguments, "--json")
    assert result.code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)["runs"]
    return found


def test_what_is_said_of_each(folder: Path) -> None:
    """tiny_run: greedy 25% at the start, then 50%, and 75% after iteration 2, which the second run lacks."""
    a, b, c = listed(folder)
    assert [Path(one["path"]).relative_to(folder).as_posix() for one in (a, b, c)] == ["a", "study/b", "study/c"]
    assert (a["iterations"], a["planned"], a["best"]["value"], a["best"]["iteration"]) == (2, 2, 0.75, 2)
    assert (a["evaluated"], a["last"]["greedy_accuracy"]) == (2, 0.75)
    assert (b["iterations"], b["best"]["value"], b["evaluated"], b["last"]["greedy_accuracy"]) == (2, 0.5, 1, 0.5)
    assert (c["iterations"], c["best"], c["evaluated"], c["state"]) == (0, None, None, "unfinished")
    assert b["state"] == "unfinished" and b["why"] == "iteration 2, eval: missing"


def test_a_finished_run(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "run")
    with (run / "config.yaml").open("a") as file:
        file.write("planned_iterations: 2\n")
    assert command("report", "--config", run / "config.yaml", "--run", run).code == 0
    assert [one["state"] for one in listed(run)] == ["finished"]
    (run / "iter-0001/rollout/prompts-00000.parquet").unlink()
    assert [one["state"] for one in listed(run)] == ["damaged"]


def test_what_sets_them_apart(folder: Path) -> None:
    """beta is 0 in two of three; the model is embedded in two, the seed 1 in two; what all have is not said."""
    assert [one["differs"] for one in listed(folder)] == [
        {},
        {"train.beta": 0.125},
        {
            "seed": 7,
            "model.name": "[/box]<b>",
            "rollout.prompts_per_iteration": 128,
            "report.samples": 4,
        },
    ]


def test_of_two_that_differ_the_one_that_is_not_as_by_default(folder: Path) -> None:
    first, second = (one["differs"] for one in listed(folder / "study"))
    assert first["train.beta"] == 0.125 and "train.beta" not in second


def test_size_counts_each_file_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "iter-0001").mkdir(parents=True)
    (run / "iter-0001/x").write_bytes(b"x" * 5000)
    (run / "iter-0001/y").hardlink_to(run / "iter-0001/x")
    (run / "iter-0001/z").symlink_to(sys.executable)
    assert 5000 <= listed(run)[0]["bytes"] < 6000


def test_a_log_gets_plain_text_and_a_terminal_a_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = command("runs", folder)
    assert said.code == 0 and "\x1b" not in said.stdout and "train.beta 0.125" in said.stdout
    (line,) = (line.split() for line in said.stdout.splitlines() if "study/b" in line)
    assert line[1:9] == ["unfinished", "2", "of", "2", "50.0%", "(1)", "50.0%", "(1)"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "400")
    drawn = command("runs", folder).stdout
    assert "\x1b[" in drawn and "[/box]<b>" in drawn


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    result = command("runs", tmp_path)
    assert (result.code, result.stderr) == (
        3,
        f"{tmp_path}: no run here or below. Name a folder of runs, or start one with make iterate.\n",
    )


@pytest.mark.long
def test_neither_command_imports_torch(folder: Path) -> None:
    code = (
        "import sys; from support.commands import run\n"
        f"assert run('runs', {str(folder)!r}).code == 0\n"
        f"assert run('compare-runs', {str(folder / 'a')!r}, {str(folder / 'a')!r}, '--out', 'x').code == 3\n"
        "assert not {'torch', 'transformers', 'pandas'} & sys.modules.keys()"
    )
    result = fresh(code=code, PYTHONPATH="tests:.")
    assert result.code == 0, result.stderr
