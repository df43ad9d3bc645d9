"""status: what exists, what is stale and why, and the next command."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from reporting import tiny_run
from typer.testing import CliRunner

from dapo_stages.manifests import mark_pruned
from dapo_stages.reporting.progress import command
from dapo_stages.reporting.runs import place_of
from dapo_stages.stages import report
from dapo_stages.stages.status import main


def status(run: Path, *arguments: str) -> str:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    result = CliRunner().invoke(app, ["--run", str(run), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def answer(run: Path) -> dict[str, object]:
    return json.loads(status(run, "--json"))


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
    assert lines[0] == "data: done, policy: done"
    assert lines[1].split() == ["iteration", "rollout", "attention", "weights", "train", "eval", "report"]
    assert lines[2].split() == ["0", "–", "–", "–", "–", "done", "done"]
    assert lines[4].split() == ["2", *["done"] * 6]
    assert lines[6].startswith("Last report: iteration 2, reward 1.500, rollout accuracy 75.0%")
    assert lines[7] == f"Best: iteration 2, held-out greedy 75.0% -> {run}/iter-0002/train/policy"
    assert lines[9] == "Next (iteration 2 is finished):"
    assert shlex.split(lines[10]) == [
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
        *("--attention", f"{run}/iter-0002/attention", "--iteration", "2", "--replay", f"{run}/iter-0001/weights"),
        *("--out", f"{run}/iter-0002/weights"),
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
    assert "iteration 2, train is damaged: an unreadable manifest (" in status(run)


def test_a_moved_run_is_judged_by_what_moved_with_it(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "elsewhere")
    assert states(moved, 2)["train"] == "done"
    assert place_of(moved, "old/iter-0001/train/policy") == moved / "iter-0001/train/policy"


def test_an_empty_run_starts_with_its_data(tmp_path: Path) -> None:
    lines = status(tmp_path).splitlines()
    assert lines[:2] == ["data: missing, policy: missing", "no iteration yet"]
    assert lines[-1] == f"  dapo-stages prepare-data --config {tmp_path}/config.yaml --out {tmp_path}/data"


def test_a_prepared_run_goes_on_with_the_evaluation_of_its_start(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="rollout")
    for number in (1, 2):
        (run / f"iter-000{number}").rename(tmp_path / f"gone-{number}")
    assert str(answer(run)["next"]).startswith("dapo-stages rollout ")
    (run / "iter-0000").rename(tmp_path / "gone")
    assert shlex.split(str(answer(run)["next"]))[-6:] == [
        *("--policy", f"{run}/policy", "--data", f"{run}/data", "--out", f"{run}/iter-0000/eval")
    ]


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
    assert "--history" not in command(run, 3, "rollout")
    config = run / "config.yaml"
    config.write_text(config.read_text() + "\nrollout: {curriculum: {}}\n")
    words = shlex.split(command(run, 3, "rollout"))
    assert words[words.index("--history") + 1] == str(run)
