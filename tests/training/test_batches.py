"""Distributing micro-batches over ranks: each once, equally many per rank, about the same work in each place."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from dapo_stages.training.batches import MicroBatch, Sample, TrainGroup, deal, micro_batches, mini_batch


def groups(*sizes: list[int], prompt: int = 10, images: bool = True) -> list[TrainGroup]:
    """A group per list of completion lengths; token ids tell the samples apart."""
    names = iter(range(10_000))

    def sample(length: int) -> Sample:
        return Sample([next(names)] * length, [0.0] * length, [1.0] * length, 1.0)

    def unread() -> Any:
        raise AssertionError("no prompt is read to share the work out")

    return [TrainGroup(str(i), unread, [sample(n) for n in lengths], prompt, images) for i, lengths in enumerate(sizes)]


def counted(hands: list[list[MicroBatch]]) -> Counter[int]:
    return Counter(
        sample.ids[0]
        for hand in hands
        for piece in hand
        for group in piece.groups
        if group.counts
        for sample in group.samples
    )


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
@pytest.mark.parametrize("seed", range(5))
def test_every_completion_is_dealt_once_and_all_ranks_have_as_many_pieces(ranks: int, seed: int) -> None:
    draw = random.Random(seed)
    work = groups(*([draw.randint(1, 40) for _ in range(draw.randint(1, 9))] for _ in range(draw.randint(1, 12))))
    hands = deal(micro_batches(work, 4), ranks)
    assert len({len(hand) for hand in hands}) == 1
    assert counted(hands) == Counter(sample.ids[0] for group in work for sample in group.samples)
    assert all(len(piece.samples) <= 5 for hand in hands for piece in hand)  # 4, and a filler


def test_ranks_get_about_the_same_work_in_each_place() -> None:
    """64 groups of 8 whose lengths differ by a factor of ten; in their original order, places would differ by half."""
    draw = random.Random(0)
    work = groups(*([draw.randint(20, 200)] * 8 for _ in range(64)))
    hands = deal(micro_batches(work, 8), 4)
    waits = [
        max(piece.cost for piece in place) / min(piece.cost for piece in place) for place in zip(*hands, strict=True)
    ]
    totals = [sum(piece.cost for piece in hand) for hand in hands]
    assert sorted(waits)[len(waits) // 2] < 1.1
    assert max(totals) / min(totals) < 1.02


def test_a_single_micro_batch_is_cut_for_the_ranks_between_groups() -> None:
    work = groups([5, 5], [5, 5], [5, 5], [5, 5])
    (one,), (two,) = deal(micro_batches(work, 99), 2)
    assert one.cost == two.cost == 2 * (10 + 10)
    assert one.whole_tokens == two.whole_tokens == 40  # for the mean over the micro-batch that they were


def test_where_nothing_can_be_cut_a_rank_repeats_the_cheapest_group_without_counting_it() -> None:
    work = groups([7], [3], [9])
    hands = deal(micro_batches(work, 1), 2)
    (silent,) = [piece for hand in hands for piece in hand if piece.tokens == 0]
    assert [group.group_id for group in silent.groups] == ["1"] and silent.counts == [False]


def test_pieces_without_images_get_a_filler_if_others_have_some() -> None:
    work = groups([4, 4]) + groups([6, 6], images=False)
    for hand in deal(micro_batches(work, 2), 2):
        assert all(any(group.has_images for group in piece.groups) for piece in hand)
        assert all(piece.groups[0].has_images for piece in hand)  # gradients are complete in the order of the first
    blind = groups([4, 4], [6, 6], images=False)
    assert all(piece.counts == [True, True] for hand in deal(micro_batches(blind, 2), 2) for piece in hand)


def test_the_head_is_called_as_often_in_each_place() -> None:
    hands = deal(micro_batches(groups([100], [20]), 1), 2, chunk=16)
    assert [[piece.chunks for piece in hand] for hand in hands] == [[7], [7]]


def test_sizes_are_those_of_all_ranks() -> None:
    work = groups([4, 4], [6, 6], [1])
    for rank in range(3):
        share = mini_batch(work, 2, ranks=3, rank=rank)
        assert (share.tokens, share.completions, share.parts) == (21, 5, 3)


def test_one_process_gets_its_micro_batches_as_they_are() -> None:
    work = groups([4, 4, 4], [6, 6])
    assert mini_batch(work, 2).batches == micro_batches(work, 2)
