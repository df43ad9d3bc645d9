"""vLLM as a process keeps it between commands (docs/resident.md): it takes the weights of one policy after another.

A reload is not trusted: nothing counts as sampled by the new policy until the canary has passed (canary.py). What fails
in between is ended, and vLLM loaded anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dapo_stages.engines.merged_checkpoint import merged_checkpoint
from dapo_stages.engines.vllm_copies import Copies
from dapo_stages.engines.vllm_model import Model
from dapo_stages.errors import EngineError
from dapo_stages.handoff import kept
from dapo_stages.terminal.console import say

if TYPE_CHECKING:
    import vllm

    from dapo_stages.config import ModelConfig
    from dapo_stages.handoff.policy_folders import PolicyFolder


class _Model(Protocol):
    def generate(self, prompts: Sequence[Any], sampling: Sequence[vllm.SamplingParams]) -> list[vllm.RequestOutput]: ...

    def reload(self, checkpoint: str) -> None: ...

    def sleep(self) -> None: ...

    @property
    def end(self) -> Callable[[], object]: ...


class _Kept:
    """A model, and the content that it has been proven to have; None while that is not known."""

    def __init__(self, model: _Model) -> None:
        self.model = model
        self.proven: str | None = None

    def rest(self) -> None:
        """Nothing is asked of it until the next command."""
        self.model.sleep()


class PolicyInVllm:
    """A policy in vLLM: in the one that this process keeps, or loaded. `settings` are vLLM's."""

    def __init__(self, policy: PolicyFolder, model: ModelConfig, settings: dict[str, Any], copies: int) -> None:
        self._policy, self._settings, self._copies, self._of_model = policy, settings, copies, model
        self._key = json.dumps([settings, copies], sort_keys=True)
        self._held = self._reloaded() or self._loaded()

    @property
    def is_proven(self) -> bool:
        """Whether nothing but this policy can answer."""
        return self._held.proven == self._policy.content

    def prove(self, check: Callable[[], None]) -> None:
        """Call `check`, which compares what a reloaded policy has sampled with another copy of it. If it raises
        EngineError, load the policy anew."""
        self._held.model.sleep()  # two copies need not fit at a time
        try:
            check()
        except EngineError as failure:
            self._give_up(failure.problem)
            self._held = self._loaded()
        finally:
            kept.drop("policy")
        self._held.proven = self._policy.content

    def generate(self, prompts: Sequence[Any], sampling: Sequence[vllm.SamplingParams]) -> list[vllm.RequestOutput]:
        """One output per prompt."""
        return self._held.model.generate(prompts, sampling)

    def _reloaded(self) -> _Kept | None:
        """The one that is kept, with the weights of this policy; None if there is none, or it could not take them."""
        held: _Kept | None = kept.look("engine", self._key)
        if held is None and (other := kept.present("engine")) is not None:
            other.model.end()  # another configuration
            kept.drop("engine")
        if held is None or held.proven == self._policy.content:
            return held
        self._held, held.proven = held, None
        try:
            with merged_checkpoint(self._policy, self._of_model) as folder:
                held.model.reload(str(Path(folder).resolve()))
        except Exception as failure:  # vLLM raises what it likes, and is in no known state then
            self._give_up(" ".join(str(failure).split())[:300])
            return None
        return held

    def _loaded(self) -> _Kept:
        with merged_checkpoint(self._policy, self._of_model) as folder:
            where = str(folder)
            held = _Kept(
                Copies(self._copies, where, self._settings) if self._copies > 1 else Model(where, self._settings)
            )
        held.proven = self._policy.content
        kept.give("engine", self._key, held)
        return held

    def _give_up(self, problem: str) -> None:
        say(f"vllm: could not go on with policy {self._policy.folder} ({problem}); loading it anew")
        kept.drop("engine")
        self._held.model.end()
