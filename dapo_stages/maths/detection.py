"""How well a score of each token tells which tokens depend on the image, and how much of the dependence it finds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dapo_stages.maths.correlations import ranks


def auc(score_T: ArrayLike, positive_T: ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a random positive has a higher score than a random negative, [0, 1].

    Equal scores count half, so a constant has 0.5. Computed from ranks, as Mann and Whitney's U over n₊ · n₋. None
    without a positive or without a negative.
    """
    positive = np.asarray(positive_T, dtype=bool)
    hits = int(positive.sum())
    misses = len(positive) - hits
    if not hits or not misses:
        return None
    above = float(ranks(score_T)[positive].sum()) - hits * (hits + 1) / 2
    return above / (hits * misses)


def captured(score_T: ArrayLike, amount_T: ArrayLike, share: float) -> float | None:
    """The part of the whole amount that lies on the `share` of tokens with the highest scores, [0, 1].

    The amounts are not negative. Of tokens that tie at the edge each counts by the part of them that still fits. None
    if there is no amount.
    """
    score, amount = (np.asarray(values, dtype=np.float64) for values in (score_T, amount_T))
    whole = float(amount.sum())
    if whole <= 0:
        return None
    most = share * len(score)
    edge = np.sort(score)[::-1][max(0, min(len(score), int(np.ceil(most))) - 1)]
    above, tied = score > edge, score == edge
    found = amount[above].sum() + amount[tied].mean() * (most - above.sum())
    return float(found) / whole
