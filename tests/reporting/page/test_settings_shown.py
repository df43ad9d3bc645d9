"""The configuration in the page, what was changed on the way, and what a report was made by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from reporting import tiny_run
from support.commands import run as command_line

from dapo_stages.config import Config
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.reporting.iteration.origin import command
from dapo_stages.reporting.page.settings_shown import learning_rate, marks, settings
from dapo_stages.runs.changed_settings import Step, recorded, steps
from dapo_stages.runs.run_folder import Run


def test_what_differs_comes_first_and_nothing_is_left_out() -> None:
    config = Config.model_validate({"train": {"beta": 0.125}, "data": {"source": "a\nb"}})
    differ, others = settings(config)
    assert differ == [("data.source", "a⏎b", "lujunxi57/DDM"), ("train.beta", "0.125", "0")]
    assert ("train.schedule", "cosine", "cosine") in others
    assert not {key for key, _, _ in differ} & {key for key, _, _ in others}


def test_the_learning_rate_with_its_schedule() -> None:
    train = {"learning_rate": 3e-4, "schedule": "linear", "warmup_fraction": 0.1, "updates_per_iteration": 8}
    config = Config.model_validate({"train": train, "planned_iterations": 6})
    assert learning_rate(config) == "0.0003, linear over 6 iterations of 8 updates, warm-up 10%"


def test_changes_by_the_first_iteration_that_has_them() -> None:
    """Iteration 3 lacks a stage, whose setting is compared with that of iteration 2."""
    found = steps({1: {"a": 1, "b": "x"}, 2: {"a": 2, "b": "x"}, 3: {"a": 2}, 4: {"a": 2, "b": "y", "c": 1}})
    assert found == [Step(2, "a", 1, 2), Step(4, "b", "x", "y")]
    assert marks([*found, Step(4, "d", None, 0.5)]) == {2: "a 1 → 2", 4: "b x → y; d null → 0.5"}


def test_settings_are_those_that_outputs_were_made_with(tmp_path: Path) -> None:
    """tiny_run records two settings of its rollouts; one with a schedule is no change."""
    run = tiny_run.build(tmp_path / "tiny")
    assert recorded(Run(run), 1)["rollout.prompts_per_iteration"] == 2 and "iteration" not in recorded(Run(run), 1)


def test_the_page_marks_what_was_changed_and_shows_schedules(tmp_path: Path) -> None:
    """beta 0 in iteration 1 and 0.5 in iteration 2; a temperature from 1 to 0.5 over two of them is a curve."""
    run = tiny_run.build(tmp_path / "tiny")
    with (run / "config.yaml").open("a") as file:
        file.write("planned_iterations: 2\nschedules: {rollout.sampler.temperature: {start: 1.0, end: 0.5}}\n")
    for number, beta, temperature in ((1, 0.0, 1.0), (2, 0.5, 0.75)):
        folder = run / f"iter-{number:04d}"
        inputs = {name: Source(folder / name) for name in ("weights",)}
        made_with = {"train": {"beta": beta}, "rollout.sampler.temperature": temperature, "iteration": number}
        row = {"iteration": number, "update": 1, "name": "loss", "value": 0.5}

        def fill(output: Output, row: dict[str, object] = row) -> None:
            output.write("metrics", None, [row])

        tiny_run.publish(Plan("train-step", folder / "train", made_with, 1, inputs), fill)
    assert command_line("report", "--config", run / "config.yaml", "--run", run).code == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"<title>(iteration [0-9]+: [^<]*→[^<]*)</title>", text)) == {
        "iteration 2: train.beta 0 → 0.5"
    }
    assert "<tr><td>2</td><td>train.beta</td><td>0</td><td>0.5</td></tr>" in text
    assert "<title>iteration 2: rollout.sampler.temperature 0.750</title>" in text
    assert "dapo-stages 0" in text and "<dt>machine</dt>" in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("rR -- RUN=first CONFIG=mine.yaml", "make iterate CONFIG=mine.yaml RUN=first"),
        (" -- SET=--set\\ seed=7 RUN=a", "make iterate RUN=a SET='--set seed=7'"),
        ("-j2 --jobserver-auth=3,4 -- WANDB_API_KEY=secret RUN=a", "make iterate RUN=a"),
        ("-- RUN=a", "make iterate RUN=a"),
        (" -- RUN='a", ""),
        ("rR", ""),
    ],
)
def test_the_command_of_make_without_what_is_nobody_s_business(flags: str, expected: str) -> None:
    assert command({"MAKEFLAGS": flags}) == expected
    assert command({}) == ""
