"""docs/results.md from small hand-made runs whose figures are worked by hand."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from reporting.tiny_run import publish
from support.commands import ROOT

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import SCHEMAS
from dapo_stages.handoff.shards import Row, write_text
from dapo_stages.runs.study import read_study

# Prior-violating accuracy at the end, by seed. experiment5 - baseline: 0.1, 0.2, 0.0; experiment1: 0.30, 0.31, 0.29.
ENDS = {"baseline": (0.5, 0.6, 0.7), "experiment1": (0.8, 0.91, 0.99), "experiment5": (0.6, 0.8, 0.7)}
SEEDS = (1, 2, 3)


@pytest.fixture()
def results() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("results", ROOT / "pipelines/experiments/results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture()
def runs(tmp_path: Path) -> Path:
    """A study of three experiments and three seeds, one iteration each."""
    folder = tmp_path / "runs/small"
    for seed in SEEDS:
        publish(Plan("init-policy", folder / f"start-{seed}/policy", {}, seed), lambda output: None)
        publish(Plan("prepare-data", folder / f"start-{seed}/data", {}, seed), lambda output: None)
        for experiment, ends in ENDS.items():
            build(folder, experiment, seed, ends[seed - 1])
    return folder


def build(folder: Path, experiment: str, seed: int, end: float) -> None:
    run, start = folder / f"{experiment}-{seed}", folder / f"start-{seed}"
    run.mkdir()
    (run / "config.yaml").write_text("planned_iterations: 1\n", encoding="utf-8")
    evaluation(run / "iter-0000/eval", start, 0.1)
    rows("rollout", run / "iter-0001/rollout", start, {})
    weighted = experiment == "experiment5"
    rows("score-attention", run / "iter-0001/attention", start, {"attention": [looks(0, 0.5), looks(1, 0.7)]})
    rows("weight-tokens", run / "iter-0001/weights", start, {"weights": [weight(0, weighted), weight(1, weighted)]})
    rows("train-step", run / "iter-0001/train", start, {})
    evaluation(run / "iter-0001/eval", start, end)


def rows(stage: str, out: Path, start: Path, tables: dict[str, list[Row]]) -> None:
    def fill(output: Output) -> None:
        for kind, table in tables.items():
            output.write(kind, 0, table)
        output.counts = {"replayed": 1, "groups": 4, "reward_phase": "early"}

    publish(Plan(stage, out, {"out": str(out)}, 1, {"policy": Source(start / "policy")}), fill)


def looks(sample: int, vgr: float) -> Row:
    nothing: Row = dict.fromkeys(SCHEMAS["attention"].names)
    return nothing | {
        "completion_id": f"c{sample}",
        "status": "ok",
        "vgr_all": vgr,
        "num_text_tokens": 12,
        "num_vision_tokens": 4,
    }


def weight(sample: int, weighted: bool) -> Row:
    """Rewards for looking of 0.5 and -0.5 in the group; weights 0.5 and 1.5 in the completion, or 1 and 1."""
    numbers = dict.fromkeys(("reward", "reward_accuracy", "reward_format", "reward_overlong", "advantage"), 0.0)
    return numbers | {
        "completion_id": f"c{sample}",
        "group_id": "g",
        "source": "fresh",
        "source_iteration": 1,
        "reward_vgr": 0.5 - sample,
        "reward_phase": "early",
        "importance": None,
        "token_weights": [0.5, 1.5] if weighted else [1.0, 1.0],
        "in_loss": True,
        "why": "",
    }


def evaluation(out: Path, start: Path, violating: float) -> None:
    """Prior-violating accuracy over two kinds of questions, three and one of them."""
    slices = {"prior-consistent": 4, "prior-violating, colour": 3, "prior-violating, count": 1}
    accuracy = {"prior-consistent": 1.0, "prior-violating, colour": violating - 0.05}
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
    publish(Plan("evaluate", out, {"violating": violating}, 1, inputs), fill)


def page(results: ModuleType, runs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(results, "experiments_of", lambda study: list(ENDS))
    results.main(runs.parent, "small", "1 2 3", runs.parent / "out/results.md")
    return (runs.parent / "out/results.md").read_text(encoding="utf-8")


def cells(text: str, first: str) -> list[str]:
    """The cells of the first row of a table that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")]


def test_means_and_deviations(results: ModuleType, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(results, runs, monkeypatch)
    assert cells(text, "start")[1:4] == ["3", "0.100 ± 0.000", "0.550 ± 0.000"]
    # experiment5: 0.6 0.8 0.7; all questions: 0.8 0.9 0.85
    assert cells(text, "experiment5") == [
        *("experiment5", "3", "0.700 ± 0.100", "0.850 ± 0.050", "0.250 ± 0.000", "0.600 ± 0.000", "16.000 ± 0.000"),
        "0.700 ± 0.100",
    ]


def test_differences_are_paired_and_say_what_they_decide(
    results: ModuleType, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page(results, runs, monkeypatch)
    assert cells(text, "experiment5 - baseline")[1] == "+0.100 [-0.148, +0.348]"
    # 4.303 · 0.01 / √3 = 0.0248
    assert cells(text, "experiment1 - baseline")[1] == "+0.300 [+0.275, +0.325]*"
    against = next(line for line in text.splitlines() if "At the end, experiment5 - baseline" in line)
    assert "**+0.100 [-0.148, +0.348]**. The interval includes 0: no difference shown, n = 3." in against
    # -0.2, -0.11, -0.29: mean -0.2, deviation 0.09, half 4.303 · 0.09 / √3 = 0.2236
    twin = next(line for line in text.splitlines() if "At the end, experiment5 - experiment1" in line)
    assert "**-0.200 [-0.424, +0.024]**. The interval includes 0" in twin
    assert "experiment1, at the end: above the baseline (+0.300 [+0.275, +0.325])." in text
    assert "1 of 9 runs of baseline, experiment1 and experiment5 end at 0.98 or above" in text


def test_what_sets_experiments_apart_is_measured(
    results: ModuleType, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page(results, runs, monkeypatch).split("### How the experiments differ")[1]
    # 0.5 and -0.5 in a group: √0.5; weights 0.5 and 1.5: 0.5; 1 replayed of 4 groups
    assert cells(text, "experiment5")[1:] == ["0.707 ± 0.000", "0.500 ± 0.000", "0.250 ± 0.000", "1.000 ± 0.000"]
    assert cells(text, "baseline")[2] == "0.000 ± 0.000"


def test_a_missing_run_is_named_and_stays_out(results: ModuleType, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(runs / "experiment5-1")
    (runs / "baseline-3/iter-0001/eval/manifest.json").unlink()
    text = page(results, runs, monkeypatch)
    assert "- experiment5-1: not run" in text and "- baseline-3: evaluated up to iteration 0 of 1" in text
    assert cells(text, "experiment5 - baseline")[1] == "+0.200"  # seed 2 alone
    assert "One seed: no interval, nothing shown." in text
    shutil.rmtree(runs)
    text = page(results, runs, monkeypatch)
    assert "- experiment1-2: not run" in text and "start |" not in text


def test_a_run_with_another_start_is_not_compared(runs: Path) -> None:
    publish(Plan("init-policy", runs / "start-9/policy", {"other": 1}, 9), lambda output: None)
    rows("train-step", runs / "experiment1-2/iter-0001/train", runs / "start-9", {})
    found, missing = read_study(runs, list(ENDS), SEEDS)
    assert missing == {"experiment1-2": "it started from another policy than the other runs of its seed"}
    assert len(found) == 8


def test_runs_are_compared_over_the_iterations_that_all_have_evaluated(runs: Path) -> None:
    """All end at 0.9 after two iterations. Without the first, one run's mean would be 0.9 for that reason alone."""
    for run in runs.glob("[be]*-*"):
        (run / "config.yaml").write_text("planned_iterations: 2\n")
        shutil.copytree(run / "iter-0001", run / "iter-0002")
        shutil.rmtree(run / "iter-0002/eval")
        evaluation(run / "iter-0002/eval", runs / f"start-{run.name[-1]}", 0.9)
    assert read_study(runs, list(ENDS), SEEDS)[0][0].over_run("violating") == pytest.approx((0.5 + 0.9) / 2)
    shutil.rmtree(runs / "baseline-2/iter-0001/eval")
    found, missing = read_study(runs, list(ENDS), SEEDS)
    assert not missing and [run.over_run("violating") for run in found] == pytest.approx([0.9] * 9)
    assert found[0].at_start("violating") == pytest.approx(0.1) and set(found[0].curves["vgr"]) == {0, 1}


def test_curves_are_images_of_their_own(results: ModuleType, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(results, runs, monkeypatch)
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(images) == 5
    for name in images:
        root = ET.parse(runs.parent / "out" / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    drawn = (runs.parent / "out/results-small-violating.svg").read_text()
    assert "iteration 1: experiment5 70.0%" in drawn and "iteration 0: baseline 10.0%" in drawn
