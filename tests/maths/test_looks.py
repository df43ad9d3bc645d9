"""Scores from masses by layer and head, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dapo_stages.maths.looks import layer_choices, look_scores, most_looking


def test_the_layers_of_a_score() -> None:
    assert layer_choices(36) == {
        "all layers": slice(0, 36),
        "early third": slice(0, 12),
        "middle third": slice(12, 24),
        "late third": slice(24, 36),
        "last 6 layers": slice(30, 36),
        "last layer": slice(35, 36),
    }
    assert list(layer_choices(4)) == ["all layers", "early third", "middle third", "late third", "last layer"]
    assert list(layer_choices(2)) == ["all layers", "last layer"] and list(layer_choices(1)) == ["all layers"]


def test_scores_of_a_case_worked_by_hand() -> None:
    # Two layers, two heads, two tokens: vision, text, other, first, generated.
    layer_0 = [
        [[0.2, 0.2, 0.0, 0.6, 0.0], [0.0, 0.4, 0.0, 0.6, 0.0]],
        [[0.4, 0.0, 0.0, 0.6, 0.0], [0.0, 0.4, 0.0, 0.6, 0.0]],
    ]
    layer_1 = [
        [[0.1, 0.1, 0.2, 0.6, 0.0], [0.0, 0.0, 0.4, 0.6, 0.0]],
        [[0.1, 0.1, 0.2, 0.6, 0.0], [0.2, 0.2, 0.0, 0.6, 0.0]],
    ]
    valued = [[0.5, 0.1], [0.3, 0.2]]
    found = look_scores([layer_0, layer_1], valued, 5, 20)
    # Means over heads: vision .3, 0 | .1, .1 and text .1, .4 | .1, .1, of .4 in all; shares averaged over layers:
    # token 0: vision (3/4 + 1/4) / 2 = 1/2, text (1/4 + 1/4) / 2 = 1/4: VGR (1/4 / 5) / (1/2 / 20) = 2
    # token 1: vision (0 + 1/4) / 2 = 1/8, text (1 + 1/4) / 2 = 5/8: VGR (5/8 / 5) / (1/8 / 20) = 20
    assert found["1/VGR, all layers"] == pytest.approx([1 / 2, 1 / 20], rel=1e-5)
    # AEI: share of attention 1/2 of 3/4, and 1/8 of 6/8, over a share of 20/25 of the tokens
    assert found["AEI, all layers"] == pytest.approx([2 / 3 / 0.8, 1 / 6 / 0.8])
    assert found["1/VGR, last layer"] == pytest.approx([1 / 4, 1 / 4], rel=1e-5)
    assert found["vision mass, all layers"] == pytest.approx([0.2, 0.05])
    assert found["vision mass, last layer"] == pytest.approx([0.1, 0.1])
    assert found["vision mass, strongest head"] == pytest.approx([0.4, 0.2])
    assert found["value-weighted mass, all layers"] == pytest.approx([0.4, 0.15])


def test_the_heads_that_look_most() -> None:
    mass = [[0.1, 0.1, 0.1], [0.6, 0.0, 0.3], [0.0, 0.2, 0.3], [0.3, 0.3, 0.0]]  # means .1, .3, .17, .2
    np.testing.assert_allclose(most_looking(mass, 0.5), [0.45, 0.15, 0.15])
    np.testing.assert_allclose(most_looking(mass, 0.01), [0.6, 0.0, 0.3])
