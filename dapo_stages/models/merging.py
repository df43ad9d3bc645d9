"""Averages of checkpoints, file by file: memory is bounded by one file of the result, however large the checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from dapo_stages.errors import ModelError
from dapo_stages.handoff.referred import BESIDE
from dapo_stages.models.checkpoints import Checkpoint, Tensors

_BOOKKEEPING = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache"}


def require_same(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse to average checkpoints of different architectures or shapes, saying where they differ."""
    from transformers import AutoConfig

    first, *others = checkpoints
    expected = AutoConfig.from_pretrained(first.folder, trust_remote_code=False).to_dict()
    for other in others:
        settings = AutoConfig.from_pretrained(other.folder, trust_remote_code=False).to_dict()
        difference = next(_differences(expected, settings), None)
        if difference is not None:
            key, value, wanted = difference
            raise _unlike(other, f"{key} is {value!r}, but {wanted!r} in {first.folder}")
        for name in sorted(first.shapes.keys() | other.shapes.keys()):
            shape, wanted = other.shapes.get(name), first.shapes.get(name)
            if shape != wanted:
                raise _unlike(other, f"{name} has shape {shape}, but {wanted} in {first.folder}")


def merge(sources: Sequence[Tensors], shares: Sequence[float], names: Sequence[str], path: Path) -> None:
    """Write one file of the average: Σ share · tensor in float32 (or float64 if stored so), rounded once at the end."""
    from safetensors.torch import save_file

    save_file({name: _average(name, sources, shares) for name in names}, path, metadata={"format": "pt"})


def copy_beside(source: Path, target: Path, but: Collection[str] = ()) -> list[str]:
    """Copy the files beside the weights of a checkpoint, including the index; returns their names."""
    names = [path.name for path in sorted(source.iterdir()) if path.name not in but]
    names = [name for name in names if any(fnmatch(name, pattern) for pattern in BESIDE)]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names


def _average(name: str, sources: Sequence[Tensors], shares: Sequence[float]) -> torch.Tensor:
    first = sources[0].read(name)
    if len(sources) == 1 or not first.is_floating_point():
        return first.contiguous()
    total = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
    for source, share in zip(sources, shares, strict=True):
        total += share * source.read(name).to(total.dtype)
    return total.to(first.dtype)


def _differences(one: Any, two: Any, where: str = "config") -> Iterator[tuple[str, Any, Any]]:
    """(key, value in two, value in one) of settings that decide what a model computes."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted((one.keys() | two.keys()) - _BOOKKEEPING, key=str):
            yield from _differences(one.get(key), two.get(key), f"{where}.{key}")
    elif one != two:
        yield where, two, one


def _unlike(other: Checkpoint, problem: str) -> ModelError:
    return ModelError(f"{other.folder}: {problem}. Merge policies of one run, or of runs from the same model.")
