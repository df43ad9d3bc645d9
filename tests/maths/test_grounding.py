"""Attention ratios against numbers worked by hand."""

import math

import numpy as np
import pytest

from dapo_stages.handoff import schemas
from dapo_stages.maths.grounding import KINDS, FloatArray, Summary, aei, segments, summarize, vgr

# Three layers, two rows; vision, text, other, first, generated. Shares of the prompt without `first`:
#                                               text  vision
ROW_0 = [
    [0.2, 0.4, 0.2, 0.1, 0.1],  # of 0.8:      0.5   0.25
    [0.1, 0.1, 0.0, 0.5, 0.3],  # of 0.2:      0.5   0.5
    [0.3, 0.1, 0.1, 0.5, 0.0],  # of 0.5:      0.2   0.6      means 0.4 and 0.45
]
ROW_1 = [[0.2, 0.2, 0.1, 0.4, 0.1]] * 3  # of 0.5: 0.4   0.4
MASSES = np.stack([ROW_0, ROW_1], axis=1)


def test_the_order_of_masses_is_that_of_the_files() -> None:
    assert KINDS == schemas.MASSES


def test_segments_are_thirds_of_the_layers() -> None:
    assert segments(28) == {"early": slice(0, 9), "middle": slice(9, 18), "late": slice(18, 28), "all": slice(0, 28)}
    assert segments(4) == {"early": slice(0, 1), "middle": slice(1, 2), "late": slice(2, 4), "all": slice(0, 4)}
    assert segments(5) == {"early": slice(0, 1), "middle": slice(1, 3), "late": slice(3, 5), "all": slice(0, 5)}
    assert segments(3) == {"early": slice(0, 1), "middle": slice(1, 2), "late": slice(2, 3), "all": slice(0, 3)}


@pytest.mark.parametrize("layers", [1, 2])
def test_below_three_layers_only_all_exists(layers: int) -> None:
    assert segments(layers) == {"early": None, "middle": None, "late": None, "all": slice(0, layers)}


def test_vgr_compares_densities() -> None:
    np.testing.assert_allclose(vgr([0.6, 0.3], [0.3, 0.3], 10, 30), [6.0, 3.0])


def test_vgr_is_missing_where_it_means_nothing_and_infinite_where_vision_gets_nothing() -> None:
    values = vgr([0.5, 0.5, 0.0, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0, 0.5], [0, 4, 4, 4, 4], [4, 0, 4, 4, 4])
    np.testing.assert_array_equal(values, [np.nan, np.nan, np.nan, np.inf, 0.0])


def test_aei_is_the_share_of_attention_over_the_share_of_tokens() -> None:
    assert float(aei(0.2, 0.2, 0.6, 10, 10, 10)) == pytest.approx(0.5)
    assert float(aei(0.6, 0.2, 0.6, 10, 10, 10)) == pytest.approx(1.5)
    assert math.isnan(float(aei(0.2, 0.2, 0.0, 10, 10, 0)))
    assert math.isnan(float(aei(0.0, 0.0, 0.0, 10, 10, 10)))


def test_shares_are_averaged_over_layers_before_the_ratio() -> None:
    # row 0: (0.4 / 10) / (0.45 / 5); the raw masses would give (0.2 / 10) / (0.2 / 5) = 0.5
    np.testing.assert_allclose(summarize(MASSES, 10, 5).vgr, [4 / 9, 0.5])


def test_a_completion_averages_over_rows_before_the_ratio() -> None:
    scalars = summarize(MASSES, 10, 5).scalars
    assert scalars["attn_text_all"] == pytest.approx(0.4)
    assert scalars["attn_vision_all"] == pytest.approx(0.425)
    assert scalars["vgr_all"] == pytest.approx(0.04 / 0.085)  # the mean of the rows' ratios would be 0.4722
    assert scalars["aei_text_all"] == pytest.approx(0.4 / 0.825 * 1.5)
    assert scalars["aei_vision_all"] == pytest.approx(0.425 / 0.825 * 3)


def test_each_segment_looks_at_its_own_layers() -> None:
    scalars = summarize(MASSES, 10, 5).scalars
    assert scalars["attn_text_early"] == pytest.approx(0.45)
    assert scalars["attn_vision_early"] == pytest.approx(0.325)
    assert scalars["vgr_early"] == pytest.approx(0.045 / 0.065)
    assert scalars["vgr_middle"] == pytest.approx(0.045 / 0.09)
    assert scalars["vgr_late"] == pytest.approx(0.03 / 0.1)


def vgr_of(summary: Summary, layers: str) -> FloatArray:
    found = summary.token_vgr[layers]
    assert found is not None
    return found


def test_tokens_have_a_ratio_for_each_third_of_the_layers() -> None:
    summary = summarize(MASSES, 10, 5)
    np.testing.assert_allclose(vgr_of(summary, "early"), [0.05 / 0.05, 0.5])
    np.testing.assert_allclose(vgr_of(summary, "middle"), [0.05 / 0.1, 0.5])
    np.testing.assert_allclose(vgr_of(summary, "late"), [0.02 / 0.12, 0.5])
    assert set(summary.token_vgr) == {"early", "middle", "late"} and "vgr_layers" not in summary.scalars


def test_layers_of_ones_own_are_averaged_before_the_ratio_too() -> None:
    summary = summarize(MASSES, 10, 5, layers=[0, 2], vgr_layers=[1])
    # row 0: text (0.5 + 0.2) / 2, vision (0.25 + 0.6) / 2
    np.testing.assert_allclose(vgr_of(summary, "layers"), [0.035 / 0.085, 0.5])
    assert summary.scalars["vgr_layers"] == pytest.approx(0.045 / 0.09)  # that of the middle third


def test_masses_are_means_over_layers_and_sum_to_one() -> None:
    masses = summarize(MASSES, 10, 5).masses
    np.testing.assert_allclose(masses["first"], [1.1 / 3, 0.4])
    np.testing.assert_allclose(sum(masses.values()), [1.0, 1.0])


def test_the_scalars_are_columns_of_the_attention_file() -> None:
    names = set(schemas.SCHEMAS["attention"].names)
    summary = summarize(MASSES, 10, 5, [0], [1])
    assert set(summary.scalars) <= names
    assert {f"token_vgr_{name}" for name in summary.token_vgr} <= names


def test_a_prompt_without_vision_has_no_ratio() -> None:
    masses = [[[0.0, 0.5, 0.2, 0.2, 0.1]]] * 3
    summary = summarize(masses, 10, 0)
    assert np.isnan(summary.vgr).all()
    ratios = [summary.scalars[name] for name in ("vgr_all", "aei_text_all", "aei_vision_all")]
    assert all(ratio is not None and math.isnan(ratio) for ratio in ratios)
    assert summary.scalars["attn_text_all"] == pytest.approx(5 / 7)
    assert summary.scalars["attn_vision_all"] == 0.0


def test_two_layers_have_no_segments() -> None:
    scalars = summarize(MASSES[:2], 10, 5).scalars
    assert scalars["vgr_early"] is scalars["attn_vision_late"] is None
    assert set(summarize(MASSES[:2], 10, 5).token_vgr.values()) == {None}
    assert scalars["attn_text_all"] == pytest.approx(0.45)


def test_a_layer_that_ignores_the_prompt_stays_out_of_the_mean() -> None:
    masses = MASSES.copy()
    masses[1, 0] = [0.0, 0.0, 0.0, 0.4, 0.6]
    # row 0 is left with (0.5 + 0.2) / 2 and (0.25 + 0.6) / 2
    np.testing.assert_allclose(summarize(masses, 10, 5).vgr, [0.035 / 0.085, 0.5])


def test_an_empty_completion_has_empty_lists_and_no_numbers() -> None:
    summary = summarize(np.zeros((3, 0, 5)), 10, 5)
    assert summary.vgr.shape == summary.masses["text"].shape == (0,)
    assert all(value is not None and math.isnan(value) for value in summary.scalars.values())


def test_masses_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have shape \[layers, tokens, 5\], got \(2, 5\)"):
        summarize(np.zeros((2, 5)), 10, 5)
