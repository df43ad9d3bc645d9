"""The replay buffer: which groups enter, leave and are drawn."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from dapo_stages.maths.replay import (
    Entry,
    admissible,
    draw,
    drawn_again,
    importance,
    rated,
    replace_all,
    replace_worse,
    score,
    update,
)


def entry(
    group_id: str, iteration: int = 1, score: float = 1.0, mean: float = 2.0, std: float = 0.5, draws: int = 0
) -> Entry:
    return Entry(group_id, iteration, score, mean, std, draws)


def ids(entries: Iterable[Entry]) -> list[str]:
    return [e.group_id for e in entries]


def test_a_group_enters_above_both_thresholds_not_at_them() -> None:
    assert admissible(mean=1.6, std=0.1, var_epsilon=1e-6, min_reward=1.5)
    assert not admissible(mean=1.5, std=0.1, var_epsilon=1e-6, min_reward=1.5)
    assert not admissible(mean=1.6, std=1e-6, var_epsilon=1e-6, min_reward=1.5)
    assert not admissible(mean=float("nan"), std=0.1, var_epsilon=1e-6, min_reward=1.5)


def test_score_is_the_sum_of_absolute_advantages_times_the_deviation() -> None:
    assert score([1.0, -0.5, -0.5], 0.25) == 0.5


def test_a_group_is_rated_by_its_rewards() -> None:
    found = rated("a", 3, np.array([3.0, 1.0, 1.0, 1.0]))
    # mean 1.5, deviations 1.5 and three times 0.5, std 1
    assert (found.group_id, found.iteration, found.mean_reward, found.std_reward) == ("a", 3, 1.5, 1.0)
    assert found.score == pytest.approx(3.0, rel=2e-4) and found.draws == 0
    assert rated("b", 1, np.array([1.5, 1.5])).score == 0


# Which groups are replaced, with thresholds of 0.1 (deviation) and 1 (mean)


def groups(**scores: float) -> list[Entry]:
    """weak_*: below the mean; flat_*: no deviation; others pass."""
    mean = {"weak": 0.5, "flat": 2.0}
    std = {"flat": 0.0}
    return [
        entry(name, score=value, mean=mean.get(name[:4], 2.0), std=std.get(name[:4], 0.5))
        for name, value in scores.items()
    ]


def worse(fresh: list[Entry], stored: list[Entry], target: int) -> tuple[list[str], int, list[str]]:
    found = replace_worse(fresh, stored, target, 0.1, 1.0)
    return ids(found.leaving), found.count, ids(found.candidates)


def test_an_informative_group_gives_way_only_where_all_that_may_be_drawn_score_higher() -> None:
    fresh = groups(weak_b=3, good=1, weak_a=1)
    assert worse(fresh, groups(x=2), 3) == (["weak_a"], 1, ["x"])
    assert worse(fresh, groups(x=2, y=2.5, z=0.5), 3) == (["weak_a"], 1, ["x", "y"])
    assert worse(fresh, groups(x=2, y=4, z=5), 3) == (["weak_a", "weak_b"], 2, ["y", "z"])
    assert worse(fresh, groups(x=1), 3)[:2] == ([], 0)
    assert worse(fresh, groups(x=1 + 1e-9), 3)[:2] == ([], 0)  # only rounding


def test_stored_groups_that_fail_the_thresholds_are_no_candidates() -> None:
    fresh = groups(weak_a=1, flat_a=0)
    assert worse(fresh, groups(weak_x=9, flat_x=9), 2) == (["flat_a"], 1, [])
    assert worse(fresh, groups(weak_x=9, x=0.5), 2) == (["flat_a"], 1, ["x"])


def test_free_places_come_first_and_take_any_score() -> None:
    fresh = groups(flat_a=0, weak_a=2, good=1, flat_b=0)
    assert worse(fresh, groups(x=1), 5) == (["flat_a", "flat_b"], 3, ["x"])  # no group was found for one place
    assert worse(fresh, groups(x=1, y=3, z=3), 4) == (["flat_a", "flat_b"], 2, ["x", "y", "z"])
    assert worse(fresh, groups(x=3, y=3, z=3), 4) == (["flat_a", "flat_b", "weak_a"], 3, ["x", "y", "z"])


def test_groups_beyond_the_wanted_ones_are_not_replaced() -> None:
    fresh = groups(weak_a=2, weak_b=1, good=1, flat_a=0)
    assert worse(fresh, groups(x=3, y=3), 1) == ([], 0, ["x", "y"])
    assert worse(fresh, groups(x=1.5), 2) == ([], 0, ["x"])  # weak_b has no place that x could take
    assert worse(fresh, groups(x=1.5), 3) == (["weak_b"], 1, ["x"])


def test_nothing_is_replaced_by_what_scores_lower_whatever_the_groups() -> None:
    rng = np.random.default_rng(0)
    replaced = 0
    for _ in range(300):
        fresh, stored = (
            [entry(f"{age}{n}", score=rng.uniform(0, 9), mean=rng.uniform(0, 2), std=rng.choice([0, 0.5, 0.5]))
             for n in range(rng.integers(most))]
            for age, most in (("new", 12), ("old", 60))
        )  # fmt: skip
        found = replace_worse(fresh, stored, 8, 0.1, 1.0)
        assert all(e.mean_reward > 1 and e.std_reward > 0.1 for e in found.candidates)
        leaving = [group for group in found.leaving if group.std_reward > 0.1]
        assert all(group.mean_reward <= 1 for group in leaving)
        least = min((e.score for e in found.candidates), default=0)
        assert all(group.score < least for group in leaving)
        assert not leaving or len(found.candidates) >= found.count >= len(found.leaving)
        replaced += len(leaving)
    assert replaced > 100


def test_replace_all_takes_whatever_is_stored_for_every_failing_group_in_order() -> None:
    fresh = groups(weak_a=9, good=1, flat_a=0, weak_b=9)
    found = replace_all(fresh, groups(weak_x=1, flat_x=0), 5, 0.1, 1.0)
    assert (ids(found.leaving), found.count, ids(found.candidates)) == (
        ["weak_a", "flat_a", "weak_b"], 4, ["weak_x", "flat_x"]
    )  # fmt: skip
    assert replace_all(fresh, [], 1, 0.1, 1.0).count == 0


# Which groups stay


def test_what_was_drawn_so_often_leaves() -> None:
    buffer = [entry("a", draws=1), entry("b", draws=2)]
    assert ids(update(buffer, [], 8, 10, 2, max_replays=2)) == ["a"]
    assert ids(update(buffer, [], 8, 10, 2, max_replays=None)) == ["a", "b"]
    assert [e.draws for e in drawn_again(buffer, {"b"})] == [1, 3]


def test_the_lowest_score_leaves_a_full_buffer() -> None:
    buffer = update([entry("a", score=3), entry("b", score=1)], [entry("c", score=2)], 2, 10, iteration=1)
    assert ids(buffer) == ["a", "c"]


def test_older_than_max_staleness_leaves() -> None:
    buffer = update([entry("old", 1, score=9), entry("edge", 2)], [], 8, max_staleness=3, iteration=5)
    assert ids(buffer) == ["edge"]


def test_the_newest_copy_of_a_group_wins_even_with_a_lower_score() -> None:
    old, new = entry("a", 1, score=5), entry("a", 2, score=1)
    assert update([old], [new], 8, 10, 2) == [new]
    assert update([new], [old], 8, 10, 2) == [new]


def test_redoing_an_iteration_replaces_its_own_entries() -> None:
    before, again = entry("a", 2, score=5), entry("a", 2, score=1)
    assert update([before], [again], 8, 10, 2) == [again]


def test_of_equal_scores_the_newer_stays_then_the_smaller_id() -> None:
    entries = [entry("b", 1), entry("c", 2), entry("a", 1)]
    assert ids(update(entries, [], 2, 10, 2)) == ids(update([], entries[::-1], 2, 10, 2)) == ["c", "a"]


def test_a_buffer_of_size_zero_stays_empty() -> None:
    assert update([entry("a")], [entry("b")], 0, 10, 1) == []


def test_a_draw_has_no_repeats_and_at_most_all() -> None:
    buffer = [entry(name, score=s) for name, s in zip("abcd", (1, 2, 3, 0), strict=True)]
    rng = np.random.default_rng(0)
    assert len(set(ids(draw(buffer, 3, rng)[0]))) == 3
    assert sorted(ids(draw(buffer, 9, rng)[0])) == list("abcd")
    assert [len(part) for part in (*draw(buffer, 0, rng), *draw([], 3, rng))] == [0, 0, 0, 0]


def test_a_draw_depends_on_the_random_state_and_not_on_the_order() -> None:
    buffer = [entry(name, score=s) for name, s in zip("abcd", (1, 2, 3, 0), strict=True)]
    one, other = draw(buffer, 2, np.random.default_rng(3)), draw(buffer[::-1], 2, np.random.default_rng(3))
    assert one[0] == other[0] and one[1].tolist() == other[1].tolist()


def test_the_first_draw_is_proportional_to_the_score() -> None:
    buffer = [entry("a", score=3), entry("b", score=1)]
    rng = np.random.default_rng(0)
    first = Counter(draw(buffer, 1, rng)[0][0].group_id for _ in range(4000))
    assert first["a"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_the_second_draw_is_proportional_among_the_rest() -> None:
    # both light ones: 2 · 1/4 · 1/3
    buffer = [entry("a", score=1), entry("b", score=1), entry("heavy", score=2)]
    rng = np.random.default_rng(0)
    without = sum("heavy" not in ids(draw(buffer, 2, rng)[0]) for _ in range(4000))
    assert without / 4000 == pytest.approx(1 / 6, abs=0.03)


def test_score_zero_is_drawn_last_and_all_alike() -> None:
    buffer = [entry("a", score=0), entry("b", score=0), entry("c", score=1e-300)]
    rng = np.random.default_rng(0)
    drawn = [ids(draw(buffer, 2, rng)[0]) for _ in range(400)]
    assert {pair[0] for pair in drawn} == {"c"}
    assert 140 < sum(pair[1] == "a" for pair in drawn) < 260


@pytest.mark.parametrize(("alpha", "share"), [(0, 1 / 2), (0.5, 3 / 4), (1, 9 / 10), (2, 81 / 82)])
def test_alpha_is_the_power_of_the_score(alpha: float, share: float) -> None:
    buffer = [entry("a", score=9), entry("b", score=1)]
    rng = np.random.default_rng(0)
    first = sum(ids(draw(buffer, 1, rng, alpha)[0]) == ["a"] for _ in range(4000))
    assert first / 4000 == pytest.approx(share, abs=0.03)


def test_alpha_zero_draws_score_zero_as_any_other() -> None:
    buffer = [entry("a", score=0), entry("b", score=5)]
    rng = np.random.default_rng(0)
    assert sum(ids(draw(buffer, 1, rng, 0.0)[0]) == ["a"] for _ in range(4000)) / 4000 == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_one_over_the_likelihood_is_unbiased(alpha: float) -> None:
    """Rank conditioning: each entry counts 1 / likelihood where it is drawn and 0 where not, 1 on average."""
    buffer = [entry(str(number), score=score) for number, score in enumerate((8, 4, 2, 1, 0.5, 0))]
    rng = np.random.default_rng(0)
    total: Counter[str] = Counter()
    for _ in range(20000):
        for found, likelihood in zip(*draw(buffer, 4, rng, alpha), strict=True):
            total[found.group_id] += 1 / likelihood
    assert {key: total[key] / 20000 for key in "01234"} == pytest.approx(dict.fromkeys("01234", 1), abs=0.05)
    if alpha == 0:
        assert total["5"] / 20000 == pytest.approx(1, abs=0.05)


def test_of_many_the_likelihood_is_proportional_to_the_priority() -> None:
    """The formula of prioritized replay, if few are drawn: P(i) = score / sum of scores, n times."""
    scores = 1 + np.arange(4000) % 7
    buffer = [entry(f"{number:04d}", score=score) for number, score in enumerate(scores.tolist())]
    drawn, likelihood = draw(buffer, 40, np.random.default_rng(0))
    ratio = likelihood / np.array([found.score for found in drawn])
    assert ratio.max() / ratio.min() < 1.06
    assert ratio.mean() == pytest.approx(40 / scores.sum(), rel=0.4)


def test_what_is_drawn_whole_was_certain() -> None:
    buffer = [entry("a", score=9), entry("b", score=1), entry("c", score=0)]
    for n in (3, 5):
        assert draw(buffer, n, np.random.default_rng(0))[1].tolist() == [1, 1, 1]
    assert draw(buffer, 2, np.random.default_rng(0))[1].tolist() == [1, 1]  # only score 0 is left out


@pytest.mark.parametrize(("beta", "want"), [(0, [1, 1, 1]), (0.5, [0.5, 1, 1 / 3]), (1, [0.25, 1, 1 / 9])])
def test_importance_is_one_over_the_likelihood_to_the_power_beta_at_most_one(beta: float, want: list[float]) -> None:
    assert importance([0.4, 0.1, 0.9], beta) == pytest.approx(want)


def test_nothing_drawn_has_no_importance() -> None:
    assert importance([], 1.0).tolist() == []
