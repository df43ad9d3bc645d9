"""Tries a checkpoint on one small image, so that settings that load but do not compute are found before any work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dapo_stages.errors import ModelError
from dapo_stages.models.reading import reading

if TYPE_CHECKING:
    from dapo_stages.models.policy import Policy
    from dapo_stages.models.shared_prefix.packing import Prompt

_SIDE = 56  # pixels


def check_values(path: str | Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse weights that are not finite. Raises ModelError that names the tensor."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"{path}: NaN or infinity in tensor {name}. Download the checkpoint again, or use a policy from before "
                "the damage."
            )


def prompt_with_an_image(path: str | Path, processor: Any) -> Prompt | None:
    """What a processor makes of a small image and a character; None if it does not say what its image token is.

    Raises ModelError if it fails.
    """
    from PIL import Image

    from dapo_stages.models.inputs import prompt_from

    token = getattr(processor, "image_token", None)
    if token is None:
        return None
    image = Image.new("RGB", (_SIDE, _SIDE), (127, 127, 127))
    with reading(path):
        inputs = processor(text=[f"{token}?"], images=[image], return_tensors="pt")
        return prompt_from(inputs)


def try_out(policy: Policy, path: str | Path) -> None:
    """Compute one forward pass, as the separate rows of a training step. Raises ModelError if it fails.

    Under ZeRO-3 no rank has whole weights yet, so only the processor's output is checked.
    """
    from dapo_stages.models.separate_rows import row_inputs

    check_values(path, policy.model.named_parameters())
    check_values(path, policy.model.named_buffers())  # such as rotary frequencies: SDPA hides NaN in them
    prompt = prompt_with_an_image(path, policy.processor)
    if prompt is None or any(hasattr(one, "ds_id") for one in policy.model.parameters()):
        return
    policy.attend("separate")
    with reading(path), torch.no_grad():
        logits = policy.base(**row_inputs(policy, prompt, [policy.end_ids[:1]]), use_cache=False).logits
        finite = bool(torch.isfinite(logits).all())
    if not finite:
        raise ModelError(
            f"{path}: NaN or infinity in the logits for a gray image. Fix its config.json (such as rope_theta, "
            "rms_norm_eps) or model.dtype, or download the checkpoint again."
        )
