"""Checks that a checkpoint's files fit together, from its settings and the headers of its weights alone.

Without this check, transformers initializes a missing tensor at random, ignores an unknown one, and builds as many
layers as config.json says, whatever the number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dapo_stages.errors import DataError
from dapo_stages.handoff.referred import INDEX
from dapo_stages.models.checkpoints import ADAPTER_CONFIG, SINGLE, Checkpoint, empty_model, names_in_memory
from dapo_stages.models.reading import reading
from dapo_stages.small_files import read_json

_MOST_LAYERS = 4096  # layers, or experts in one; all are built before any weight is read
_MOST = 1 << 40  # any other integer
_MOST_PIXELS = 1 << 24  # that images may be enlarged to
_MOST_SIDE = 1 << 13  # pixels
_DOWNLOAD = "Download the checkpoint again, or save it again with save_pretrained."
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder that transformers would load as something else than it contains, or not at all.

    Raises DataError or ModelError that names the file and the key or tensor.
    """
    check_numbers(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        advice = "Merge it (peft's merge_and_unload), or remove this file if the checkpoint is complete without it."
        raise DataError(folder / ADAPTER_CONFIG, "expected a complete checkpoint, got an adapter", advice)
    checkpoint = Checkpoint(folder)
    if (folder / INDEX).is_file() and (folder / SINGLE).is_file() and SINGLE not in checkpoint.layout:
        problem = f"there is also {INDEX}, which names other files"
        raise DataError(folder / SINGLE, problem, "Remove the one that does not belong to this checkpoint.")
    checkpoint.check_layout()
    _check_tensors(checkpoint)


def check_numbers(folder: Path) -> None:
    """Refuse sizes for which a library would build, enlarge or count practically without end."""
    config = _settings(folder / "config.json")
    for key, value in _numbers(config):
        name = key.rpartition(".")[2]
        counts = "layer" in name or "experts" in name or name == "depth"
        most = _MOST_LAYERS if counts else _MOST
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(folder / "config.json", f"{key} is {value}, but must be finite")
        if isinstance(value, int) and abs(value) > most:
            raise _wrong(folder / "config.json", f"{key} is {str(value)[:40]}, but must be at most {most}")
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            _check_images(folder / file, _settings(folder / file))


def _check_images(path: Path, settings: dict[str, Any]) -> None:
    """Check what an image processor divides by, and what it enlarges small images to."""
    inner = settings.get("image_processor", settings)
    area = isinstance(inner, dict) and "merge_size" in inner  # Qwen's edges are numbers of pixels
    most = {"min_pixels": _MOST_PIXELS, "max_pixels": _MOST}
    most |= {"shortest_edge": _MOST_PIXELS, "longest_edge": _MOST} if area else {}
    for key, value in _numbers(inner if isinstance(inner, dict) else {}):
        head, _, name = key.rpartition(".")
        is_size = name.endswith(("size", "_pixels")) or head.endswith("size")
        if is_size and not 1 <= value <= most.get(name, _MOST_SIDE):
            limit = most.get(name, _MOST_SIDE)
            raise _wrong(path, f"{key} is {str(value)[:40]}, but must be from 1 to {limit}")
        if head.endswith("image_std") and not value > 0:
            raise _wrong(path, f"{key} is {str(value)[:40]}, but must be above 0")


def _settings(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(path, f"cannot read it as a JSON object ({reason[:160]})", _DOWNLOAD) from None
    if not isinstance(values, dict):
        raise DataError(path, f"expected a JSON object, got {type(values).__name__}", _DOWNLOAD)
    return values


def _numbers(settings: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(dotted path of keys and list indexes, value) of every number."""
    waiting: list[tuple[str, Any]] = [("", settings)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}" if key else str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{key}.{number}", inner) for number, inner in enumerate(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _wrong(path: Path, problem: str) -> DataError:
    return DataError(path, problem, "Fix it, or download the checkpoint again.")


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse missing, unexpected and misshapen tensors, as transformers itself finds them on weights without content.

    transformers knows what each family leaves out (a tied head), ignores (`_keys_to_ignore_on_load_*`, rotary buffers
    of older versions) and renames or merges.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = checkpoint.folder
    with reading(folder):
        model = empty_model(folder)
        weights = {
            name: torch.empty(shape, device="meta", dtype=_TYPES.get(checkpoint.type_of(name), torch.float32))
            for name, shape in checkpoint.shapes.items()
        }
        how = LoadStateDictConfig(device_map={"": "meta"}, weight_mapping=get_model_conversion_mapping(model))
        found, _ = convert_and_load_state_dict_in_model(model=model, state_dict=weights, load_config=how)
        model.tie_weights(missing_keys=found.missing_keys, recompute_mapping=False)
        model._adjust_missing_and_unexpected_keys(found)
    where = folder / (INDEX if (folder / INDEX).is_file() else SINGLE)
    if found.missing_keys:
        problem = f"tensor {_some(found.missing_keys)} is missing, which config.json asks for"
        raise DataError(where, problem, _DOWNLOAD)
    if found.unexpected_keys:
        problem = f"tensor {_some(found.unexpected_keys)} has no place in the model of config.json"
        raise DataError(where, problem, _DOWNLOAD)
    for renamed, has, wanted in sorted(found.mismatched_keys):
        name = next((name for name, other in names_in_memory(checkpoint).items() if other == renamed), renamed)
        problem = f"tensor {name} has shape {tuple(has)}, but config.json says {tuple(wanted)}"
        raise DataError(where, problem, _DOWNLOAD)
    for name, reason in found.conversion_errors.items():
        said = " ".join(str(reason).split())[:160]
        raise DataError(where, f"tensor {name} does not fit the model ({said})", _DOWNLOAD)


def _some(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"{first} (and {len(others)} more)" if others else first
