"""Logprobs, entropy and the KL to the blanked image equal those of full logits, a row per completion."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.families import QWEN
from support.prompts import groups, image, own_row, prompt
from torch.distributions import Categorical, kl_divergence

from dapo_stages.data import blanks
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.masses import MassRecorder, prompt_kinds
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.models.token_scores import hidden_states, token_scores, vision_cosine

SIZES = [[(84, 56)], [(56, 112), (140, 84)], []]  # of the images in support.prompts.groups
TEMPERATURE = 0.7


def blanked(policy: Policy, group: Group, sizes: list[tuple[int, int]]) -> Group:
    if not sizes:
        return group
    gray = [Image.new("RGB", size, (127, 127, 127)) for size in sizes]
    pixels = policy.processor.image_processor(images=gray, return_tensors="pt")["pixel_values"]
    return replace(group, prompt=replace(group.prompt, pixel_values=pixels))


def own_distribution(policy: Policy, group: Group, completion: list[int]) -> Categorical:
    """Through transformers' own forward, in a separate row, over the tokens that can be sampled."""
    logits = policy.model(**own_row(policy, group.prompt, completion), use_cache=False).logits[0]
    return Categorical(logits=logits[len(group.prompt.ids) - 1 : -1, ~policy.suppressed] / TEMPERATURE)


def own_scores(policy: Policy, cases: list[Group], blanks: list[Group]) -> dict[str, torch.Tensor]:
    policy.attend("separate")
    found: dict[str, list[torch.Tensor]] = {}
    kept = (~policy.suppressed).nonzero()[:, 0].tolist()
    with torch.no_grad():
        for case, blank in zip(cases, blanks, strict=True):
            for completion in map(list, case.completions):
                seen, unseen = (own_distribution(policy, one, completion) for one in (case, blank))
                places = torch.tensor([kept.index(token) for token in completion])
                found.setdefault("logprobs", []).append(seen.log_prob(places))
                found.setdefault("entropy", []).append(seen.entropy())
                found.setdefault("blank_logprobs", []).append(unseen.log_prob(places))
                found.setdefault("visual_kl", []).append(kl_divergence(seen, unseen))
                found.setdefault("blank_entropy", []).append(unseen.entropy())
                middle = Categorical(probs=(seen.probs + unseen.probs) / 2)
                jsd = (kl_divergence(seen, middle) + kl_divergence(unseen, middle)) / 2
                found.setdefault("jsd", []).append(jsd)
                ratio = unseen.probs.gather(1, places[:, None])[:, 0] / seen.probs.gather(1, places[:, None])[:, 0]
                found.setdefault("k3", []).append(ratio - ratio.log() - 1)
    return {name: torch.cat(parts) for name, parts in found.items()}


def both_scores(policy: Policy, cases: list[Group], chunk: int) -> tuple[dict[str, torch.Tensor], ...]:
    """Scores of packed groups, and of separate rows."""
    blanks = [blanked(policy, case, sizes) for case, sizes in zip(cases, SIZES, strict=True)]
    want = own_scores(policy, cases, blanks)
    policy.attend("grouped")
    packed, blank = policy.pack(cases), hidden_states(policy, policy.pack(blanks))
    return token_scores(policy, hidden_states(policy, packed), packed.targets, TEMPERATURE, chunk, [blank]), want


@pytest.mark.parametrize(
    ("policy", "chunk"),
    [*((family, chunk) for family in QWEN for chunk in (3, 1024)), ("internvl", 3)],
    indirect=["policy"],
)
@pytest.mark.usefixtures("exact")
def test_scores_equal_those_of_separate_rows(policy: Policy, chunk: int) -> None:
    policy.model.double()
    cases = groups(policy)
    got, want = both_scores(policy, cases, chunk)
    assert set(got) == set(want)
    for name, values in want.items():
        assert torch.allclose(got[name], values, rtol=0, atol=1e-9), name
    with_image = sum(len(completion) for case in cases[:2] for completion in case.completions)
    assert (got["visual_kl"][:with_image] > 1e-6).all()
    assert (got["visual_kl"][with_image:] == 0).all()  # nothing to blank


def test_scores_in_float32_are_as_close_as_that_is(policy: Policy) -> None:
    got, want = both_scores(policy, groups(policy), 5)
    for name, values in want.items():
        assert torch.allclose(got[name], values, rtol=0, atol=1e-5), name


def test_without_a_blank_pass_there_is_only_what_needs_none(policy: Policy) -> None:
    policy.attend("grouped")
    packed = policy.pack(groups(policy))
    got = token_scores(policy, hidden_states(policy, packed), packed.targets, 1.0, 1024)
    assert set(got) == {"logprobs", "entropy"}


def test_masses_and_hidden_states_come_of_one_pass(policy: Policy) -> None:
    policy.attend("grouped")
    (case, *_) = groups(policy)
    packed = policy.pack([case])
    ids = case.prompt.ids.tolist()
    kinds = prompt_kinds(ids, [token == policy.image_token_id for token in ids], policy.special_ids, 0)
    [alone] = MassRecorder(packed.spans, [kinds], policy.scored_layers).collect(policy.base.model, packed)
    [both], hidden = MassRecorder(packed.spans, [kinds], policy.scored_layers).collect_all(policy.base.model, packed)
    assert all(torch.equal(a.masses, b.masses) for a, b in zip(alone, both, strict=True))
    assert torch.equal(hidden.index_select(0, packed.predicting), hidden_states(policy, packed))


def test_the_cosine_is_that_of_separate_rows(policy: Policy) -> None:
    policy.model.double()
    cases = groups(policy)
    policy.attend("separate")
    want = []
    with torch.no_grad():
        for case in cases:
            for completion in map(list, case.completions):
                row = own_row(policy, case.prompt, completion)
                (hidden,) = policy.base.model(**row, use_cache=False).last_hidden_state
                mean = hidden[row["input_ids"][0] == policy.image_token_id].mean(0)
                rows = hidden[len(case.prompt.ids) - 1 : -1]
                want.append(rows @ mean / (rows.norm(dim=-1) * mean.norm()))
        policy.attend("grouped")
        packed = policy.pack(cases)
        masks = [
            torch.cat([case.prompt.ids == policy.image_token_id, torch.zeros(sum(map(len, case.completions))).bool()])
            for case in cases
        ]
        hidden = policy.base.model(**packed.model_inputs).last_hidden_state[0]
    found = vision_cosine(hidden, packed, masks)
    assert torch.allclose(found.double(), torch.cat(want), atol=1e-5, equal_nan=True)
    with_image = sum(len(completion) for case in cases[:2] for completion in case.completions)
    assert found[:with_image].isfinite().all() and found[with_image:].isnan().all()


def test_without_an_image_the_prompt_is_that_of_its_text_alone(policy: Policy) -> None:
    with_image, without = (prompt(policy, "What colour is it?", sizes) for sizes in ([(84, 56)], []))
    assert blanks.without_images(with_image.ids.tolist(), policy.image_marks) == without.ids.tolist()


@pytest.mark.parametrize("gray", [True, False])
def test_blanking_a_blank_image_changes_nothing(policy: Policy, gray: bool) -> None:
    drawn = Image.new("RGB", (84, 56), (127, 127, 127)) if gray else image(84, 56, 1)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    made = prompt(policy, "What colour?", [(84, 56)])
    assert made.image_grid_thw is not None
    row = {
        "prompt_id": "p",
        "prompt_ids": made.ids.tolist(),
        "images": [{"bytes": buffer.getvalue(), "path": None}],
        "image_grid_thw": made.image_grid_thw.tolist(),
    }
    policy.attend("grouped")
    packs = [policy.pack([Group(prompt_of(one, policy.processor), [[5, 6, 7]])]) for one in (row, blanks.blanked(row))]
    seen, unseen = (hidden_states(policy, packed) for packed in packs)
    scores = token_scores(policy, seen, packs[0].targets, 1.0, 2, [unseen])
    assert torch.equal(scores["logprobs"], scores["blank_logprobs"]) == gray
    assert bool((scores["visual_kl"] == 0).all()) == gray
