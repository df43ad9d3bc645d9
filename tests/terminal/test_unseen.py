"""Names from disk and from data cannot control a terminal or reorder a page, whichever command prints them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from reporting import tiny_run
from support.commands import run

from dapo_stages.reporting.documents.overview import overview
from dapo_stages.reporting.page.charts import Chart, Series, draw, drawn_as_svg
from dapo_stages.reporting.page.html import render

NAME = "run \x1b[2J\x9b31m\u202egnp\u2066\x7f"
# All characters that control a terminal or reorder text, except the newlines and tabs that commands print themselves.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tiny_run.build(tmp_path_factory.mktemp("runs") / NAME)
    assert run("report", "--config", found / "config.yaml", "--run", found).code == 0
    return found


@pytest.mark.parametrize(
    "words",
    [
        *(
            "status --run {}",
            "report --config {}/config.yaml --run {}",
        ),
        *(
            "inspect --run {} --find best",
            "doctor --run {}",
            "prune --config {}/config.yaml --run {} --set keep.rollouts=1 --dry-run",
        ),
        *("compare-evals {}/iter-0000/eval {}/iter-0001/eval", "status --run {}/none", "plan --config {}/config.yaml"),
        "weight-tokens --config {}/config.yaml --rollouts {}/iter-0001/rollout --attention {}/iter-0001/attention "
        "--iteration 1 --out {}/new --dry-run",
        "config --config {}/config.yaml --out {}/other.yaml",
        "push --run {} --repo me/mine --dry-run",
    ],
)
def test_a_run_s_name_steers_no_terminal(words: str, named: Path) -> None:
    result = run(*(word.replace("{}", str(named)) for word in words.split(" ")))
    said = result.stdout + result.stderr
    assert said
    assert STEERING.findall(said) == []


def test_a_run_s_name_stays_in_its_place_in_documents(named: Path) -> None:
    for name in ("report.html", "rollout_results.md", "token_weights.md", "eval_results.md"):
        assert STEERING.findall((named / name).read_text(encoding="utf-8")) == []


def test_names_in_charts_are_shown_with_what_they_hold() -> None:
    chart = Chart("Accuracy", "share", [Series(f"a{NAME}\nb", [(1.0, 0.5), (2.0, 0.7)])])
    for drawn in (draw(chart), drawn_as_svg(chart)):
        assert STEERING.findall(drawn) == []
        assert "⟨U+202E⟩gnp⟨U+2066⟩␡⏎b" in drawn


def test_names_of_slices_and_rewards_are_shown_so_in_the_page() -> None:
    figures = [
        {
            "iteration": number,
            "rollout": {"accuracy": 0.5, "by_slice": {NAME: 0.5}},
            "weights": {"reward": 1.0, f"reward_{NAME}": 0.25},
            "eval": {"greedy_accuracy": 0.5, "by_slice": {NAME: {"greedy_accuracy": 0.5}}},
        }
        for number in (1, 2)
    ]
    page = render(
        NAME, overview(figures, {}, stages=False), figures, {"seconds": {}, "memory": {}}, [], {"policy": NAME}
    )
    assert STEERING.findall(page) == []
    assert page.count("⟨U+202E⟩gnp") >= 8  # title, heading, fact, slice, reward, each curve's label and dots
