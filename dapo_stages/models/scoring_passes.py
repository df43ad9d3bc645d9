"""What score-attention learns of each token from whole forward passes over a batch of groups, besides attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dapo_stages.config.attention import AttentionConfig
from dapo_stages.data.blanks import Blank, Blanks, OtherImages
from dapo_stages.handoff.shards import Row
from dapo_stages.maths.group_draws import DIRECTIONS, generator
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group, Packed, Prompt
from dapo_stages.models.token_scores import Scores, hidden_states, token_scores, vision_cosine
from dapo_stages.models.vision_gradient import directions, vision_gradient


@dataclass(frozen=True)
class ScoringPasses:
    """The passes that the settings ask for. `others` is needed to exchange images."""

    policy: Policy
    settings: AttentionConfig
    temperature: float
    seed: int
    others: OtherImages | None = None

    def scores(self, prompts: Sequence[Row], groups: Sequence[Group], packed: Packed, hidden: torch.Tensor) -> Scores:
        """By column, [sum C] each, of a packed batch with its last hidden states [T, D].

        Logprobs and entropies always; with the images blanked, the cosine and the gradient if configured.
        """
        policy, settings = self.policy, self.settings
        blanks = [self._blank(prompts, groups, draw) for draw in range(self.draws)]
        rows = hidden.index_select(0, packed.predicting)
        found = token_scores(policy, rows, packed.targets, self.temperature, settings.chunk_rows, blanks)
        vision = [_vision(policy, group) for group in groups]
        if settings.vision_cosine:
            found["vision_cosine"] = vision_cosine(hidden, packed, vision)
        if settings.vision_gradient:
            rngs = [generator(DIRECTIONS, self.seed, prompt["group_id"]) for prompt in prompts]
            chosen = directions(vision, rngs, hidden.shape[-1])
            found["vision_gradient"] = vision_gradient(policy, packed, chosen, self.temperature, settings.chunk_rows)
        return found

    @property
    def draws(self) -> int:
        """How often changed images are drawn."""
        return self.settings.blank_draws * self.settings.blank_image

    def changed(self, prompt: Row, draw: int) -> Prompt:
        """A prompt after one draw of the changed images."""
        settings, policy = self.settings, self.policy
        blank = Blank(settings.blank, settings.blank_share, settings.blank_patch)
        marks = policy.image_marks if settings.blank == "removed" else None
        return prompt_of(Blanks(blank, self.seed, marks, self.others)(prompt, draw), policy.processor)

    def _blank(self, prompts: Sequence[Row], groups: Sequence[Group], draw: int) -> torch.Tensor:
        """The hidden states that predict the completion tokens after one draw of the changed images, [sum C, D]."""
        pairs = zip(prompts, groups, strict=True)
        same = [Group(self.changed(prompt, draw), group.completions) for prompt, group in pairs]
        return hidden_states(self.policy, self.policy.pack(same))


def _vision(policy: Policy, group: Group) -> torch.Tensor:
    """Which of a group's packed tokens are its images' or videos', [P + sum C]."""
    tail = torch.zeros(sum(map(len, group.completions)), dtype=torch.bool)
    seen = torch.tensor(sorted(policy.tokens.vision_ids))
    return torch.cat([torch.isin(group.prompt.ids, seen), tail])
