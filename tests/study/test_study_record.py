"""Result files from small hand-made runs whose figures are worked by hand."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from reporting.tiny_run import publish

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source, read_manifest
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import SCHEMAS
from dapo_stages.handoff.shards import Row, write_text
from dapo_stages.handoff.unfinished import HALTED
from dapo_stages.runs.run_folder import Run
from pipelines.study.design import Name
from pipelines.study.record import result_of
from pipelines.study.result_files import Machine, read_results, write_result
from pipelines.study.token_weights_seen import deciding_token

NAME = Name("places", 101, "vgr")
ENDS = {0: 0.1, 2: 0.5, 3: 0.7}  # prior-violating accuracy by iteration


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """A run of three iterations, evaluated after every second one and at the end."""
    start, run = tmp_path / "start-101", tmp_path / "vgr-101"
    publish(Plan("init-policy", start / "policy", {}, 101), lambda output: None)
    publish(Plan("prepare-data", start / "data", {}, 101), lambda output: None)
    run.mkdir()
    (run / "config.yaml").write_text(
        "planned_iterations: 3\ntrain: {learning_rate: 0.003}\nweights: {clip: [0.5, 3]}\n"
    )
    for number in (1, 2, 3):
        place = run / f"iter-000{number}"
        output("rollout", place / "rollout", start, {"prompts": [PROMPT], "completions": [said(0), said(1), said(2)]})
        output("score-attention", place / "attention", start, {})
        output("train-step", place / "train", start, {})
        rows = [weighted(0, [0.5, 0.5, 3.0, 0.0]), weighted(1, [1.0, 1.0, 1.0, 1.0]), weighted(2, [])]
        output("weight-tokens", place / "weights", start, {"weights": rows})
    for number, violating in ENDS.items():
        evaluation(run / f"iter-000{number}/eval", start, violating)
    return run


PROMPT: Row = dict.fromkeys(SCHEMAS["prompts"].names) | {
    "group_id": "g",
    "iteration": 1,
    "prompt_id": "p",
    "images": [],
    "problem": "Which color?\nA. red\nB. dark blue",
    "solution": "B",
    "prompt_text": "",
    "prompt_ids": [1],
    "image_grid_thw": [],
    "source": "",
    "slice": "",
    "round": 0,
    "num_correct": 1,
    "kept": True,
}


def said(sample: int) -> Row:
    """A completion that says that the answer is red."""
    texts = ["Dark", " it is,", " red", ": A"]
    nothing: Row = dict.fromkeys(SCHEMAS["completions"].names)
    return nothing | {
        "completion_id": f"c{sample}",
        "group_id": "g",
        "sample": sample,
        "text": "".join(texts),
        "completion_ids": [1, 2, 3, 4],
        "token_texts": texts,
        "sampling_logprobs": [0.0] * 4,
        "finish_reason": "stop",
        "engine": "transformers",
        "policy_version": 0,
        "reward_accuracy": 0.0,
        "reward_format": 1.0,
        "reward_overlong": 0.0,
        "answer": "A",
        "read_from": "tags",
    }


def output(stage: str, out: Path, start: Path, tables: dict[str, list[Row]], *, seconds: float = 0) -> None:
    def fill(output: Output) -> None:
        time.sleep(seconds)
        for kind, rows in tables.items():
            output.write(kind, 0, rows)

    inputs = {"policy": Source(start / "policy"), "data": Source(start / "data")}
    publish(Plan(stage, out, {"out": str(out)}, 101, inputs), fill)


def weighted(sample: int, weights: list[float]) -> Row:
    numbers = ("reward", "reward_accuracy", "reward_format", "reward_overlong", "reward_vgr", "advantage")
    return dict.fromkeys(numbers, 0.0) | {
        "completion_id": f"c{sample}",
        "group_id": "g",
        "source": "fresh",
        "source_iteration": 1,
        "reward_phase": "regular",
        "importance": None,
        "token_weights": weights,
        "in_loss": bool(weights),
        "why": "",
    }


def evaluation(out: Path, start: Path, violating: float) -> None:
    """Three prior-violating questions of one kind and one of another: .05 below the accuracy and .15 above it."""
    slices = {"prior-consistent, at": 4, "prior-violating, at": 3, "prior-violating, count": 1}
    accuracy = {"prior-consistent, at": 1.0, "prior-violating, at": violating - 0.05}
    accuracy["prior-violating, count"] = violating + 0.15
    metrics: dict[str, Any] = {
        "slices": slices,
        "by_slice": {name: {"greedy_accuracy": value} for name, value in accuracy.items()},
        "greedy_accuracy": (1 + violating) / 2,
        "blank_accuracy": 0.25,
        "mean_tokens": 16.0,
    }

    def fill(output: Output) -> None:
        write_text(output.folder / "metrics.json", json.dumps(metrics))
        output.add_files("metrics.json")

    inputs = {"policy": Source(start / "policy"), "data": Source(start / "data")}
    publish(Plan("evaluate", out, {"violating": violating}, 101, inputs), fill)


def test_a_finished_run_leaves_its_curves_costs_and_origin(run: Path, tmp_path: Path) -> None:
    found = result_of(Run(run), NAME, every=2)
    assert found.evaluated == [0, 2, 3] and found.learning_rate == 0.003 and not found.pilot
    assert found.curves["violating"] == pytest.approx(ENDS) and found.curves["blank"] == dict.fromkeys(ENDS, 0.25)
    assert found.curves["violating, count"] == pytest.approx({0: 0.25, 2: 0.65, 3: 0.85})
    assert found.curves["consistent"] == dict.fromkeys(ENDS, 1.0) and found.curves["length"][3] == 16
    assert found.measure() == pytest.approx(0.6)
    stages = ("rollout", "score-attention", "weight-tokens", "train-step", "evaluate")
    assert {stage: list(found.seconds[stage]) for stage in stages} == {
        **{stage: [1, 2, 3] for stage in stages[:4]},
        "evaluate": [0, 2, 3],
    }
    # .5 .5 3 0 has deviation √(5.5 / 4) = 1.1726, 1 1 1 1 none. Of eight tokens three are at .5 or below, one,
    # red, is at 3; of two completions that say red, it is so in one.
    assert found.weights == pytest.approx(
        {"deviation": 0.5863, "at lower bound": 3 / 8, "at upper bound": 1 / 8, "deciding word at upper bound": 0.5},
        abs=1e-4,
    )
    assert found.start == read_manifest(tmp_path / "start-101/policy").content_hash
    assert found.data == read_manifest(tmp_path / "start-101/data").content_hash
    assert found.settings["weights"]["clip"] == [0.5, 3] and found.machine.threads >= 1
    path = write_result(tmp_path / "results", found)
    assert path == tmp_path / "results/places/vgr-101.json" and read_results(tmp_path / "results") == [found]


@pytest.mark.parametrize(("gpus", "counted"), [([], False), (["H100"], True)])
def test_waiting_costs_nothing_without_gpus(run: Path, gpus: list[str], counted: bool, monkeypatch: Any) -> None:
    shutil.rmtree(run / "iter-0001/train")
    output("train-step", run / "iter-0001/train", run.parent / "start-101", {}, seconds=0.5)
    machine = Machine(processor="Abacus", cores=2, threads=1, gpus=tuple(gpus))
    monkeypatch.setattr("pipelines.study.record.machine_here", lambda: machine)
    assert (result_of(Run(run), NAME, every=2).seconds["train-step"][1] >= 0.5) == counted


def test_a_run_that_is_not_finished_leaves_no_result(run: Path) -> None:
    shutil.rmtree(run / "iter-0003/eval")
    with pytest.raises(DataError, match=r"evaluated after iterations 0, 2, expected \[0, 2, 3\]. Run make study again"):
        result_of(Run(run), NAME, every=2)
    with pytest.raises(DataError, match="there is no such run"):
        result_of(Run(run / "none"), NAME, every=2)


def test_a_run_whose_training_broke_down_leaves_what_there_is(run: Path) -> None:
    shutil.rmtree(run / "iter-0003")
    (run / "iter-0003/train").mkdir(parents=True)
    (run / "iter-0003/train" / HALTED).write_text(json.dumps({"why": "the log-ratio is 9"}))
    found = result_of(Run(run), NAME, every=2)
    assert found.broke_down == "the log-ratio is 9" and found.curve("violating")[3] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "problem", "answer", "word"),
    [
        ("Okay , one moment : one red . So one A", "How many?\nA. one\nB. two", "A", 5),
        ("It is yellow top left . yellow C", "Where?\nC. top left", "C", 3),
        ("I see blue , blue . So blue B", "Which?\nB. Blue", "B", 4),
        ("I see red", "Which?\nB. blue", "B", None),
        ("I see red", "Which?\nB. blue", None, None),
        ("I see red", "No options", "B", None),
        ("now : a red circle . So red", "what color is the circle?", "red", 3),
    ],
)
def test_the_word_that_decides_is_the_last_before_the_conclusion(
    text: str, problem: str, answer: str | None, word: int | None
) -> None:
    tokens = [f" {token}" for token in text.split()]
    assert deciding_token(tokens, problem, answer) == word
