"""The views that a perception term compares with: prompts with changed images, in batches and in the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from dapo_stages.config import PerceptionSettings
from dapo_stages.errors import ModelError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.maths.loss_inputs import LossInputs
from dapo_stages.maths.loss_types import Aggregation, LossType, divisor_of
from dapo_stages.maths.perception import PerceptionTerm, View, perception_loss
from dapo_stages.models.families import has_grids
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.training.batches import MicroBatch, Scores

if TYPE_CHECKING:
    from dapo_stages.models.policy import Policy

Change = Callable[[Row], Row]


def changes_of(
    settings: PerceptionSettings | None, seed: int, rollouts: Source, policy: Policy, stack: ExitStack
) -> tuple[Change, ...]:
    """What makes each view of a prompt row, drawn from the seed and the row's group; none without a term.

    Files stay open until `stack` is closed. Raises ModelError where this model cannot have such a view, and DataError
    where there is nothing to exchange images with.
    """
    from dapo_stages.data.blanks import Blank, Blanks, OtherImages, noised

    if settings is None:
        return ()
    if policy.tokens.image_token_id is None:
        raise ModelError(
            f"{policy.architecture}: its prompts do not tell where images are, which train.perception must know. Set "
            "train.perception to null."
        )
    if settings.blank == "removed" and not has_grids(policy.architecture):
        raise ModelError(
            f"{policy.architecture}: images cannot be removed from the prompts of this model. Set "
            "train.perception.blank to patches."
        )
    marks = policy.image_marks if settings.blank == "removed" else None
    others = None
    if settings.blank == "exchanged":
        others = OtherImages(stack.enter_context(rollouts.index("prompts")), rollouts.folder, "train.perception.blank")
    blank = Blanks(Blank(settings.blank, settings.blank_share, settings.blank_patch), seed, marks, others)
    return (blank,) if settings.term == "papo" else (blank, partial(noised, share=settings.noise, seed=seed))


def viewed(batch: MicroBatch) -> Iterator[Group]:
    """The groups of a micro-batch with each of their views; all of the first view, then all of the second."""
    for number in range(max((len(group.views) for group in batch.groups), default=0)):
        for group in batch.groups:
            if group.views:
                yield Group(group.views[number](), [sample.ids for sample in group.samples])


class Perception(NamedTuple):
    """The term of a configuration, as the update adds it."""

    settings: PerceptionSettings
    loss_type: LossType
    aggregation: Aggregation | None = None

    def loss(
        self, batch: MicroBatch, inputs: LossInputs, scores: Scores | None, normalizer: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The term of a micro-batch, from the scores of its views ([views · sum C]); None: it has no images."""
        settings, entropy_T = self.settings, inputs.entropy_T
        assert entropy_T is not None
        seen_T = torch.tensor([bool(g.views) for g in batch.groups for s in g.samples for _ in s.ids])
        seen_T = seen_T.to(inputs.mask_T.device)
        counted_S, kept_T = inputs.mask_T[seen_T], inputs.mask_T & seen_T
        if scores is None:
            scores = inputs.new_T[:0], entropy_T[:0]
        of_views = zip(*(part.chunk(settings.views) for part in scores), strict=True)
        term = PerceptionTerm(
            settings.coefficient, settings.entropy_coefficient, settings.term == "papo", settings.clamp
        )
        return perception_loss(
            inputs.new_T[kept_T],
            entropy_T[kept_T],
            [
                View(logprobs[counted_S], entropy[counted_S], toward=number > 0)
                for number, (logprobs, entropy) in enumerate(of_views)
            ],
            divisor_of(self.loss_type, inputs, self.aggregation)[kept_T],
            term,
            normalizer,
        )


def metrics_of(sums: dict[str, float]) -> dict[str, float]:
    """Means over the tokens in the loss that have an image, by name; not a number if there are none."""
    tokens = sums.get("seen_tokens")
    if tokens is None:
        return {}
    names = [name for name in sums if name.startswith(("perception_", "robustness_"))]
    means = {name.removesuffix("_sum"): sums[name] / tokens if tokens else math.nan for name in names}
    return means | {"seen_tokens": tokens}
