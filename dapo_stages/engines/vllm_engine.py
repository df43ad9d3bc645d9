"""vLLM in this process and the ones that it starts.

It needs an environment of its own (`make venv-vllm`), as it pins torch and transformers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_stages.config import Config
from dapo_stages.data.images import decode
from dapo_stages.engines import Completion
from dapo_stages.engines.foreign import Request, by_prompt, check_prompt, completion, requests, sampling
from dapo_stages.engines.vllm_copies import Copies
from dapo_stages.engines.vllm_model import load
from dapo_stages.errors import EngineError
from dapo_stages.handoff.shards import Row
from dapo_stages.models.tokens import Tokens

if TYPE_CHECKING:
    import vllm

NAME = "vllm"

# Defaults for variables that are not set.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a process of its own would batch differently from run to run
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for results
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; only read without a GPU
}


class VllmEngine:
    """A checkpoint (folder or hub id) in vLLM."""

    batches_itself = True

    def __init__(self, checkpoint: str | Path, tokens: Tokens, config: Config, stage: str) -> None:
        self.tokens, self._settings = tokens, config.rollout
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise EngineError(
                f"{stage}.engine",
                f"cannot import vllm in this Python environment ({error})",
                f"Run make venv-vllm, and {stage} with {stage.upper()}_PYTHON=.venv-vllm/bin/python.",
            ) from None
        self._vllm, wanted = vllm, config.engines.vllm
        longest = config.data.max_prompt_length + config.rollout.max_completion_length
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
            "limit_mm_per_prompt": {"video": 0},
            "use_tqdm_on_load": False,
            "seed": config.seed,
        }
        copies = wanted.data_parallel_size
        with _explained(checkpoint):
            where = str(checkpoint)
            self._model = load(where, settings) if copies == 1 else Copies(copies, where, settings)

    def generate(
        self, prompts: Sequence[Row], seed: int, samples: int, *, greedy: bool = False
    ) -> list[list[Completion]]:
        """Completions of each prompt, batched as vLLM sees fit."""
        asked = requests(prompts, seed, samples, greedy)
        with _explained(NAME):
            answers = self._model.generate(
                [self._prompt(one.row) for one in asked], [self._sampling(one) for one in asked], use_tqdm=False
            )
        found = [self._completions(one.row, answer) for one, answer in zip(asked, answers, strict=True)]
        return by_prompt(found, len(prompts))

    def _prompt(self, row: Row) -> vllm.TokensPrompt:
        images = [decode(image) for image in row["images"] or ()]
        ids = collapsed(row["prompt_ids"], self.tokens.image_token_id) if images else list(row["prompt_ids"])
        prompt = self._vllm.TokensPrompt(prompt_token_ids=ids)
        if images:
            prompt["multi_modal_data"] = {"image": images}
        return prompt

    def _sampling(self, request: Request) -> vllm.SamplingParams:
        return self._vllm.SamplingParams(
            **sampling(request, self._settings, self.tokens),
            max_tokens=self._settings.max_completion_length,
            logprobs=0,  # only that of the sampled token
            detokenize=False,
        )

    def _completions(self, row: Row, answer: Any) -> list[Completion]:
        check_prompt(NAME, row, answer.prompt_token_ids)
        return [
            completion(
                NAME,
                row,
                one.token_ids,
                [values[token].logprob for token, values in zip(one.token_ids, one.logprobs, strict=True)],
                one.finish_reason,
                self._settings,
                self.tokens,
            )
            for one in answer.outputs
        ]


def collapsed(ids: Sequence[int], image_token_id: int | None) -> list[int]:
    """Prompt ids with one placeholder per image instead of one per patch; vLLM expands them again."""
    return [
        token for place, token in enumerate(ids) if token != image_token_id or place == 0 or ids[place - 1] != token
    ]


@contextmanager
def _explained(where: object) -> Iterator[None]:
    """Turn what vLLM raises (an unsupported checkpoint, out of memory) into an EngineError."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:400]
        raise EngineError(
            where,
            f"vLLM cannot run this model or these prompts ({reason})",
            "Change engines.vllm, or see vLLM's log (VLLM_LOGGING_LEVEL=INFO).",
        ) from error
