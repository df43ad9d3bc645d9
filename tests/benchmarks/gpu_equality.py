"""gpu-check, first: does every layout and kernel give the numbers of separate rows, on this device, in both types?

Numbers are compared with those of separate rows in float32. In bfloat16 a layout may be as far from these as separate
rows in bfloat16 are themselves, twice over: roundings differ, but not in size.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import models, trl_side
from benchmarks.gpu_record import Line
from dapo_stages.config import SamplerConfig
from dapo_stages.engines.transformers_engine import generate
from dapo_stages.models.logprobs import GroupLogprobs, log_distribution
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.masses import FIRST, OTHER, TEXT, VISION, MassRecorder, prompt_kinds
from dapo_stages.models.shared_prefix.packing import Group

EXACT, EXACT_GRADIENT = 1e-4, 1e-3  # of float32: nats, and the distance of gradients over their norm
EXACT_MASS = 1e-5
SLACK = 1e-3  # beside twice the distance of separate rows in bfloat16


@dataclass(frozen=True)
class Numbers:
    """What a forward and backward pass gave, in float64 on the CPU."""

    logprobs: torch.Tensor  # [sum C]
    gradient: torch.Tensor  # [parameters] of the logprobs' sum with alternating signs


def packed_against_separate(device: torch.device, *, tiny: bool) -> Iterator[Line]:
    """Logprobs and gradients of two groups: separate rows, packed with SDPA, packed with flex, compiled."""
    want: Numbers | None = None
    for dtype in (torch.float32, torch.bfloat16):
        policy, groups = case(device, dtype, tiny=tiny)
        separate = numbers(policy, groups, "separate")
        want = want or separate
        own = apart(separate, want)
        name = str(dtype).removeprefix("torch.")
        if dtype == torch.bfloat16:
            yield Line("equality", f"separate rows, {name}", dict(zip(UNITS, own, strict=True)))
        for way in ("packed", "flex", "compiled"):
            if way == "flex" and device.type == "cpu":
                continue  # no gradient on CPUs; tests/models/shared_prefix/test_flex.py compares its numbers there
            found = apart(numbers(policy, groups, way), want)
            limits = (EXACT, EXACT_GRADIENT) if dtype == torch.float32 else (2 * own[0] + SLACK, 2 * own[1] + SLACK)
            ok = all(one <= limit for one, limit in zip(found, limits, strict=True))
            yield Line("equality", f"{way}, {name}", dict(zip(UNITS, found, strict=True)), ok)


UNITS = ("logprobs apart, nats", "gradients apart, of their norm")


def case(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> tuple[Policy, list[Group]]:
    """A policy of random weights and two groups with an image each, of completions of unequal length."""
    policy = models.small() if tiny else models.medium()
    policy.model.to(device=device, dtype=dtype)
    policy = replace(policy, device=device, dtype=dtype)
    shapes = (
        ((40, (2, 4), (6, 3, 5)), (30, (2, 3), (4, 1)))
        if tiny
        else ((350, (10, 12), (96, 31, 64, 80)), (210, (8, 8), (100, 7, 55)))
    )
    groups = []
    for number, (length, vision, lengths) in enumerate(shapes):
        own = [models.completions(1, n, 10 * number + place)[0] for place, n in enumerate(lengths)]
        groups.append(Group(models.prompt(policy, length, vision, number), own))
    return policy, groups


def numbers(policy: Policy, groups: list[Group], way: str) -> Numbers:
    """Of one way to compute: separate, packed, flex, or compiled (packed, with logprobs compiled)."""
    policy.model.zero_grad()
    policy.__dict__.update(flex=way == "flex", compiled=way == "compiled")
    policy.attend("separate" if way == "separate" else "grouped")
    if way == "separate":
        found = torch.cat([_alone(policy, group, one) for group in groups for one in group.completions])
    else:
        found, _ = GroupLogprobs(policy, 1.0)(policy.pack(groups))
    signs = torch.ones_like(found)
    signs[::2] = -1
    torch.autograd.backward((found * signs).sum())
    policy.__dict__.update(flex=False, compiled=False)
    gradients = [p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]
    return Numbers(found.detach().double().cpu(), torch.cat(gradients).double().cpu())


def apart(found: Numbers, want: Numbers) -> tuple[float, float]:
    """Largest distance of a logprob, and distance of the gradients over their norm."""
    gradient = (found.gradient - want.gradient).norm() / want.gradient.norm()
    return float((found.logprobs - want.logprobs).abs().max()), float(gradient)


def _alone(policy: Policy, group: Group, completion: Any) -> torch.Tensor:
    """[C] logprobs of a completion in a row of its own, through the model as transformers has it."""
    ids = torch.cat([group.prompt.ids, torch.tensor(completion)])[None]
    row = _row(policy, group, ids)
    logits = policy.base(**row, use_cache=False).logits[0, len(group.prompt.ids) - 1 : -1]
    targets = torch.tensor(completion, device=policy.device)
    return log_distribution(logits, policy.suppressed, 1.0).gather(-1, targets[:, None])[:, 0]


def _row(policy: Policy, group: Group, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    row = trl_side.rows_of(policy, [Group(group.prompt, [[0]])])
    row |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    row["mm_token_type_ids"] = (ids == policy.image_token_id).int()
    return {name: value.to(policy.device) for name, value in row.items()}


def masses_against_eager(device: torch.device, *, tiny: bool) -> Iterator[Line]:
    """Masses of the packed pass against attention probabilities of eager rows, layer by layer."""
    want: torch.Tensor | None = None
    for dtype in (torch.float32, torch.bfloat16):
        policy, groups = case(device, dtype, tiny=tiny)
        with torch.inference_mode():
            eager = torch.cat([_eager(policy, group, one) for group in groups for one in group.completions], 1)
        want = eager if want is None else want
        own = float((eager - want).abs().max())
        policy.attend("grouped")
        packed, kinds = policy.pack(groups), [_kinds(policy, group) for group in groups]
        scored = MassRecorder(packed.spans, kinds, policy.scored_layers).collect(policy.base.model, packed)
        found = torch.cat([one.masses.double().cpu() for completions in scored for one in completions], 1)
        distance = float((found - want).abs().max())
        values = {"masses apart": distance}
        if dtype == torch.bfloat16:
            values["an eager pass in bfloat16 itself"] = own
        limit = EXACT_MASS if dtype == torch.float32 else 2 * own + SLACK
        name = str(dtype).removeprefix("torch.")
        yield Line("masses", name, values, distance <= limit)


def recorded_decoding(device: torch.device, *, tiny: bool) -> Iterator[Line]:
    """Greedy completions from a compiled static cache, whose steps are one CUDA graph, against those of a growing cache
    without any of this. On CPUs nothing is recorded, and compiling takes minutes."""
    if device.type != "cuda":
        return
    policy, groups = case(device, torch.float32, tiny=tiny)
    policy.__dict__["end_ids"] = [-1]
    prompts, found = [group.prompt for group in groups], []
    for compiled in (False, True, True):
        policy.compiled = compiled
        began = time.perf_counter()
        found.append([one for group in generate(policy, prompts, 0, 64, SamplerConfig(), 0, greedy=2) for one in group])
        seconds = time.perf_counter() - began
    policy.compiled = False
    same = all(one.ids == other.ids for one, other in zip(found[0], found[2], strict=True))
    distance = max(
        abs(a - b)
        for one, other in zip(found[0], found[2], strict=True)
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
    )
    values = {UNITS[0]: distance, "ms per step": 1e3 * seconds / 64}
    yield Line("decoding", "a CUDA graph of a compiled step, float32", values, same and distance <= EXACT)


def _kinds(policy: Policy, group: Group) -> torch.Tensor:
    ids = group.prompt.ids.tolist()
    return prompt_kinds(ids, [token == policy.image_token_id for token in ids], policy.special_ids, 0)


def _eager(policy: Policy, group: Group, completion: Any) -> torch.Tensor:
    """[L, C, 5] vision, text, other, first, generated of an eager row, in float64 on the CPU."""
    prompt = len(group.prompt.ids)
    row = _row(policy, group, torch.cat([group.prompt.ids, torch.tensor(completion)])[None])
    policy.base.set_attn_implementation("eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = policy.base.model(**row, use_cache=False, output_attentions=True).attentions
    rows = torch.stack([layer[0, :, prompt - 1 : -1].double().mean(0).cpu() for layer in layers])
    kinds = _kinds(policy, group)
    sums = [rows[..., :prompt][..., kinds == kind].sum(-1) for kind in (VISION, TEXT, OTHER, FIRST)]
    return torch.stack([*sums, rows[..., prompt:].sum(-1)], -1)
