"""vLLM in this process and the ones that it starts.

It needs an environment of its own (`make venv-vllm`), as it pins torch and transformers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

from dapo_stages.config import Config
from dapo_stages.config.run import SamplingStage
from dapo_stages.data.control import MARK
from dapo_stages.data.images import decode
from dapo_stages.engines import Completion
from dapo_stages.engines.canary import SAMPLES, Canary, few
from dapo_stages.engines.foreign import Request, by_prompt, check_prompt, completion, requests, sampling
from dapo_stages.engines.vllm_kept import PolicyInVllm
from dapo_stages.errors import EngineError
from dapo_stages.handoff import kept
from dapo_stages.handoff.policy_folders import LINEAR, PolicyFolder
from dapo_stages.handoff.shards import Row
from dapo_stages.models.families import has_grids
from dapo_stages.models.tokens import Tokens

if TYPE_CHECKING:
    import vllm

    from dapo_stages.config import RolloutConfig

NAME = "vllm"

# Defaults for variables that are not set.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a process of its own would batch differently from run to run
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for results
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; only read without a GPU
}
_MOST = 1024  # completions at the same time, vLLM's own default on large GPUs
_RELOADS = "dapo_stages.engines.vllm_cpu_worker.ReloadingWorker"


class VllmEngine:
    """A policy in vLLM. A process that stays keeps it for the next command, and reloads the next policy in place."""

    batches_itself = True

    def __init__(self, policy: PolicyFolder, tokens: Tokens, config: Config, stage: SamplingStage) -> None:
        self.tokens, self._settings = tokens, config.sampled(stage)
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
            from vllm.platforms import current_platform

            from dapo_stages.engines import vllm_suppressed as suppressed
        except ImportError as error:
            raise EngineError(
                f"{stage}.engine",
                f"cannot import vllm in this Python environment ({error})",
                f"Run make venv-vllm, and {stage} with {stage.upper()}_PYTHON=.venv-vllm/bin/python.",
            ) from None
        self._vllm, wanted = vllm, config.engines.vllm
        # The same for both stages, so that a process that stays has one engine for both.
        completion = max(config.sampled(one).max_completion_length for one in get_args(SamplingStage))
        longest = config.data.max_prompt_length + completion
        cpu = current_platform.is_cpu()
        settings = {
            "dtype": config.model.dtype,
            "max_model_len": wanted.max_model_len or longest,
            "logprobs_mode": "processed_logprobs",  # of the distribution sampled from
            "gpu_memory_utilization": wanted.gpu_memory_utilization,
            "tensor_parallel_size": wanted.tensor_parallel_size,
            "enforce_eager": wanted.enforce_eager or cpu,
            # A prompt split in two needs its random generator rewound, which is not possible on CPUs.
            "enable_chunked_prefill": False if cpu else None,
            # Caching the states of linear layers would need it, too.
            "enable_prefix_caching": False if cpu and LINEAR in policy.kinds_of_layers else None,
            "max_num_seqs": at_once(config),
            "limit_mm_per_prompt": {"video": 0},
            "logits_processors": [suppressed.NAME],
            "additional_config": {suppressed.IDS: sorted(tokens.suppressed_ids)},
            "use_tqdm_on_load": False,
            "seed": config.seed,
        }
        if kept.keeps():
            settings |= {"worker_cls": _RELOADS} if cpu else {"enable_sleep_mode": True}
        self._canary = Canary(policy, config, NAME)
        with _explained(policy.name):
            self._policy = PolicyInVllm(policy, config.model, settings, wanted.data_parallel_size)

    def generate(
        self, prompts: Sequence[Row], seed: int, samples: int, *, greedy: bool = False
    ) -> list[list[Completion]]:
        """Completions of each prompt, batched as vLLM sees fit."""
        with _explained(NAME):
            if not self._policy.is_proven:
                self._prove(few(prompts))
            return by_prompt(self._all(requests(prompts, seed, samples, greedy), self._settings), len(prompts))

    def _prove(self, prompts: Sequence[Row]) -> None:
        """Have the canary check what a reloaded policy samples; it is not used."""
        sampled = self._all(requests(prompts, seed=0, samples=SAMPLES, greedy=False), self._canary.settings)
        self._policy.prove(lambda: self._canary.check(prompts, sampled, ""))

    def _all(self, asked: Sequence[Request], settings: RolloutConfig) -> list[list[Completion]]:
        answers = self._policy.generate(
            [self._prompt(one.row) for one in asked], [self._sampling(one, settings) for one in asked]
        )
        return [self._completions(one.row, answer, settings) for one, answer in zip(asked, answers, strict=True)]

    def _prompt(self, row: Row) -> vllm.TokensPrompt:
        images = [decode(image) for image in row["images"] or ()]
        ids = self._unexpanded(row) if images else list(row["prompt_ids"])
        prompt = self._vllm.TokensPrompt(prompt_token_ids=ids)
        if images:
            prompt["multi_modal_data"] = {"image": images}
        return prompt

    def _unexpanded(self, row: Row) -> list[int]:
        """Ids with a placeholder for each image, as its processor takes them; vLLM expands them again.

        Of families that put more than the same token around or between an image's, they are made of the text again.
        """
        if has_grids(self.tokens.architecture) or MARK in row["prompt_text"]:
            return collapsed(row["prompt_ids"], self.tokens.image_token_id)
        ids: list[int] = self.tokens.tokenizer(row["prompt_text"])["input_ids"]
        return ids

    def _sampling(self, request: Request, settings: RolloutConfig) -> vllm.SamplingParams:
        return self._vllm.SamplingParams(
            **sampling(request, settings, self.tokens),
            max_tokens=settings.max_completion_length,
            logprobs=0,  # only that of the sampled token
            detokenize=False,
        )

    def _completions(self, row: Row, answer: Any, settings: RolloutConfig) -> list[Completion]:
        check_prompt(NAME, row, answer.prompt_token_ids)
        return [
            completion(
                NAME,
                row,
                one.token_ids,
                [values[token].logprob for token, values in zip(one.token_ids, one.logprobs, strict=True)],
                one.finish_reason,
                settings,
                self.tokens,
            )
            for one in answer.outputs
        ]


def at_once(config: Config) -> int:
    """Most completions that a copy of the model has at the same time: those of a shard, up to vLLM's own bound. vLLM
    makes room for so many, and captures CUDA graphs for them."""
    sampled, asked = config.rollout, config.evaluate
    rows = [
        sampled.groups_per_shard * sampled.num_generations if sampled.engine == NAME else 0,
        asked.questions_per_shard * (asked.num_generations + asked.greedy) if asked.engine == NAME else 0,
    ]
    return min(_MOST, -(-max(rows) // config.engines.vllm.data_parallel_size))


def collapsed(ids: Sequence[int], image_token_id: int | None) -> list[int]:
    """Prompt ids with one placeholder per image instead of one per patch."""
    return [
        token for place, token in enumerate(ids) if token != image_token_id or place == 0 or ids[place - 1] != token
    ]


@contextmanager
def _explained(where: object) -> Iterator[None]:
    """Turn what vLLM raises (an unsupported checkpoint, out of memory) into an EngineError."""
    try:
        yield
    except (AssertionError, ValueError, RuntimeError, OSError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:400]
        raise EngineError(
            where,
            f"vLLM cannot run this model or these prompts ({reason})",
            "Change engines.vllm, or see vLLM's log (VLLM_LOGGING_LEVEL=INFO).",
        ) from error
