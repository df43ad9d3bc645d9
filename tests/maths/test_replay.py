"""The replay buffer: who enters, who leaves, who is drawn."""

from collections import Counter

import numpy as np
import pytest

from dapo_stages.maths.replay import Entry, admissible, draw, importance, score, update


def entry(group_id, iteration=1, score=1.0, mean=2.0, std=0.5):
    return Entry(group_id, iteration, score, mean, std)


def ids(entries):
    return [e.group_id for e in entries]


def test_a_group_enters_above_both_thresholds_not_at_them():
    assert admissible(mean=1.6, std=0.1, var_epsilon=1e-6, min_reward=1.5)
    assert not admissible(mean=1.5, std=0.1, var_epsilon=1e-6, min_reward=1.5)
    assert not admissible(mean=1.6, std=1e-6, var_epsilon=1e-6, min_reward=1.5)
    assert not admissible(mean=float("nan"), std=0.1, var_epsilon=1e-6, min_reward=1.5)


def test_score_is_the_sum_of_absolute_advantages_times_the_deviation():
    assert score([1.0, -0.5, -0.5], 0.25) == 0.5


def test_the_lowest_score_leaves_a_full_buffer():
    buffer = update([entry("a", score=3), entry("b", score=1)], [entry("c", score=2)], 2, 10, iteration=1)
    assert ids(buffer) == ["a", "c"]


def test_older_than_max_staleness_leaves():
    buffer = update([entry("old", 1, score=9), entry("edge", 2)], [], 8, max_staleness=3, iteration=5)
    assert ids(buffer) == ["edge"]


def test_the_newest_copy_of_a_group_wins_even_with_a_lower_score():
    old, new = entry("a", 1, score=5), entry("a", 2, score=1)
    assert update([old], [new], 8, 10, 2) == [new]
    assert update([new], [old], 8, 10, 2) == [new]


def test_redoing_an_iteration_replaces_its_own_entries():
    before, again = entry("a", 2, score=5), entry("a", 2, score=1)
    assert update([before], [again], 8, 10, 2) == [again]


def test_of_equal_scores_the_newer_stays_then_the_smaller_id():
    entries = [entry("b", 1), entry("c", 2), entry("a", 1)]
    assert ids(update(entries, [], 2, 10, 2)) == ids(update([], entries[::-1], 2, 10, 2)) == ["c", "a"]


def test_a_buffer_of_size_zero_stays_empty():
    assert update([entry("a")], [entry("b")], 0, 10, 1) == []


def test_a_draw_has_no_repeats_and_at_most_all():
    buffer = [entry(name, score=s) for name, s in zip("abcd", (1, 2, 3, 0), strict=True)]
    rng = np.random.default_rng(0)
    assert len(set(ids(draw(buffer, 3, rng)[0]))) == 3
    assert sorted(ids(draw(buffer, 9, rng)[0])) == list("abcd")
    assert [len(part) for part in (*draw(buffer, 0, rng), *draw([], 3, rng))] == [0, 0, 0, 0]


def test_a_draw_depends_on_the_random_state_and_not_on_the_order():
    buffer = [entry(name, score=s) for name, s in zip("abcd", (1, 2, 3, 0), strict=True)]
    one, other = draw(buffer, 2, np.random.default_rng(3)), draw(buffer[::-1], 2, np.random.default_rng(3))
    assert one[0] == other[0] and one[1].tolist() == other[1].tolist()


def test_the_first_draw_is_proportional_to_the_score():
    buffer = [entry("a", score=3), entry("b", score=1)]
    rng = np.random.default_rng(0)
    first = Counter(draw(buffer, 1, rng)[0][0].group_id for _ in range(4000))
    assert first["a"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_the_second_draw_is_proportional_among_the_rest():
    # both light ones: 2 · 1/4 · 1/3
    buffer = [entry("a", score=1), entry("b", score=1), entry("heavy", score=2)]
    rng = np.random.default_rng(0)
    without = sum("heavy" not in ids(draw(buffer, 2, rng)[0]) for _ in range(4000))
    assert without / 4000 == pytest.approx(1 / 6, abs=0.03)


def test_score_zero_is_drawn_last_and_all_alike():
    buffer = [entry("a", score=0), entry("b", score=0), entry("c", score=1e-300)]
    rng = np.random.default_rng(0)
    drawn = [ids(draw(buffer, 2, rng)[0]) for _ in range(400)]
    assert {pair[0] for pair in drawn} == {"c"}
    assert 140 < sum(pair[1] == "a" for pair in drawn) < 260


@pytest.mark.parametrize(("alpha", "share"), [(0, 1 / 2), (0.5, 3 / 4), (1, 9 / 10), (2, 81 / 82)])
def test_alpha_is_the_power_of_the_score(alpha, share):
    buffer = [entry("a", score=9), entry("b", score=1)]
    rng = np.random.default_rng(0)
    first = sum(ids(draw(buffer, 1, rng, alpha)[0]) == ["a"] for _ in range(4000))
    assert first / 4000 == pytest.approx(share, abs=0.03)


def test_alpha_zero_draws_score_zero_as_any_other():
    buffer = [entry("a", score=0), entry("b", score=5)]
    rng = np.random.default_rng(0)
    assert sum(ids(draw(buffer, 1, rng, 0.0)[0]) == ["a"] for _ in range(4000)) / 4000 == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_one_over_the_likelihood_is_unbiased(alpha):
    """Rank conditioning: each entry counts 1 / likelihood where it is drawn and 0 where not, 1 on average."""
    buffer = [entry(str(number), score=score) for number, score in enumerate((8, 4, 2, 1, 0.5, 0))]
    rng = np.random.default_rng(0)
    total = Counter()
    for _ in range(20000):
        for found, likelihood in zip(*draw(buffer, 4, rng, alpha), strict=True):
            total[found.group_id] += 1 / likelihood
    assert {key: total[key] / 20000 for key in "01234"} == pytest.approx(dict.fromkeys("01234", 1), abs=0.05)
    if alpha == 0:
        assert total["5"] / 20000 == pytest.approx(1, abs=0.05)


def test_of_many_the_likelihood_is_proportional_to_the_priority():
    """The formula of prioritised replay, where few are drawn: P(i) = score / sum of scores, n times."""
    scores = 1 + np.arange(4000) % 7
    buffer = [entry(f"{number:04d}", score=score) for number, score in enumerate(scores)]
    drawn, likelihood = draw(buffer, 40, np.random.default_rng(0))
    ratio = likelihood / np.array([found.score for found in drawn])
    assert ratio.max() / ratio.min() < 1.06
    assert ratio.mean() == pytest.approx(40 / scores.sum(), rel=0.4)


def test_what_is_drawn_whole_was_certain():
    buffer = [entry("a", score=9), entry("b", score=1), entry("c", score=0)]
    for n in (3, 5):
        assert draw(buffer, n, np.random.default_rng(0))[1].tolist() == [1, 1, 1]
    assert draw(buffer, 2, np.random.default_rng(0))[1].tolist() == [1, 1]  # only score 0 is left out


@pytest.mark.parametrize(("beta", "want"), [(0, [1, 1, 1]), (0.5, [0.5, 1, 1 / 3]), (1, [0.25, 1, 1 / 9])])
def test_importance_is_one_over_the_likelihood_to_the_power_beta_at_most_one(beta, want):
    assert importance([0.4, 0.1, 0.9], beta) == pytest.approx(want)


def test_nothing_drawn_has_no_importance():
    assert importance([], 1.0).tolist() == []
