"""evaluate: the figures are those of the rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.pipeline import Run, table


def test_metrics_are_means_of_the_rows(small_run: Run) -> None:
    folder = small_run.at(2) / "eval"
    rows, found = table(folder, "completions"), json.loads((folder / "metrics.json").read_text())
    assert found["questions"] == 12 == rows.prompt_id.nunique()
    by_mode = rows.groupby("mode").reward_accuracy.mean()
    assert found["greedy_accuracy"] == pytest.approx(by_mode["greedy"])
    assert found["sampled_accuracy"] == pytest.approx(by_mode["sample"])
    assert found["blank_accuracy"] == pytest.approx(by_mode["blank"])
    sampled = rows[rows["mode"] == "sample"]
    assert len(sampled) == 12 * 2
    assert found["sampled_format"] == pytest.approx(sampled.reward_format.mean())
    formed = sampled[sampled.reward_format == 1]
    assert found["sampled_accuracy_well_formed"] == (
        pytest.approx(formed.reward_accuracy.mean()) if len(formed) else None
    )


def test_slices_are_reported_apart(small_run: Run) -> None:
    folder = small_run.at(2) / "eval"
    rows, found = table(folder, "completions"), json.loads((folder / "metrics.json").read_text())
    assert set(found["by_slice"]) == {"prior-consistent", "prior-violating"} == set(rows.slice)
    for name, part in rows[rows["mode"] == "greedy"].groupby("slice"):
        assert found["by_slice"][name]["greedy_accuracy"] == pytest.approx(part.reward_accuracy.mean())
        assert found["slices"][name] == len(part)


def test_a_part_of_the_questions_without_samples(small_run: Run, tmp_path: Path) -> None:
    small_run.command(
        "evaluate", "--policy", small_run.policy(1), "--data", small_run.folder / "data", "--out", tmp_path / "e",
        evaluate__max_questions=5, evaluate__num_generations=0, evaluate__blank_image="false",
    )  # fmt: skip
    found = json.loads((tmp_path / "e/metrics.json").read_text())
    assert found["questions"] == 5 and found["sampled_accuracy"] is None and found["blank_accuracy"] is None
    assert set(table(tmp_path / "e", "completions")["mode"]) == {"greedy"}
