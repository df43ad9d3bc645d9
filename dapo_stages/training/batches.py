"""Splits an optimizer step into forward passes and distributes them over the ranks.

Everything here is a pure function of the groups and the number of ranks, so every rank knows without communication what
the others compute. A single process gets exactly the micro-batches that `micro_batches` makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from dapo_stages.models.shared_prefix.packing import Prompt

Scores = tuple[torch.Tensor, torch.Tensor]  # logprobs and entropies of tokens


@dataclass
class Sample:
    """One completion in training. Sequences are [C]."""

    ids: Sequence[int]
    sampling: Sequence[float]
    weights: Sequence[float]
    advantage: float
    mask: Sequence[int] | None = None  # [C] 0 leaves a token out of the loss (loss_mask); None: all are in it
    lag: int = 0  # train-steps from the policy that sampled it to the one under training (replay, lag)

    @property
    def current(self) -> bool:
        """Whether it was sampled by the policy under training."""
        return self.lag == 0

    @property
    def in_loss(self) -> Sequence[int]:
        """Whether each token is in the loss, [C]."""
        return [1] * len(self.ids) if self.mask is None else self.mask


@dataclass
class TrainGroup:
    """Completions of one prompt, which is read on demand."""

    group_id: str
    prompt: Callable[[], Prompt]
    samples: list[Sample]
    prompt_tokens: int = 0
    has_images: bool = True
    counts: bool = True  # False: a filler, which goes through the model, but is in no sum
    replayed: bool = False  # from the replay buffer
    views: tuple[Callable[[], Prompt], ...] = ()  # the prompt with changed images, for terms that compare with them

    @property
    def cost(self) -> int:
        """Tokens that go through the model: the prompt once, and all completions."""
        return self.prompt_tokens + sum(len(sample.ids) for sample in self.samples)


@dataclass
class MicroBatch:
    """What goes through the model at the same time."""

    groups: list[TrainGroup]
    whole_tokens: int = 0  # tokens in the loss of the micro-batch that this was cut from; 0: it was not cut
    chunks: int = 1  # minimum number of chunks of logits, so that all ranks call the head equally often
    old: torch.Tensor | None = None  # [sum C] logprobs before this train-step
    reference: torch.Tensor | None = None  # [sum C]
    marked: torch.Tensor | None = None  # [sum C] tokens that clip_cov and kl_cov treat apart
    views: Scores | None = None  # of the groups' views, [views · sum C] each, where these are not computed again

    @property
    def samples(self) -> list[Sample]:
        return [sample for group in self.groups for sample in group.samples]

    @property
    def counts(self) -> list[bool]:
        """Whether each sample is in the loss."""
        return [group.counts for group in self.groups for _ in group.samples]

    @property
    def cost(self) -> int:
        """Tokens that go through the model."""
        return sum(group.cost for group in self.groups)

    @property
    def tokens(self) -> int:
        """Tokens in the loss."""
        return sum(sum(sample.in_loss) for group in self.groups if group.counts for sample in group.samples)

    @property
    def rows(self) -> int:
        """Rows of logits, with those of all views."""
        return sum((1 + len(group.views)) * len(sample.ids) for group in self.groups for sample in group.samples)


@dataclass(frozen=True)
class MiniBatch:
    """One optimizer step: this rank's share of it, and its size over all ranks."""

    batches: list[MicroBatch]
    tokens: int
    completions: int
    parts: int  # micro-batches with tokens in the loss that a single process would have


def micro_batches(groups: Sequence[TrainGroup], most: int) -> list[MicroBatch]:
    """Groups in forward passes of at most `most` completions; larger ones are cut, and their prompt computed again."""
    batches: list[MicroBatch] = []
    size = most
    for group in groups:
        for start in range(0, len(group.samples), most):
            part = replace(group, samples=group.samples[start : start + most])
            if size + len(part.samples) > most:
                batches.append(MicroBatch([]))
                size = 0
            batches[-1].groups.append(part)
            size += len(part.samples)
    return batches


def mini_batch(groups: Sequence[TrainGroup], most: int, *, ranks: int = 1, rank: int = 0, chunk: int = 0) -> MiniBatch:
    """The share of `rank` (of `ranks`) in an optimizer step on these groups, at most `most` completions at a time.

    `chunk` is the number of rows of logits that are held in memory at the same time.
    """
    parts = micro_batches(groups, most)
    mine = parts if ranks == 1 else deal(parts, ranks, chunk)[rank]
    return MiniBatch(
        mine,
        tokens=sum(part.tokens for part in parts),
        completions=sum(sum(part.counts) for part in parts),
        parts=sum(part.tokens > 0 for part in parts),
    )


def deal(parts: Sequence[MicroBatch], ranks: int, chunk: int = 0) -> list[list[MicroBatch]]:
    """Micro-batches per rank, equally many for each: sharded models communicate in every forward and backward pass.

    All ranks wait for each other at each piece, so their k-th pieces have about the same cost; the costliest of them
    goes to the rank with the least work so far. If there are too few pieces, the costliest are cut in two; if nothing
    can be cut, a rank gets a filler: the cheapest group (of those with images, if there are any) with its shortest
    completion, which is not counted. If any group has images, the filler is also added to each piece without images, so
    that all ranks call the vision tower in every pass.
    """
    pieces = _enough(list(parts), math.ceil(len(parts) / ranks) * ranks)
    everything = [group for part in parts for group in part.groups]
    seeing = [group for group in everything if group.has_images]
    filler = _uncounted(min(seeing or everything, key=lambda group: group.cost))
    hands: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    pieces.sort(key=lambda piece: -piece.cost)
    pieces += [MicroBatch([]) for _ in range(-len(pieces) % ranks)]
    for start in range(0, len(pieces), ranks):
        row = [_filled(piece, filler) for piece in pieces[start : start + ranks]]
        chunks = max(math.ceil(piece.rows / chunk) for piece in row) if chunk else 1
        least_first = sorted(hands, key=lambda hand: sum(piece.cost for piece in hand))
        for hand, piece in zip(least_first, row, strict=True):
            hand.append(replace(piece, chunks=chunks))
    return hands


def _enough(pieces: list[MicroBatch], wanted: int) -> list[MicroBatch]:
    """Cut the pieces until there are at least `wanted`, or nothing can be cut."""
    while len(pieces) < wanted:
        divisible = [index for index, piece in enumerate(pieces) if len(piece.samples) > 1]
        if not divisible:
            break
        costliest = max(divisible, key=lambda index: pieces[index].cost)
        pieces[costliest : costliest + 1] = _halves(pieces[costliest])
    return pieces


def _halves(piece: MicroBatch) -> list[MicroBatch]:
    """A piece cut into two of about the same cost, between groups if there are several."""
    if len(piece.groups) == 1:
        (group,) = piece.groups
        middle = len(group.samples) // 2
        halves = [[replace(group, samples=part)] for part in (group.samples[:middle], group.samples[middle:])]
    else:
        first, cost = 1, piece.groups[0].cost
        while first < len(piece.groups) - 1 and 2 * (cost + piece.groups[first].cost) <= piece.cost:
            cost += piece.groups[first].cost
            first += 1
        halves = [piece.groups[:first], piece.groups[first:]]
    return [MicroBatch(groups, whole_tokens=piece.whole_tokens or piece.tokens) for groups in halves]


def _uncounted(group: TrainGroup) -> TrainGroup:
    """The group with only its shortest completion, not counted."""
    return replace(group, samples=[min(group.samples, key=lambda sample: len(sample.ids))], counts=False)


def _filled(piece: MicroBatch, filler: TrainGroup) -> MicroBatch:
    """A piece as all ranks need it: not empty, and with images (if any group has some), groups with images first.

    DeepSpeed exchanges gradients in the order in which they are completed. If groups go through the model one after the
    other, the first group of the piece determines this order, which must be the same on all ranks.
    """
    blind = filler.has_images and not any(group.has_images for group in piece.groups)
    groups = [*piece.groups, filler] if blind or not piece.groups else piece.groups
    return replace(piece, groups=sorted(groups, key=lambda group: not group.has_images))
