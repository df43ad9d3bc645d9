"""Replay from end to end: a stored group comes back with its own image, and with no other."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from support.pipeline import BY_PLACE, PLACE, Run, metrics, table

from dapo_stages.handoff.manifests import Source, content_hash, write_manifest
from dapo_stages.handoff.schemas import schema_of
from dapo_stages.handoff.shards import write_shard

SETTINGS = {**BY_PLACE, "train__updates_per_iteration": 1}  # so that all groups may be stored
REPLAY_ALL = {"weights__replay__min_reward": 1e9, "weights__replay__rule": "replace_all"}
STORE_ALL = {"weights__replay__min_reward": -1e9}


@pytest.fixture(scope="module")
def alike(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations on one question about images of one size: only pixels tell the prompts apart."""
    folder = tmp_path_factory.mktemp("alike")
    (folder / "place.py").write_text(PLACE)
    problem = "Which colour is it?\nA. red\nB. blue\nC. green\nD. yellow"
    colors = [(number * 83 % 256, number * 151 % 256, number * 29 % 256) for number in range(24)]
    rows = [{"image": png(color), "problem": problem, "solution": "A"} for color in colors]
    pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    policy, data = small_run.policy(0), folder / "data"
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        small_run.command("prepare-data", "--policy", policy, "--out", data, data__source=folder / "rows.parquet")
        for number, thresholds in ((1, STORE_ALL), (2, REPLAY_ALL)):
            rollouts, attention, weights = (
                folder / f"{stage}{number}" for stage in ("rollout", "attention", "weights")
            )
            inputs = ["--policy", policy, "--data", data, "--iteration", number]
            small_run.command("rollout", *inputs, "--out", rollouts, **SETTINGS)
            small_run.command("score-attention", "--policy", policy, "--rollouts", rollouts, "--out", attention)
            inputs = ["--rollouts", rollouts, "--attention", attention, "--iteration", number]
            replay = ["--replay", folder / "weights1"] if number == 2 else []
            small_run.command("weight-tokens", *inputs, *replay, "--out", weights, **SETTINGS, **thresholds)
    return folder


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), color).save(buffer, "PNG")
    return buffer.getvalue()


def test_prompts_differ_in_nothing_but_their_images(alike: Path) -> None:
    """What the next tests rest on: token ids, placeholders included, say nothing about whose image it is."""
    for number in (1, 2):
        prompts = table(alike / f"rollout{number}", "prompts")
        assert prompts.prompt_ids.map(tuple).nunique() == 1 and prompts.prompt_text.nunique() == 1
        assert prompts.images.map(lambda images: images[0]["bytes"]).nunique() == len(prompts) == 8


def test_a_group_without_signal_is_replaced_by_a_stored_one_with_its_own_image(alike: Path) -> None:
    weights = table(alike / "weights2", "weights")
    sampled = table(alike / "rollout1", "prompts").set_index("group_id")
    completions = table(alike / "rollout1", "completions").set_index("completion_id")
    replayed = weights[weights.source == "replay"]
    assert replayed.group_id.nunique() == len(sampled) == 8  # every group of iteration 2 is replaced
    assert (weights[weights.source == "fresh"].why == "replaced by a group from the buffer").all()
    prompts = table(alike / "weights2", "replayed-prompts").set_index("group_id")
    assert set(prompts.index) == set(replayed.group_id) == set(sampled.index)
    for group_id, prompt in prompts.iterrows():
        before = sampled.loc[group_id]
        assert prompt.images[0]["bytes"] == before.images[0]["bytes"]
        assert list(prompt.prompt_ids) == list(before.prompt_ids)
        for name in ("prompt_id", "iteration", "problem", "solution", "prompt_text", "source", "round", "num_correct"):
            assert prompt[name] == before[name], name
    members = table(alike / "weights2", "replayed-completions").set_index("completion_id")
    assert set(members.index) == set(replayed.completion_id)
    for completion_id, row in members.iterrows():
        before = completions.loc[completion_id]
        assert row.group_id == before.group_id and row.text == before.text
        for name in ("completion_ids", "sampling_logprobs"):
            assert list(row[name]) == list(before[name])


def test_stored_token_weights_come_back_with_their_completion(alike: Path) -> None:
    first = table(alike / "weights1", "weights").set_index("completion_id").token_weights
    second = table(alike / "weights2", "weights")
    for row in second[second.source == "replay"].itertuples():
        assert list(row.token_weights) == list(first[row.completion_id])


def engine_diff(run: Run, alike: Path, weights: Path, out: Path) -> float:
    """Largest difference between the logprobs that were sampled and those train-step finds; the policy is the same."""
    inputs = ["--policy", run.policy(0), "--rollouts", alike / "rollout2", "--weights", weights]
    run.command("train-step", *inputs, "--out", out, **SETTINGS)
    found = metrics(out)
    assert found.policy_lag[0] == 0 and found.completions[0] == 32
    return float(found.engine_diff_max[0])


def test_train_step_sees_each_replayed_group_with_its_own_image(small_run: Run, alike: Path, tmp_path: Path) -> None:
    """Under the policy that sampled them, logprobs come out as they were; with another's image they would not."""
    assert engine_diff(small_run, alike, alike / "weights2", tmp_path / "own") < 1e-4
    swapped = tmp_path / "weights"
    exchange_images(alike / "weights2", swapped)
    assert engine_diff(small_run, alike, swapped, tmp_path / "other") > 1e-3


def test_an_exchanged_image_is_noticed_by_size_or_checksum(small_run: Run, alike: Path, tmp_path: Path) -> None:
    exchange_images(alike / "weights2", tmp_path / "weights", manifest=False)
    inputs = ["--policy", small_run.policy(0), "--rollouts", alike / "rollout2", "--weights", tmp_path / "weights"]
    result = small_run.attempt("train-step", *inputs, "--out", tmp_path / "t", **SETTINGS)
    noticed = r"replayed-prompts-00000\.parquet: has (changed|[\d,]+ bytes, expected)"  # images compress differently
    assert result.code == 3 and re.search(noticed, result.stderr)
    assert "Run weight-tokens again." in result.stderr


def exchange_images(weights: Path, out: Path, *, manifest: bool = True) -> None:
    """The folder again, each replayed group with the image of the next; with or without a manifest that knows."""
    source, name = Source(weights), "replayed-prompts-00000.parquet"
    rows = list(source.rows("replayed-prompts"))
    images = [row["images"] for row in rows]
    out.mkdir()
    for shard in source.manifest.shards:
        (out / shard.name).write_bytes((weights / shard.name).read_bytes())
    moved = [row | {"images": images} for row, images in zip(rows, images[1:] + images[:1], strict=True)]
    written = write_shard(out / name, schema_of("replayed-prompts"), moved)
    old = source.manifest
    shards = [written if shard.name == name and manifest else shard for shard in old.shards]
    hashed = content_hash(old.stage, old.config, old.seed, shards)
    write_manifest(out, old.model_copy(update={"shards": shards, "content_hash": hashed}))


def test_replay_done_again_gives_the_same_files(small_run: Run, alike: Path, tmp_path: Path) -> None:
    """The state is in files alone: the same buffer draws the same groups, and leaves the same buffer."""
    inputs = ["--replay", alike / "weights1", "--iteration", 2, "--attention", alike / "attention2"]
    inputs += ["--rollouts", alike / "rollout2"]
    small_run.command("weight-tokens", *inputs, "--out", tmp_path / "w", **SETTINGS, **REPLAY_ALL)
    found, before = Source(tmp_path / "w").manifest, Source(alike / "weights2").manifest
    assert found.content_hash == before.content_hash and found.shards == before.shards
