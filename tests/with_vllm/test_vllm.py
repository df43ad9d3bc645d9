"""Completions of vLLM go through the rest of the pipeline, and match the trainer's logprobs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.commands import ROOT
from support.pipeline import Run, table
from support.prompts import image
from support.vllm import PYTHON, Rollout, differences, train

from dapo_stages.engines import Completion
from dapo_stages.engines.transformers_engine import TransformersEngine
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.models.tokens import load_tokens


def test_completions_have_images_ids_and_logprobs(run: Run, sampled: Path) -> None:
    prompts, completions = table(sampled, "prompts"), table(sampled, "completions")
    assert len(completions) == 64 and set(completions.engine) == {"vllm"} and prompts.images.map(len).eq(1).all()
    assert completions.completion_ids.map(len).equals(completions.sampling_logprobs.map(len))
    tokens = load_tokens(run.policy(0))
    used = {token for ids in completions.completion_ids for token in ids}
    assert not used & tokens.suppressed_ids
    assert (completions.groupby("group_id").text.nunique() > 1).any()  # the seeds of a prompt's completions differ
    ended = completions.completion_ids.map(lambda ids: ids[-1] in tokens.end_ids)
    assert (ended == (completions.finish_reason == "stop")).all()


def test_the_pipeline_goes_on_and_the_trainer_agrees(run: Run, sampled: Path, tmp_path: Path) -> None:
    found = train(run, sampled, tmp_path, run.policy(0))
    compared = found[found.engine_tokens > 0]
    mean = np.average(compared.engine_diff_mean, weights=compared.engine_tokens)
    print(f"|Δ logprob| {mean:.2e} on average, {compared.engine_diff_max.max():.2e} at most")
    assert mean < 1e-5 and compared.engine_diff_max.max() < 1e-3


def test_attention_is_that_of_the_same_tokens_by_another_engine(
    run: Run, sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = table(sampled, "prompts").set_index("group_id").prompt_id
    members = table(sampled, "completions").groupby("group_id", sort=False)
    written = {prompts[group_id]: rows.sort_values("sample") for group_id, rows in members}

    def same(engine: TransformersEngine, prompts: Sequence[Row], seed: int, samples: int) -> list[list[Completion]]:
        return [
            [
                Completion(list(row.completion_ids), list(row.sampling_logprobs), row.finish_reason)
                for row in written[prompt["prompt_id"]].itertuples()
            ]
            for prompt in prompts
        ]

    monkeypatch.setattr(TransformersEngine, "generate", same)
    other = tmp_path / "rollout"
    run.command("rollout", *run.rollout_inputs(1), "--out", other)
    assert set(table(other, "completions").engine) == {"transformers"}
    found = []
    for name, rollouts in (("vllm", sampled), ("transformers", other)):
        run.command("score-attention", "--policy", run.policy(0), "--rollouts", rollouts, "--out", tmp_path / name)
        found.append(table(tmp_path / name, "attention"))
    pd.testing.assert_frame_equal(*found)
    assert set(found[0].status) == {"ok"}


def test_the_same_seed_gives_the_same_completions(sampled: Path, rollout: Rollout) -> None:
    assert Source(rollout()).manifest.content_hash == Source(sampled).manifest.content_hash


def test_prompts_with_several_images_one_or_none(run: Run, rollout: Rollout, tmp_path: Path) -> None:
    """If the processor need not resize an image, the trainer agrees; if it must, vLLM resizes differently."""
    sizes = [[(56, 56)], [(84, 56), (56, 112)], [], [(100, 70)], [(130, 40), (77, 211)]]
    questions = []
    for number, images in enumerate(sizes * 4):
        names = [f"{number}-{place}.png" for place in range(len(images))]
        for name, (width, height) in zip(names, images, strict=True):
            image(width, height, number).save(tmp_path / name)
        questions.append({"image": names, "problem": f"Which of these {number}?\nA. red B. blue", "solution": "A"})
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    data = tmp_path / "data"
    run.command(
        "prepare-data", "--policy", run.policy(0), "--out", data, data__source=tmp_path / "questions.jsonl",
        data__held_out_fraction=0.1,
    )  # fmt: skip
    found = differences(rollout(data=data), run.policy(0), temperature=1.2)
    resized = [any(side % 28 for size in images for side in size) for images in sizes]
    exact, other = (torch.cat([found[n] for n in found if resized[n % 5] == which]) for which in (False, True))
    for name, one in (("as they are", exact), ("resized", other)):
        print(f"|Δ logprob|, images {name}: {one.mean():.1e} on average, {one.max():.1e} at most")
    assert exact.max() < 1e-4 and len(found) == 16
    assert other.mean() < 0.02


def test_an_adapter_is_merged(run: Run, rollout: Rollout, tmp_path: Path) -> None:
    lora = {"train__lora": "{rank: 4, target_modules: [q_proj, v_proj]}", "train__learning_rate": 0.01}
    plain = tmp_path / "plain"
    run.command("rollout", *run.rollout_inputs(1), "--out", plain)
    train(run, plain, tmp_path / "one", run.policy(0), **lora)
    adapter = tmp_path / "one/train/policy"
    assert (adapter / "adapter_model.safetensors").exists()
    sampled = rollout(policy=adapter, iteration=2)
    found = train(run, sampled, tmp_path / "two", adapter, **lora)
    assert found.engine_diff_max.max() < 1e-3


def test_held_out_questions_are_answered_as_by_transformers(run: Run, evaluated: Path, tmp_path: Path) -> None:
    """Greedy completions, with the image and a blank one, have the same tokens and logprobs up to a near tie."""
    inputs = ["--policy", run.policy(0), "--data", run.folder / "data"]
    run.command("evaluate", *inputs, "--out", tmp_path / "e")
    ours, theirs = (table(folder, "completions").set_index("completion_id") for folder in (tmp_path / "e", evaluated))
    assert list(ours.index) == list(theirs.index)
    compared = 0
    for key in ours.index[ours["mode"] != "sample"]:
        pairs = zip(ours.completion_ids[key], theirs.completion_ids[key], strict=False)
        alike = next((place for place, (one, other) in enumerate(pairs) if one != other), len(ours.completion_ids[key]))
        one, other = (rows.sampling_logprobs[key][:alike] for rows in (ours, theirs))
        assert np.allclose(one, other, atol=1e-3)
        compared += alike
    print(f"{compared} of {ours.completion_ids[ours['mode'] != 'sample'].map(len).sum()} tokens are the same")
    assert compared > 0


# Both interfaces, with a device and with the state that the second runner passes; it runs on GPUs only.
SUPPRESSED = """
from types import SimpleNamespace as of
import torch
from vllm.v1.sample.logits_processor import _load_custom_logitsprocs
from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs
from dapo_stages.engines.vllm_suppressed import IDS, NAME

config, device = of(additional_config={IDS: [1, 3]}), torch.device("cpu")
[first], [second] = _load_custom_logitsprocs([NAME]), _load_v2_logitsprocs([NAME])
hidden = float("-inf")
want = torch.tensor([[0.0, hidden, 2.0, hidden], [4.0, hidden, 6.0, hidden]])
one, two = first(config, device, False), second(config, of(device=device))
assert not one.is_argmax_invariant() and one.update_state(None) is None
assert one.apply(torch.arange(8.0).view(2, 4)).equal(want)
assert two.add_request(0, None) is True and two.apply_staged_writes() is None
assert two.apply(torch.arange(8.0).view(2, 4), None).equal(want)
"""


def test_tokens_are_suppressed_by_both_of_vllms_runners() -> None:
    done = subprocess.run([PYTHON, "-c", SUPPRESSED], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("parallel", ["data", "tensor"])
def test_several_processes_of_vllm_give_the_completions_of_one(
    sampled: Path, rollout: Rollout, parallel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # otherwise each process wants a NUMA node of its own
    several = rollout(f"engines.vllm.{parallel}_parallel_size=2")
    assert Source(several).manifest.fingerprint == Source(sampled).manifest.fingerprint
    one, two = (table(folder, "completions").completion_ids for folder in (sampled, several))
    same = [list(ids) == list(others) for ids, others in zip(one, two, strict=True)]
    print(f"{np.mean(same):.1%} the same")
    assert np.mean(same) > 0.9  # sums in another order, and other batches, round otherwise


# On CPUs the engine does not let vLLM compile, as that takes longer than it saves.
COMPILING = """
from dapo_stages.entrypoints.cli import main
from dapo_stages.engines import vllm_engine

load = vllm_engine.load
vllm_engine.load = lambda checkpoint, settings: load(checkpoint, {**settings, "enforce_eager": False})
main()
"""


def test_the_next_policy_is_not_compiled_again(
    run: Run, rollout: Rollout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    compiled = []
    for number in (1, 2):  # the starting policy is of another configuration: its parts name no dtype
        began = time.monotonic()
        found = rollout(program=("-c", COMPILING), policy=run.policy(number), iteration=number + 1)
        print(f"{time.monotonic() - began:.1f} s")
        compiled.append(set((tmp_path / "cache").rglob("*.so")))
    assert compiled[0] and compiled[1] == compiled[0]
    metrics = train(run, found, tmp_path, run.policy(2))  # the weights are those of the second policy
    assert metrics.engine_diff_max.max() < 1e-4
