"""Opens the engine that a stage is configured with, on a policy folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dapo_stages import ranks
from dapo_stages.config import Config
from dapo_stages.config.run import SamplingStage
from dapo_stages.data.control import CONTROL_TOKENS
from dapo_stages.data.visuals import VIDEOS
from dapo_stages.errors import ConfigError, EngineError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.terminal.console import say

if TYPE_CHECKING:
    from dapo_stages.engines import Engine


def open_engine(policy: PolicyFolder, config: Config, stage: SamplingStage = "rollout") -> Engine:
    """Verify a policy folder and load it, or the checkpoint it refers to, into the engine of the stage."""
    name = config.rollout.engine if stage == "rollout" else config.evaluate.engine
    if name == "transformers":
        return _transformers(policy, config, stage)
    if name == "vllm" and ranks.count() > 1:
        raise ConfigError(
            f"{stage}.engine: vllm must run in one process, not {ranks.count()}, as it starts its own. Start {stage} "
            f"without a launcher (make: {stage.upper()}_LAUNCH=1), and set engines.vllm.tensor_parallel_size to the "
            "number of GPUs that share a model, or engines.vllm.data_parallel_size to the number of its copies."
        )
    if name == "server" and config.engines.server.reload != "none" and ranks.count() > 1:
        raise ConfigError(
            f"engines.server.reload: {stage} must run in one process, not {ranks.count()}, as one reloads for all. "
            f"Start {stage} without a launcher (make: {stage.upper()}_LAUNCH=1); engines.server.concurrency sends more "
            "requests at a time."
        )
    from dapo_stages.models.tokens import load_tokens

    policy.verify()
    tokens = load_tokens(policy.checkpoint())
    if name == "server":
        from dapo_stages.engines.server_engine import ServerEngine

        return ServerEngine(policy, tokens, config, stage)
    from dapo_stages.engines.vllm_engine import VllmEngine
    from dapo_stages.models.soundness import check_checkpoint

    check_checkpoint(policy.checkpoint())
    return VllmEngine(policy, tokens, config, stage)


def check_prompts(data: Source, kind: str, engine: str) -> None:
    """Raise EngineError, before anything is sampled, if the engine cannot take a prompt of a table."""
    if engine != "transformers" and VIDEOS in data.manifest.counts:
        raise EngineError(
            engine,
            f"the data has {data.manifest.counts[VIDEOS]:,} prompts with videos, which only transformers takes",
            "Set the engine to transformers.",
        )
    if engine == "server" and CONTROL_TOKENS in data.manifest.counts:
        from dapo_stages.engines.server_engine import check_text

        for row in data.rows(kind, ("prompt_id", "prompt_text")):
            check_text(engine, row)


def _transformers(folder: PolicyFolder, config: Config, stage: SamplingStage) -> Engine:
    from dapo_stages.engines.transformers_engine import TransformersEngine
    from dapo_stages.models.policy_loading import open_policy

    policy = open_policy(folder, config.model)
    if not policy.shares_prefixes:
        say(f"{stage}: this model cannot share a prompt among its completions; generating prompt by prompt")
    return TransformersEngine(policy, config.sampled(stage))
