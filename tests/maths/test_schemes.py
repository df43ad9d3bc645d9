"""Raw weights of tokens under each scheme, worked by hand."""

import numpy as np
import pytest

from dapo_stages.config import weights
from dapo_stages.maths.grounding import KINDS, summarize
from dapo_stages.maths.schemes import SCHEMES, columns, cuts, raw_weights

NAN, INF = float("nan"), float("inf")


def test_the_configuration_knows_the_same_schemes() -> None:
    assert tuple(SCHEMES) == weights.SCHEMES


def test_uniform_needs_nothing_and_counts_every_token_once() -> None:
    assert columns("uniform") == ()
    np.testing.assert_array_equal(raw_weights("uniform", {}, 3), [1.0, 1.0, 1.0])


def test_vgr_counts_by_its_inverse_and_is_unknown_where_it_is_not_finite() -> None:
    found = raw_weights("vgr", {"vgr": [0.5, 4.0, 1e9, INF, NAN]}, 5)
    np.testing.assert_allclose(found, [2.0, 0.25, 1e-6, NAN, NAN], rtol=1e-5)


def test_aei_is_the_share_of_attention_over_the_share_of_tokens() -> None:
    # 12 text and 4 vision tokens, vision's share of them 1/4.
    # VGR 1: shares as the tokens', index 1. VGR 0: all on the image, 1 / (1/4) = 4.
    # VGR 3: A_t : A_v = 3 · 12 : 4 = 9 : 1, index 0.1 / 0.25 = 0.4. VGR infinite: 0.
    row = {"vgr": [1.0, 0.0, 3.0, INF, NAN], "num_text_tokens": 12, "num_vision_tokens": 4}
    np.testing.assert_allclose(raw_weights("aei", row, 5), [1.0, 4.0, 0.4, 0.0, NAN])


def test_aei_per_token_is_that_of_the_masses() -> None:
    """For a single token and layer, the completion's own index follows directly from the masses."""
    masses = dict(zip(KINDS, (0.3, 0.2, 0.1, 0.35, 0.05), strict=True))
    summary = summarize([[[masses[kind] for kind in KINDS]]], n_text=10, n_vision=40)
    row = {"vgr": summary.vgr, "num_text_tokens": 10, "num_vision_tokens": 40}
    (found,) = raw_weights("aei", row, 1)
    assert found == pytest.approx((0.3 / 0.5) / (40 / 50))
    assert found == pytest.approx(summary.scalars["aei_vision_all"])


@pytest.mark.parametrize(
    ("scheme", "column"), [("vision_mass", "mass_vision"), ("entropy", "entropy"), ("visual_kl", "visual_kl")]
)
def test_the_others_count_by_their_column(scheme: str, column: str) -> None:
    assert columns(scheme) == (column,)
    np.testing.assert_array_equal(raw_weights(scheme, {column: [0.25, 0.0]}, 2), [0.25, 0.0])


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 values of vgr for 3 tokens"):
        raw_weights("vgr", {"vgr": [1.0, 2.0]}, 3)


def test_entropy_times_inverse_vgr() -> None:
    row = {"vgr": [0.5, 4.0, INF], "entropy": [0.25, 2.0, 1.0]}
    np.testing.assert_allclose(raw_weights("vgr_entropy", row, 3), [0.5, 0.5, NAN], rtol=1e-5)


@pytest.mark.parametrize("scheme", ["rollout_mass", "vision_gradient"])
def test_scores_of_extra_passes_count_as_they_are(scheme: str) -> None:
    assert columns(scheme) == (scheme,)
    np.testing.assert_array_equal(raw_weights(scheme, {scheme: [0.25, 0.0]}, 2), [0.25, 0.0])


def test_vppo_caps_k3_at_ten() -> None:
    np.testing.assert_array_equal(raw_weights("vppo", {"k3": [0.5, 10.0, 4e5]}, 3), [0.5, 10.0, 10.0])


def test_pgpo_gates_at_two_fifths() -> None:
    # log(1 + k3) is 0, 0.2, 0.4, 0.7 and 1, which is also I; I/0.4 below 0.4; 1 + 2 (0.7 - 0.4) / 0.6 = 2.
    k3 = np.expm1([0.0, 0.2, 0.4, 0.7, 1.0])
    np.testing.assert_allclose(raw_weights("pgpo", {"k3": k3}, 5), [0.0, 0.5, 1.0, 2.0, 3.0])
    # Twice the logarithms are the same I.
    np.testing.assert_allclose(raw_weights("pgpo", {"k3": np.expm1([0.0, 0.4, 0.8, 1.4, 2.0])}, 5), [0, 0.5, 1, 2, 3])
    np.testing.assert_array_equal(raw_weights("pgpo", {"k3": [0.3, 0.3]}, 2), [0.0, 0.0])


def test_tor_has_three_steps() -> None:
    # Undecided and changed; changed by 1.5; by 1.5 in the other direction; by 0.5; of unknown change.
    row = {
        "entropy": [2.0, 0.1, 0.2, 0.3, 2.0],
        "logprobs": [-0.5, -0.5, -2.0, -1.0, -1.0],
        "blank_logprobs": [-2.0, -2.0, -0.5, -0.5, NAN],
    }
    found = raw_weights("tor", row, 5, {"entropy_cut": 2.0, "change_cut": 1.5})
    np.testing.assert_array_equal(found, [1.0, 0.5, 0.5, 0.0, NAN])
    assert {name: cut.share for name, cut in cuts("tor").items()} == {"entropy_cut": 0.3, "change_cut": 0.3}
    assert columns("tor") == ("entropy", "logprobs", "blank_logprobs") and not cuts("vepo")


def test_vepo_is_a_noisy_or_times_entropy() -> None:
    # JSD 0, 0.1, 0.2: minmax 0, 1/2, 1. |ΔH| 0.4, 0, 0.1: minmax 1, 0, 1/4. Noisy-or 1, 1/2, 1; times H 0.5, 1, 2.
    row = {"jsd": [0.0, 0.1, 0.2], "entropy": [0.5, 1.0, 2.0], "blank_entropy": [0.9, 1.0, 1.9]}
    np.testing.assert_allclose(raw_weights("vepo", row, 3), [0.5, 0.5, 2.0])


def test_pepo_is_that_of_its_code() -> None:
    """grpo_trainer.py of xzxxntxdy/PEPO with its defaults (gate_alpha 0.05, temperature 1), by hand.

    c = 0, 0.2, 0.4: minmax 0, 1/2, 1. H = 2, 0, 2: minmax 1, 0, 1. m = 1, 1/2, 2 with mean 7/6, m - mean = -1/6, -2/3,
    5/6; tanh -0.165140, -0.582783, 0.682262; c · g = 0, 0.2 · 0.970861 = 0.194172, 0.4 · 1.034113 = 0.413645;
    exp 1, 1.214305, 1.512320, which add up to 3.726625; times 3 over that.
    """
    found = raw_weights("pepo", {"vision_cosine": [0.0, 0.2, 0.4], "entropy": [2.0, 0.0, 2.0]}, 3)
    np.testing.assert_allclose(found, [0.805018, 0.977537, 1.217445], atol=1e-6)
    # Seven random tokens, as those lines of the code print them.
    row = {
        "vision_cosine": [0.0285, 0.3092, 0.1959, 0.0283, 0.2230, 0.4095, 0.2889],
        "entropy": [0.8477, 0.3562, 0.5199, 1.3366, 0.6698, 1.2991, 1.5196],
    }
    printed = [0.8228265, 1.0862481, 0.9698586, 0.8230962, 0.9980190, 1.2221999, 1.0777517]
    np.testing.assert_allclose(raw_weights("pepo", row, 7), printed, atol=1e-7)
    unknown = raw_weights("pepo", {"vision_cosine": [0.0, NAN, 0.2, 0.4], "entropy": [2.0, 1.0, 0.0, 2.0]}, 4)
    np.testing.assert_allclose(unknown, [found[0], NAN, *found[1:]])


def test_vgpo_is_that_of_its_code() -> None:
    """dp_actor.py of wzb-bupt/VGPO, "Intra-Trajectory", of one completion: minmax 0, 1, 0.5 with mean 0.5."""
    np.testing.assert_allclose(raw_weights("vgpo", {"vision_cosine": [0.1, 0.5, 0.3]}, 3), [0.5, 1.5, 1.0])
    found = raw_weights("vgpo", {"vision_cosine": [0.1, NAN, 0.5, 0.3]}, 4)
    np.testing.assert_allclose(found, [0.5, NAN, 1.5, 1.0])
