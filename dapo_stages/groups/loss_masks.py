"""The tokens of a completion that the policy wrote, where the rollouts tell (loss_mask): only these are weighed.

A completion may have tokens that were given to it, such as what a tool answered. weight-tokens weighs a completion as
if these were not there, and writes 0 for them; that they are in no sum of the loss is up to train-step, which reads the
same mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from dapo_stages.groups.token_words import text_of
from dapo_stages.handoff.shards import Row

MASK = "loss_mask"


def in_loss(row: Row) -> int:
    """Number of a completion's tokens in the loss."""
    return len(row["completion_ids"]) if row[MASK] is None else sum(row[MASK])


def own_tokens(row: Row) -> Row:
    """The row with only the tokens in its mask: its lists with an element per token, and its text.

    Raises ValueError if a list has another length than the mask.
    """
    from dapo_stages.handoff.schemas import PER_TOKEN

    mask = row[MASK]
    if mask is None:
        return row
    found = dict(row)
    for name in PER_TOKEN:
        values = row.get(name)
        if isinstance(values, list) and name != MASK:
            if len(values) != len(mask):
                raise ValueError(f"{len(values)} values of {name} for {len(mask)} tokens")
            found[name] = list(compress(values, mask))
    if "text" in row:
        found["text"] = text_of(row["text"], row["token_texts"], mask)
    return found


def spread(weights: Sequence[float], mask: Sequence[bool] | None) -> list[float]:
    """Weights of the tokens in a mask as weights of all tokens, [T]: 0 for the others."""
    if mask is None:
        return list(weights)
    rest = iter(weights)
    return [next(rest) if own else 0.0 for own in mask]
