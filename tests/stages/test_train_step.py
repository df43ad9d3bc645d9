"""train-step: the ratio starts at 1, micro-batches do not matter, state carries on, adapters and bfloat16 work."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.pipeline import Run, metrics, table
from support.prompts import groups
from support.updates import TINY

from dapo_stages.config import TrainConfig
from dapo_stages.engines import Completion
from dapo_stages.engines.transformers_engine import TransformersEngine
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.maths.schedule import learning_rate_factor
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.stages.train_step import TrainStep
from dapo_stages.training.batches import MiniBatch, Sample, TrainGroup, mini_batch
from dapo_stages.training.choosing import Chosen
from dapo_stages.training.launching.rank_workers import Worker
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.state import load_state
from dapo_stages.training.update import Trainer


def train(run: Run, out: Path, number: int = 1, /, *args: object, **settings: object) -> Path:
    run.command("train-step", *run.train_inputs(number), *args, "--out", out, **settings)
    return out


def state_of(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of a train-step's state, whatever files they are in."""
    files = [load_file(path) for path in (out / "state").glob("*.safetensors")]
    return {name: value for file in files for name, value in file.items()}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_rollouts_of_an_older_policy_are_corrected_and_their_lag_is_a_metric(small_run: Run, tmp_path: Path) -> None:
    """Iteration 1's rollouts, of the starting policy, train the policy after it: sampling and old logprobs differ."""
    first, out = small_run.at(1), tmp_path / "t"
    inputs = ["--policy", small_run.policy(1), "--rollouts", first / "rollout", "--weights", first / "weights"]
    small_run.command("train-step", *inputs, "--out", out)
    on_policy, behind = metrics(first / "train"), metrics(out)
    assert set(on_policy.policy_lag) == {0} and set(behind.policy_lag) == {1}
    assert behind.ratio_max[0] == pytest.approx(1, abs=1e-6)  # old is the policy at the start of this step
    assert behind.engine_kl[0] > 100 * on_policy.engine_kl[0] and behind.is_weight_mean[0] != 1


def test_the_ratio_is_one_at_the_first_mini_batch_and_engine_and_trainer_agree(small_run: Run) -> None:
    found = metrics(small_run.at(1) / "train")
    assert found.ratio_max[0] == pytest.approx(1, abs=1e-6) and found.ratio_mean[0] == pytest.approx(1, abs=1e-6)
    assert found.engine_diff_max[0] < 1e-4  # sampling logprobs against the trainer's, temperature 1.2
    assert found.ratio_max[1] != 1  # the second mini-batch is off-policy


def test_the_temperature_is_that_of_the_rollouts(small_run: Run, tmp_path: Path) -> None:
    """Sampled at 1.2: neither another constant nor a schedule changes what logprobs are of."""
    args = [*small_run.train_inputs(1), "--out", tmp_path / "t", "--dry-run", "--json"]
    for settings in (
        {"rollout__sampler__temperature": 0.7},
        {"schedules__rollout__sampler__temperature": "{start: 0.5, end: 0.9}"},
    ):
        result = small_run.command("train-step", *args, **settings)
        assert json.loads(result.stdout)["config"]["rollout.sampler.temperature"] == 1.2
        said = "using temperature 1.2, as the rollouts were sampled, instead of rollout.sampler.temperature\n"
        assert result.stderr == said
    assert small_run.command("train-step", *args).stderr == ""


def test_schedules_are_those_of_the_iteration_of_the_rollouts(small_run: Run, tmp_path: Path) -> None:
    """planned_iterations: 2, so iteration 2 is halfway; beta 0 in iteration 1 needs no reference."""
    settings = {
        "schedules__train__epsilon_high": "{start: 0.2, end: 0.4}",
        "schedules__train__beta": "{start: 0, end: 1}",
    }
    for number, epsilon, beta in ((1, 0.2, 0.0), (2, 0.3, 0.5)):
        reference = ["--reference", small_run.policy(0)] if number == 2 else []
        args = [*small_run.train_inputs(number), *reference, "--out", tmp_path / "t", "--dry-run", "--json"]
        config = json.loads(small_run.command("train-step", *args, **settings).stdout)["config"]
        assert config["train"]["epsilon_high"] == pytest.approx(epsilon) and config["train"]["beta"] == beta
    result = small_run.attempt("train-step", *small_run.train_inputs(2), "--out", tmp_path / "t", **settings)
    assert result.code == 3 and "--reference: is missing, but train.beta is above 0" in result.stderr


def test_importance_multiplies_the_advantage_of_replayed_completions(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first mini-batch the ratio is 1 for all, so the loss is -Σ w·is·importance·A / tokens: linear in it."""
    seen: dict[str, list[float]] = {}

    def note(self: TrainStep, policy: Policy, trainer: Trainer, groups: list[TrainGroup]) -> list[Row]:
        seen[self._output.plan.out.name] = [sample.advantage for group in groups for sample in group.samples]
        return []

    monkeypatch.setattr(TrainStep, "_train", note)
    monkeypatch.setattr(TrainStep, "_save", lambda *_: None)
    for name, beta in (("plain", 0.0), ("corrected", 1.0)):
        settings: dict[str, object] = {"weights__replay__min_reward": 99, "weights__replay__priority_beta": beta}
        settings["weights__replay__rule"] = "replace_all"
        settings |= {"weights__replay__priority_alpha": 2.0, "weights__mask_truncated_completions": "false"}
        replay = ["--replay", small_run.at(1) / "weights"]
        small_run.command(
            "weight-tokens", *small_run.weights_inputs(2), *replay, "--out", tmp_path / f"w-{name}", **settings
        )
        inputs = ["--policy", small_run.policy(1), "--rollouts", small_run.at(2) / "rollout"]
        small_run.command("train-step", *inputs, "--weights", tmp_path / f"w-{name}", "--out", tmp_path / name)
    weights = table(tmp_path / "w-corrected", "weights")
    weights = weights[weights.in_loss]
    want = (weights.advantage * weights.importance.fillna(1)).tolist()
    assert sorted(seen["corrected"]) == pytest.approx(sorted(want), abs=1e-6)
    assert sorted(seen["plain"]) == pytest.approx(sorted(weights.advantage.tolist()), abs=1e-6)


def test_engine_and_trainer_are_compared_on_what_this_policy_sampled(small_run: Run, tmp_path: Path) -> None:
    """Logprobs of completions of an older policy differ by what was learned since, whatever the engine."""
    found = metrics(small_run.at(1) / "train")
    assert (found.engine_tokens == found.tokens).all()
    mean = (found.engine_diff_mean * found.engine_tokens).sum() / found.engine_tokens.sum()
    assert Source(small_run.at(1) / "train").manifest.counts["engine_diff"] == pytest.approx(mean, rel=1e-6)
    inputs = ["--policy", small_run.policy(1), *small_run.train_inputs(1)[2:]]
    result = small_run.command("train-step", *inputs, "--out", tmp_path / "lagged", engines__diff_warn=1e-9)
    lagged = metrics(tmp_path / "lagged")
    assert (lagged.engine_tokens == 0).all() and lagged.engine_diff_mean.isna().all()
    assert lagged.engine_kl.max() > 100 * found.engine_kl.max()  # it is seen there, and corrected for
    assert "differ by" not in result.stderr


def test_a_rollout_whose_logprobs_are_of_another_distribution_is_warned_of(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = TransformersEngine.generate

    def less_likely(
        engine: TransformersEngine, prompts: Sequence[Row], seed: int, samples: int
    ) -> list[list[Completion]]:
        sampled = generate(engine, prompts, seed, samples)
        return [[replace(one, logprobs=[v - 0.125 for v in one.logprobs]) for one in group] for group in sampled]

    monkeypatch.setattr(TransformersEngine, "generate", less_likely)
    rollouts, attention, weights = (tmp_path / name for name in ("rollout", "attention", "weights"))
    policy = small_run.policy(0)
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", rollouts)
    small_run.command("score-attention", "--policy", policy, "--rollouts", rollouts, "--out", attention)
    inputs = ["--rollouts", rollouts, "--attention", attention, "--iteration", 1]
    small_run.command("weight-tokens", *inputs, "--out", weights)
    inputs = ["--policy", policy, "--rollouts", rollouts, "--weights", weights]
    result = small_run.command("train-step", *inputs, "--out", tmp_path / "train")
    assert (
        "train-step: logprobs of engine and trainer differ by 0.125 on average, more than engines.diff_warn=0.05. "
        "The importance weight corrects for it up to train.engine_is_cap."
    ) in result.stderr
    assert metrics(tmp_path / "train").engine_diff_mean.sub(0.125).abs().max() < 1e-4
    again = small_run.command("train-step", *inputs, "--out", tmp_path / "train", engines__diff_warn=0.2)
    assert "train-step: unchanged" in again.stderr  # the limit changes no result
    other = small_run.command("train-step", *inputs, "--out", tmp_path / "other", engines__diff_warn=0.2)
    assert "differ by" not in other.stderr


def test_old_logprobs_are_those_before_the_first_update(policy: Policy) -> None:
    """Recalled in the layout of training, so that the ratio is 1 wherever nothing was updated yet."""
    work, trainer = training(policy, most=6)
    old = [trainer.logprobs(batch) for batch in work.batches]
    for batch, values in zip(work.batches, old, strict=True):
        batch.old = values
    assert trainer.update(work, 1e-9)["ratio_max"] == pytest.approx(1, abs=1e-6)


def training(policy: Policy, most: int, **settings: Any) -> tuple[MiniBatch, Trainer]:
    config = TrainConfig(learning_rate=1e-3, gradient_checkpointing=False, max_grad_norm=1e9, **settings)
    generator = torch.Generator().manual_seed(3)
    work = []
    for number, group in enumerate(groups(policy)):
        samples = [
            Sample(
                list(ids),
                [-2.0] * len(ids),
                torch.rand(len(ids), generator=generator).tolist(),
                float(torch.randn(1, generator=generator)),
            )
            for ids in group.completions
        ]
        prompt = lambda prompt=group.prompt: prompt  # noqa: E731
        work.append(TrainGroup(str(number), prompt, samples))
    policy.attend("grouped")
    return mini_batch(work, most), Trainer(policy, config, 1.0, 16, Optimizers(policy.model, config))


def test_an_update_whose_loss_is_not_finite_is_skipped(policy: Policy) -> None:
    work, trainer = training(policy, 99)
    work.batches[0].groups[0].samples[0].advantage = float("nan")
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    assert trainer.update(work, 1.0)["skipped"] == 1
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


def test_a_loss_that_is_not_finite_has_a_gradient_that_is_not(policy: Policy) -> None:
    """DeepSpeed looks at the gradient alone, and the clamps of the ratio would hide the loss from it."""
    work, trainer = training(policy, 99)
    (batch,) = work.batches
    batch.old = torch.full((batch.rows,), float("nan"))
    new, entropy = torch.zeros(2, batch.rows, requires_grad=True)
    loss, _ = trainer._loss(batch, new, entropy, work, Chosen(None, work.tokens))
    assert not torch.autograd.grad(loss, new)[0].isfinite().any()


def test_the_loss_is_the_weighted_token_mean(small_run: Run, tmp_path: Path) -> None:
    """At ratio 1 and an engine factor of 1 the loss is minus the mean over tokens of weight times advantage."""
    weights = table(small_run.at(1) / "weights", "weights")
    used = weights[weights.in_loss]
    want = -sum((row.token_weights * row.advantage).sum() for row in used.itertuples())
    want /= used.token_weights.map(len).sum()
    found = metrics(train(small_run, tmp_path / "t", train__updates_per_iteration=1))
    assert found.loss[0] == pytest.approx(want, abs=1e-4)
    assert found.tokens[0] == used.token_weights.map(len).sum()


def test_passes_take_the_same_mini_batches_and_the_schedule_counts_them(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two planned iterations of two passes over two mini-batches: eight updates, the first four of them here."""
    seen: list[tuple[int, bool]] = []
    update = Trainer.update

    def note(self: Trainer, work: MiniBatch, factor: float) -> dict[str, float]:
        seen.append((id(work), work.batches[0].old is None))
        return update(self, work, factor)

    monkeypatch.setattr(Trainer, "update", note)
    settings = {"train__updates_per_iteration": 2, "train__schedule": "linear", "train__warmup_fraction": 0}
    found = metrics(train(small_run, tmp_path / "t", train__passes=2, train__learning_rate=1e-4, **settings))
    assert found.learning_rate.tolist() == pytest.approx([1e-4, 7 / 8e4, 6 / 8e4, 5 / 8e4])
    assert len({work for work, _ in seen[:2]}) == 2 and {work for work, _ in seen[2:]} == {work for work, _ in seen[:2]}
    assert [first for _, first in seen] == [True, False, False, False]
    assert found.ratio_max[0] == pytest.approx(1, abs=1e-6) and (found.ratio_max[1:] > 1).all()
    assert (found.engine_diff_max < 1e-4).all()  # the engine's logprobs are those of the policy before all passes


def test_gspo_and_cispo_and_the_bonus_at_ratio_one(small_run: Run, tmp_path: Path) -> None:
    """By hand from the files: the mean of completions' weighted advantages; logprobs times them; the entropy."""
    weights, rows = table(small_run.at(1) / "weights", "weights"), table(small_run.at(1) / "rollout", "completions")
    used = weights[weights.in_loss].merge(rows, on="completion_id")
    tokens = used.token_weights.map(len)
    gspo = -(used.token_weights.map(np.mean) * used.advantage).mean()
    pairs = zip(used.token_weights, used.sampling_logprobs, used.advantage, strict=True)
    cispo = -sum((weight * logprobs).sum() * advantage for weight, logprobs, advantage in pairs) / tokens.sum()
    one = {"train__updates_per_iteration": 1}
    found = metrics(train(small_run, tmp_path / "gspo", train__loss_type="gspo", **one))
    assert found.loss[0] == pytest.approx(gspo, abs=1e-4)
    found = metrics(train(small_run, tmp_path / "cispo", train__loss_type="cispo", **one))
    assert found.loss[0] == pytest.approx(cispo, abs=1e-3)
    bonus = {"train__loss_type": "cispo", "train__entropy_coefficient": 0.5, **one}
    found = metrics(train(small_run, tmp_path / "bonus", **bonus))
    assert found.loss[0] == pytest.approx(cispo - 0.5 * found.entropy[0], abs=1e-3) and found.entropy[0] > 1


def test_the_policy_moves_and_its_folder_is_a_standard_checkpoint(small_run: Run) -> None:
    from transformers import AutoModelForImageTextToText

    folder = small_run.policy(1)
    before, after = weights_of(small_run.policy(0)), weights_of(folder)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert Source(folder, "policy").manifest.policy["version"] == 1


def test_the_schedule_carries_on_across_iterations(small_run: Run) -> None:
    peak, planned = 3e-4, 2 * 2
    for number in (1, 2):
        found = metrics(small_run.at(number) / "train").learning_rate
        for update, value in found.items():
            factor = learning_rate_factor((number - 1) * 2 + update, planned, 0.05, "constant")
            assert value == pytest.approx(peak * factor)


def test_momentum_carries_on_with_the_state_and_starts_afresh_without(small_run: Run, tmp_path: Path) -> None:
    carried = weights_of(small_run.policy(2))
    afresh = weights_of(train(small_run, tmp_path / "t", 2) / "policy")
    assert any(not torch.equal(carried[name], afresh[name]) for name in carried)
    state = state_of(small_run.at(2) / "train")
    steps = {int(value) for name, value in state.items() if name.endswith("/step")}
    assert steps == {4}  # two updates in each of two iterations


def test_a_state_of_another_optimizer_is_refused(small_run: Run, tmp_path: Path) -> None:
    result = small_run.attempt(
        "train-step", *small_run.train_inputs(2), "--state", small_run.at(1) / "train/state", "--out", tmp_path / "t",
        train__optimizer="muon",
    )  # fmt: skip
    assert result.code == 3 and "Leave --state out" in result.stderr


def test_a_state_that_lacks_a_tensor_is_refused(small_run: Run, tmp_path: Path) -> None:
    state = small_run.at(1) / "train/state"
    (file,) = state.glob("*.safetensors")
    tensors = load_file(file)
    lost = max(tensors)
    save_file({name: value for name, value in tensors.items() if name != lost}, tmp_path / file.name)
    (tmp_path / "state.json").write_text((state / "state.json").read_text())
    policy, config = load_policy(small_run.policy(1), TINY), TrainConfig()
    worker = Worker(GroupLogprobs(policy, 1.0), Optimizers(policy.model, config), config)
    load_state(worker, state)
    with pytest.raises(ValueError, match=re.escape(f"{file.name} does not match state.json, such as in {lost}")):
        load_state(worker, tmp_path)


def test_a_state_of_other_weights_is_refused(small_run: Run, tmp_path: Path) -> None:
    result = small_run.attempt(
        "train-step", *small_run.train_inputs(2), "--state", small_run.at(1) / "train/state", "--out", tmp_path / "t",
        train__freeze_vision="true",
    )  # fmt: skip
    assert result.code == 3 and "it is for other weights, such as model.visual." in result.stderr


def test_muon_trains_the_matrices(small_run: Run, tmp_path: Path) -> None:
    after = weights_of(train(small_run, tmp_path / "t", train__optimizer="muon") / "policy")
    before = weights_of(small_run.policy(0))
    assert all(not torch.equal(before[name], after[name]) for name in before if "mlp" in name and "weight" in name)


def test_a_frozen_vision_tower_stays_as_it_is(small_run: Run, tmp_path: Path) -> None:
    after = weights_of(train(small_run, tmp_path / "t", train__freeze_vision="true") / "policy")
    before = weights_of(small_run.policy(0))
    assert all(torch.equal(before[name], after[name]) for name in before if "visual" in name)
    assert any(not torch.equal(before[name], after[name]) for name in before if "visual" not in name)


def test_gradient_checkpointing_changes_nothing(small_run: Run, tmp_path: Path) -> None:
    plain = metrics(small_run.at(1) / "train")
    again = metrics(train(small_run, tmp_path / "t", train__gradient_checkpointing="true"))
    assert np.allclose(plain.grad_norm, again.grad_norm, rtol=1e-3)


def test_the_kl_to_the_reference_starts_at_zero_and_grows(small_run: Run, tmp_path: Path) -> None:
    reference = small_run.policy(0)
    found = metrics(train(small_run, tmp_path / "t", 1, "--reference", reference, train__beta=0.1))
    assert found.kl[0] == pytest.approx(0, abs=1e-9)
    assert found.kl[1] > 0


def test_a_kl_term_without_a_reference_is_refused(small_run: Run, tmp_path: Path) -> None:
    result = small_run.attempt("train-step", *small_run.train_inputs(1), "--out", tmp_path / "t", train__beta=0.1)
    assert result.code == 3 and "--reference: is missing" in result.stderr


def test_a_state_of_another_policy_is_refused(small_run: Run, tmp_path: Path) -> None:
    result = small_run.attempt(
        "train-step", *small_run.train_inputs(1), "--state", small_run.at(1) / "train/state", "--out", tmp_path / "t"
    )
    assert result.code == 3 and "this optimizer state belongs to a policy of iteration 1, not to " in result.stderr


def test_new_optimizer_settings_apply_to_a_carried_state(small_run: Run, tmp_path: Path) -> None:
    state = ("--state", small_run.at(1) / "train/state")
    one, two = (
        weights_of(train(small_run, tmp_path / f"{decay}", 2, *state, train__weight_decay=decay) / "policy")
        for decay in (0, 100)
    )
    large = [name for name in one if name.endswith("layers.0.mlp.up_proj.weight")]
    assert all(two[name].norm() < 0.99 * one[name].norm() for name in large)


def test_the_same_step_gives_the_same_hash(small_run: Run, tmp_path: Path) -> None:
    """Bitwise on one thread; with more, transformers' own backward adds in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, two = (train(small_run, tmp_path / name) for name in "ab")
    finally:
        torch.set_num_threads(threads)
    assert Source(one).manifest.content_hash == Source(two).manifest.content_hash


def test_an_adapter_is_saved_as_such_and_trained_on(small_run: Run, tmp_path: Path) -> None:
    lora = {"train__lora": "{rank: 4, alpha: 8, target_modules: [v_proj, q_proj]}"}
    one = train(small_run, tmp_path / "one", **lora)
    names = {path.name for path in (one / "policy").iterdir()}
    assert names == {
        "adapter_model.safetensors", "adapter_config.json", "manifest.json", "chat_template.jinja", "tokenizer.json",
        "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
    }  # fmt: skip
    adapter = json.loads((one / "policy/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] is None and adapter["target_modules"] == ["q_proj", "v_proj"]
    small_run.command(
        "rollout", "--policy", one / "policy", "--data", small_run.folder / "data", "--iteration", 2,
        "--out", tmp_path / "rollout", rollout__dynamic_sampling="false",
    )  # fmt: skip
    small_run.command(
        "score-attention", "--policy", one / "policy", "--rollouts", tmp_path / "rollout", "--out", tmp_path / "a"
    )
    small_run.command(
        "weight-tokens", "--rollouts", tmp_path / "rollout", "--attention", tmp_path / "a", "--iteration", 2,
        "--out", tmp_path / "w",
    )  # fmt: skip
    small_run.command(
        "train-step", "--policy", one / "policy", "--rollouts", tmp_path / "rollout", "--weights", tmp_path / "w",
        "--state", one / "state", "--out", tmp_path / "two", **lora,
    )  # fmt: skip
    first, second = (load_file(tmp_path / name / "policy/adapter_model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert metrics(tmp_path / "two").ratio_max[0] == pytest.approx(1, abs=1e-6)
    assert metrics(tmp_path / "two").engine_diff_max[0] < 1e-3  # merged in rollout, kept apart in training
    for other, found in (
        ("null", "train.lora: must not be null, because the policy is an adapter"),
        ("{rank: 8}", "train.lora: rank is 8, but the policy is an adapter with rank 4"),
    ):
        result = small_run.attempt(
            "train-step", "--policy", one / "policy", "--rollouts", tmp_path / "rollout", "--weights", tmp_path / "w",
            "--out", tmp_path / "three", train__lora=other,
        )  # fmt: skip
        assert result.code == 3 and found in result.stderr and "merge the adapter first" in result.stderr


def test_bfloat16_keeps_exact_weights_in_the_state(small_run: Run, tmp_path: Path) -> None:
    """One small update of bfloat16 weights is mostly rounded away; the master weights remember it."""
    low = {"model__dtype": "bfloat16", "train__learning_rate": 1e-6, "train__updates_per_iteration": 1}
    out = train(small_run, tmp_path / "t", **low)
    rounded, exact = weights_of(out / "policy"), state_of(out)
    start = weights_of(small_run.policy(0))

    def matrix(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        ends = ("layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight/master")
        (found,) = (value for name, value in tensors.items() if name.endswith(ends) and "visual" not in name)
        return found

    assert rounded.keys() == start.keys()  # the tied head is not saved beside the embeddings
    assert matrix(rounded).dtype == torch.bfloat16 and matrix(exact).dtype == torch.float32
    moved = matrix(exact) - matrix(start).bfloat16().float()
    assert 0 < moved.abs().max() < 3e-6
    assert (matrix(rounded) == matrix(start).bfloat16()).float().mean() > 0.9


def test_weights_of_other_rollouts_are_refused(small_run: Run, tmp_path: Path) -> None:
    result = small_run.attempt(
        "train-step", "--policy", small_run.policy(1), "--rollouts", small_run.at(2) / "rollout",
        "--weights", small_run.at(1) / "weights", "--out", tmp_path / "t",
    )  # fmt: skip
    assert result.code == 3 and "made from other rollouts" in result.stderr


def test_weights_of_a_group_without_a_prompt_are_refused(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Source.rows
    monkeypatch.setattr(
        Source, "rows", lambda self, kind, columns: iter(()) if kind == "prompts" else rows(self, kind, columns)
    )
    result = small_run.attempt("train-step", *small_run.train_inputs(1), "--out", tmp_path / "t")
    assert result.code == 3 and "has weights, but its prompt is missing" in result.stderr


def test_everybody_may_read_a_policy_whom_the_umask_lets_read(small_run: Run) -> None:
    """Such as the account of a server that generates."""
    mask = os.umask(0o022)
    os.umask(mask)
    files = [path for path in small_run.folder.rglob("*") if path.is_file() and path.name != ".lock"]
    assert any(path.name == "model.safetensors" for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}
