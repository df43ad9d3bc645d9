"""Completions in rows of their own are scored as an eager forward with output_attentions=True, family by family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from support.eager_rows import eager, eager_masses, eager_rollout, kinds_by_eye
from support.families import OTHER, families_kept
from support.families import OWN_ROWS as THESE
from support.prompts import groups, own_row
from support.updates import TINY

from dapo_stages.config.attention import AttentionConfig
from dapo_stages.errors import ModelError
from dapo_stages.models import families
from dapo_stages.models.own_rows import RowRecorder, require_readable, unreadable
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.requirements import require_scores
from dapo_stages.models.scoring_passes import ScoringPasses
from dapo_stages.models.scoring_rows import recorded, score_rows
from dapo_stages.models.separate_rows import logits_of
from dapo_stages.models.shared_prefix.masses import Scored, unit_keys
from dapo_stages.models.shared_prefix.packing import Group, SeparateRows

OWN_ROWS = (*THESE, "gemma3")  # one that need not have them, for images whose tokens see each other


@pytest.fixture(autouse=True)
def _all_in_rows_of_their_own(request: pytest.FixtureRequest) -> Iterator[None]:
    with families_kept():
        if "policy" in request.fixturenames:
            del families.FAMILIES["gemma3"]
        yield


@pytest.fixture()
def linear(checkpoints: Callable[[str], Path]) -> Policy:
    """A model with linear layers."""
    checkpoint = checkpoints("qwen3_5")
    del families.FAMILIES["qwen3_5"]  # until the end of the test
    policy = load_policy(checkpoint, TINY)
    assert not policy.shares_prefixes
    return policy


def record(policy: Policy, group: Group, query: str = "predicting", chunk: int = 256, **more: Any) -> list[Scored]:
    kinds = policy.prompt_kinds(group.prompt.ids.tolist())
    lengths = [len(completion) for completion in group.completions]
    chosen = range(len(lengths))
    recorder = RowRecorder(kinds, lengths, policy.scored_layers, query, chunk, chosen, **more)  # type: ignore[arg-type]
    with torch.inference_mode(), recorded(policy, recorder):
        list(logits_of(policy, SeparateRows([group])))
    return recorder.results()


@pytest.mark.parametrize(
    ("policy", "query", "chunk"),
    [*((family, "predicting", 5) for family in OWN_ROWS), ("gemma3", "token", 256)],
    indirect=["policy"],
)
def test_masses_equal_eager_attention(policy: Policy, query: str, chunk: int) -> None:
    check_masses(policy, query, chunk)


def check_masses(policy: Policy, query: str, chunk: int) -> None:
    for group in groups(policy):
        for completion, one in zip(group.completions, record(policy, group, query, chunk), strict=True):
            want = eager_masses(policy, group, list(completion), query)
            assert one.masses.shape == want.shape
            assert (one.masses - want).abs().max().item() < 1e-5
            assert torch.allclose(one.masses.sum(-1), torch.ones(one.masses.shape[:2]), atol=1e-5)
            assert one.patches is not None
            assert torch.allclose(one.patches.sum(-1), one.masses[..., 0], atol=1e-6)


def test_each_image_gets_the_attention_to_its_own_tokens(linear: Policy) -> None:
    policy = linear
    group = groups(policy)[1]
    assert group.prompt.image_grid_thw is not None
    grid = group.prompt.image_grid_thw.tolist()
    units = unit_keys(policy.prompt_kinds(group.prompt.ids.tolist()), grid)
    ends = [rows * columns // 4 for _, rows, columns in grid]  # 2 × 2 patches are one token
    for one in record(policy, group, units=units):
        assert one.units is not None and one.patches is not None
        want = torch.stack([part.sum(-1) for part in one.patches.split(ends, -1)], -1)
        assert torch.allclose(one.units, want, atol=1e-6)


@pytest.mark.parametrize("policy", OWN_ROWS, indirect=True)
def test_kinds_are_those_that_one_sees(policy: Policy) -> None:
    for group in groups(policy):
        assert policy.prompt_kinds(group.prompt.ids.tolist()).tolist() == kinds_by_eye(policy, group)


@pytest.mark.parametrize("policy", ["gemma3", OTHER], indirect=True)
def test_rollout_equals_the_product_of_eager_attention(policy: Policy) -> None:
    """Also where tokens of an image see later ones, and layers see a window only."""
    for group in groups(policy):
        for completion, one in zip(group.completions, record(policy, group, chunk=7, rollout=True), strict=True):
            want = eager_rollout(policy, group, list(completion))
            assert one.rollout is not None and (one.rollout - want).abs().max().item() < 1e-5
            assert bool((want > 0.01).any()) == (group.prompt.pixel_values is not None)


@pytest.mark.parametrize("policy", ["gemma3"], indirect=True)
def test_windows_and_blocks_of_images_are_what_the_model_has(policy: Policy) -> None:
    """In its sliding layers of 8 tokens a completion sees nothing of the prompt's beginning."""
    group = groups(policy)[0]
    layers = eager(policy, group, [1, 2, 3])
    image = [place for place, kind in enumerate(kinds_by_eye(policy, group)) if kind == 0]
    assert layers[0][:, image[0], image[-1]].min().item() > 0
    assert layers[0][:, image[-1], image[0]].max().item() == 0
    masses = record(policy, group)[0].masses
    assert masses[::2, :, 3].max().item() == 0 and masses[1, :, 3].min().item() > 0


def test_linear_layers_are_left_out(linear: Policy) -> None:
    assert linear.base.config.get_text_config().layer_types == ["linear_attention", "full_attention"] * 2
    assert linear.scored_layers == [1, 3]
    assert record(linear, groups(linear)[0])[0].masses.shape[0] == 2
    check_masses(linear, "predicting", 5)


@pytest.mark.parametrize("policy", [OTHER], indirect=True)
def test_attention_is_again_the_models_own_afterwards(policy: Policy) -> None:
    record(policy, groups(policy)[0])
    assert policy.base.config.text_config._attn_implementation == "sdpa"
    assert policy.base.config.vision_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("policy", [OTHER], indirect=True)
def test_tokens_are_scored_as_in_rows_without_padding(policy: Policy) -> None:
    """Logprobs and cosines by transformers' own forward pass, in float64."""
    policy.model.double()
    settings = AttentionConfig(logprobs=True, vision_cosine=True)
    group = groups(policy)[1]
    kinds = policy.prompt_kinds(group.prompt.ids.tolist())
    _, found = score_rows(ScoringPasses(policy, settings, 0.7, 1), {}, group, kinds, [], tokens=True)
    logprobs, cosines = [], []
    with torch.no_grad():
        for completion in group.completions:
            row = own_row(policy, group.prompt, completion)
            output = policy.base(
                **{k: v.double() if v.is_floating_point() else v for k, v in row.items()}, output_hidden_states=True
            )
            logits = output.logits[0, len(kinds) - 1 : -1] / 0.7
            logs = logits.masked_fill(policy.suppressed, float("-inf")).log_softmax(-1)
            logprobs.append(logs.gather(-1, torch.tensor(completion)[:, None])[:, 0])
            states = output.hidden_states[-1][0]
            mean = states[row["input_ids"][0] == policy.image_token_id].mean(0)
            own = states[len(kinds) - 1 : -1]
            cosines.append(own @ mean / (own.norm(dim=-1) * mean.norm()))
    assert (found["logprobs"] - torch.cat(logprobs)).abs().max().item() < 1e-6  # norms are computed in float32
    assert (found["vision_cosine"] - torch.cat(cosines)).abs().max().item() < 1e-6


def test_what_a_row_of_its_own_cannot_have_is_refused() -> None:
    require_scores("qwen3_5_moe", AttentionConfig(blank_image=True, rollout_mass=True))
    require_scores("qwen3_vl", AttentionConfig(vision_gradient=True))
    with pytest.raises(ModelError) as refusal:
        require_scores("qwen3_5_moe", AttentionConfig(vision_gradient=True))
    assert str(refusal.value) == (
        "qwen3_5_moe: this model computes each completion in a row of its own, which has no attention.vision_gradient. "
        "Set it to false."
    )
    with pytest.raises(
        ModelError, match=r"images cannot be removed from the prompts of this model\. Set attention\.blank to patches"
    ):
        require_scores("qwen3_5_moe", AttentionConfig(blank_image=True, blank="removed"))


def test_models_whose_attention_cannot_be_read_are_refused_with_the_reason() -> None:
    with torch.device("meta"):
        crossing = transformers.MllamaForConditionalGeneration(
            transformers.MllamaConfig(
                text_config={
                    "num_hidden_layers": 2,
                    "cross_attention_layers": [1],
                    "hidden_size": 32,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "intermediate_size": 32,
                },
                vision_config={
                    "hidden_size": 32,
                    "num_hidden_layers": 1,
                    "num_global_layers": 1,
                    "attention_heads": 2,
                    "intermediate_layers_indices": [0],
                    "intermediate_size": 32,
                },
            )
        )
    assert unreadable(crossing, None) == "it looks at images by cross-attention, without tokens for them"
    silent: Any = SimpleNamespace(config=SimpleNamespace(), get_decoder=torch.nn.Module)
    assert unreadable(silent, SimpleNamespace(image_token_id=None)) == (
        "neither its config.json nor its processor says which tokens are an image's"
    )
    with pytest.raises(ModelError) as refusal:
        require_readable("models/x", "x", silent, SimpleNamespace(image_token_id=5))
    assert str(refusal.value) == (
        "models/x: the attention of architecture `x` cannot be read: its layers do not use transformers' "
        "AttentionInterface. Set attention.enabled to false, or model.name to another checkpoint."
    )
