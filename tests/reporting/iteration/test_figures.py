"""Figures of an iteration against values worked out by hand from the rows of tiny_run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from reporting import tiny_run

from dapo_stages.errors import DataError
from dapo_stages.groups.answer_metrics import metrics
from dapo_stages.groups.answer_tallies import Tallies
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.plans import Plan
from dapo_stages.reporting.iteration.figures import Tally, collect, figure
from dapo_stages.reporting.iteration.samples import collect_samples
from dapo_stages.reporting.page.curves import curves, histograms
from dapo_stages.runs.run_folder import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tiny_run.build(tmp_path_factory.mktemp("run")))


def test_rollout_figures_count_every_sampled_completion(run: Run) -> None:
    found = collect(2, run.sources(2))["rollout"]
    assert (found["groups"], found["kept"], found["completions"], found["rounds"]) == (2, 1, 8, 1)
    assert found["accuracy"] == 6 / 8
    assert found["format"] == 7 / 8
    assert found["overlong"] == -0.5 / 8
    assert found["truncated"] == 1 / 8
    assert found["mean_tokens"] == (11 + 11 + 6 + 8) / 4
    assert found["informative"] == 1 / 2
    assert found["by_slice"] == {"prior-consistent": 0.5, "prior|violating": 1.0}


def test_vgr_means_leave_out_missing_values(run: Run) -> None:
    found = collect(1, run.sources(1))["attention"]
    assert found["vgr_all"] == (1 + 2 + 3 + 4) / 4
    assert found["vgr_late"] == (1 + 2 + 3) / 3
    assert found["status"] == {"ok": 4}


def test_replayed_rows_are_counted_but_stay_out_of_the_reward(run: Run) -> None:
    found = collect(2, run.sources(2))["weights"]
    assert (found["completions"], found["fresh"], found["replayed"]) == (5, 4, 1)
    assert found["reward"] == (3 + 3 + 0.5 - 0.5) / 4
    assert found["reward_std"] == pytest.approx(math.sqrt((9 + 9 + 0.25 + 0.25) / 4 - 1.5**2))
    assert found["reward_vgr"] == (1 + 0.75 + 0.25) / 4
    assert found["in_loss"] == 4 / 5
    assert (found["token_weight_min"], found["token_weight_max"]) == (0.5, 1.5)
    assert found["why"] == {"truncated": 1}
    assert found["distribution"] == {
        "reward": [[-0.5, 1], [0.5, 1], [3.0, 2]], "advantage": [[-1.2, 1], [-0.6, 1], [0.9, 2]],
    }  # fmt: skip


def test_updates_become_one_number_by_their_meaning(run: Run) -> None:
    found = collect(1, run.sources(1))["train"]
    assert found["loss"] == pytest.approx(0.3)
    assert found["ratio_max"] == 1.5
    assert found["learning_rate"] == 2e-5
    assert found["tokens"] == 30
    assert [update["loss"] for update in found["updates"]] == [0.2, 0.4]


def test_an_iteration_with_only_an_evaluation_has_only_its_figures(run: Run) -> None:
    found = collect(0, run.sources(0))
    assert found.keys() == {"iteration", "eval"}
    assert figure(found, "eval", "by_slice", "prior|violating", "greedy_accuracy") == pytest.approx(0.15)
    assert figure(found, "eval", "blank_accuracy") is None
    assert figure(found, "weights", "reward") is None


def test_an_evaluation_without_metrics_is_refused(tmp_path: Path) -> None:
    tiny_run.publish(Plan("evaluate", tmp_path / "eval", {}, 1), lambda output: None)
    with pytest.raises(DataError, match=r"metrics\.json is missing\. Run evaluate again\."):
        collect(1, {"eval": Source(tmp_path / "eval")})


def test_groups_that_train_are_shown_first(run: Run) -> None:
    without = {name: source for name, source in run.sources(1).items() if name != "attention"}
    assert [sample["group_id"] for sample in collect_samples(without, 1)] == ["it1-p0"]


def test_of_a_large_group_the_highest_and_lowest_rewards_are_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dapo_stages.reporting.iteration.samples.MAX_COMPLETIONS", 2)
    (sample,) = collect_samples(run.sources(1), 1)
    assert [one["reward"] for one in sample["completions"]] == [3.0, -0.5]
    assert sample["num_completions"] == 4


def test_rewards_of_the_first_and_the_latest_iteration_are_drawn_beside_each_other(run: Run) -> None:
    rewards, advantages = histograms([collect(number, run.sources(number)) for number in (0, 1, 2)])
    assert [series.name for series in rewards.series] == ["iteration 1", "iteration 2"]
    # 24 bins from -0.5 to 3: -0.5 is in the first, 0.5 in the seventh, 3 in the last.
    shares = {index: share for index, (_, share) in enumerate(rewards.series[0].points) if share}
    assert shares == {0: 0.25, 6: 0.25, 23: 0.5} and rewards.bin == pytest.approx(3.5 / 24)
    middle, share = advantages.series[1].points[0]
    assert middle == pytest.approx(-1.2 + 2.1 / 48) and share == 0.25


def test_intervals_of_an_evaluation_are_drawn() -> None:
    found = {"greedy_accuracy": 0.5, "intervals": {"greedy_accuracy": [0.25, 0.75], "sampled_accuracy": None}}
    figures = [{"iteration": 4, "eval": found | {"sampled_accuracy": 0.5}, "rollout": {"accuracy": 0.5}}]
    bands = {series.name: series.band for series in curves(figures, {})[0].series}
    assert bands == {"rollout": [], "held-out greedy": [(4.0, 0.25, 0.75)], "held-out sampled": []}


def evaluation(iteration: int, samples: dict[str, list[str | None]], right: str = "R") -> dict[str, Any]:
    """The figures of an evaluation with these answers to its questions, the first of each also its greedy one."""
    tallies = Tallies()
    row = {"slice": "", "labels": None, "num_options": 4, "solution": right, "num_tokens": 8, "reward_format": 1}
    for name, answers in samples.items():
        for mode, given in (("greedy", answers[:1]), ("sample", answers[1:])):
            for answer in given:
                found = {"mode": mode, "answer": answer, "reward_accuracy": float(answer == right), "read_from": "tags"}
                tallies.add(row | found | {"prompt_id": name})
    tallies.settle()
    return {"iteration": iteration, "eval": metrics(tallies.questions, resamples=2000, confidence=0.9, seed=1)}


def test_pass_and_majority_are_drawn_beside_the_greedy_answer() -> None:
    """Two questions with 4 samples, 3 and 1 of them right; of the second, two agree on a wrong answer, one has none.

    pass@2 is 1 and 1 - C(3, 2) / C(4, 2) = 1/2; majority@2 (3 + 3/2) / 6 and (2/2 + 1) / 6, ties counting half.
    The bands of whole questions are Clopper and Pearson's at 90 %: 1 - .95^(1/2) to .95^(1/2) for one right of two,
    .05^(1/2) to 1 for both. The others lie where metrics.json has them.
    """
    answers: dict[str, list[str | None]] = {"a": ["R", "R", "R", "R", "W"], "b": ["W", "R", "C", "C", None]}
    figures = [evaluation(0, {name: given[:1] for name, given in answers.items()}), evaluation(2, answers)]
    charts = {chart.title: chart for chart in curves(figures, {})}
    ends = figures[1]["eval"]["intervals"]
    drawn = {one.name: (one.points, one.band) for one in charts["Several samples of a held-out question"].series}
    one, both = (0.025321, 0.974679), (0.223607, 1)
    assert drawn == {
        "greedy": ([(0, 0.5), (2, 0.5)], [(0, *one), (2, *one)]),
        "mean": ([(2, 0.5)], [(2, *ends["sampled_accuracy"])]),
        "majority@4": ([(2, 0.5)], [(2, *one)]),
        "pass@4": ([(2, 1)], [(2, *both)]),
    }
    passed, majority = charts["pass@k and majority@k"].series
    assert (passed.name, majority.name) == ("pass@k, iteration 2", "majority@k, iteration 2")
    assert passed.points == [(1, 0.5), (2, 0.75), (4, 1)]
    assert passed.band == [(k, *ends["pass_at_k"][str(k)]) for k in (1, 2, 4)]
    assert majority.points == [(1, 0.5), (2, pytest.approx((3 / 4 + 1 / 3) / 2)), (4, 0.5)]
    assert majority.band == [(k, *ends["majority_at_k"][str(k)]) for k in (1, 2, 4)]


@pytest.mark.parametrize("samples", [0, 1])
def test_nothing_is_drawn_of_samples_where_a_question_got_one_at_most(samples: int) -> None:
    titles = [chart.title for chart in curves([evaluation(1, {"a": ["R"] * (1 + samples)})], {})]
    assert "Accuracy" in titles and not [title for title in titles if "amples" in title or "@" in title]


def test_a_tally_of_nothing_finite_has_no_mean() -> None:
    tally = Tally()
    tally.add("vgr", None)
    tally.add("vgr", math.inf)
    assert tally.means() == {"vgr": None}
