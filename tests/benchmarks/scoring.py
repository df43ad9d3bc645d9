"""Row 2: attention masses of given completions, against an eager forward that keeps all attention."""

from __future__ import annotations

import copy

import torch
from transformers.utils.logging import set_verbosity_error

from benchmarks import limits, models, trl_side
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.masses import MassRecorder, prompt_kinds
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.planning import stage_costs

OURS = "one packed forward of the group, masses of completion rows chunk by chunk; no logits"
THEIRS = (
    "forward of a row per completion with eager attention and output_attentions=True (vision tower under SDPA), "
    "reduced to the same masses; no logits"
)


class Scoring:
    """Masses [L, C, 5] of every completion of one group."""

    def __init__(self, policy: Policy, group: Group) -> None:
        self._policy, self._group = policy, group
        ids = group.prompt.ids.tolist()
        vision = [token == policy.image_token_id for token in ids]
        self._kinds = prompt_kinds(ids, vision, policy.special_ids, 0)
        set_verbosity_error()  # it warns that the vision tower, under SDPA, gives no attention
        self._eager = copy.deepcopy(policy.model)
        self._eager.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
        policy.attend("grouped")
        self._batch = trl_side.rows_of(policy, [group])
        completions = torch.tensor([list(c) for c in group.completions])
        self._batch["input_ids"] = torch.cat([self._batch["input_ids"], completions], 1)
        for name in ("attention_mask", "mm_token_type_ids"):
            fill = int(name == "attention_mask")
            self._batch[name] = torch.cat([self._batch[name], torch.full_like(completions, fill)], 1)

    def check(self) -> dict[str, float]:
        """The largest difference of a mass."""
        difference = float((self._our_masses() - self._their_masses()).abs().max())
        assert difference < 1e-5, f"masses differ by {difference}"
        return {"mass difference": difference}

    def ours(self) -> None:
        """The masses by this project."""
        self._our_masses()

    def theirs(self) -> None:
        """The masses from full attention."""
        self._their_masses()

    @property
    def operations(self) -> float:
        """Of one scoring pass, with the prefix shared."""
        return stage_costs.scoring(limits.dimensions(self._policy), limits.load_of(self._group))

    def _our_masses(self) -> torch.Tensor:
        with torch.inference_mode():
            packed = self._policy.pack([self._group])
            recorder = MassRecorder(packed.spans, [self._kinds], self._policy.scored_layers)
            return torch.stack([one.masses for one in recorder.collect(self._policy.base.model, packed)[0]])

    def _their_masses(self) -> torch.Tensor:
        one_hot = torch.nn.functional.one_hot(self._kinds, 4).float()
        prompt = len(self._kinds)
        with torch.inference_mode():
            output = self._eager.model(**self._batch, output_attentions=True, use_cache=False)
            layers = []
            for attention in output.attentions:  # [N, H, T, T]
                rows = attention[:, :, prompt - 1 : -1].mean(1)
                generated = rows[..., prompt:].sum(-1, keepdim=True)
                layers.append(torch.cat([rows[..., :prompt] @ one_hot, generated], -1))
            return torch.stack(layers, 1)


def medium(prompt: int, vision: tuple[int, int], completion: int) -> Scoring:
    """One group of 8."""
    policy = models.medium()
    return Scoring(policy, Group(models.prompt(policy, prompt, vision, 0), models.completions(8, completion, 0)))
