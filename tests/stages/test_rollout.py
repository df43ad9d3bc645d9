"""rollout: groups, rewards, dynamic sampling, and carrying on after an interruption."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from support import machine
from support.answers import num_right, right_as_read
from support.pipeline import Run, metrics, table

from dapo_stages.engines import transformers_engine
from dapo_stages.handoff.manifests import Source, mark_pruned
from dapo_stages.models.tokens import Tokens


def test_every_group_has_its_completions_and_ids_are_kept(small_run: Run) -> None:
    folder = small_run.at(1) / "rollout"
    prompts, completions = table(folder, "prompts"), table(folder, "completions")
    assert completions.completion_id.is_unique and prompts.group_id.is_unique
    assert (completions.groupby("group_id").size() == 4).all()
    assert set(completions.group_id) == set(prompts.group_id)
    lengths = completions.completion_ids.map(len)
    assert (lengths == completions.sampling_logprobs.map(len)).all()
    assert (lengths == completions.token_texts.map(len)).all()
    assert lengths.max() <= 32
    assert (completions.sampling_logprobs.map(max) <= 0).all()


def test_rewards_are_what_the_texts_say(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each completion is read as the next of these texts; all solutions of the embedded task are letters."""
    answers = {f"<think>x</think><answer>{letter}</answer>": letter for letter in "ABCD"}
    answers |= {
        "": "",
        "<think>A</think>": "",
        "<think>red\nC": "C",
        "<answer>A": "A",
        "So it is (B).": "B",
        "Look: red (B)": "B",
    }
    places = {"<think>x</think": "tags", "": "none", "<think>A</thin": "none", "<think>red\nC": "unclosed"}
    places = {name[:14]: place for name, place in places.items()} | {
        "<answer>A": "tags",
        "So it is (B).": "stated",
        "Look: red (B)": "lone",
    }
    said = itertools.cycle(answers)
    monkeypatch.setattr(Tokens, "text", lambda self, ids: next(said))
    any_place = {"rewards__truncated_answers": "any"}  # whatever its length was
    with right_as_read():
        small_run.command("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r", **any_place)
    prompts = table(tmp_path / "r", "prompts").set_index("group_id")
    rows = table(tmp_path / "r", "completions")
    assert set(rows.text) == set(answers)
    for row in rows.itertuples():
        assert row.reward_accuracy == (answers[row.text] == prompts.solution[row.group_id])
        assert row.reward_format == row.text.endswith("</answer>")
        assert (row.answer if isinstance(row.answer, str) else "") == answers[row.text]
        assert row.read_from == places[row.text[:14]]


def test_the_end_token_is_kept_and_truncation_is_named(small_run: Run) -> None:
    completions = table(small_run.at(1) / "rollout", "completions")
    ended = completions.token_texts.map(lambda texts: texts[-1] == "<|im_end|>")
    assert (ended == (completions.finish_reason == "stop")).all()
    assert (completions.completion_ids[~ended].map(len) == 32).all()


def test_kept_groups_are_the_informative_ones_and_curves_see_all(small_run: Run) -> None:
    folder = small_run.at(1) / "rollout"
    prompts = table(folder, "prompts")
    correct = table(folder, "completions").groupby("group_id").reward_accuracy.sum()
    assert (prompts.num_correct == prompts.group_id.map(correct)).all()
    assert list(prompts.num_correct) == [num_right(name, 4) for name in prompts.prompt_id]
    informative = prompts.num_correct.between(1, 3)
    assert not (prompts.kept & ~informative).any()
    assert prompts.kept.sum() <= 8
    if prompts.kept.sum() < 8:
        assert prompts["round"].max() == 3 and (prompts.kept == informative).all()
    counts = Source(folder).manifest.counts
    assert counts["groups"] == len(prompts) and counts["kept"] == prompts.kept.sum()
    assert counts["accuracy"] == pytest.approx(table(folder, "completions").reward_accuracy.mean())


def test_without_dynamic_sampling_one_round_is_kept_whole(small_run: Run, tmp_path: Path) -> None:
    small_run.command(
        "rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r", rollout__dynamic_sampling="false"
    )
    prompts = table(tmp_path / "r", "prompts")
    assert len(prompts) == 8 and prompts.kept.all() and (prompts["round"] == 0).all()


OVERSAMPLED = {"rollout__oversample": 2.0, "rollout__max_resample_rounds": 2}


def test_oversampling_asks_for_more_at_a_time_and_writes_what_it_asked_for(small_run: Run, tmp_path: Path) -> None:
    """8 groups are wanted: 16 are asked for first, then twice what is missing, in shards of 4, at most 2 × 16."""
    folder = tmp_path / "r"
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", folder, **OVERSAMPLED)
    prompts = table(folder, "prompts")
    informative = prompts.num_correct.between(1, 3)
    asked = 0
    while asked < 32 and (found := informative[:asked].sum()) < 8:
        asked += -(-2 * (8 - found) // 4) * 4
    assert len(prompts) == min(asked, 32)
    assert list(prompts.index[prompts.kept]) == list(prompts.index[informative])[:8]  # surplus is discarded
    assert (prompts["round"] == [number // 16 for number in range(len(prompts))]).all()


def test_surplus_is_kept_where_it_is_wanted(small_run: Run, tmp_path: Path) -> None:
    for surplus in ("keep", "discard"):
        settings = {**OVERSAMPLED, "rollout__surplus": surplus, "rollout__prompts_per_iteration": 2}
        settings |= {"rollout__oversample": 8.0}
        small_run.command("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / surplus, **settings)
    kept, discarded = (table(tmp_path / surplus, "prompts") for surplus in ("keep", "discard"))
    informative = kept.num_correct.between(1, 3)
    assert informative.sum() > 2, "too few of 16 questions have some right answers but not all"
    assert (kept.kept == informative).all()
    assert discarded.kept.sum() == 2 and (discarded.num_correct == kept.num_correct).all()
    assert Source(tmp_path / "keep").manifest.counts["kept"] == informative.sum()


def test_without_dynamic_sampling_all_that_is_asked_for_is_kept(small_run: Run, tmp_path: Path) -> None:
    settings = {"rollout__dynamic_sampling": "false", "rollout__oversample": 1.4}
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r", **settings)
    prompts = table(tmp_path / "r", "prompts")
    assert len(prompts) == 12 and prompts.kept.all()  # 11.2, rounded up


# The curriculum


CURRICULUM = {"rollout__curriculum": "{target: 0.5, visits: 1, floor: 1.0e-9}", "rollout__dynamic_sampling": "false"}


def history(run: Run, folder: Path, number: int, *names: Path, **settings: object) -> Path:
    options = [option for name in names for option in ("--history", name)]
    inputs = ["--policy", run.policy(0), "--data", run.folder / "data", "--iteration", number]
    run.command("rollout", *inputs, *options, "--out", folder, **{**CURRICULUM, **settings})
    return folder


def test_questions_of_middling_success_take_the_turns_of_others(small_run: Run, tmp_path: Path) -> None:
    """64 training questions in iterations of 16; with hardly a floor, whoever was always or never right gives way.

    39 questions are neither, at most 16 of them in one iteration: always enough to take all other turns.
    """
    asked = {"rollout__prompts_per_iteration": 16}
    known: dict[str, int] = {}
    folders: list[Path] = []
    for number in range(1, 6):
        folders.append(history(small_run, tmp_path / f"r{number}", number, *folders, **asked))
        prompts = table(folders[-1], "prompts")
        assert len(prompts) == 16 and prompts.prompt_id.is_unique
        if number <= 4:  # the first pass: all are new, and come as they come
            assert not set(prompts.prompt_id) & known.keys()
        else:
            middling = {name for name in known if 0 < num_right(name, 4) < 4}
            assert len(middling) == 39
            assert set(prompts.prompt_id) <= middling
        known |= dict(zip(prompts.prompt_id, prompts.num_correct, strict=True))
    assert len(known) == 64


def test_the_history_is_an_input_whatever_its_order(small_run: Run, tmp_path: Path) -> None:
    """In the second pass over the 64 questions, so that some were asked before."""
    one, two = small_run.at(1) / "rollout", small_run.at(2) / "rollout"
    first = history(small_run, tmp_path / "a", 11, one, two)
    inputs = Source(first).manifest.inputs
    assert [name for name in inputs if name.startswith("history")] == ["history-000001", "history-000002"]
    assert inputs["history-000002"].content_hash == Source(two).manifest.content_hash
    found = Source(first).manifest.fingerprint
    assert Source(history(small_run, tmp_path / "b", 11, two, one)).manifest.fingerprint == found
    assert Source(history(small_run, tmp_path / "c", 11, small_run.folder)).manifest.fingerprint == found
    assert Source(history(small_run, tmp_path / "d", 11)).manifest.fingerprint != found
    result = small_run.attempt(
        "rollout", "--policy", small_run.policy(0), "--data", small_run.folder / "data", "--iteration", 11,
        "--history", one, "--out", first, **CURRICULUM,
    )  # fmt: skip
    assert result.code == 3 and "made from other inputs or configuration" in result.stderr


def test_a_run_gives_the_history_before_an_iteration(small_run: Run, tmp_path: Path) -> None:
    folder = history(small_run, tmp_path / "r", 2, small_run.folder)
    assert [name for name in Source(folder).manifest.inputs if "history" in name] == ["history-000001"]


def test_without_a_curriculum_no_history_is_read(small_run: Run, tmp_path: Path) -> None:
    args = [*small_run.rollout_inputs(2), "--history", small_run.at(1) / "rollout", "--out", tmp_path / "r"]
    small_run.command("rollout", *args)
    assert Source(tmp_path / "r").manifest.content_hash == Source(small_run.at(2) / "rollout").manifest.content_hash


def test_pruned_rollouts_are_left_out_of_the_history_and_said(small_run: Run, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(small_run.at(1) / "rollout", gone)
    mark_pruned(gone)
    for path in gone.glob("*.parquet"):
        path.unlink()
    args = [*small_run.rollout_inputs(3), "--history", gone, "--history", small_run.at(2) / "rollout"]
    result = small_run.command("rollout", *args, "--out", tmp_path / "r", **CURRICULUM)
    said = "rollout: rollouts of iteration(s) 1 are pruned; the curriculum uses the other 1\n"
    assert said in result.stderr
    assert [name for name in Source(tmp_path / "r").manifest.inputs if "history" in name] == ["history-000002"]


def test_a_history_that_does_not_fit_is_refused(small_run: Run, tmp_path: Path) -> None:
    one = small_run.at(1) / "rollout"
    (tmp_path / "empty").mkdir()
    shutil.copytree(one, tmp_path / "copy")
    small_run.command("prepare-data", "--policy", small_run.folder / "policy", "--out", tmp_path / "data", seed=7)
    data = ["--policy", small_run.policy(0), "--data", small_run.folder / "data"]
    cases = [
        (data, 1, [one], f"{one}: expected rollouts before iteration 1, got iteration 1. Leave it out of"),
        (data, 3, [one, tmp_path / "copy"], f"/copy: {one} is a rollout of iteration 1, too. Pass only"),
        (data, 3, [tmp_path / "empty"], "/empty: no rollouts in this folder (expected a rollout or a run). Correct"),
        ([*data[:3], tmp_path / "data"], 3, [one], "manifest.json: was made from other data ("),
    ]
    for inputs, number, names, message in cases:
        options = [option for name in names for option in ("--history", name)]
        args = [*inputs, "--iteration", number, *options, "--out", tmp_path / "r"]
        result = small_run.attempt("rollout", *args, **CURRICULUM)
        assert result.code == 3 and message in result.stderr, result.stderr
        assert not (tmp_path / "r").exists()


def test_a_scheduled_temperature_is_that_of_the_iteration(small_run: Run, tmp_path: Path) -> None:
    schedule = {"schedules__rollout__sampler__temperature": "{start: 1.0, end: 2.0}"}  # planned_iterations: 2
    args = [*small_run.rollout_inputs(2), "--out", tmp_path / "r", "--dry-run", "--json"]
    planned = json.loads(small_run.command("rollout", *args, **schedule).stdout)
    assert planned["config"]["rollout"]["sampler"]["temperature"] == 1.5
    assert "schedules" not in planned["config"]


def test_completions_stay_with_their_prompts(small_run: Run) -> None:
    """Batches are ordered by length; read again by the trainer, each completion's logprobs fit its own prompt only."""
    found = metrics(small_run.at(1) / "train")
    lengths = table(small_run.at(1) / "rollout", "prompts").prompt_ids.map(len)
    assert lengths.nunique() > 1
    assert found.engine_diff_max.max() < 1e-4


def test_the_same_command_gives_the_same_hash_and_another_seed_another(small_run: Run, tmp_path: Path) -> None:
    for name, seed in (("again", machine.seed()), ("other", machine.seed() + 1)):
        small_run.command("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / name, seed=seed)
    found = {name: Source(tmp_path / name).manifest.content_hash for name in ("again", "other")}
    assert found["again"] == Source(small_run.at(1) / "rollout").manifest.content_hash
    assert found["other"] != found["again"]


def test_an_interrupted_rollout_goes_on_where_it_stopped(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, calls = transformers_engine.generate, []

    def second_time_unlucky(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return generate(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(transformers_engine, "generate", second_time_unlucky)
    result = small_run.attempt("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    assert result.code == 130 and "Run the same command again to resume." in result.stderr
    assert (tmp_path / "r/completions-00000.parquet").exists() and not (tmp_path / "r/manifest.json").exists()
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    batches = len(Source(small_run.at(1) / "rollout").shards("prompts"))
    assert len(calls) == batches + 1
    assert Source(tmp_path / "r").manifest.content_hash == Source(small_run.at(1) / "rollout").manifest.content_hash


def test_a_plugin_reward_becomes_a_column(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def brevity(completions, rows):\n    return [-len(text) for text in completions]\n")
    plugin = "{brevity: mine.py:brevity}"
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", "r", rewards__plugins=plugin)
    completions = table(tmp_path / "r", "completions")
    assert (completions.reward_brevity == -completions.text.map(len)).all()
    small_run.command("score-attention", "--policy", small_run.policy(0), "--rollouts", "r", "--out", "a")
    small_run.command(
        "weight-tokens", "--rollouts", "r", "--attention", "a", "--iteration", 1, "--out", "w",
        rewards__plugins=plugin,
        weights__reward_weights="{accuracy: 1, format: 0, vgr: 0, overlong: 0, plugins: {brevity: 0.5}}",
    )  # fmt: skip
    weights = table(tmp_path / "w", "weights")
    assert (weights.reward - (weights.reward_accuracy + 0.5 * weights.reward_brevity)).abs().max() < 1e-5
