"""Generation: the same tokens as transformers' own generate, and honest log-probs."""

from __future__ import annotations

import pytest
import torch
from support.families import OTHER, SHARED
from support.prompts import groups, own_row

from dapo_stages.config import SamplerConfig
from dapo_stages.engines import transformers_engine
from dapo_stages.engines.transformers_engine import generate
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.packing import Group
from dapo_stages.models.policy import Policy


def stir(policy: Policy) -> None:
    """Larger weights in the layers: with random ones of the usual size every token is followed by itself. In float64,
    so that no rounding decides between tokens that are nearly as likely."""
    policy.model.double()
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(5)


@pytest.mark.parametrize("policy", [*SHARED, OTHER], indirect=True)
def test_greedy_equals_generate_of_transformers(policy: Policy) -> None:
    stir(policy)
    prompts = [group.prompt for group in groups(policy)]
    found = generate(policy, prompts, 2, 12, SamplerConfig(), 0, greedy=True)
    for prompt, (one, two) in zip(prompts, found, strict=True):
        policy.base.model.rope_deltas = None
        want = policy.model.generate(
            **own_row(policy, prompt),
            do_sample=False,
            temperature=None,
            max_new_tokens=12,
            suppress_tokens=policy.suppressed.nonzero()[:, 0].tolist(),
        )[0, len(prompt.ids) :].tolist()
        assert one.ids == two.ids == want
    assert len({tuple(one.ids) for one, _ in found}) == len(prompts)


def test_compiled_decoding_gives_the_same_tokens_from_one_graph(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A static cache at fixed shapes: the second batch, of other prompts, must not compile again.

    The graph is captured whole but not turned into machine code, which would take a minute.
    """
    monkeypatch.setattr(transformers_engine, "_BACKEND", "eager")
    stir(policy)
    prompts = [group.prompt for group in groups(policy)]
    want = generate(policy, prompts, 2, 12, SamplerConfig(), 0, greedy=True)
    policy.compiled = True
    found = generate(policy, prompts, 2, 12, SamplerConfig(), 0, greedy=True)
    assert [[c.ids for c in cs] for cs in found] == [[c.ids for c in cs] for cs in want]
    with torch.compiler.set_stance("fail_on_recompile"):
        again = generate(policy, prompts[::-1], 2, 12, SamplerConfig(), 0, greedy=True)
    assert [[c.ids for c in cs] for cs in again[::-1]] == [[c.ids for c in cs] for cs in want]


@pytest.mark.parametrize("policy", [*SHARED, OTHER], indirect=True)
def test_sampling_logprobs_are_those_of_the_trainer(policy: Policy) -> None:
    prompts = [group.prompt for group in groups(policy)]
    found = generate(policy, prompts, 4, 16, SamplerConfig(temperature=1.3), 5)
    cases = [Group(p, [c.ids for c in cs]) for p, cs in zip(prompts, found, strict=True)]
    policy.attend("grouped")
    with torch.no_grad():
        trainer, _ = GroupLogprobs(policy, temperature=1.3)(policy.batch(cases))
    engine = torch.tensor([value for cs in found for c in cs for value in c.logprobs])
    assert (trainer - engine).abs().max().item() < 1e-4


def test_finished_rows_leave_without_changing_the_others(policy: Policy) -> None:
    """With many end tokens rows finish at different steps; greedy decoding one by one must give the same."""
    prompts = [group.prompt for group in groups(policy)]
    alone = [generate(policy, [p], 1, 20, SamplerConfig(), 0, greedy=True)[0][0] for p in prompts]
    policy.end_ids.append(alone[0].ids[3])
    policy.end_ids.append(alone[1].ids[8])
    together = [cs[0] for cs in generate(policy, prompts, 1, 20, SamplerConfig(), 0, greedy=True)]
    for one, other in zip(alone, together, strict=True):
        length = next((i + 1 for i, t in enumerate(one.ids) if t in policy.end_ids), len(one.ids))
        assert other.ids == one.ids[:length]
        assert other.finish_reason == ("stop" if other.ids[-1] in policy.end_ids else "length")


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
    """top_k = 1 leaves one token, so its log-prob is 0 and the result is the greedy one."""
    prompts = [groups(policy)[0].prompt]
    greedy = generate(policy, prompts, 1, 8, SamplerConfig(), 0, greedy=True)
    [[one]] = generate(policy, prompts, 1, 8, SamplerConfig(top_k=1), 0)
    assert one.ids == greedy[0][0].ids
    assert max(abs(value) for value in one.logprobs) < 1e-6
