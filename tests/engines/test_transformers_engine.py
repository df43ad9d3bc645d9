"""Generation: the same tokens as transformers' own generate, and correct logprobs."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from support.families import OTHER, SHARED, SOME, WINDOWS
from support.greedy import greedy_of_transformers, stir
from support.prompts import groups, own_row
from support.prompts import prompt as prompt_for
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from dapo_stages.config import SamplerConfig
from dapo_stages.engines import transformers_engine
from dapo_stages.engines.transformers_engine import generate
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group


@pytest.mark.parametrize("policy", [*SHARED, *WINDOWS, OTHER], indirect=True)
def test_greedy_equals_generate_of_transformers(policy: Policy) -> None:
    stir(policy)
    prompts = [group.prompt for group in groups(policy)]
    found = generate(policy, prompts, 0, 12, SamplerConfig(), 0, greedy=2)
    for prompt, (one, two) in zip(prompts, found, strict=True):
        ids, logprobs = greedy_of_transformers(policy, prompt, 12)
        assert one.ids == two.ids == ids
        assert one.logprobs == pytest.approx(logprobs, abs=1e-6)
    assert len({tuple(one.logprobs) for one, _ in found}) == len(prompts), "no prompt is mistaken for another"


@pytest.mark.parametrize(
    ("policy", "layers"),
    [("qwen2_5_vl", 1), pytest.param("qwen3_5", 2, marks=pytest.mark.slow)],
    indirect=["policy"],
)
def test_compiled_decoding_gives_the_same_tokens_from_two_graphs(
    policy: Policy, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for samples and one for greedy completions serve prompts of any length, in batches of any size but one.

    The graphs are captured whole, of one layer of each kind, but not turned into machine code: that would take minutes.
    """
    language = policy.base.model.language_model
    language.layers, language.config.num_hidden_layers = language.layers[:layers], layers
    graphs = []

    def counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(transformers_engine, "_BACKEND", counted)
    torch.compiler.reset()
    stir(policy)
    prompts = [prompt_for(policy, "why " * (18 * n + 5), [(56, 56)] * (n % 3)) for n in range(12)]
    assert len({-(-len(one.ids) // 64) for one in prompts}) == 12
    batches = [([0, 1], 3, 0), ([2, 3, 4], 2, 1), ([5, 6], 0, 1), ([7, 8, 9, 10, 11], 2, 1), ([11, 0], 3, 1)]
    for places, samples, greedy in batches:
        some = [prompts[place] for place in places]
        policy.compiled = False
        want = generate(policy, some, samples, 4, SamplerConfig(), 3, greedy=greedy)
        policy.compiled = True
        found = generate(policy, some, samples, 4, SamplerConfig(), 3, greedy=greedy)
        assert [[c.ids for c in cs] for cs in found] == [[c.ids for c in cs] for cs in want]
    assert len(graphs) == 2


@pytest.mark.parametrize("policy", ["gemma3", *WINDOWS], indirect=True)
def test_a_static_cache_has_windows_too(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is compiled: completions of 20 tokens in windows of 8, against a cache that grows."""
    monkeypatch.setattr(transformers_engine, "_compiled", lambda policy: policy.base)
    stir(policy)
    policy.end_ids[:] = [-1]
    prompts, found = [group.prompt for group in groups(policy)], []
    for policy.compiled in (False, True):
        found.append(generate(policy, prompts, 0, 20, SamplerConfig(), 3, greedy=2))
    for one, other in zip(chain(*found[0]), chain(*found[1]), strict=True):
        assert one.ids == other.ids and len(one.ids) == 20
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-6)  # of logits in float32


@pytest.mark.parametrize("policy", [SHARED[0], OTHER], indirect=True)
def test_greedy_answers_and_samples_of_one_call_are_those_of_two(policy: Policy) -> None:
    """If prompts can be shared, they go through the model only once."""
    prompts = [group.prompt for group in groups(policy)]
    greedy = generate(policy, prompts, 0, 8, SamplerConfig(), 5, greedy=1)
    samples = generate(policy, prompts, 3, 8, SamplerConfig(), 5)
    passes: list[int] = []
    policy.vision.register_forward_pre_hook(lambda *_: passes.append(1))
    both = generate(policy, prompts, 3, 8, SamplerConfig(), 5, greedy=1)
    assert both == [[*one, *others] for one, others in zip(greedy, samples, strict=True)]
    assert len(passes) == 1 or not policy.shares_prefixes


def test_the_penalty_for_repetition_counts_no_padding(policy: Policy) -> None:
    """Logprobs are those of transformers' own processor over separate rows; the padding token may end a completion."""
    policy.end_ids.append(policy.pad_id)
    stir(policy)
    with torch.no_grad():
        weights = policy.base.get_output_embeddings().weight
        weights[policy.pad_id] = 5 * weights[7]  # its logit was 0, which no penalty changes
    cases = groups(policy)[1:]  # of different lengths
    assert len({len(case.prompt.ids) for case in cases}) == 2
    found = generate(policy, [case.prompt for case in cases], 2, 6, SamplerConfig(repetition_penalty=3.0), 0)
    penalty = RepetitionPenaltyLogitsProcessor(3.0)
    for case, completions in zip(cases, found, strict=True):
        for one in completions:
            policy.attend("separate")
            row, start = own_row(policy, case.prompt, one.ids), len(case.prompt.ids)
            policy.base.model.rope_deltas = None
            with torch.no_grad():
                logits = policy.model(**row, use_cache=False).logits[0]
            for place, (token, logprob) in enumerate(zip(one.ids, one.logprobs, strict=True), start):
                scores = penalty(row["input_ids"][:, :place], logits[place - 1 : place])
                want = torch.log_softmax(scores.masked_fill(policy.suppressed, float("-inf")), -1)[0, token]
                assert logprob == pytest.approx(want.item(), abs=1e-4)


@pytest.mark.parametrize("policy", [*SOME, OTHER], indirect=True)
def test_sampling_logprobs_are_those_of_the_trainer(policy: Policy) -> None:
    prompts = [group.prompt for group in groups(policy)]
    found = generate(policy, prompts, 4, 16, SamplerConfig(temperature=1.3), 5)
    cases = [Group(p, [c.ids for c in cs]) for p, cs in zip(prompts, found, strict=True)]
    policy.attend("grouped")
    with torch.no_grad():
        trainer, _ = GroupLogprobs(policy, temperature=1.3)(policy.batch(cases))
    engine = torch.tensor([value for cs in found for c in cs for value in c.logprobs])
    assert (trainer - engine).abs().max().item() < 1e-4


@pytest.mark.parametrize("policy", ["qwen2_5_vl", "qwen3_5"], indirect=True)
def test_finished_rows_leave_without_changing_the_others(policy: Policy) -> None:
    """With many end tokens rows finish at different steps; greedy decoding one by one must give the same."""
    prompts = [group.prompt for group in groups(policy)]
    alone = [generate(policy, [p], 0, 20, SamplerConfig(), 0, greedy=1)[0][0] for p in prompts]
    policy.end_ids.append(alone[0].ids[3])
    policy.end_ids.append(alone[1].ids[8])
    together = [cs[0] for cs in generate(policy, prompts, 0, 20, SamplerConfig(), 0, greedy=1)]
    for one, other in zip(alone, together, strict=True):
        length = next((i + 1 for i, t in enumerate(one.ids) if t in policy.end_ids), len(one.ids))
        assert other.ids == one.ids[:length]
        assert other.finish_reason == ("stop" if other.ids[-1] in policy.end_ids else "length")


def test_no_step_reads_from_the_device_until_it_looks_which_rows_are_finished(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each such reading would wait. Rows that go on after their end give the same completions."""
    prompts = [group.prompt for group in groups(policy)]
    alone = [generate(policy, [p], 0, 20, SamplerConfig(), 0, greedy=1)[0][0] for p in prompts]
    policy.end_ids += [alone[0].ids[3], alone[1].ids[8]]
    want = generate(policy, prompts, 0, 20, SamplerConfig(), 0, greedy=2)
    assert any(len(one.ids) < 20 for one, _ in want)
    monkeypatch.setitem(transformers_engine._LOOK, "cpu", 16)
    found = generate(policy, prompts, 0, 20, SamplerConfig(), 0, greedy=2)
    for one, other in zip(chain(*found), chain(*want), strict=True):
        assert one.ids == other.ids and one.finish_reason == other.finish_reason
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    readings = []
    for length in (4, 14):
        with Readings() as counted:  # type: ignore[no-untyped-call]
            generate(policy, prompts, 2, length, SamplerConfig(top_p=0.9, top_k=50, repetition_penalty=1.1), 0)
        readings.append(counted.number)
    assert readings[0] == readings[1] > 0  # those of the prefill


class Readings(TorchDispatchMode):
    """Counts what a device is waited for: a scalar, or a shape that depends on values."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += function.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.masked_select,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.multinomial,  # which checks its probabilities
        )
        return function(*args, **(kwargs or {}))


def test_a_token_is_drawn_as_torch_draws_it() -> None:
    """The same tokens as torch.multinomial, from the same states of the generator."""
    for dtype in (torch.float32, torch.float64):
        logits = torch.randn(40, 300, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 3
        probabilities = logits.index_fill(-1, torch.arange(0, 300, 7), float("-inf")).softmax(-1)
        one, two = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
        for _ in range(4):
            drawn = transformers_engine.draw(probabilities, one)
            assert drawn.equal(torch.multinomial(probabilities, 1, generator=two)[:, 0])
            assert one.get_state().equal(two.get_state())


def test_the_same_seed_gives_the_same_completions_and_another_gives_others(policy: Policy) -> None:
    prompts = [groups(policy)[0].prompt]
    one, two, other = (generate(policy, prompts, 4, 8, SamplerConfig(), seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_special_tokens_are_never_sampled(policy: Policy) -> None:
    with torch.no_grad():
        policy.base.get_output_embeddings().weight[policy.image_token_id] = 0
    prompts = [groups(policy)[0].prompt]
    tokens = {t for c in generate(policy, prompts, 64, 16, SamplerConfig(temperature=5), 1)[0] for t in c.ids}
    assert not tokens & (policy.special_ids - set(policy.end_ids))


def test_filters_of_the_sampler_keep_their_tokens(policy: Policy) -> None:
    """top_k = 1 leaves one token, so its logprob is 0 and the result is the greedy one."""
    prompts = [groups(policy)[0].prompt]
    greedy = generate(policy, prompts, 0, 8, SamplerConfig(), 0, greedy=1)
    [[one]] = generate(policy, prompts, 1, 8, SamplerConfig(top_k=1), 0)
    assert one.ids == greedy[0][0].ids
    assert max(abs(value) for value in one.logprobs) < 1e-6
