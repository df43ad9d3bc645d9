"""Row 3: completions of given prompts, against generate exactly as GRPOTrainer calls it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from benchmarks import models, trl_side
from dapo_stages.config import SamplerConfig
from dapo_stages.engines.transformers_engine import generate
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group

OURS = "prompts prefilled once, 8 rows each decoded from that cache; logprobs of the sampling distribution"
THEIRS = "GRPOTrainer's generation: every prompt 8 times through vision tower and prefill, sampling; no logprobs"
PROMPTS, GENERATIONS, LONGEST = 4, 8, 64
_VARIED = 1.25  # about the largest of all other logits: under greedy decoding some prompts end early, others do not


class Generation:
    """4 prompts × 8 completions of at most 64 tokens, in one batch on either side, sampled at temperature 1."""

    def __init__(self, policy: Policy, mean_length: float | None) -> None:
        """Without `mean_length` every completion is forced to the full length; else lengths are geometric."""
        self._policy = policy
        self._prompts = [models.prompt(policy, 303, (16, 16), seed) for seed in range(PROMPTS)]
        self._calls = 0
        self._lengths: dict[str, list[int]] = {"ours": [], "theirs": []}
        end = policy.end_ids[0]
        if mean_length is None:
            policy.__dict__["end_ids"] = [-1]  # no token ends a completion
        self._suppressed = policy.suppressed.nonzero()[:, 0].tolist()
        self._biases = [] if mean_length is None else [_end_bias(policy, end, mean_length), _VARIED]
        other = Policy(copy.deepcopy(policy.model), policy.processor, policy.device, policy.dtype)
        self._models, self._end = (policy.model, other.model), end
        forced = {"min_new_tokens": LONGEST} if mean_length is None else {}
        self._trl = trl_side.trainer(
            other,
            batch=PROMPTS * GENERATIONS,
            accumulation=1,
            max_length=LONGEST,
            generation_kwargs={"suppress_tokens": [t for t in self._suppressed if t != end], **forced},
        )
        group = [Group(prompt, [[0]] * GENERATIONS) for prompt in self._prompts]
        self._inputs = trl_side.rows_of(other, group)
        self._set_bias(0)
        self._ids = [prompt.ids.tolist() for prompt in self._prompts for _ in range(GENERATIONS)]

    def check(self) -> dict[str, float]:
        """Greedy completions are the same, token by token. -> the number of tokens compared."""
        self._set_bias(1)
        ours = self._ours(greedy=True)
        settings = self._trl.generation_config
        settings.do_sample = False
        theirs = self._theirs()
        settings.do_sample = True
        self._set_bias(0)
        assert ours == theirs, "greedy completions differ"
        lengths = sorted({len(ids) for ids in ours})
        return {"greedy tokens equal": float(sum(map(len, ours))), "of different lengths": float(len(lengths))}

    def ours(self) -> None:
        """Sample by this project."""
        self._lengths["ours"] += map(len, self._ours(greedy=False))

    def theirs(self) -> None:
        """Sample as TRL does."""
        self._lengths["theirs"] += map(len, self._theirs())

    @property
    def details(self) -> dict[str, float]:
        """Of all that was sampled, by side."""
        return {f"mean length, {side}": sum(found) / len(found) for side, found in self._lengths.items() if found}

    def _set_bias(self, which: int) -> None:
        """Bias the end token on the models themselves, so that every way to sample from them sees it."""
        if self._biases:
            for model in self._models:
                bias = torch.zeros(model.lm_head.out_features)
                bias[self._end] = self._biases[which]
                model.lm_head.bias = torch.nn.Parameter(bias)

    def _ours(self, *, greedy: bool) -> list[list[int]]:
        self._calls += 1
        samples, likeliest = (0, GENERATIONS) if greedy else (GENERATIONS, 0)
        found = generate(
            self._policy, self._prompts, samples, LONGEST, SamplerConfig(), seed=self._calls, greedy=likeliest
        )
        return [completion.ids for group in found for completion in group]

    def _theirs(self) -> list[list[int]]:
        fields: dict[str, Any] = {k: v for k, v in self._inputs.items() if k not in ("input_ids", "attention_mask")}
        completions: list[list[int]] = self._trl._generate_single_turn(self._ids, None, fields, GENERATIONS)[0]
        return completions


def forced() -> Generation:
    """All completions 64 tokens long."""
    return Generation(models.medium(), None)


def natural() -> Generation:
    """Lengths with a mean of a third of the maximum."""
    return Generation(models.medium(), LONGEST / 3)


def _end_bias(policy: Policy, end: int, mean: float) -> float:
    """Make the end token's logit a constant, and -> the bias that gives completions this mean length.

    Every token then ends its completion with the same probability p, so lengths are min(geometric(p), LONGEST).
    Random weights give all other tokens nearly the same logit: its variance, hidden size times the variance of the
    initial weights, raises the mean of their exponentials.
    """
    low, high = 1e-6, 1.0
    for _ in range(60):
        p = (low + high) / 2
        longer = (1 - (1 - p) ** LONGEST) / p > mean
        low, high = (p, high) if longer else (low, p)
    text = policy.base.config.get_text_config()
    with torch.no_grad():
        policy.base.get_output_embeddings().weight[end] = 0
    variance = text.hidden_size * text.initializer_range**2
    others = int((~policy.suppressed).sum()) - 1
    return math.log(p / (1 - p) * others * math.exp(variance / 2))
