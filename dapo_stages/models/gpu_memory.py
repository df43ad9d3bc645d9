"""How torch takes the memory of a GPU."""

from __future__ import annotations

import os

import torch

# What users set themselves; torch reads either.
_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def let_segments_grow() -> None:
    """Let torch extend the pieces of memory that it has, instead of adding others beside them.

    Packed rows differ in length from one pass to the next, which leaves gaps that no later row fits into. Not by the
    environment, which vLLM's processes would inherit, whose own pools cannot be extended. What the user has set stays.
    Not measured on a GPU.
    """
    if not any(os.environ.get(name) for name in _SETTINGS):
        change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # its name since torch 2.10
        (change or torch.cuda.memory._set_allocator_settings)("expandable_segments:True")
