"""vLLM and inference servers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapo_stages.config.base import LONGEST, Count, Later, Positive, Section


class VllmConfig(Section):
    """vLLM in the process of rollout or evaluate, or in processes it starts. None of this changes the sampled
    distribution."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="Fraction of the GPU's memory to use."
    )
    tensor_parallel_size: Count = Field(1, description="GPUs that one copy of the model is split across.")
    data_parallel_size: Annotated[Count, Later(1)] = Field(
        1, description="Copies of the model, each on its own GPUs, that share the prompts."
    )
    enforce_eager: bool = Field(
        False, description="Disable CUDA graphs: faster start, slower decoding. CPUs never use them."
    )
    max_model_len: Count | None = Field(
        None, description="Longest prompt plus completion in tokens; null uses what data and rollout allow."
    )


class Endpoint(Section):
    """A server with OpenAI's chat completions API, with time limits and retries. None of this changes its results."""

    url: str = Field(
        "http://localhost:8000", pattern=r"^https?://[^\s/]+", description="URL of the server, without /v1."
    )
    concurrency: Count = Field(32, description="Requests in flight at the same time.")
    timeout: Annotated[float, Field(gt=0, le=LONGEST)] = Field(
        600.0, description="Seconds to wait for a response; receiving all of it may take twice as long."
    )
    retries: Annotated[int, Field(ge=0)] = Field(5, description="Retries after a temporary failure.")
    backoff: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Seconds before the first retry; doubles with each retry, up to 60."
    )


class ServerConfig(Endpoint):
    """A server with OpenAI's chat completions API that returns token ids. Its API key comes from the environment:
    DAPO_STAGES_API_KEY, or OPENAI_API_KEY over https or on this machine. None of this changes the sampled
    distribution."""

    model: str | None = Field(None, description="Name of the model on the server; null uses the first it lists.")
    reload: Annotated[Literal["vllm", "sglang", "none"], Later("none")] = Field(
        "none",
        description="How a running server is given each policy: by vLLM's or SGLang's own requests; none: it must have "
        "been started on it.",
    )
    canary: Annotated[Positive | None, Later(None)] = Field(
        None,
        description="Largest mean difference of the logprobs of a reloaded server from the policy's; null uses "
        "engines.diff_warn with model.dtype bfloat16, and 0.001 with others.",
    )
    restart: Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, Later(None)] = Field(
        None,
        description="Command, a list of words, that starts the server anew if it does not reload, and ends once it "
        "answers; {policy} stands for the policy. null: a failed reload ends the stage.",
    )


class EnginesConfig(Section):
    """How vLLM and servers run, and when to warn about a mismatch with the trainer."""

    vllm: VllmConfig = VllmConfig()
    server: ServerConfig = ServerConfig()
    diff_warn: Annotated[float, Field(gt=0)] = Field(
        0.05, description="train-step warns if the logprobs of engine and trainer differ by more than this on average."
    )
