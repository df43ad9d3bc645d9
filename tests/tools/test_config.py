"""config: what it writes for make, and what it refuses before make goes on by it."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from reporting import tiny_run
from support.commands import run as command

from dapo_stages.handoff.manifests import mark_pruned
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.unfinished import locked

CLIP = ("--set", "weights.clip=[0.5, 2.0]")


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """Two finished iterations; the weights of the second were clipped to the default of 0.2 … 3.0."""
    run = tiny_run.build(tmp_path / "my run")
    config = run / "config.yaml"
    config.write_text(command("config", "--config", config).stdout)
    clipped = {"weights": {"clip": [0.2, 3.0]}}
    tiny_run.publish(Plan("weight-tokens", run / "iter-0002/weights", clipped, 1), lambda output: None)
    return run


def ask(run: Path, output: str, *options: object) -> tuple[int, str]:
    """Exit code and errors of `config` before make makes an output."""
    config = run / "config.yaml"
    result = command("config", "--config", config, *options, "--out", config, "--for", run / output)
    return result.code, result.stderr


def test_other_settings_for_what_is_finished_are_refused_with_the_command_that_makes_it_again(run: Path) -> None:
    before = (run / "config.yaml").read_text()
    code, said = ask(run, "iter-0002/weights", *CLIP)
    assert code == 3 and (run / "config.yaml").read_text() == before
    assert said.startswith(
        f"{run}/iter-0002/weights: finished with weights.clip=[0.2, 3.0], but it is now [0.5, 2.0], and make does not "
        "redo finished outputs. Run `dapo-stages weight-tokens "
    )
    words = shlex.split(said.split("`")[1])
    assert words[2:6] == ["--config", f"{run}/config.yaml", *CLIP]
    assert words[-3:] == ["--out", f"{run}/iter-0002/weights", "--overwrite"]
    told = command(*words[1:], "--dry-run")
    assert told.code == 0 and f"weight-tokens would replace (with --overwrite) {run}/iter" in told.stderr


def test_a_pruned_output_is_finished_too(run: Path) -> None:
    mark_pruned(run / "iter-0002/weights")
    assert ask(run, "iter-0002/weights", *CLIP)[0] == 3


@pytest.mark.parametrize(
    ("output", "options"),
    [
        ("iter-0003/weights", CLIP),  # not there yet
        ("iter-0002/weights", ("--set", "weights.clip=[0.2, 3.0]")),  # made with it
        ("iter-0002/weights", ("--set", "keep.policies=7")),  # changes nothing of it
    ],
)
def test_settings_that_a_finished_output_does_not_contradict_are_taken(
    run: Path, output: str, options: tuple[str, ...]
) -> None:
    assert ask(run, output, *options)[0] == 0
    assert command("config", "--config", run / "config.yaml").stdout == (run / "config.yaml").read_text()


def test_what_make_makes_again_anyway_may_have_other_settings(run: Path) -> None:
    tiny_run.rollout(run, 1, seed=7)
    assert ask(run, "iter-0001/weights", "--set", "seed=7")[0] == 0


def test_a_configuration_that_has_changed_since_is_no_reason_to_refuse(run: Path) -> None:
    config = run / "config.yaml"
    assert command("config", "--config", config, *CLIP, "--out", config).code == 0
    assert ask(run, "iter-0002/weights", "--set", "keep.policies=7")[0] == 0
    assert ask(run, "iter-0002/weights", "--set", "weights.clip=[0.4, 2.5]")[0] == 3


@pytest.fixture()
def changed(run: Path) -> list[object]:
    """Words of a command that would change the configuration of the run."""
    return ["config", "--config", run / "config.yaml", *CLIP, "--out", run / "config.yaml"]


def test_a_configuration_stays_while_an_output_is_written(run: Path, changed: list[object]) -> None:
    before = (run / "config.yaml").read_bytes()
    with locked(run / "iter-0003/rollout"):
        refused = command(*changed)
        same = command(*changed[:3], *changed[-2:])
    assert refused.code == 4 and same.code == 0 and (run / "config.yaml").read_bytes() == before
    assert refused.stderr == (
        f"{run}: in use with other settings ({run}/iter-0003/rollout). Wait for that to end, stop it, or name another "
        "run (RUN=…).\n"
    )
    assert command(*changed).code == 0 and (run / "config.yaml").read_bytes() != before


def test_a_configuration_stays_while_another_make_goes_by_it(run: Path, changed: list[object], tmp_path: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    first, second = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    notes = [tmp_path / f"make/my-run-{make.pid}" for make in (first, second)]
    unchanged = [*changed[:3], *changed[-2:]]
    try:
        assert command(*unchanged, "--note", notes[0]).code == 0
        refused = command(*changed, "--note", notes[1])
        assert refused.code == 4 and f"in use with other settings (make (process {first.pid}))." in refused.stderr
        assert (run / "config.yaml").read_bytes() == before
        assert command(*unchanged, "--note", notes[1]).code == 0
        assert command(*changed, "--note", tmp_path / f"make/run-{second.pid}").code == 0  # of another run
    finally:
        for make in (first, second):
            make.kill()
            make.wait()
    third = tmp_path / f"make/my-run-{os.getpid()}"
    assert command(*changed, "--set", "keep.policies=7", "--note", third).code == 0
    assert sorted((tmp_path / "make").glob("my-run-*")) == [third]  # notes of makes that have ended are gone


def test_make_is_told_what_its_rules_depend_on(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{planned_iterations: 1_000, lag: 2, rollout: {engine: vllm, curriculum: {}}}")
    told = tmp_path / "build/told.mk"
    for overrides, kl in ((), ""), (("--set", "train.beta=0.1"), " on"):
        command("config", "--config", tmp_path / "run.yaml", *overrides, "--make", told)
        answers, _ = told.read_text().split("\n\n", 1)
        assert answers.splitlines() == [
            *("planned_iterations := 1000", "lag := 2", "engine := vllm", "evaluate_engine := transformers"),
            "device := auto",
            *("evaluations := on", "curriculum := on", f"kl :={kl}", "again :="),
        ]
