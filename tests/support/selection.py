"""Which tests need a policy: they take most of the time, and what a small one samples differs between machines."""

from __future__ import annotations

import pytest

# Fixtures that hold a policy, or what it sampled. All others of the kind are made from these.
_SAMPLED = {"small_run", "kept_run", "checkpoint", "checkpoints"}


def has_policy(item: pytest.Item) -> bool:
    return bool(_SAMPLED & set(getattr(item, "fixturenames", ())))


def select(config: pytest.Config, items: list[pytest.Item], chosen: list[pytest.Item]) -> None:
    """Leave out all other tests, and let pytest say how many."""
    left_out = set(items) - set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = chosen
