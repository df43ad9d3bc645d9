"""What score-attention learns of each token of a group in rows of its own: attention, and scores of its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch

from dapo_stages.handoff.shards import Row
from dapo_stages.models.own_rows import Recorded, RowRecorder, recording
from dapo_stages.models.policy import Policy
from dapo_stages.models.precision import autocast
from dapo_stages.models.scoring_passes import ScoringPasses
from dapo_stages.models.separate_rows import logits_of
from dapo_stages.models.shared_prefix.masses import VISION, Scored
from dapo_stages.models.shared_prefix.packing import Group, SeparateRows
from dapo_stages.models.token_scores import Scores, cosine, token_scores


def score_rows(
    passes: ScoringPasses,
    prompt: Row,
    group: Group,
    kinds: torch.Tensor,
    patches: Sequence[int],
    *,
    units: torch.Tensor | None = None,
    tokens: bool,
) -> tuple[list[Scored], Scores]:
    """Attention of each completion of a group, and by column the scores [sum C] of its tokens, if `tokens` are wanted.

    `kinds` [P] names the kind of each prompt key, `patches` the completions whose attention is kept per vision token,
    `units` [P, U] which keys belong to which image.
    """
    policy, settings = passes.policy, passes.settings
    lengths = [len(completion) for completion in group.completions]
    recorder = RowRecorder(
        kinds,
        lengths,
        policy.scored_layers,
        settings.query,
        settings.chunk_rows,
        patches,
        rollout=settings.rollout_mass,
        units=units,
    )
    recorder.to_the_end = tokens
    scores: Scores = {}
    with torch.inference_mode(), autocast(policy):
        with _Hidden(policy.base.get_decoder()) as last:
            logits = _logits(passes, group, recorded(policy, recorder))
        if logits is not None:
            blanks = [_blank(passes, prompt, group, draw) for draw in range(passes.draws)]
            targets = torch.tensor([token for completion in group.completions for token in completion])
            found = token_scores(
                policy, logits, targets.to(policy.device), passes.temperature, settings.chunk_rows, blanks, head=_as_is
            )
            scores |= found
            if settings.vision_cosine:
                scores["vision_cosine"] = _cosines(last.states, kinds, lengths)
    results = recorder.results()
    if settings.rollout_mass:
        scores["rollout_mass"] = torch.cat([one.rollout for one in results if one.rollout is not None])
    return results, scores


@contextmanager
def recorded(policy: Policy, recorder: RowRecorder) -> Iterator[None]:
    """What the policy computes inside is recorded; afterwards it attends to separate rows as before."""
    policy.attend("recorded")
    try:
        with recording(recorder):
            yield
    finally:
        policy.attend("separate")


class _Hidden:
    """Keeps the last hidden states [N, T, D] that a decoder made."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        self._hook = decoder.register_forward_hook(self._see)
        self.states = torch.empty(0)

    def _see(self, module: object, inputs: object, output: object) -> None:
        self.states = output[0]  # type: ignore[index]

    def __enter__(self) -> _Hidden:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def _logits(
    passes: ScoringPasses, group: Group, inside: AbstractContextManager[None] | None = None
) -> torch.Tensor | None:
    """Those that predict the completion tokens, [sum C, V]; None if the pass was ended after its attention."""
    with inside or nullcontext(), suppress(Recorded):
        [(logits, _)] = logits_of(passes.policy, SeparateRows([group]))
        return logits
    return None


def _blank(passes: ScoringPasses, prompt: Row, group: Group, draw: int) -> torch.Tensor:
    """Logits after one draw of the changed images, [sum C, V]."""
    logits = _logits(passes, Group(passes.changed(prompt, draw), group.completions))
    assert logits is not None
    return logits


def _cosines(states_NTD: torch.Tensor, kinds: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Cosine of the hidden state that predicted each token to the mean one of its images, [sum C]."""
    first, vision = len(kinds) - 1, (kinds == VISION).to(states_NTD.device)
    found = [
        cosine(states[first : first + length], states[: len(kinds)][vision])
        for states, length in zip(states_NTD, lengths, strict=True)
    ]
    return torch.cat(found).cpu()


def _as_is(logits: torch.Tensor) -> torch.Tensor:
    return logits
