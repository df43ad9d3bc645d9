"""inspect: one completion in full, found by id or by what is remarkable about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from reporting import tiny_run
from rich.console import Console
from typer.testing import CliRunner, Result

from dapo_stages.manifests import mark_pruned
from dapo_stages.stages.inspect import coloured, main


def inspect(run: Path, *arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    return CliRunner().invoke(app, ["--run", str(run), *arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.build(tmp_path_factory.mktemp("runs") / "tiny")


def test_a_completion_is_shown_with_all_that_is_known_of_it(run: Path) -> None:
    assert inspect(run, "it1-p0-s2").stdout == (
        "it1-p0-s2  (iteration 1, prompt p0, prior-consistent)\n"
        f"prompt     {run}/iter-0001/rollout/prompts-00000.parquet, row 0\n"
        "picture    56×56\n"
        "question   What colour is the circle?\n"
        "           A. red | B. <b>blue</b>\n"
        "answer     A\n"
        "reward     0.500 (accuracy 0.00, format 1.00, overlong 0.00, vgr 0.25)\n"
        "advantage  -0.600\n"
        "VGR        3.000\n"
        "finish     stop, 6 tokens\n"
        "\n"
        "<think>(0.50) The(0.70) circle(0.90) is(1.10) red(1.30) .(1.50)\n"
    )


def test_a_completion_without_weights_shows_its_text(run: Path) -> None:
    text = inspect(run, "it1-p1-s0").stdout
    assert text.endswith("11 tokens\n\n<think> The circle is red.</think>\n<answer>A</answer>\n")
    assert ", row 1\n" in text


def test_hostile_text_cannot_steer_the_terminal(run: Path) -> None:
    text = inspect(run, "it1-p0-s3").stdout
    assert "\x1b" not in text and "␛[31m红色" in text
    assert "advantage  -1.200 (not in the loss: truncated)\n" in text


def test_worst_and_best_go_by_reward(run: Path) -> None:
    assert json.loads(inspect(run, "--find", "worst", "--json").stdout)["completion_id"] == "it2-p0-s3"
    best = json.loads(inspect(run, "--find", "best", "--json", "--iteration", "1").stdout)
    assert (best["completion_id"], best["further"]) == ("it1-p0-s0", ["it1-p0-s1", "it1-p0-s2", "it1-p0-s3"])


def test_disagree_finds_a_right_answer_without_a_look_or_a_wrong_one_with_it(run: Path) -> None:
    """By rank of VGR, s0 … s3 stand at 0, 1/3, 2/3, 1; right ones count that, wrong ones its rest: 0 1/3 1/3 0."""
    found = json.loads(inspect(run, "--find", "disagree", "--json").stdout)
    assert {found["completion_id"], found["further"][0]} == {"it2-p0-s1", "it2-p0-s2"}


def test_a_replayed_completion_is_found_after_its_rollout_was_pruned(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny")
    assert json.loads(inspect(run, "it1-p0-s0", "--json").stdout)["iteration"] == 1
    mark_pruned(run / "iter-0001/rollout")
    for path in (run / "iter-0001/rollout").glob("*.parquet"):
        path.unlink()
    found = json.loads(inspect(run, "it1-p0-s0", "--json").stdout)
    assert (found["iteration"], found["prompt"]["problem"][:4]) == (2, "What")
    assert found["prompt"]["shard"] == f"{run}/iter-0002/weights/replayed-prompts-00000.parquet"


def test_an_unknown_id_is_named_with_the_next_move(run: Path) -> None:
    assert str(inspect(run, "nope").exception) == (
        f"{run}: found no completion nope in 3 iterations; needed a completion_id of a completions-*.parquet "
        "that is still there. Try --find worst."
    )


def test_either_an_id_or_find_is_needed(run: Path) -> None:
    assert inspect(run).exit_code == 2
    assert inspect(run, "it1-p0-s0", "--find", "best").exit_code == 2


def test_tokens_are_coloured_from_light_to_heavy_and_never_markup() -> None:
    text = coloured(["[/box]", " \x1b[2J"], [0.5, 1.5])
    assert text.plain == "[/box] ␛[2J"
    light, heavy = (str(span.style).split(" on ")[1] for span in text.spans)
    assert (light, heavy) == ("#ffffff", "#0b5394")
    Console(file=open("/dev/null", "w")).print(text)  # noqa: SIM115


def test_equal_weights_have_no_colour() -> None:
    assert coloured(["a", "b"], [1.0, 1.0]).spans == []
