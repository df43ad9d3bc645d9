"""FlexAttention over a packed row gives what SDPA gives group by group."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.prompts import groups
from torch.nn.attention import flex_attention as torch_flex

from dapo_stages.config import ModelConfig
from dapo_stages.errors import ModelError
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.shared_prefix import flex, grouped_attention
from dapo_stages.models.shared_prefix.packing import Span, _span

UNCOMPILED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
CPU = torch.device("cpu")


def row(*groups: tuple[int, tuple[int, ...]]) -> list[Span]:
    """Spans of groups of a prompt and completions, by their lengths."""
    spans: list[Span] = []
    for prefix, lengths in groups:
        start = spans[-1].start + spans[-1].prefix + sum(spans[-1].lengths) if spans else 0
        spans.append(_span(start, prefix, list(lengths)))
    return spans


def with_images(spans: list[Span], *images: tuple[int, int]) -> list[Span]:
    """The same with an image in each prompt, whose tokens, from one place to before another, see each other."""
    found = []
    for span, (first, end) in zip(spans, images, strict=True):
        ends = torch.arange(1, span.prefix + 1)
        ends[first:end] = end
        found.append(replace(span, ends=ends))
    return found


ROWS = (
    row((300, (40, 200, 1)), (5, ()), (130, (128, 256))),
    row((256, (256, 256))),
    row((3, (2,))),
    with_images(row((300, (40, 200, 1)), (130, (128, 256))), (20, 290), (1, 5)),
)


def drawn(rng: random.Random) -> list[Span]:
    return row(*((rng.randint(5, 300), tuple(rng.choices(range(1, 200), k=rng.randint(1, 4)))) for _ in range(2)))


def states(tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    query, key, value = (torch.randn(1, heads, tokens, 16, generator=generator).to(dtype) for heads in (4, 2, 2))
    return query, key, value


def by_sdpa(
    spans: list[Span], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    layer = torch.nn.Module()
    layer.is_causal = True  # type: ignore[assignment]
    how: dict[str, Any] = {"scaling": 0.25, "spans": tuple(spans), "sliding_window": window}
    return grouped_attention.grouped(layer, query, key, value, None, **how)[0]


def size(spans: list[Span]) -> int:
    return spans[-1].start + spans[-1].prefix + sum(spans[-1].lengths)


@pytest.mark.parametrize("window", [None, 1, 100, 280])
def test_the_mask_of_blocks_is_that_of_the_tokens_in_them(window: int | None) -> None:
    """Against all pairs of tokens, written down from the rule: earlier ones of the prompt and of the own completion,
    and later ones of the own image, less those that are `window` or more tokens before."""
    for spans in ROWS:
        tokens = size(spans)
        want = torch.zeros(tokens, tokens, dtype=torch.bool)
        for span in spans:
            prompt = list(range(span.start, span.start + span.prefix))
            parts, start = [], span.start + span.prefix
            for length in span.lengths:
                parts.append(list(range(start, start + length)))
                start += length
            for own in (prompt, *(prompt + part for part in parts)):  # a sequence, by its places in the row
                for place, query in enumerate(own):
                    until = place + 1 if own is not prompt or span.ends is None else int(span.ends[place])
                    since = 0 if window is None else max(0, place - window + 1)
                    if own is prompt or place >= len(prompt):
                        want[query, own[since:until]] = True
        mask = flex.sees(spans, CPU, window)
        found = mask.mask_mod(0, 0, torch.arange(tokens)[:, None], torch.arange(tokens)[None])  # type: ignore[arg-type]
        assert torch.equal(found, want)
        count = -(-tokens // 128)
        padded = torch.zeros(count * 128, count * 128, dtype=torch.bool)
        padded[:tokens, :tokens] = want
        blocks = padded.unflatten(0, (count, 128)).unflatten(2, (count, 128)).transpose(1, 2)
        some, every = blocks.any(3).any(2), blocks.all(3).all(2)
        full = _dense(mask.full_kv_num_blocks, mask.full_kv_indices)
        some_of = _dense(mask.kv_num_blocks, mask.kv_indices)
        assert torch.equal(some_of | full, some)
        assert not (full & ~every).any() and not (full & some_of).any()


def _dense(counts: torch.Tensor | None, indices: torch.Tensor | None) -> torch.Tensor:
    assert counts is not None and indices is not None
    found = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for line, count in enumerate(counts[0, 0].tolist()):
        found[line, indices[0, 0, line, :count].long()] = True
    return found


@UNCOMPILED
@pytest.mark.parametrize(
    ("dtype", "apart", "window"), [(torch.float32, 1e-5, None), (torch.bfloat16, 2e-2, None), (torch.float32, 1e-5, 40)]
)
def test_flex_attention_equals_grouped_sdpa(dtype: torch.dtype, apart: float, window: int | None) -> None:
    """bfloat16 has 8 bits, and outputs are averages of values up to about 4: 2 · 4 / 2⁹. Windows are also shorter than
    an image, a prompt and a completion."""
    spans = row((150, (30, 61, 9)), (20, (5, 8)))
    if window is not None:
        spans = with_images(spans, (10, 90), (0, 20))
    given = states(size(spans), dtype)
    got = flex.attend(*given, flex.sees(spans, CPU, window), 0.25)
    assert torch.allclose(got, by_sdpa(spans, *given, window), atol=apart)


@UNCOMPILED
def test_gradients_of_flex_attention_equal_those_of_grouped_sdpa() -> None:
    """Uncompiled: torch has no compiled backward pass for CPUs, and refuses the other one unless that check is off."""
    spans = row((150, (30, 61, 9)), (20, (5, 8)))
    found = []
    for way in (flex.attend, None):
        given = states(size(spans), torch.float32)
        for one in given:
            one.requires_grad_()
        if way is None:
            output = by_sdpa(spans, *given)
        else:
            with mock.patch.object(torch_flex, "_validate_device"):
                output = way(*given, flex.sees(spans, CPU), 0.25)
        torch.autograd.backward((output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum())
        found.append([one.grad for one in given])
    for got, want in zip(*found, strict=True):
        assert got is not None and want is not None
        assert torch.allclose(got, want, atol=1e-4)


def test_rows_of_24_lengths_are_traced_twice_at_most() -> None:
    """The guards of torch.compile do not depend on the backend: here one that does not generate code."""
    torch._dynamo.reset()
    kernel = torch.compile(torch_flex.flex_attention, backend="eager")
    rng = random.Random(0)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for _ in range(24):
            spans = drawn(rng)
            given = states(size(spans), torch.float32)
            got = flex.attend(*given, flex.sees(spans, CPU), 0.25, kernel)
            assert torch.allclose(got, by_sdpa(spans, *given), atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_compiled_flex_attention_equals_grouped_sdpa(dtype: torch.dtype, apart: float) -> None:
    rng = random.Random(1)
    for _ in range(6):
        spans = drawn(rng)
        given = states(size(spans), dtype)
        with torch.no_grad():
            got = flex.attend(*given, flex.sees(spans, CPU), 0.25, flex.compiled())
        assert torch.allclose(got, by_sdpa(spans, *given), atol=apart)


@UNCOMPILED
@pytest.mark.parametrize("policy", ["qwen2_5_vl", "gemma3"], indirect=True)
def test_a_policy_set_to_flex_gives_the_same_logprobs(policy: Policy) -> None:
    cases = groups(policy)
    policy.attend("grouped")
    with torch.no_grad():
        want, _ = GroupLogprobs(policy, 1.0)(policy.pack(cases))
        policy.flex = True
        got, _ = GroupLogprobs(policy, 1.0)(policy.pack(cases))
    assert torch.allclose(got, want, atol=1e-5)


def test_flex_is_refused_on_the_cpu(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"model.attention: flex needs CUDA\. Set it to auto"):
        load_policy(checkpoint, ModelConfig(name="x", dtype="float32", device="cpu", attention="flex"))


def test_by_default_a_policy_on_the_cpu_uses_sdpa_and_manifests_say_so(checkpoint: Path) -> None:
    settings = ModelConfig(name="x", dtype="float32", device="cpu")
    assert settings.attention == "auto"
    assert not load_policy(checkpoint, settings).flex
    assert settings.recorded()["attention"] == "sdpa"  # as runs before auto was there recorded it
    assert ModelConfig(name="x", attention="flex").recorded()["attention"] == "flex"
    assert settings.model_dump()["attention"] == "auto"
