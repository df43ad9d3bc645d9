"""status: what exists, what is stale and why, and the next command."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from reporting import tiny_run
from support.commands import ROOT
from support.commands import run as command_line
from typer.testing import CliRunner

from dapo_stages.config import Config
from dapo_stages.handoff.manifests import mark_pruned
from dapo_stages.handoff.plans import Plan
from dapo_stages.runs.commands import command
from dapo_stages.runs.run_folder import Run
from dapo_stages.stages import report
from dapo_stages.tools.status import main


def status(run: Path, *arguments: str) -> str:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    result = CliRunner().invoke(app, ["--run", str(run), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def answer(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(status(run, "--json"))
    return found


def states(run: Path, number: int) -> dict[str, str]:
    found = json.loads(status(run, "--json"))["iterations"][number]["stages"]
    return {name: place["state"] for name, place in found.items()}


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    return tiny_run.build(tmp_path / "my run")


def test_a_finished_iteration_leads_to_the_next_rollout(run: Path) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(report.main)
    CliRunner().invoke(app, ["--config", str(run / "config.yaml"), "--run", str(run)], catch_exceptions=False)
    lines = status(run).splitlines()
    assert lines[0] == "policy: done, data: done"
    assert lines[1].split() == ["iteration", "rollout", "attention", "weights", "train", "eval", "report"]
    assert lines[2].split() == ["0", "–", "–", "–", "–", "done", "done"]
    assert lines[4].split() == ["2", *["done"] * 6]
    assert lines[6].startswith("Last report: iteration 2, reward 1.500, rollout accuracy 75.0%")
    assert lines[7] == f"Best: iteration 2, held-out greedy 75.0% -> {run}/iter-0002/train/policy"
    assert lines[8].startswith("Pace: iteration 2 of 100: ")
    assert lines[9].startswith("Time: iteration 2 took ")
    assert lines[11] == "Next (iteration 2 is finished):"
    assert shlex.split(lines[12]) == [
        *("dapo-stages", "rollout", "--config", f"{run}/config.yaml"),
        *("--policy", f"{run}/iter-0002/train/policy", "--data", f"{run}/data", "--iteration", "3"),
        *("--out", f"{run}/iter-0003/rollout"),
    ]


def test_rollouts_made_again_make_what_was_made_from_them_stale(run: Path) -> None:
    tiny_run.rollout(run, 1, seed=7)
    assert states(run, 1) == {
        "rollout": "done",
        "attention": "stale",
        "weights": "stale",
        "train": "stale",
        "eval": "done",
        "report": "missing",
    }
    text = status(run)
    assert "iteration 1, attention is stale: rollouts changed (" in text
    assert text.splitlines()[-1].startswith("  dapo-stages score-attention --config ")
    assert text.splitlines()[-1].endswith(" --overwrite")


def test_an_interrupted_stage_is_the_next_thing_to_run(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="rollout")
    (run / "iter-0002/weights").mkdir()
    (run / "iter-0002/weights/.partial.json").write_text("{}")
    assert states(run, 2)["weights"] == "unfinished"
    assert shlex.split(str(answer(run)["next"])) == [
        *("dapo-stages", "weight-tokens", "--config", f"{run}/config.yaml", "--rollouts", f"{run}/iter-0002/rollout"),
        *("--attention", f"{run}/iter-0002/attention", "--replay", f"{run}/iter-0001/weights"),
        *("--iteration", "2", "--out", f"{run}/iter-0002/weights"),
    ]


def test_a_lock_alone_is_not_an_output(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="rollout")
    (run / "iter-0002/attention").mkdir()
    (run / "iter-0002/attention/.lock").touch()
    assert states(run, 2)["attention"] == "missing"
    assert answer(run)["why"] == "iteration 2, attention: missing"


def test_a_pruned_output_is_not_stale(run: Path) -> None:
    mark_pruned(run / "iter-0001/rollout")
    assert states(run, 1) | {"report": ""} == {
        "rollout": "pruned",
        "attention": "done",
        "weights": "done",
        "train": "done",
        "eval": "done",
        "report": "",
    }


def test_a_damaged_manifest_is_named(run: Path) -> None:
    (run / "iter-0002/train/manifest.json").write_text("{")
    assert states(run, 2)["train"] == "damaged"
    assert "iteration 2, train is damaged: not a valid manifest (" in status(run)


def test_a_moved_run_is_judged_by_what_moved_with_it(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "elsewhere")
    assert states(moved, 2)["train"] == "done"


def test_a_fresh_run_starts_with_its_configuration_then_the_policy_then_the_data_as_make_does(tmp_path: Path) -> None:
    run = tmp_path / "fresh"
    run.mkdir()
    assert status(run) == (
        "policy: missing, data: missing\n"
        "no iterations yet\n"
        "\n"
        "Next (config.yaml: missing):\n"
        f"  dapo-stages config --config pipelines/embedded.yaml --out {run}/config.yaml\n"
    )
    (run / "config.yaml").write_text("model: {name: embedded}\n")
    assert answer(run)["next"] == f"dapo-stages init-policy --config {run}/config.yaml --out {run}/policy"
    tiny_run.publish(Plan("init-policy", run / "policy", {}, 42), lambda output: None)
    assert status(run) == (
        "policy: done, data: missing\n"
        "no iterations yet\n"
        "\n"
        "Next (data: missing):\n"
        f"  dapo-stages prepare-data --config {run}/config.yaml --policy {run}/policy --out {run}/data\n"
    )


def test_a_run_that_is_not_there_is_refused_by_those_that_are(tmp_path: Path) -> None:
    missing = tmp_path / "runs/secnd"
    for names, problem in ((), f"no such run, nor any other in {tmp_path}/runs"), (
        ("second", "first"), "no such run, but there are first, second"
    ):  # fmt: skip
        for name in names:
            (tmp_path / "runs" / name).mkdir(parents=True)
            (tmp_path / "runs" / name / "config.yaml").touch()
        result = command_line("status", "--run", missing, "--json")
        assert (result.code, result.stdout) == (3, "")
        start = "Name another one, or start this one with make iterate."
        assert result.stderr == f"{missing}: {problem}. {start}\n"
    for number in range(30):
        (tmp_path / f"runs/run-{number}").mkdir()
        (tmp_path / f"runs/run-{number}/config.yaml").touch()
    assert ", run-25 and 12 more. Name" in command_line("status", "--run", missing).stderr


def test_half_done(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="attention")
    lines = status(run).splitlines()
    assert lines[3].split() == ["1", *["done"] * 5, "–"]
    assert lines[4].split() == ["2", "done", "done", *["–"] * 4]
    assert lines[5].startswith("Best: iteration 1, held-out greedy 50.0% -> ")
    assert lines[6].startswith("Pace: iteration 1 of 100: ")
    assert lines[9] == "Next (iteration 2, weights: missing):"
    assert lines[10].startswith("  dapo-stages weight-tokens --config ")


def test_killed(tmp_path: Path) -> None:
    """A stage that dies leaves its note; its lock goes with the process."""
    run = tiny_run.build(tmp_path / "tiny", last="weights")
    out = run / "iter-0002/train"
    code = f"""
import os, signal
from pathlib import Path
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.resuming import open_output
with open_output(Plan("train-step", Path({str(out)!r}), {{}}, 1), overwrite=False):
    print("writing", flush=True)
    input()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    lines = status(run).splitlines()
    assert lines[4].split() == ["2", "done", "done", "done", "running", "–", "–"]
    assert lines[5] == "iteration 2, train is running: a process is writing here"
    assert lines[-1] == "Nothing to do but wait (iteration 2, train: running)."
    assert answer(run)["next"] is None
    process.communicate("\n")
    lines = status(run).splitlines()
    assert lines[4].split() == ["2", "done", "done", "done", "unfinished", "–", "–"]
    assert lines[5] == "iteration 2, train is unfinished: interrupted, or running on another machine"
    assert lines[-2] == ("Next (iteration 2, train: unfinished (interrupted, or running on another machine)):")
    assert lines[-1].startswith("  dapo-stages train-step --config ") and "--overwrite" not in lines[-1]


def test_a_stale_configuration_is_named_and_makes_nothing_stale(run: Path) -> None:
    tiny_run.publish(
        Plan("weight-tokens", run / "iter-0002/weights", {"weights": {"clip": [0.2, 3.0]}}, 1), lambda o: None
    )
    config = run / "config.yaml"
    assert "other settings" not in status(run)
    config.write_text(config.read_text().replace("seed: 1", "seed: 7") + "weights: {clip: [0.5, 2.0]}\n")
    lines = status(run).splitlines()
    at = lines.index("made with other settings than config.yaml has now (--overwrite makes them again):")
    assert lines[at + 1 : at + 3] == [
        "  seed was 1, now 7 (policy; data; iteration 0, eval and 10 more)",
        "  weights.clip was [0.2, 3.0], now [0.5, 2.0] (iteration 2, weights)",
    ]
    assert states(run, 2)["weights"] == "done"
    clip = {"key": "weights.clip", "was": [0.2, 3.0], "now": [0.5, 2.0], "outputs": ["iteration 2, weights"]}
    assert clip in answer(run)["configuration"]


def test_a_schedule_is_no_other_setting(run: Path) -> None:
    """epsilon_low from 0.1 to 0.3 over 3 iterations: 0.1, 0.2, 0.3."""
    config = run / "config.yaml"
    schedule = "schedules: {train.epsilon_low: {start: 0.1, end: 0.3}}\nplanned_iterations: 3\n"
    config.write_text(config.read_text() + schedule)
    for made, said in ((0.2, []), (0.25, ["train.epsilon_low"])):
        train = {"epsilon_low": made, "kl": Config().train.kl.model_dump()}
        tiny_run.publish(Plan("train-step", run / "iter-0002/train", {"train": train}, 1), lambda o: None)
        assert [one["key"] for one in answer(run)["configuration"]] == said


def test_a_configuration_that_cannot_be_used_is_quoted(run: Path) -> None:
    (run / "config.yaml").write_text("sede: 1\n")
    assert f"{run}/config.yaml: sede is not a setting (did you mean seed?)\n" in status(run)
    assert str(answer(run)["trouble"]).startswith(f"{run}/config.yaml: sede is not a setting")


def test_a_deleted_shard_is_missed_and_its_stage_the_next_to_run(run: Path) -> None:
    (run / "iter-0001/weights/weights-00000.parquet").unlink()
    text = status(run)
    assert "iteration 1, weights is damaged: missing or truncated: weights-00000.parquet\n" in text
    words = shlex.split(text.splitlines()[-1])
    assert words[:2] == ["dapo-stages", "weight-tokens"] and words[-1] == "--overwrite"
    shard = run / "iter-0002/rollout/completions-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    (run / "iter-0002/rollout/prompts-00000.parquet").unlink()
    assert "rollout is damaged: missing or truncated: completions-00000.parquet and 1 more\n" in status(run)


def test_finished(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text() + "planned_iterations: 2\n")
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(report.main)
    CliRunner().invoke(app, ["--config", str(config), "--run", str(run)], catch_exceptions=False)
    lines = status(run).splitlines()
    assert lines[8].startswith("Pace: iteration 2 of 2: ") and "left" not in lines[8]
    assert lines[11] == "Next (all 2 planned iterations are finished; one more):"
    assert answer(run)["pace"] | {"last": 0, "mean": 0} == {"iteration": 2, "of": 2, "last": 0, "mean": 0, "left": 0}
    assert "of 6: " in status(run, "--of", "6").splitlines()[8]
    (tmp_path / "training_logs").mkdir()
    run.rename(tmp_path / "training_logs/mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Makefile").touch()
    mine, all_left = Path("training_logs/mine"), "All that is left:"
    assert status(mine).splitlines()[-2:] == ["The whole iteration:", "  make iterate RUN=mine ITERS=3"]
    assert status(mine, "--of", "6").splitlines()[-2:] == [all_left, "  make iterate RUN=mine ITERS=6"]
    config = mine / "config.yaml"
    config.write_text(config.read_text().replace("planned_iterations: 2", "planned_iterations: 4"))
    assert status(mine).splitlines()[-2:] == [all_left, "  make iterate RUN=mine"]


def test_the_keys_of_json_are_these(run: Path) -> None:
    """docs/terminal.md promises them."""
    found = answer(run)
    keys = ["run", "setup", "iterations", "figures", "best", "pace", "spent", "configuration", "trouble", "next", "why"]
    assert list(found) == keys
    assert list(json.loads(status(run, "--json"))["setup"]["data"]) == ["state", "why", "seconds", "ended"]
    page = (ROOT / "docs/terminal.md").read_text(encoding="utf-8")
    assert [key for key in keys if f"`{key}`" not in page] == []


def test_states_are_colored_where_color_is_wanted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in status(run)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert status(run).startswith("policy: \x1b[32mdone\x1b[0m, data: \x1b[32mdone\x1b[0m\n")
    monkeypatch.setenv("NO_COLOR", "1")
    assert status(run).startswith("policy: done, data: done\n")


def test_a_prepared_run_goes_on_with_the_evaluation_of_its_start(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="rollout")
    for number in (1, 2):
        (run / f"iter-000{number}").rename(tmp_path / f"gone-{number}")
    assert str(answer(run)["next"]).startswith("dapo-stages rollout ")
    (run / "iter-0000").rename(tmp_path / "gone")
    assert shlex.split(str(answer(run)["next"]))[-6:] == [
        *("--policy", f"{run}/policy", "--data", f"{run}/data", "--out", f"{run}/iter-0000/eval")
    ]


@pytest.mark.parametrize("setting", ["{}", "{held_out_fraction: 0}"])
def test_a_run_without_held_out_rows_goes_on_without_evaluations(setting: str, tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="train")
    config = run / "config.yaml"
    config.write_text(config.read_text() + f"data: {setting}\n")
    evaluated = setting == "{}"
    for number in (0, 1):
        shutil.rmtree(run / f"iter-000{number}" / "eval")
    assert answer(run)["why"] == f"iteration 2, {'eval' if evaluated else 'report'}: missing"
    for number in (0, 1, 2):
        shutil.rmtree(run / f"iter-000{number}")
    why = "the starting policy is not evaluated yet" if evaluated else "the run is set up, and has no held-out rows to"
    assert str(answer(run)["why"]).startswith(why)
    words = shlex.split(str(answer(run)["next"]))
    assert words[1] == ("evaluate" if evaluated else "rollout")


def test_with_a_lag_what_was_sampled_ahead_is_trained_on_first_and_the_next_sampled_by_an_older_policy(
    run: Path,
) -> None:
    (run / "config.yaml").write_text("lag: 1\nmodel: {name: embedded}\n")
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(report.main)
    CliRunner().invoke(app, ["--config", str(run / "config.yaml"), "--run", str(run)], catch_exceptions=False)
    words = shlex.split(str(answer(run)["next"]))
    assert words[words.index("--policy") + 1] == f"{run}/iter-0001/train/policy"
    assert words[-1] == f"{run}/iter-0003/rollout"
    for name in ("train", "eval", "report"):
        shutil.rmtree(run / "iter-0001" / name)
    found = answer(run)
    assert found["why"] == "iteration 1, train: missing"
    words = shlex.split(str(found["next"]))
    assert words[words.index("--policy") + 1] == f"{run}/policy"


def test_a_curriculum_looks_back_on_the_run(run: Path) -> None:
    assert "--history" not in command(Run(run), 3, "rollout")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("rollout: {", "rollout: {curriculum: {}, "))
    words = shlex.split(command(Run(run), 3, "rollout"))
    assert words[words.index("--history") + 1] == str(run)
