"""Nothing where something is usual: a clear error, or the result that follows, in every stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reporting import tiny_run
from support.commands import Result
from support.commands import run as command
from support.words import WordProcessor

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import schema_of
from dapo_stages.handoff.shards import Row
from faults.folders import republish, rewrite
from faults.table import record


@pytest.fixture(autouse=True)
def _counted() -> Any:
    """Every test of this file is a case."""
    yield
    record(9, 1, "empty shards, groups, completions and datasets")


@pytest.fixture()
def tiny(tmp_path: Path) -> Path:
    return tiny_run.build(tmp_path / "tiny")


def refused(result: Result, message: str) -> None:
    """Exit code 3, and the message as the last line of stderr."""
    assert (result.code, result.stdout) == (3, ""), result.stderr
    assert result.stderr.splitlines()[-1] == message


def done(result: Result) -> Result:
    assert result.code == 0, result.stderr
    return result


# Datasets


@pytest.fixture()
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr("dapo_stages.stages.prepare_data._processor", lambda *_: WordProcessor())

    def command_(name: str, content: bytes | None = None) -> Result:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        (tmp_path / "run.yaml").write_text(json.dumps({"data": {"source": str(tmp_path / name)}}))
        return command("prepare-data", "--config", tmp_path / "run.yaml", "--out", tmp_path / "data")

    return command_


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b""),
        ("rows.jsonl", b"\n\n  \n"),
        ("rows.json", b"[]"),
        ("rows.json", b'{"rows": []}'),
        ("rows.csv", b""),
        ("rows.csv", b"image,problem,solution\n"),
    ],
)
def test_a_table_without_rows(name: str, content: bytes, prepare: Callable[..., Result], tmp_path: Path) -> None:
    words = "the dataset has no rows. Set data.source to another one."
    refused(prepare(name, content), f"{tmp_path / name}: {words}")


@pytest.mark.parametrize(
    ("name", "problem"),
    [("rows.parquet", "the .parquet file is damaged ("), ("rows.json", "the dataset has no rows. Set data.source to ")],
)
def test_a_file_without_bytes(name: str, problem: str, prepare: Callable[..., Result], tmp_path: Path) -> None:
    result = prepare(name, b"")
    assert result.code == 3 and result.stderr.startswith(f"{tmp_path / name}: {problem}"), result.stderr


def test_a_folder_without_files(prepare: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    result = prepare("rows")
    assert result.code == 3 and result.stderr.startswith(f"{tmp_path}/rows: no table in the folder (expected a ")


@pytest.mark.parametrize("column", ["problem", "solution"])
def test_rows_without_a_question_or_an_answer(column: str, prepare: Callable[..., Result], tmp_path: Path) -> None:
    """Blank ones are left out and counted; where there is nothing else, the dataset is refused."""
    whole = {"image": None, "problem": "A or B?", "solution": "A"}
    blank = [whole | {column: value} for value in ("", "  \n", None)]
    content = "\n".join(map(json.dumps, blank)).encode()
    result = prepare("rows.jsonl", content)
    assert result.code == 3
    assert (
        f"rows.jsonl: none of 3 rows is usable for train ({tmp_path}/rows.jsonl row 0: no {column}"
        in (result.stderr.splitlines()[-1])
    )
    done(prepare("rows.jsonl", content + b"\n" + b"\n".join([json.dumps(whole).encode()] * 20)))
    counts = Source(tmp_path / "data").manifest.counts
    assert (counts["dropped_other"], counts["train"] + counts["held_out"]) == (3, 20)


# Rollouts


def remade(run: Path, number: int, part: str, change: Callable[[str, list[Row]], list[Row]]) -> Path:
    """An output of a run with other rows in its shards, under a manifest that agrees."""
    folder = run / f"iter-{number:04d}" / part
    source = Source(folder)
    stage, rewards = source.manifest.stage, tuple(source.manifest.rewards)
    shards = []
    for shard in source.manifest.shards:
        kind = shard.name.removesuffix(".parquet").rpartition("-")[0]
        if shard.rows is not None and kind:
            made = change(kind, list(source.rows(kind)))
            rewrite(folder / shard.name, made, schema_of(kind, rewards, stage))
            shards.append((shard.name, len(made)))
    values = json.loads((folder / "manifest.json").read_text())
    for listed in values["shards"]:
        listed["rows"] = dict(shards).get(listed["name"], listed["rows"])
    del values["checksum"]
    (folder / "manifest.json").write_text(json.dumps(values))
    republish(folder)
    return folder


def score(run: Path) -> None:
    """The attention again, of rollouts that were made anew."""
    here = run / "iter-0001"
    rows = list(Source(here / "attention").rows("attention"))
    kept = {row["completion_id"] for row in Source(here / "rollout").rows("completions", ["completion_id"])}
    plan = Plan("score-attention", here / "attention", {"again": 1}, 1, {"rollouts": Source(here / "rollout")})
    tiny_run.publish(
        plan, lambda output: output.write("attention", 0, [row for row in rows if row["completion_id"] in kept])
    )


def weigh(run: Path, *args: object) -> Result:
    here = run / "iter-0001"
    folders = ["--rollouts", here / "rollout", "--attention", here / "attention", "--out", run / "weights"]
    return command("weight-tokens", "--config", run / "config.yaml", *folders, "--iteration", 1, *args)


def weights_of(run: Path) -> list[Row]:
    return list(Source(run / "weights").rows("weights"))


def write_empty(shards: list[tuple[str, int]], output: Output) -> None:
    for kind, number in shards:
        output.write(kind, number, [])


def empty_rollout(run: Path, shards: int) -> None:
    """Rollouts of no group: no shard at all, or one without rows."""

    def fill(output: Output) -> None:
        for number in range(shards):
            output.write("prompts", number, [])
            output.write("completions", number, [])

    plan = Plan("rollout", run / "iter-0001/rollout", tiny_run.rollout_config(1), 9)
    tiny_run.publish(plan, fill)
    made = Plan("score-attention", run / "iter-0001/attention", {}, 9, {"rollouts": Source(run / "iter-0001/rollout")})
    tiny_run.publish(made, partial(write_empty, [("attention", number) for number in range(shards)]))


@pytest.mark.parametrize("shards", [0, 1])
def test_rollouts_without_groups_are_weighted_to_nothing(shards: int, tiny: Path) -> None:
    empty_rollout(tiny, shards)
    done(weigh(tiny))
    assert weights_of(tiny) == [] and Source(tiny / "weights").manifest.counts["groups"] == 0


def test_rollouts_of_which_no_group_is_kept_are_weighted_to_nothing(tiny: Path) -> None:
    remade(tiny, 1, "rollout", lambda kind, rows: [row | {"kept": False} if kind == "prompts" else row for row in rows])
    score(tiny)
    done(weigh(tiny))
    assert weights_of(tiny) == []


def test_a_group_without_completions_is_refused(tiny: Path) -> None:
    """It would silently be missing from every mean."""
    folder = remade(
        tiny, 1, "rollout",
        lambda kind, rows: rows if kind == "prompts" else [row for row in rows if "-p0" not in row["group_id"]],
    )  # fmt: skip
    score(tiny)
    refused(
        weigh(tiny),
        f"{folder}/completions-00000.parquet: group it1-p0 has no completions. Run rollout again.",
    )


def test_completions_without_their_prompt_are_refused(tiny: Path) -> None:
    folder = remade(tiny, 1, "rollout", lambda kind, rows: rows if kind == "completions" else rows[1:])
    score(tiny)
    refused(
        weigh(tiny),
        f"{folder}/completions-00000.parquet: group it1-p0 of a completion is not in prompts-00000.parquet. "
        "Run rollout again.",
    )


def without_tokens(kind: str, rows: list[Row]) -> list[Row]:
    """The second completion has no tokens."""
    lists: Row = {"completion_ids": [], "token_texts": [], "sampling_logprobs": []}
    return [row | lists if kind.endswith("completions") and index == 1 else row for index, row in enumerate(rows)]


def test_a_completion_without_tokens_is_refused(tiny: Path) -> None:
    folder = remade(tiny, 1, "rollout", without_tokens)
    score(tiny)
    refused(
        weigh(tiny),
        f"{folder}/completions-00000.parquet: row 1: column completion_ids has no tokens, but must have at least one. "
        "Run rollout again.",
    )


def test_a_question_without_tokens_is_refused(tiny: Path) -> None:
    remade(tiny, 1, "rollout", lambda kind, rows: [r | {"prompt_ids": []} if kind == "prompts" else r for r in rows])
    result = command("inspect", "--run", tiny, "it1-p0-s0")
    assert result.code == 3
    assert "prompts-00000.parquet: row 0: column prompt_ids has no tokens, but must have at least " in result.stderr


def test_attention_without_rows_is_refused(tiny: Path) -> None:
    here = tiny / "iter-0001"
    for shards, words in (
        (0, "expected 1 shard(s), as the rollouts have, got 0."),
        (1, "no row for completion it1-p0-s0."),
    ):
        plan = Plan("score-attention", here / "attention", {"n": shards}, 1, {"rollouts": Source(here / "rollout")})
        tiny_run.publish(plan, partial(write_empty, [("attention", number) for number in range(shards)]))
        result = weigh(tiny)
        assert result.code == 3 and f"{here}/attention: {words}" in result.stderr, result.stderr


def test_a_group_of_one_completion_teaches_nothing(tiny: Path) -> None:
    """Nothing to compare it with: advantage 0, and said so."""
    remade(
        tiny, 1, "rollout",
        lambda kind, rows: rows if kind == "prompts" else [row for row in rows if row["sample"] == 0],
    )  # fmt: skip
    score(tiny)
    done(weigh(tiny))
    (row,) = weights_of(tiny)
    assert (row["advantage"], row["in_loss"]) == (0.0, False)
    assert row["why"] == "all completions of the group have the same reward"


def test_a_buffer_without_groups_replays_nothing(tiny: Path) -> None:
    empty = Plan("weight-tokens", tiny / "before", {}, 1)
    kinds = ("weights", "buffer", "buffer-completions")
    tiny_run.publish(empty, partial(write_empty, [(kind, 0) for kind in kinds]))
    done(weigh(tiny, "--replay", tiny / "before", "--set", "weights.replay.min_reward=99"))
    assert {row["source"] for row in weights_of(tiny)} == {"fresh"}


def test_a_stored_group_without_completions_is_refused(tiny: Path) -> None:
    group = tiny_run.prompt(0, 0, correct=2) | {"score": 1.0, "mean_reward": 1.0, "std_reward": 1.0}

    def fill(output: Output) -> None:
        output.write("buffer", 0, [group])
        output.write("buffer-completions", 0, [])

    tiny_run.publish(Plan("weight-tokens", tiny / "before", {}, 1), fill)
    result = weigh(tiny, "--replay", tiny / "before", "--set", "weights.replay.min_reward=99")
    assert result.code == 3
    words = "buffer-completions-00000.parquet: group it0-p0 has no completions."
    assert f"{tiny}/before/{words}" in result.stderr


# With a model


@pytest.fixture()
def policy(checkpoint: Path, tmp_path: Path) -> Path:
    """The small checkpoint as a policy folder."""
    folder = tmp_path / "policy"

    def fill(output: Output) -> None:
        for path in checkpoint.iterdir():
            shutil.copy(path, output.folder / path.name)
        output.add_files(*(path.name for path in checkpoint.iterdir()))
        output.policy = {"version": 0, "model": "embedded"}

    tiny_run.publish(Plan("init-policy", folder, {}, 1), fill)
    return folder


def config(run: Path) -> Path:
    """One that the model's stages take."""
    (run / "config.yaml").write_text("{model: {name: embedded, dtype: float32, device: cpu}, report: {trackers: []}}")
    return run / "config.yaml"


def whole_config(number: int) -> dict[str, Any]:
    return {"iteration": number, "rollout": {"prompts_per_iteration": 2, "sampler": {"temperature": 1.0}}}


@pytest.mark.parametrize("shards", [0, 1])
def test_rollouts_without_groups_are_scored_to_nothing(shards: int, tiny: Path, policy: Path) -> None:
    def fill(output: Output) -> None:
        for number in range(shards):
            output.write("prompts", number, [])
            output.write("completions", number, [])

    tiny_run.publish(Plan("rollout", tiny / "empty", whole_config(1), 9), fill)
    folders = ["--policy", policy, "--rollouts", tiny / "empty", "--out", tiny / "scored"]
    done(command("score-attention", "--config", config(tiny), *folders))
    assert list(Source(tiny / "scored").rows("attention")) == []


def test_scoring_refuses_completions_without_tokens(tiny: Path, policy: Path) -> None:
    def fill(output: Output) -> None:
        output.write("prompts", 0, [tiny_run.prompt(1, 0, correct=2)])
        output.write("completions", 0, [tiny_run.completion(1, 0, sample) for sample in range(4)])

    folder = tiny / "iter-0009/rollout"
    tiny_run.publish(Plan("rollout", folder, whole_config(1), 9), fill)
    remade(tiny, 9, "rollout", without_tokens)
    result = command(
        "score-attention", "--config", config(tiny), "--policy", policy, "--rollouts", folder, "--out", tiny / "scored"
    )
    assert result.code == 3
    assert f"{folder}/completions-00000.parquet: row 1: column completion_ids has no tokens" in result.stderr


@pytest.mark.parametrize("rows", ["none", "none in the loss"])
def test_nothing_to_train_on_leaves_the_policy_as_it_is(rows: str, tiny: Path, policy: Path) -> None:
    def fill(output: Output) -> None:
        output.write("prompts", 0, [tiny_run.prompt(1, 0, correct=2)])
        output.write("completions", 0, [tiny_run.completion(1, 0, sample) for sample in range(4)])

    tiny_run.publish(Plan("rollout", tiny / "r", whole_config(1), 9), fill)
    found = list(Source(tiny / "iter-0001/weights").rows("weights")) if rows != "none" else []
    made = Plan("weight-tokens", tiny / "w", {"iteration": 1}, 1, {"rollouts": Source(tiny / "r")})
    tiny_run.publish(made, lambda output: output.write("weights", 0, [row | {"in_loss": False} for row in found]))
    folders = ["--policy", policy, "--rollouts", tiny / "r", "--weights", tiny / "w", "--out", tiny / "t"]
    result = done(command("train-step", "--config", config(tiny), *folders))
    assert "no completion is in the loss; the policy stays as it is" in result.stderr
    before, after = ((folder / "model.safetensors") for folder in (policy, tiny / "t/policy"))
    from safetensors.torch import load_file

    old, new = load_file(before), load_file(after)
    assert old.keys() == new.keys() and all((old[name] == new[name]).all() for name in old)
    assert list(Source(tiny / "t").rows("metrics")) == []


def test_no_held_out_questions_are_refused(tiny: Path, policy: Path) -> None:
    data = Plan("prepare-data", tiny / "only-train", {}, 1)
    tiny_run.publish(data, lambda output: output.counts.update(train=1, held_out=0))
    folders = ["--policy", policy, "--data", tiny / "only-train", "--out", tiny / "e"]
    result = command("evaluate", "--config", config(tiny), *folders)
    refused(result, f"{tiny}/only-train: no held-out questions. Run prepare-data with data.held_out_fraction above 0.")


def test_no_training_questions_are_refused(tiny: Path, policy: Path) -> None:
    folders = ["--policy", policy, "--data", tiny / "data", "--iteration", 1, "--out", tiny / "r"]
    result = command("rollout", "--config", config(tiny), *folders)
    refused(result, f"{tiny}/data: no training prompts. Run prepare-data with data.held_out_fraction below 1.")


# Reports


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("{}")
    result = command("report", "--config", tmp_path / "run/config.yaml", "--run", tmp_path / "run")
    refused(
        result,
        f"{tmp_path}/run: no finished output of any stage. Run rollout or evaluate first.",
    )


@pytest.mark.parametrize("part", ["rollout", "attention", "weights", "train", "eval"])
def test_an_output_without_rows_is_reported_as_such(part: str, tiny: Path) -> None:
    folder = tiny / "iter-0002" / part
    for path in folder.glob("*.parquet"):
        kind = path.stem.removesuffix("-00000")
        stage = Source(folder).manifest.stage
        pq.write_table(schema_of(kind, (), stage).empty_table(), path)
    values = json.loads((folder / "manifest.json").read_text())
    for listed in values["shards"]:
        listed["rows"] = None if listed["rows"] is None else 0
    del values["checksum"]
    (folder / "manifest.json").write_text(json.dumps(values))
    republish(folder)
    done(command("report", "--config", tiny / "config.yaml", "--run", tiny))
    assert (tiny / "report.html").exists()
    for name in ("rollout_results.md", "token_weights.md", "eval_results.md"):
        assert "## Iteration 2" in (tiny / name).read_text(encoding="utf-8")


def test_a_search_among_no_completions_says_so(tiny: Path) -> None:
    for number in (1, 2):
        plan = Plan("weight-tokens", tiny / f"iter-{number:04d}/weights", {"none": 1}, 1)
        tiny_run.publish(plan, lambda output: output.write("weights", 0, []))
    for wanted in ("worst", "best", "disagree"):
        result = command("inspect", "--run", tiny, "--find", wanted)
        assert result.code in (2, 3) and "no " in result.stderr, result.stderr


def test_the_status_of_an_empty_folder(tmp_path: Path) -> None:
    result = done(command("status", "--run", tmp_path))
    assert "no iterations yet" in result.stdout and "Next (config.yaml: missing)" in result.stdout


def test_evaluations_of_no_questions_cannot_be_compared(tiny: Path) -> None:
    folders = []
    for name in ("a", "b"):
        plan = Plan("evaluate", tiny / name, {}, 1)
        tiny_run.publish(plan, lambda output: output.write("completions", 0, []))
        folders.append(tiny / name)
    refused(
        command("compare-evals", *folders),
        f"{tiny}/b: no questions. Evaluate both policies on the same data folder.",
    )


def test_weights_of_no_completions_cannot_be_compared(tiny: Path) -> None:
    folders = []
    for name in ("a", "b"):
        made_from = {"rollouts": Source(tiny / "iter-0001/rollout")}
        plan = Plan("weight-tokens", tiny / name, {"weights": {"scheme": name}}, 1, made_from)
        tiny_run.publish(plan, lambda output: output.write("weights", 0, []))
        folders.append(tiny / name)
    result = command("compare-weights", *folders, "--out", tiny / "c")
    assert result.code == 3 and "no completion sampled in this iteration is in the loss of all" in result.stderr


def test_a_table_of_no_columns_is_refused(tiny: Path) -> None:
    folder = tiny / "iter-0001/rollout"
    pq.write_table(pa.table({}), folder / "completions-00000.parquet")
    republish(folder)
    result = command("inspect", "--run", tiny, "it1-p0-s0")
    assert result.code == 3 and f"{folder}/completions-00000.parquet: missing columns: completion_id, " in result.stderr
    assert "(found 0 columns)" in result.stderr
