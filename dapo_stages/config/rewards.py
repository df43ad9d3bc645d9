"""Rewards of a single completion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dapo_stages.config.base import Count, Section


class RewardsConfig(Section):
    """Rewards of a single completion (those that need the group or attention are weight-tokens' part)."""

    overlong_max_length: Count | None = Field(
        None, description="L_max of the overlong reward; null takes rollout.max_completion_length."
    )
    overlong_cache: Count = Field(50, description="L_cache: the reward falls over this many tokens before L_max.")
    symbolic: bool = Field(True, description="Compare non-letter answers with math-verify.")
    symbolic_timeout: Annotated[float, Field(gt=0)] = Field(5.0, description="Seconds for one symbolic comparison.")
    plugins: dict[str, str] = Field(
        {},
        description="Further rewards: name -> path/to/file.py:function, inside the working folder.",
    )
