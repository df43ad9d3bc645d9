"""The policy: which model, and how the embedded one is warmed up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapo_stages.config.base import Count, Fraction, Later, RecordedAs, Section


class ModelConfig(Section):
    """Which checkpoint the run starts from and how it is held in memory."""

    name: str = Field(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        description="Hub id or folder of the starting policy; `embedded` builds the small built-in model.",
    )
    dtype: Literal["bfloat16", "float32", "float64"] = Field(
        "bfloat16", description="Data type of weights and activations."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device; auto uses CUDA if available.")
    attention: Annotated[Literal["auto", "sdpa", "flex"], RecordedAs({"auto": "sdpa"})] = Field(
        "auto",
        description="Attention kernel of training and scoring: SDPA group by group, which copies each prompt's keys "
        "for its completions, or one FlexAttention call, which does not (CUDA with Triton); auto: flex where it runs.",
    )
    compile: bool = Field(
        False,
        description="Use torch.compile for decoding, with a static cache, and for logprobs. Pays off on CUDA with long "
        "completions; rows then stay in their batch until all are finished.",
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        None,
        description="Load the language model under an adapter (train.lora) in 4 or 8 bits with bitsandbytes, in every "
        "stage; the vision tower is not quantized.",
    )


class WarmUpConfig(Section):
    """Supervised warm-up of the embedded policy, which teaches it the answer format and a language prior."""

    steps: Annotated[int, Field(ge=0)] = Field(80, description="Warm-up steps; 0 leaves random weights.")
    batch_size: Count = Field(64, description="Questions per step.")
    biased: Fraction = Field(
        0.5, description="Fraction of questions whose usual answer, such as a shape's usual color, is correct."
    )
    hearsay: Fraction = Field(
        0.7, description="Fraction of the other questions that are labeled with the usual answer anyway."
    )
    careful: Fraction = Field(
        0.0, description="Fraction of the steps, at the start, with balanced questions and correct answers only."
    )
    captions: Annotated[Fraction, Later(0.0)] = Field(
        0.0,
        description="Fraction of the steps, at the start, that only describe images (task places); later a fifth of "
        "each batch does.",
    )
    learning_rate: Annotated[float, Field(gt=0), Later(0.02)] = Field(
        0.02, description="Highest learning rate of the matrices (Muon); it rises for 5 steps, then falls to a tenth."
    )
