"""Masses equal an eager forward with output_attentions=True on the same tokens."""

from __future__ import annotations

import pytest
import torch
from support.eager_rows import eager, eager_masses, eager_rollout
from support.families import PLAIN, QWEN, SHARED, WINDOWS
from support.prompts import groups, prompt, video_groups

from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.masses import MassRecorder, Scored, _narrow_products, prompt_kinds, unit_keys
from dapo_stages.models.shared_prefix.packing import Group


def record(
    policy: Policy,
    cases: list[Group],
    query: str,
    chunk_rows: int,
    *,
    rollout: bool = False,
    grids: list[list[list[int]]] | None = None,
) -> list[list[Scored]]:
    policy.attend("grouped")
    packed = policy.pack(cases)
    kinds = [policy.prompt_kinds(group.prompt.ids.tolist()) for group in cases]
    everyone = [range(len(group.completions)) for group in cases]
    recorder = MassRecorder(
        packed.spans,
        kinds,
        policy.scored_layers,
        query,  # type: ignore[arg-type]
        chunk_rows,
        everyone,
        rollout=rollout,
        units=None if grids is None else [unit_keys(kind, grid) for kind, grid in zip(kinds, grids, strict=True)],
    )
    return recorder.collect(policy.base.model, packed)


def test_masses_in_bfloat16_are_as_exact_as_an_eager_pass_in_bfloat16(policy: Policy) -> None:
    """Scores from products of 16-bit numbers: both passes are compared with an eager one in float32."""
    cases = groups(policy)
    found: dict[torch.dtype, torch.Tensor] = {}
    eager: dict[torch.dtype, torch.Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16):
        policy.model.to(dtype)
        scored = record(policy, cases, "predicting", 5)
        found[dtype] = torch.cat([one.masses for completions in scored for one in completions], 1)
        assert found[dtype].dtype == torch.float32
        rows = [eager_masses(policy, group, list(c), "predicting") for group in cases for c in group.completions]
        eager[dtype] = torch.cat(rows, 1).float()
    exact = eager[torch.float32]
    own = (eager[torch.bfloat16] - exact).abs().max()
    assert own > 0
    assert (found[torch.bfloat16] - exact).abs().max() <= 2 * own


@pytest.mark.parametrize("rows_of_keys", ["shared", "own"])
def test_products_of_16_bit_numbers_are_those_of_float32(rows_of_keys: str) -> None:
    """Of every head with its key-value head, in float64, from the same 16-bit numbers."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 4, 5, 8, generator=generator).bfloat16()
    keys = torch.randn(*((2, 7, 8) if rows_of_keys == "shared" else (3, 2, 7, 8)), generator=generator).bfloat16()
    found = _narrow_products(rows, keys, 0.25)
    for row in range(3):
        for head in range(4):
            own = keys[head // 2] if rows_of_keys == "shared" else keys[row, head // 2]
            want = rows[row, head].double() @ own.double().T * 0.25
            assert torch.allclose(found[row, head].double(), want, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "query", "chunk_rows"),
    [
        *((family, query, chunk) for family in QWEN for query in ("predicting", "token") for chunk in (5, 256)),
        *((family, "predicting", 5) for family in (*PLAIN, *WINDOWS)),
        ("gemma3", "token", 256),
    ],
    indirect=["policy"],
)
def test_masses_equal_eager_attention(policy: Policy, query: str, chunk_rows: int) -> None:
    cases = groups(policy)
    scored = record(policy, cases, query, chunk_rows)
    for group, found in zip(cases, scored, strict=True):
        for completion, one in zip(group.completions, found, strict=True):
            want = eager_masses(policy, group, list(completion), query)
            assert (one.masses - want).abs().max().item() < 1e-5
            assert torch.allclose(one.masses.sum(-1), torch.ones(one.masses.shape[:2]), atol=1e-5)


@pytest.mark.parametrize("policy", QWEN, indirect=True)
@pytest.mark.parametrize("query", ["predicting", "token"])
def test_masses_of_videos_and_of_each_image_equal_eager_attention(policy: Policy, query: str) -> None:
    """Of images and of temporal steps by runs of placeholders, which are 4, 6 or 8 tokens long."""
    cases = [*video_groups(policy), groups(policy)[1]]
    wide = 8 if policy.architecture.startswith("qwen3") else 10  # patches of 16 or of 14 pixels in 140
    units = [[4, 4], [6, 6, 4, 8, 8], [6], [8, 3 * wide // 2]]
    grids = [[[2, 4, 4]], [[2, 4, 6], [1, 4, 4], [2, 8, 4]], [[1, 4, 6]], [[1, 8, 4], [1, 6, wide]]]
    scored = record(policy, cases, query, 5, grids=grids)
    for group, found, sizes in zip(cases, scored, units, strict=True):
        for completion, one in zip(group.completions, found, strict=True):
            first = len(group.prompt.ids) - int(query == "predicting")
            layers = eager(policy, group, list(completion))
            attentions = torch.stack([layer.mean(0)[first : first + len(completion)] for layer in layers])
            tokens = policy.processor.tokenizer.convert_ids_to_tokens(group.prompt.ids.tolist())
            places = [place for place, token in enumerate(tokens) if token in ("<|image_pad|>", "<|video_pad|>")]
            assert len(places) == sum(sizes)
            ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
            parts = [places[end - size : end] for end, size in zip(ends, sizes, strict=True)]
            want = torch.stack([attentions[..., part].sum(-1) for part in parts], -1)
            assert one.units is not None and (one.units - want).abs().max().item() < 1e-5
            assert (one.masses - eager_masses(policy, group, list(completion), query)).abs().max().item() < 1e-5


@pytest.mark.parametrize(
    ("policy", "query", "chunk_rows"),
    [
        *((family, *how) for family in QWEN for how in (("predicting", 5), ("predicting", 256), ("token", 7))),
        ("llava_onevision", "predicting", 5),
        ("gemma3", "predicting", 5),
        ("gemma3", "token", 7),
    ],
    indirect=["policy"],
)
def test_rollout_equals_the_product_of_eager_attention(policy: Policy, query: str, chunk_rows: int) -> None:
    cases = groups(policy)
    scored = record(policy, cases, query, chunk_rows, rollout=True)
    for group, found in zip(cases, scored, strict=True):
        for completion, one in zip(group.completions, found, strict=True):
            want = eager_rollout(policy, group, list(completion), query)
            assert one.rollout is not None and one.rollout.shape == want.shape
            assert (one.rollout - want).abs().max().item() < 1e-5
            assert bool((want > 0.01).any()) == (group.prompt.pixel_values is not None)


@pytest.mark.parametrize("policy", SHARED, indirect=True)
def test_grouped_query_attention_is_what_the_models_have(policy: Policy) -> None:
    text = policy.base.config.get_text_config()
    assert text.num_attention_heads > text.num_key_value_heads


def test_a_prompt_without_system_message_has_text_from_the_start(policy: Policy) -> None:
    policy.processor.chat_template = policy.processor.chat_template.replace("You are a helpful assistant.", "").replace(
        "<|im_start|>system\n<|im_end|>\n", ""
    )
    group = Group(prompt(policy, "What colour?", [(56, 56)], system=None), [[1, 2, 3]])
    assert policy.system_end(group.prompt.ids.tolist()) == 0
    [[one]] = record(policy, [group], "predicting", 256)
    want = eager_masses(policy, group, [1, 2, 3], "predicting")
    assert (one.masses - want).abs().max().item() < 1e-5


def test_patches_add_up_to_the_vision_mass(policy: Policy) -> None:
    [[one, *_], *_] = record(policy, groups(policy)[:1], "predicting", 256)
    assert one.patches is not None
    assert torch.allclose(one.patches.sum(-1), one.masses[..., 0], atol=1e-6)


def test_patches_are_kept_for_the_completions_asked_for(policy: Policy) -> None:
    cases = groups(policy)[:1]
    policy.attend("grouped")
    packed = policy.pack(cases)
    ids = cases[0].prompt.ids.tolist()
    kinds = [prompt_kinds(ids, [token == policy.image_token_id for token in ids], policy.special_ids, 0)]
    recorder = MassRecorder(packed.spans, kinds, policy.scored_layers, patches=[[2]])
    [found] = recorder.collect(policy.base.model, packed)
    assert [one.patches is not None for one in found] == [False, False, True, False]
    [everyone] = record(policy, cases, "predicting", 256)
    assert found[2].patches is not None and everyone[2].patches is not None
    assert torch.allclose(found[2].patches, everyone[2].patches)


def test_the_first_row_of_predicting_sees_no_completion(policy: Policy) -> None:
    [[one, *_], *_] = record(policy, groups(policy)[:1], "predicting", 256)
    assert one.masses[:, 0, 4].abs().max().item() == 0
    assert one.masses[:, 1, 4].min().item() > 0
