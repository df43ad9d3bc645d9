"""Quantized weights (bitsandbytes), for the frozen base of an adapter."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch

from dapo_stages.models.requirements import require_quantizer

# peft imports it if it is installed; it warns about missing kernels and about every cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# Parts that are not quantized, as patterns from the start of a module's name: the vision tower is small and suffers
# most from rounding, and the head's outputs become the logprobs.
_KEPT = [rf"(.*\.)?{part}" for part in ("visual", "vision_tower", "vision_model", "multi_modal_projector", "lm_head")]


def quantized(kind: Literal["nf4", "int8"], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of from_pretrained that quantize the language model's layers on loading.

    nf4: 4-bit NormalFloat with double quantization (arXiv 2305.14314). int8: LLM.int8() (arXiv 2208.07339), whose
    outlier columns depend on what else is in the batch, so logprobs differ a little between layouts.
    Raises ModelError if bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    require_quantizer(kind)
    if kind == "nf4":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=_KEPT,
        )
    else:
        settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_KEPT)
    return {"quantization_config": settings, "device_map": {"": device}}


def compute_exactly(model: torch.nn.Module) -> None:
    """Keep 4-bit layers from turning themselves into bfloat16 ones when they first generate on a CPU.

    bitsandbytes does that only outside of training, so the policy that samples would differ from the one that is
    trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (to mypy it is a tensor)
