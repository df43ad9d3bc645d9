"""The examples of docs/extending.md work: a reward and an engine in a rollout, a scheme in weights, a family."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import families
from support.commands import ROOT
from support.pipeline import Run, table
from support.prompts import groups

from dapo_stages.config import ModelConfig, RewardsConfig, load_config
from dapo_stages.groups.advantage_file import AdvantageFile
from dapo_stages.handoff.manifests import Source
from dapo_stages.maths import schemes
from dapo_stages.maths.advantage_estimators import Rewarded
from dapo_stages.maths.loss_inputs import LossInputs
from dapo_stages.maths.loss_types import LossSettings
from dapo_stages.models.families import FAMILIES, Family
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy, save_policy
from dapo_stages.models.shared_prefix.packing import Prompt
from dapo_stages.models.tokens import load_tokens
from dapo_stages.rewards.isolated.plugins import Plugins
from dapo_stages.stages import rollout, weight_tokens
from dapo_stages.training.loss_file import LossFile

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
REWARD, SCHEME, ADVANTAGE, LOSS, ENGINE, FAMILY = re.findall(r"```python\n(.*?)```", PAGE, re.S)
[SETTINGS] = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("code", [REWARD, SCHEME, ADVANTAGE, LOSS, ENGINE, FAMILY])
def test_an_example_is_short(code: str) -> None:
    assert len(code.splitlines()) < 40


def test_the_reward_takes_off_for_words_that_come_again(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARD)
    (tmp_path / "run.yaml").write_text(SETTINGS)
    config = load_config(tmp_path / "run.yaml")
    assert config.weights.reward_weights.plugins == config.weights.early_reward_weights.plugins == {"repetition": 0.5}
    texts = ["a b c d", "so it is, So It is, so it is", "two words", "a a a a a"]
    # Of the second text's 7 runs 4 are different: "so it is," "it is, so" "is, so it" and, last, "so it is".
    found = Plugins(config.rewards, tmp_path).score(texts, [4, 9, 2, 5], {"images": []})["repetition"]
    assert found == [0, pytest.approx(4 / 7 - 1), None, pytest.approx(1 / 3 - 1)]


def test_the_reward_is_written_by_rollout(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    plugins = "{repetition: my_rewards.py:repetition}"
    result = repeat(small_run, tmp_path / "rollout", monkeypatch, rewards__plugins=plugins)
    assert result.code == 0, result.stderr
    completions = table(tmp_path / "rollout", "completions")
    for text, reward in zip(completions.text, completions.reward_repetition, strict=True):
        words = text.lower().split()
        runs = Counter(zip(words, words[1:], words[2:], strict=False))
        again = runs.total() - len(runs)
        assert math.isnan(reward) if len(words) < 3 else reward == pytest.approx(-again / runs.total())


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_the_scheme_weighs_tokens(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bounds that nothing reaches a weight is what the token counts over the completion's mean."""
    monkeypatch.setattr(schemes, "SCHEMES", dict(schemes.SCHEMES))
    exec(SCHEME, {"__name__": "example"})

    def with_the_scheme(*args: Any) -> Any:
        config = load_config(*args)
        return config.model_copy(update={"weights": config.weights.model_copy(update={"scheme": "beyond_own_words"})})

    monkeypatch.setattr(weight_tokens, "load_config", with_the_scheme)
    wide = {"weights__clip": "[0.0001, 10000]"}
    small_run.command("weight-tokens", *small_run.weights_inputs(1), "--out", tmp_path / "weights", **wide)
    attention = table(small_run.at(1) / "attention", "attention")
    rows = table(tmp_path / "weights", "weights").merge(attention[attention.status == "ok"], on="completion_id")
    assert len(rows) > 10
    for row in rows.itertuples():
        counts = row.mass_vision / (row.mass_vision + row.mass_generated)
        np.testing.assert_allclose(row.token_weights, counts / counts.mean(), rtol=1e-5)


def test_the_advantage_is_the_distance_from_the_median(tmp_path: Path) -> None:
    """Medians 2 and 4; the distances that are not 0 are 1, 1 and 6, whose median is 1."""
    (tmp_path / "my_advantages.py").write_text(ADVANTAGE)
    own = AdvantageFile("my_advantages.py:from_median", RewardsConfig(), tmp_path, ())
    groups = [Rewarded(np.array(values), {}, np.zeros(0)) for values in ([1.0, 2.0, 3.0], [4.0, 10.0, 4.0])]
    assert [values.tolist() for values in own.estimate(groups)] == [[-1, 0, 1], [0, 6, 0]]
    assert own.estimate(groups[1:])[0].tolist() == [0, 1, 0]
    own.close()


def test_the_loss_has_a_gradient_that_tapers_off(tmp_path: Path) -> None:
    """Ratios 2 and 0.5, A 3 and -4: -3 for what was right, min(ratio, 1) · 4 = 2 and, above 1, 4 for what was wrong."""
    (tmp_path / "my_losses.py").write_text(LOSS)
    own, settings = LossFile("my_losses.py:tapered", tmp_path), LossSettings(epsilon_low=0.2, epsilon_high=0.28)
    new = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    old = torch.tensor([-1.0, -2.0, -3.0]) - torch.tensor([2.0, 0.5, 2.0]).log()
    inputs = LossInputs(new, old, torch.tensor([3.0, -4.0, -4.0]), torch.ones(3), torch.ones(3), torch.zeros(3).long())
    own.gain((new - old).exp(), inputs, settings, torch.ones(3)).sum().neg().backward()
    torch.testing.assert_close(new.grad, torch.tensor([-3.0, 2.0, 4.0]))


def repeat(small_run: Run, out: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """The rollout of iteration 1 again, with the engine of the page and other settings."""
    made: dict[str, Any] = {"__name__": "example"}
    exec(ENGINE, made)

    def recorded(source: Source, config: Any) -> Any:
        return made["RecordedEngine"](Source(small_run.at(1) / "rollout"), load_tokens(source.folder))

    monkeypatch.setattr(rollout, "open_engine", recorded)
    return small_run.attempt("rollout", *small_run.rollout_inputs(1), "--out", out, **settings)


def test_the_engine_gives_what_was_recorded_and_rewards_are_new(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = repeat(small_run, tmp_path / "rollout", monkeypatch, rewards__overlong_cache=1)
    assert result.code == 0, result.stderr
    before, after = table(small_run.at(1) / "rollout", "completions"), table(tmp_path / "rollout", "completions")
    for column in ("completion_id", "text", "reward_accuracy"):
        assert list(before[column]) == list(after[column])
    for column in ("completion_ids", "sampling_logprobs"):
        assert all(map(lambda a, b: list(a) == list(b), before[column], after[column]))
    assert list(before["reward_overlong"]) != list(after["reward_overlong"])


def test_a_prompt_that_was_not_recorded_is_refused(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = repeat(small_run, tmp_path / "rollout", monkeypatch, seed=7)
    assert result.code == 3
    assert re.fullmatch(
        r"recorded: prompt \S+: expected \d+ completions with this seed and iteration, got \d\. "
        r"Name the rollout to repeat\.\n",
        result.stderr.splitlines(keepends=True)[-1],
    )


@pytest.fixture()
def furthest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: dict[str, Any] = {"__name__": "example"}
    with families.families_kept():
        exec(FAMILY, made)
        yield made["furthest"]


class Flat(Family):
    """One that gives image tokens the positions of text."""

    def positions(self, model: Any, prompt: Prompt) -> torch.Tensor:
        return torch.arange(len(prompt.ids)).expand(3, -1)


def test_a_family_is_held_to_rows_of_their_own(furthest: Any, tmp_path: Path) -> None:
    text = families._text(
        rope_parameters={
            "rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_theta": 10000.0,
        },
        head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1,
    )  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = families._qwen("Qwen3VLMoe", text, vision, patch=16)
    policy = Policy(model.eval(), processor, torch.device("cpu"), torch.float32)
    save_policy(policy, tmp_path)
    policy = load_policy(tmp_path, ModelConfig(name="embedded", dtype="float32", device="cpu"))
    assert policy.architecture == "qwen3_vl_moe" and policy.shares_prefixes
    cases = groups(policy)
    assert furthest(policy, cases) < 1e-5
    FAMILIES["qwen3_vl_moe"] = Flat("Qwen3VLProcessor")
    assert furthest(policy, cases) > 1e-3


def test_every_link_leads_to_a_heading() -> None:
    for page, place in re.findall(r"\]\((\w+\.md)#([\w-]+)\)", PAGE):
        titles = re.findall(r"^#+ (.*)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M)
        assert place in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
