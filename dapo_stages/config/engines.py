"""Engines that are not part of the trainer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dapo_stages.config.base import LONGEST, Count, Later, Section


class VllmConfig(Section):
    """vLLM in the process of rollout or evaluate, or in those it starts. None of it changes what is sampled from."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="Share of the GPU's memory.")
    tensor_parallel_size: Count = Field(1, description="GPUs that share the model, or each copy of it.")
    data_parallel_size: Annotated[Count, Later(1)] = Field(
        1, description="Copies of the model, each on GPUs of its own, that share the prompts."
    )
    enforce_eager: bool = Field(
        False, description="Without CUDA graphs: a quicker start, slower decoding. Always so on CPUs."
    )
    max_model_len: Count | None = Field(
        None, description="Longest prompt and completion together; null takes what data and rollout allow."
    )


class Endpoint(Section):
    """Where a server with OpenAI's chat completions answers, and how patiently it is asked. None of it changes what
    is answered."""

    url: str = Field(
        "http://localhost:8000", pattern=r"^https?://[^\s/]+", description="Where it answers, without /v1."
    )
    concurrency: Count = Field(32, description="Requests under way at the same time.")
    timeout: Annotated[float, Field(gt=0, le=LONGEST)] = Field(
        600.0, description="Seconds to wait for an answer; the whole of it may take twice as long."
    )
    retries: Annotated[int, Field(ge=0)] = Field(5, description="Further tries after a failure that may pass.")
    backoff: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Seconds before the first further try; twice as long before each one after it, at most 60."
    )


class ServerConfig(Endpoint):
    """A server with OpenAI's chat completions that gives token ids. Its key is DAPO_STAGES_API_KEY of the environment,
    or OPENAI_API_KEY over https or on this machine. None of it changes what is sampled from."""

    model: str | None = Field(None, description="Name of the model there; null takes the first it lists.")


class EnginesConfig(Section):
    """Where and how engines run, and what is said of their mismatch with the trainer."""

    vllm: VllmConfig = VllmConfig()
    server: ServerConfig = ServerConfig()
    diff_warn: Annotated[float, Field(gt=0)] = Field(
        0.05, description="train-step warns if log-probs of engine and trainer differ by more than this on average."
    )
