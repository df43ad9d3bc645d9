"""What further columns of score-attention cost: masses alone, against the same with another pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import models
from dapo_stages.config.attention import AttentionConfig
from dapo_stages.data.blanks import OtherImages
from dapo_stages.data.images import encode
from dapo_stages.handoff.shards import Row
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.scoring_passes import ScoringPasses
from dapo_stages.models.shared_prefix.masses import MassRecorder, Scored, prompt_kinds
from dapo_stages.models.shared_prefix.packing import Group, Packed

PROMPT, VISION, COMPLETION = 303, (16, 16), 64


class Added:
    """One group of 8: its masses, and with `settings` of attention what these add."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._policy = models.medium()
        self._settings = AttentionConfig(**settings)
        rows = [self._row(number) for number in range(2)]
        self._prompts, others = rows[:1], OtherImages(rows, "rollouts")
        self._passes = ScoringPasses(self._policy, self._settings, 1.0, 0, others)
        prompt = prompt_of(rows[0], self._policy.processor)
        self._groups = [Group(prompt, models.completions(8, COMPLETION, 0))]
        vision = [token == self._policy.image_token_id for token in rows[0]["prompt_ids"]]
        self._kinds = prompt_kinds(rows[0]["prompt_ids"], vision, self._policy.special_ids, 0)
        self._policy.attend("grouped")

    def check(self) -> dict[str, float]:
        """Rollout lies between 0 and 1; other columns are finite."""
        found = self._more()
        assert all(bool(values.isfinite().all()) for values in found.values())
        return {name: float(values.mean()) for name, values in found.items() if name not in ("logprobs", "entropy")}

    def ours(self) -> None:
        """Masses alone."""
        packed = self._policy.pack(self._groups)
        self._recorder(packed).collect(self._policy.base.model, packed)

    def theirs(self) -> None:
        """Masses, and what is added."""
        self._more()

    def _more(self) -> dict[str, torch.Tensor]:
        packed = self._policy.pack(self._groups)
        recorder = self._recorder(packed, rollout=self._settings.rollout_mass)
        if self._settings.rollout_mass:
            [scored] = recorder.collect(self._policy.base.model, packed)
            return {"rollout_mass": torch.cat([_rollout(one) for one in scored])}
        _, hidden = recorder.collect_all(self._policy.base.model, packed)
        return self._passes.scores(self._prompts, self._groups, packed, hidden)

    def _recorder(self, packed: Packed, *, rollout: bool = False) -> MassRecorder:
        return MassRecorder(packed.spans, [self._kinds], self._policy.scored_layers, rollout=rollout)

    def _row(self, number: int) -> Row:
        rows, columns = (2 * side for side in VISION)
        pixels = np.random.default_rng(number).integers(0, 256, (14 * rows, 14 * columns, 3), dtype=np.uint8)
        return {
            "prompt_id": f"p{number}",
            "group_id": f"g{number}",
            "prompt_ids": models.prompt(self._policy, PROMPT, VISION, number).ids.tolist(),
            "images": [{"bytes": encode(Image.fromarray(pixels)), "path": None}],
            "image_grid_thw": [[1, rows, columns]],
        }


def _rollout(scored: Scored) -> torch.Tensor:
    assert scored.rollout is not None
    return scored.rollout
