"""Row 6: how far from the arithmetic limit. Floating-point operations with a shared prefix, and the measured rate.

A multiply and an add count as two operations. Only matrix products are counted; norms, rotations, softmax and
embedding look-ups are left out, and so the limit is never reached.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from dapo_stages.models.packing import Group


@dataclass(frozen=True)
class Shape:
    """What of a Qwen2.5-VL the count needs."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    vision: int
    vision_mlp: int
    vision_layers: int
    vision_full_layers: int  # the others attend inside windows
    window: int  # patches of a whole window
    patch: int  # values of one patch
    merge: int  # patches that become one vision token

    @property
    def head(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Load:
    """One group in numbers: prompt and completion tokens, and the patches of each of its pictures."""

    prompt: int
    completions: tuple[int, ...]
    pictures: tuple[int, ...]

    def separate(self) -> list[Load]:
        """The same completions, each with a prompt of its own."""
        return [Load(self.prompt, (length,), self.pictures) for length in self.completions]


def shape_of(config: Any) -> Shape:
    """From a Qwen2_5_VLConfig."""
    text, vision = config.get_text_config(), config.vision_config
    return Shape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        mlp=text.intermediate_size,
        vocabulary=text.vocab_size,
        vision=vision.hidden_size,
        vision_mlp=vision.intermediate_size,
        vision_layers=vision.depth,
        vision_full_layers=len(vision.fullatt_block_indexes),
        window=(vision.window_size // vision.patch_size) ** 2,
        patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        merge=vision.spatial_merge_size**2,
    )


def load_of(group: Group) -> Load:
    """From a group of real tokens."""
    grid = group.prompt.image_grid_thw
    pictures = () if grid is None else tuple(int(n) for n in grid.prod(-1))
    return Load(len(group.prompt.ids), tuple(len(c) for c in group.completions), pictures)


def forward(shape: Shape, load: Load, *, logits: bool) -> float:
    """Operations of one forward pass of a group, its prompt once.

    Text: 2 · tokens · weights of the layers' matrices, 4 · H · D for each pair of a query and a key it sees (scores,
    then values), 2 · tokens · hidden · V for the head on completion rows. Vision: the same over patches.
    """
    tokens = load.prompt + sum(load.completions)
    kv = shape.kv_heads * shape.head
    matrices = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * kv + 3 * shape.hidden * shape.mlp
    text = shape.layers * (2 * tokens * matrices + 4 * shape.hidden * (_prompt_pairs(load) + completion_pairs(load)))
    head = 2 * sum(load.completions) * shape.hidden * shape.vocabulary if logits else 0
    return float(text + head + sum(_picture(shape, patches) for patches in load.pictures))


def training(shape: Shape, load: Load) -> float:
    """Forward and backward: the backward pass multiplies each matrix with gradients twice."""
    return 3 * forward(shape, load, logits=True)


def scoring(shape: Shape, load: Load) -> float:
    """Forward without logits, and the scores of completion rows once more: SDPA does not hand its own out.

    The last layer stops at its queries and keys: no values, attention, output projection or MLP is needed there.
    """
    tokens = load.prompt + sum(load.completions)
    kv = shape.kv_heads * shape.head
    unneeded = 2 * tokens * (shape.hidden * kv + shape.hidden**2 + 3 * shape.hidden * shape.mlp)
    unneeded += 4 * shape.hidden * (_prompt_pairs(load) + completion_pairs(load))
    again = 2 * shape.layers * shape.hidden * completion_pairs(load)
    return forward(shape, load, logits=False) + again - unneeded


def completion_pairs(load: Load) -> int:
    """Pairs of a completion's query and a key it sees: the whole prompt, and its own tokens up to itself."""
    return sum(length * load.prompt + length * (length + 1) // 2 for length in load.completions)


def _prompt_pairs(load: Load) -> int:
    return load.prompt * (load.prompt + 1) // 2


def _picture(shape: Shape, patches: int) -> float:
    matrices = 4 * shape.vision**2 + 3 * shape.vision * shape.vision_mlp
    pairs = shape.vision_full_layers * patches**2
    pairs += (shape.vision_layers - shape.vision_full_layers) * patches * min(shape.window, patches)
    wide = shape.merge * shape.vision
    merger = patches // shape.merge * (wide * wide + wide * shape.hidden)
    layers = shape.vision_layers * 2 * patches * matrices + 4 * shape.vision * pairs
    return float(2 * patches * shape.patch * shape.vision + layers + 2 * merger)


def matrix_rate(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, size: int = 2048, seconds: float = 2.0
) -> float:
    """Operations per second of a square matrix product, the best of those that fit in `seconds`."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        _wait(left)
        started = time.perf_counter()
        torch.mm(left, right)
        _wait(left)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
