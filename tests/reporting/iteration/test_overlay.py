"""Maps over images: colors and opacities worked out by hand, and an image that stays what it was elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dapo_stages.reporting.iteration.overlay import look_of, over, shades


def test_up_to_the_average_nothing_is_painted_and_the_brightest_is_yellow() -> None:
    """The average is 2; 5 is the brightest, 3.5 half-way between: in the middle of the second and the third color."""
    found = shades(np.array([0.0, 1.0, 2.0, 3.5, 5.0, 0.5])).tolist()
    assert [cell[3] for cell in found] == [0, 0, 0, 76, 153, 0]  # 0.6 × 255, and half of that
    assert found[4][:3] == [250, 230, 20]
    assert found[3][:3] == pytest.approx([(221 + 252) / 2, (81 + 165) / 2, (58 + 10) / 2], abs=0.5)


def test_a_map_without_contrast_stays_pale() -> None:
    """The full color is for twice the average: 1.1 times the average gets a tenth of it."""
    assert shades(np.array([0.9, 1.1] * 8))[:, 3].tolist() == [0, 15] * 8
    assert shades(np.full(4, 0.3))[:, 3].max() == 0 == shades(np.zeros(4))[:, 3].max()


def test_a_completion_looked_at_the_mean_of_its_tokens() -> None:
    """Two images of 1 × 2 and 2 × 2 image tokens on one scale."""
    tokens = np.array([[0.1, 0.0, 0.0, 0.0, 0.3, 0.0], [0.0, 0.0, 0.2, 0.0, 0.0, 0.0]], np.float32)
    look = look_of(tokens, [[1, 2, 4], [1, 4, 4]])
    assert look is not None and [one.shape for one in look.shades] == [(1, 2, 4), (2, 2, 4)]
    # Means 0.05, 0, 0.1, 0, 0.15, 0: average 0.05.
    assert [one[..., 3].tolist() for one in look.shades] == [[[0, 0]], [[76, 0], [153, 0]]]
    assert [look.times, look.seen] == pytest.approx([3, 0.3])
    assert look_of(tokens, [[1, 4, 4]]) is None
    assert look_of(tokens * np.nan, [[1, 2, 4], [1, 4, 4]]) is None


def test_only_what_was_looked_at_changes() -> None:
    image = Image.effect_noise((40, 60), 80).convert("RGB")
    cells = np.zeros((3, 2))
    cells[1, 1] = 1
    before, after = (np.asarray(one, int) for one in (image, over(image, shades(cells.ravel()).reshape(3, 2, 4))))
    changed = np.abs(after - before).max(axis=-1) > 0
    assert changed[20:40, 20:].all() and changed.sum() == 20 * 20
    expected = 0.4 * before[20:40, 20:] + 0.6 * np.array([250, 230, 20])
    assert np.abs(after[20:40, 20:] - expected).max() <= 1
