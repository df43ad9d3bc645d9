"""The best policy so far: by which figure, who wins a tie, what the pointer says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from reporting import tiny_run

from dapo_stages.handoff.manifests import Source, mark_pruned
from dapo_stages.handoff.plans import Plan
from dapo_stages.runs.best import find_best, write_best
from dapo_stages.runs.run_folder import Run


def evaluated(run: Path, number: int, **figures: float) -> None:
    """An evaluation of an iteration's policy; only figures."""
    policy = run / "policy" if number == 0 else run / f"iter-{number:04d}/train/policy"
    if number:
        tiny_run.publish(Plan("policy", policy, {}, number), lambda output: None)
    plan = Plan("evaluate", run / f"iter-{number:04d}/eval", {"figures": figures}, 1, {"policy": Source(policy)})
    tiny_run.publish(plan, lambda output: output.counts.update(figures))


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    tiny_run.publish(Plan("init-policy", tmp_path / "policy", {}, 1), lambda output: None)
    return tmp_path


def best(run: Path) -> int | None:
    found = find_best(Run(run))
    return found.iteration if found else None


def test_a_run_without_evaluations_has_no_best_policy(run: Path) -> None:
    (run / "iter-0001").mkdir()
    (run / "best.json").write_text("{}")
    assert write_best(Run(run)) is None and not (run / "best.json").exists()


def test_greedy_accuracy_decides_then_sampled_then_the_earlier_policy(run: Path) -> None:
    evaluated(run, 1, greedy_accuracy=0.5, sampled_accuracy=0.9)
    evaluated(run, 2, greedy_accuracy=0.75, sampled_accuracy=0.5)
    assert best(run) == 2
    evaluated(run, 3, greedy_accuracy=0.75, sampled_accuracy=0.625)
    assert best(run) == 3
    evaluated(run, 4, greedy_accuracy=0.75, sampled_accuracy=0.625)
    assert best(run) == 3


def test_without_greedy_answers_the_sampled_ones_decide(run: Path) -> None:
    evaluated(run, 1, sampled_accuracy=0.9)
    evaluated(run, 2, sampled_accuracy=0.8)
    assert best(run) == 1
    evaluated(run, 3, greedy_accuracy=0.1, sampled_accuracy=0.2)
    assert best(run) == 3  # figures of different kinds are not compared


def test_the_start_can_be_the_best(run: Path) -> None:
    evaluated(run, 0, greedy_accuracy=0.5)
    evaluated(run, 1, greedy_accuracy=0.25)
    found = find_best(Run(run))
    assert found is not None and (found.iteration, found.policy) == (0, "policy")


def test_policies_that_are_gone_or_were_made_again_do_not_count(run: Path) -> None:
    for number, greedy in ((1, 0.25), (2, 0.5), (3, 0.75)):
        evaluated(run, number, greedy_accuracy=greedy)
    mark_pruned(run / "iter-0003/train/policy")
    assert best(run) == 2
    tiny_run.publish(Plan("policy", run / "iter-0002/train/policy", {}, 99), lambda output: None)
    assert best(run) == 1


@pytest.mark.parametrize("claim", [0.75, float("nan"), "much"])
def test_an_evaluation_whose_manifest_was_edited_does_not_count(run: Path, claim: object) -> None:
    evaluated(run, 1, greedy_accuracy=0.25)
    evaluated(run, 2, greedy_accuracy=0.5)
    path = run / "iter-0002/eval/manifest.json"
    values = json.loads(path.read_text())
    values["counts"]["greedy_accuracy"] = claim
    path.write_text(json.dumps(values))
    assert best(run) == 1


def test_the_pointer_holds_in_a_copy_of_the_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    evaluated(run, 1, greedy_accuracy=0.25)
    write_best(Run(run))
    copy = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(run, copy)
    pointer = json.loads((copy / "best.json").read_text())
    policy = Source(copy / pointer.pop("policy"))
    assert pointer == {
        "iteration": 1, "metric": "greedy_accuracy", "value": 0.25, "policy_hash": policy.manifest.content_hash,
    }  # fmt: skip
