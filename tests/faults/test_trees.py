"""--dry-run and failing commands leave the tree as it was: names, bytes and times of every file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reporting import tiny_run
from support.commands import Result, run
from support.rows import rows

from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.resuming import open_output
from dapo_stages.handoff.schemas import schema_of
from faults import data_sets, forged
from faults.images import noise, saved
from faults.table import record

ROW = 16
Tree = dict[str, Any]

# What each command is given, relative to the folder of a run; OUT is its output.
COMMANDS: dict[str, list[object]] = {
    "init-policy": ["--config", "run/config.yaml", "--out", "OUT"],
    "prepare-data": ["--config", "run/config.yaml", "--policy", "run/policy", "--out", "OUT"],
    "rollout": [
        "--config", "run/config.yaml", "--policy", "run/policy", "--data", "run/data", "--iteration", 1, "--out", "OUT",
    ],
    "score-attention": [
        "--config", "run/config.yaml", "--policy", "run/policy", "--rollouts", "run/iter-0001/rollout", "--out", "OUT",
    ],
    "weight-tokens": [
        "--config", "run/config.yaml", "--rollouts", "run/iter-0001/rollout", "--attention", "run/iter-0001/attention",
        "--iteration", 1, "--out", "OUT",
    ],
    "train-step": [
        "--config", "run/config.yaml", "--policy", "run/policy", "--rollouts", "run/iter-0001/rollout",
        "--weights", "run/iter-0001/weights", "--out", "OUT",
    ],
    "evaluate": ["--config", "run/config.yaml", "--policy", "run/policy", "--data", "run/data", "--out", "OUT"],
    "report": ["--config", "run/config.yaml", "--run", "run"],
    "compare-weights": ["run/iter-0001/weights", "other-weights", "--out", "OUT"],
    "compare-evals": ["run/iter-0000/eval", "run/iter-0001/eval"],
    "merge": ["--policy", "run/policy", "--policy", "run/iter-0001/train/policy", "--out", "OUT"],
    "prune": ["--config", "run/config.yaml", "--run", "run", "--set", "keep.rollouts=1"],
    "push": ["--policy", "run/iter-0001/train/policy", "--repo", "user/name", "--run", "run"],
    "config": ["--config", "run/config.yaml", "--out", "OUT"],
    "plan": ["--config", "run/config.yaml"],
    "status": ["--run", "run"],
    "inspect": ["--run", "run", "it1-p0-s1"],
}  # fmt: skip
DRY = ["init-policy", "prepare-data", "rollout", "score-attention", "weight-tokens", "train-step", "evaluate", "report",
       "merge", "prune", "push"]  # fmt: skip
WRITES_OUT = [name for name, options in COMMANDS.items() if "OUT" in options and name != "config"]
READS = {  # command -> what of its input is damaged, or taken away
    "prepare-data": "run/policy",
    "rollout": "run/data",
    "score-attention": "run/iter-0001/rollout",
    "weight-tokens": "run/iter-0001/rollout",
    "train-step": "run/iter-0001/weights",
    "evaluate": "run/data",
    "report": "run/iter-0002/rollout",
    "compare-weights": "run/iter-0001/weights",
    "compare-evals": "run/iter-0001/eval",
    "merge": "run/policy",
    "prune": "run/iter-0001/rollout",
    "push": "run/iter-0001/train/policy",
    "inspect": "run/iter-0001/rollout",
}


def tree(folder: Path) -> Tree:
    """Everything below a folder. Of folders the names: a lock that came and went has touched their times."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_dir():
            found[str(path)] = "folder"
        else:
            found[str(path)] = about.st_mtime_ns, about.st_mode, path.read_bytes()
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a plug-in, a dataset; as much as commands read before they need a model."""
    home = tmp_path_factory.mktemp("home")
    run_folder = tiny_run.build(home / "run")

    def questions(output: Output) -> None:
        output.write("train", 0, rows(schema_of("train"), 2))
        output.write("held_out", 0, rows(schema_of("held_out"), 2))
        output.counts = {"train": 2, "held_out": 2}

    here = run_folder / "iter-0001"
    forged.rewrite(here / "rollout", lambda values: values["config"]["rollout"].update(sampler={"temperature": 1.0}))
    forged.follow(here / "attention", "rollouts", here / "rollout")
    forged.rewrite(here / "weights", lambda values: values["config"].update(iteration=1))
    forged.follow(here / "weights", "rollouts", here / "rollout")
    forged.follow(here / "weights", "attention", here / "attention")
    for folder, stage in ((run_folder / "policy", "init-policy"), (run_folder / "iter-0001/train/policy", "policy")):
        (folder / "config.json").write_text("{}")
        forged.publish(folder, stage, policy={"version": 0, "model": "embedded"})
    tiny_run.publish(Plan("prepare-data", run_folder / "data", {}, 2), questions)
    (home / "mine.py").write_text("def f(completions, rows):\n    return [0.0] * len(completions)\n")
    shutil.copytree(run_folder / "iter-0001/weights", home / "other-weights")
    data_sets.write_rows(home / "rows.parquet", [saved(Image.fromarray(noise()))] * 2)
    config = run_folder / "config.yaml"
    config.write_text(config.read_text() + "data: {source: rows.parquet}\n"
                      "rewards: {plugins: {mine: 'mine.py:f'}}\n")  # fmt: skip
    assert run("report", "--config", config, "--run", run_folder).code == 0
    return home


@pytest.fixture()
def home(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder."""
    home = shutil.copytree(template, tmp_path / "home")
    monkeypatch.chdir(home)
    return home


def call(command: str, out: str, *more: object) -> Result:
    return run(command, *(out if option == "OUT" else option for option in COMMANDS[command]), *more)


def unchanged(home: Path, command: Callable[[], Result], codes: set[int]) -> Result:
    """The command ends with one of these codes and has left everything as it was."""
    before = tree(home)
    result = command()
    after = tree(home)
    assert result.code in codes, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert sorted(before.keys() ^ after.keys()) == []
    assert [name for name in before if before[name] != after[name]] == []
    record(ROW, 1)
    return result


@pytest.mark.parametrize("command", DRY)
def test_a_dry_run_leaves_no_trace(command: str, home: Path) -> None:
    (home / "run/iter-0002/report/manifest.json").unlink()  # so that a report is due
    unchanged(home, lambda: call(command, "new/folder/out", "--dry-run"), {0})


@pytest.mark.parametrize("command", ["status", "inspect", "plan", "compare-evals"])
def test_looking_leaves_no_trace(command: str, home: Path) -> None:
    unchanged(home, lambda: call(command, ""), {0})


def test_doctor_leaves_no_trace(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dapo_stages.processes.machine_check.probe", lambda: {"error": "not asked"})
    unchanged(home, lambda: run("doctor", "--place", "new/folder"), {0, 3})


@pytest.mark.parametrize("command", [name for name, options in COMMANDS.items() if "--config" in options])
def test_a_bad_configuration_leaves_no_trace(command: str, home: Path) -> None:
    unchanged(home, lambda: call(command, "new/out", "--set", "seed=none"), {3})


@pytest.mark.parametrize("command", READS)
def test_a_missing_input_leaves_no_trace(command: str, home: Path) -> None:
    (home / READS[command]).rename(home / "elsewhere")
    gone = {"report": {0, 3}, "prune": {0}}  # they take what is there
    if command in gone:
        (home / READS[command]).mkdir()
        (home / READS[command] / "manifest.json").write_text("{}")
        (home / READS[command] / "prompts-00000.parquet").touch()  # prune looks at what has files
    unchanged(home, lambda: call(command, "new/out"), {3})


@pytest.mark.parametrize("command", READS)
def test_an_edited_manifest_leaves_no_trace(command: str, home: Path) -> None:
    path = home / READS[command] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 99}))
    unchanged(home, lambda: call(command, "new/out"), {3})


@pytest.mark.parametrize("command", [name for name in READS if name != "prune"])
def test_a_truncated_file_leaves_no_trace(command: str, home: Path) -> None:
    """What is found only when work has begun: nothing of it is finished, so nothing of it stays."""
    folder = home / READS[command]
    kind = {
        "compare-evals": "completions-*",
        "push": "config.json",
        "merge": "config.json",
        "prepare-data": "config.json",
    }
    for path in folder.glob(kind.get(command, "*-00000.parquet")):
        os.truncate(path, path.stat().st_size // 2)
    (home / "run/iter-0002/report/manifest.json").unlink()
    unchanged(home, lambda: call(command, "new/out"), {3})


@pytest.mark.parametrize("command", WRITES_OUT)
@pytest.mark.parametrize("kind", ["another stage's output", "files of no stage", "a file"])
def test_what_is_in_the_way_stays_as_it_is(kind: str, command: str, home: Path) -> None:
    out = home / "taken"
    if kind == "a file":
        out.write_text("thesis")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("years")
        if kind == "another stage's output":
            forged.publish(out, "report")
    unchanged(home, lambda: call(command, "taken"), {3})


@pytest.mark.parametrize("command", ["weight-tokens"])
def test_an_output_of_other_configuration_stays_as_it_is(command: str, home: Path) -> None:
    assert call(command, "out").code == 0
    unchanged(home, lambda: call(command, "out", "--set", "weights.smooth_sigma=1"), {3})


@pytest.mark.parametrize("command", ["weight-tokens"])
def test_a_replacement_that_fails_leaves_the_old_output(command: str, home: Path) -> None:
    assert call(command, "out").code == 0
    path = home / "run/iter-0001/rollout/completions-00000.parquet"
    os.truncate(path, path.stat().st_size // 2)
    unchanged(home, lambda: call(command, "out", "--set", "weights.smooth_sigma=1", "--overwrite"), {3})


def test_what_is_finished_stays_when_the_rest_fails(tmp_path: Path) -> None:
    """The other side of it: a shard that is done is not lost with the one that fails."""
    plan = Plan("train-step", tmp_path / "out", {}, 1)
    with pytest.raises(ValueError), open_output(plan) as output:
        assert output is not None
        output.write("metrics", 0, rows(schema_of("metrics"), 2))
        raise ValueError
    assert plan.state() == "partial" and (tmp_path / "out/metrics-00000.parquet").exists()
    with open_output(plan) as output:
        assert output is not None and output.has("metrics-00000.parquet")
