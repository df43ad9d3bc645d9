"""inspect: one completion in full, found by id or by what is remarkable about it."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import typer
from PIL import Image
from reporting import photo_run, tiny_run
from reporting.photo_run import GUESSERS
from rich.console import Console
from support.commands import fresh
from typer.testing import CliRunner, Result

from dapo_stages.handoff.manifests import mark_pruned
from dapo_stages.tools.inspect import colored, main


def inspect(run: Path, *arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    return CliRunner().invoke(app, ["--run", str(run), *arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.build(tmp_path_factory.mktemp("runs") / "tiny")


def test_a_completion_is_shown_with_all_that_is_known_of_it(run: Path) -> None:
    assert inspect(run, "it1-p0-s2").stdout == (
        "it1-p0-s2  (iteration 1, prompt p0, slice prior-consistent)\n"
        f"prompt     {run}/iter-0001/rollout/prompts-00000.parquet, row 0\n"
        "image      56×56\n"
        "question   What colour is the circle?\n"
        "           A. red | B. <b>blue</b>\n"
        "solution   A\n"
        "answer     ✗ wrong (no answer found)\n"
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


@pytest.mark.long
def test_the_image_is_drawn_on_a_terminal_with_color(run: Path) -> None:
    """In processes of their own: rich keeps the codes of a style for the terminal it was first written to."""
    drawn = ["inspect", "--run", run, "it1-p0-s0"]
    terminal = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "FORCE_COLOR": "1"}
    assert "▀" not in fresh(*drawn, **terminal | {"FORCE_COLOR": ""}).stdout
    shown = fresh(*drawn, **terminal, NO_COLOR="").stdout
    assert shown.count("▀") == 2 * 40 * 20  # 56 × 56 pixels, made 40 × 40; once more with the map
    # All tokens give 60% of the attention of 2 × 2 cells to the third: 2.4 times the average; 100% is on the image.
    assert "looked     100.0% of its attention was on the image; yellow: 2.4 times the average cell" in shown
    assert "\x1b[38;2;0;0;0;48;2;255;255;255m<think>\x1b[0m" in shown
    plain = fresh(*drawn, **terminal, NO_COLOR="1").stdout
    assert "▀" not in plain and "<think>(0.50) The(0.60)" in plain


# Each begins or ends what a terminal obeys: ESC, CSI in seven and eight bits, OSC 8 and 52, BEL, DCS, and marks of
# direction.
STEERING = {
    "clear": "\x1b[2J\x1b[H",
    "csi of eight bits": "\x9b31m",
    "link": "\x1b]8;;https://example.com\x1b\\text\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;aGVsbG8=\x07",
    "title of eight bits": "\x9d0;title\x9c",
    "bell and backspace": "\x07\x08\x08\x7f",
    "device control": "\x1bP+q544e\x1b\\",
    "carriage return": "reward     9.999\rreward",
    "embedding": "\u202a\u202b\u202c\u202d\u202e",
    "isolate": "\u2066\u2067\u2068\u2069",
    "marks": "\u200e\u200f\u061c",
    "ends of lines": "\x0b\x0c\x85\u2028\u2029",
}


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("payload", STEERING.values(), ids=list(STEERING))
def test_no_text_of_models_or_data_steers_the_terminal(
    payload: str, color: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, completion = tiny_run.prompt, tiny_run.completion

    def asked(number: int, group: int, correct: int) -> dict[str, object]:
        row = prompt(number, group, correct)
        images = [{"bytes": row["images"][0]["bytes"], "path": payload}]
        return row | {"problem": f"<{payload}>", "solution": payload, "slice": payload, "images": images}

    def answered(number: int, group: int, sample: int) -> dict[str, object]:
        row = completion(number, group, sample)
        tokens = [payload, *row["token_texts"][1:]]
        return row | {"text": payload, "token_texts": tokens, "finish_reason": payload}

    monkeypatch.setattr(tiny_run, "prompt", asked)
    monkeypatch.setattr(tiny_run, "completion", answered)
    monkeypatch.setattr(tiny_run, "read", lambda row: row | {"answer": payload, "read_from": payload})
    run = tiny_run.build(tmp_path / "tiny", last="weights")
    monkeypatch.setenv("FORCE_COLOR", "1" if color else "")
    for name in ("it1-p0-s0", "it1-p1-s0"):  # with token weights, and without
        result = inspect(run, name)
        assert result.exit_code == 0, result.exception
        ours = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout) if color else result.stdout
        assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", ours) == []
        said = inspect(run, name, "--json").stdout
        assert re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", said) == []
        assert json.loads(said)["text"] == payload
        assert "\x1b[31m" not in result.stdout and "\x1b[2J" not in result.stdout


def test_worst_and_best_go_by_reward(run: Path) -> None:
    assert json.loads(inspect(run, "--find", "worst", "--json").stdout)["completion_id"] == "it2-p0-s3"
    best = json.loads(inspect(run, "--find", "best", "--json", "--iteration", "1").stdout)
    assert (best["completion_id"], best["further"]) == ("it1-p0-s0", ["it1-p0-s1", "it1-p0-s2", "it1-p0-s3"])


def test_disagree_finds_a_right_answer_without_a_look_or_a_wrong_one_with_it(run: Path) -> None:
    """By rank of VGR, s0 … s3 stand at 0, 1/3, 2/3, 1; right ones count that, wrong ones its rest: 0 1/3 1/3 0."""
    found = json.loads(inspect(run, "--find", "disagree", "--json").stdout)
    assert {found["completion_id"], found["further"][0]} == {"it2-p0-s1", "it2-p0-s2"}


@pytest.fixture(scope="module")
def guessing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight planted guessers, and completions with a higher VGR that are fragments, cut off or without an answer."""
    return photo_run.build(tmp_path_factory.mktemp("runs") / "guessing", Image.new("RGB", (42, 42)))


def test_those_that_guessed_are_found_and_no_fragments(guessing: Path) -> None:
    assert json.loads(inspect(guessing, "--find", "guessed", "--json").stdout)["completion_id"] == GUESSERS[0]
    found = json.loads(inspect(guessing, "--find", "guessed", "-n", "8", "--json").stdout)
    assert [row["completion_id"] for row in found["found"]] == GUESSERS and found["iteration"] == 1
    assert {row["right"] for row in found["found"]} == {True, False}
    everything = list(csv.DictReader(io.StringIO(inspect(guessing, "--find", "guessed", "-n", "20", "--csv").stdout)))
    assert [row["completion_id"] for row in everything[:8]] == GUESSERS and len(everything) == 16
    assert {(row["well_formed"], row["finish_reason"], row["answer"] != "") for row in everything} == {
        ("true", "stop", True)
    }
    assert everything[0] | {"question": "", "completion": ""} == {
        "iteration": "1", "completion_id": "it1-p3-s1", "group_id": "it1-p3", "slice": "people", "right": "true",
        "answer": "B", "solution": "B", "read_from": "tags", "finish_reason": "stop", "well_formed": "true",
        "reward": "3", "advantage": "0.4", "vgr": "5.03", "tokens": "12", "question": "", "completion": "",
    }  # fmt: skip


def test_what_is_found_is_listed_with_signs(guessing: Path) -> None:
    lines = inspect(guessing, "--find", "guessed", "-n", "5").stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        [name, "people", "✓" if name.endswith("s1") else "✗"] for name in GUESSERS[:5]
    ]


def test_those_that_answered_alike_without_the_image_come_first(tmp_path: Path) -> None:
    """Scored with the image blanked, too: the wrong guesses depended on it least, the right ones more than others."""
    run = photo_run.build(tmp_path / "run", Image.new("RGB", (42, 42)), blank=True)
    found = json.loads(inspect(run, "--find", "guessed", "-n", "2", "--json").stdout)["found"]
    assert [row["completion_id"] for row in found] == ["it1-p3-s2", "it1-p2-s2"]


def test_without_any_well_formed_answer_nobody_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_run, "KINDS", [kind | {"format": 0.0} for kind in photo_run.KINDS])
    run = photo_run.build(tmp_path / "run", Image.new("RGB", (42, 42)))
    assert str(inspect(run, "--find", "guessed").exception) == (
        f"{run}/iter-0001: no completion is well-formed, has an answer, ended by itself and has a VGR. Run "
        "score-attention on a rollout with such completions, or use --find worst."
    )


def test_disagree_prefers_well_formed_completions(guessing: Path) -> None:
    """The fragments have the highest VGR and are right, which would put them first."""
    ids = [json.loads(inspect(guessing, "--find", "disagree", "--json").stdout)[key] for key in ("completion_id",)]
    found = json.loads(inspect(guessing, "--find", "disagree", "-n", "32", "--json").stdout)["found"]
    assert [row["well_formed"] for row in found] == [True] * 24 + [False] * 8 and ids == [found[0]["completion_id"]]


def test_a_list_needs_find(run: Path) -> None:
    assert inspect(run, "it1-p0-s0", "-n", "3").exit_code == 2
    assert inspect(run, "--find", "best", "--csv", "--json").exit_code == 2


def test_a_replayed_completion_is_found_after_its_rollout_was_pruned(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny")
    assert json.loads(inspect(run, "it1-p0-s0", "--json").stdout)["iteration"] == 1
    mark_pruned(run / "iter-0001/rollout")
    for path in (run / "iter-0001/rollout").glob("*.parquet"):
        path.unlink()
    found = json.loads(inspect(run, "it1-p0-s0", "--json").stdout)
    assert (found["iteration"], found["prompt"]["problem"][:4]) == (2, "What")
    listed = inspect(run, "--find", "worst", "-n", "3", "--iteration", "1").exception
    assert str(listed).startswith("iteration 1: its rollout was pruned. Name another --iteration")
    guessed = inspect(run, "--find", "guessed", "--iteration", "1").exception
    assert str(guessed).endswith("iteration 1: no rollout whose attention was measured. Run score-attention first.")
    assert found["prompt"]["shard"] == f"{run}/iter-0002/weights/replayed-prompts-00000.parquet"


def test_an_unknown_id_is_named_with_the_next_move(run: Path) -> None:
    assert str(inspect(run, "nope").exception) == (
        f"{run}: no completion nope in 3 iterations. Pass a completion_id from a completions-*.parquet that still "
        "exists, or try --find worst."
    )


def test_either_an_id_or_find_is_needed(run: Path) -> None:
    assert inspect(run).exit_code == 2
    assert inspect(run, "it1-p0-s0", "--find", "best").exit_code == 2


def test_tokens_are_colored_from_light_to_heavy_and_never_markup() -> None:
    text = colored(["[/box]", " \x1b[2J"], [0.5, 1.5])
    assert text.plain == "[/box] ␛[2J"
    light, heavy = (str(span.style).split(" on ")[1] for span in text.spans)
    assert (light, heavy) == ("#ffffff", "#0b5394")
    Console(file=open("/dev/null", "w")).print(text)  # noqa: SIM115


def test_equal_weights_have_no_color() -> None:
    assert colored(["a", "b"], [1.0, 1.0]).spans == []
