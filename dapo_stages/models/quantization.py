"""Weights in few bits (bitsandbytes), for a base that is frozen under an adapter."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any, Literal

import torch

from dapo_stages.errors import ModelError

# Where it is installed, peft imports it; it warns of kernels it does without, and of every cast it makes.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# Parts that stay as they are, as patterns from the start of a module's name: what sees is small and suffers most from
# rounding, and the head's numbers are the log-probs themselves.
_KEPT = [rf"(.*\.)?{part}" for part in ("visual", "vision_tower", "vision_model", "multi_modal_projector", "lm_head")]


def quantized(kind: Literal["nf4", "int8"], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Keywords of from_pretrained that quantise the language model's layers while they are read.

    nf4: 4-bit NormalFloat with double quantisation (arXiv 2305.14314). int8: LLM.int8() (arXiv 2208.07339), whose
    outlier columns depend on what else is in the batch, so that log-probs differ a little between layouts.
    Raises ModelError where bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization: found {kind} without bitsandbytes; needed that package. Install it "
            "(.venv/bin/pip install bitsandbytes), or set model.quantization to null."
        )
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

    bitsandbytes does that outside of training only, so that what samples would differ from what is trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (to mypy it is a tensor)
