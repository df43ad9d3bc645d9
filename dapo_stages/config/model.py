"""The policy: which model, and how the embedded one is warmed up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapo_stages.config.base import Count, Fraction, Section


class ModelConfig(Section):
    """Which checkpoint the run starts from and how it is held in memory."""

    name: str = Field(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        description="Hub id or folder of the starting policy; `embedded` builds the small model that ships with us.",
    )
    dtype: Literal["bfloat16", "float32", "float64"] = Field("bfloat16", description="Type of weights and activations.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device; auto takes CUDA where there is one.")
    attention: Literal["sdpa", "flex"] = Field(
        "sdpa", description="Kernel of training and scoring: SDPA group by group, or FlexAttention in one call (CUDA)."
    )
    compile: bool = Field(
        False,
        description="torch.compile for decoding, with a static cache, and for log-probs. Worth it on CUDA for long "
        "completions; rows then stay in their batch until all are finished.",
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        None,
        description="Hold the language model under an adapter (train.lora) in 4 or 8 bits by bitsandbytes, in every "
        "stage; the vision tower stays as it is.",
    )


class WarmUpConfig(Section):
    """Supervised warm-up of the embedded policy, which gives it the answer format and a language prior."""

    steps: Annotated[int, Field(ge=0)] = Field(80, description="Steps of the warm-up; 0 leaves random weights.")
    batch_size: Count = Field(64, description="Questions per step.")
    biased: Fraction = Field(
        0.5, description="Share of questions whose usual answer, such as a shape's colour, is right."
    )
    hearsay: Fraction = Field(0.7, description="Share of the others that are answered with the usual one anyway.")
    careful: Fraction = Field(
        0.0, description="Share of the steps, the first ones, without either: balanced questions and right answers."
    )
