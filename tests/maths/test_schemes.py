"""Raw weights of tokens under each scheme, worked by hand."""

import numpy as np
import pytest

from dapo_stages.config import weights
from dapo_stages.maths.grounding import KINDS, summarize
from dapo_stages.maths.schemes import SCHEMES, columns, raw_weights

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
