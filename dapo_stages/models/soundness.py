"""Whether a checkpoint's files belong together, by its settings and the headers of its weights alone.

Without this, transformers draws a missing tensor at random, leaves one it does not know out, and builds layers by any
number that a configuration has.
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

_MOST_LAYERS = 4096  # of layers, or experts in one; each is made before a weight is looked at
_MOST = 1 << 40  # of any other whole number
_MOST_PIXELS = 1 << 24  # that pictures are enlarged to
_MOST_SIDE = 1 << 13
_FETCH = "Fetch the checkpoint again, or save it again with save_pretrained."
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder that transformers would load as something else than is in it, or not at all.

    Raises DataError or ModelError that names the file and the key or tensor.
    """
    check_numbers(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        do = "Merge it (peft's merge_and_unload), or remove that file from a whole checkpoint."
        raise DataError(folder / ADAPTER_CONFIG, "an adapter", "a whole checkpoint", do)
    checkpoint = Checkpoint(folder)
    if (folder / INDEX).is_file() and (folder / SINGLE).is_file() and SINGLE not in checkpoint.layout:
        found = f"it beside {INDEX}, which names other files"
        raise DataError(folder / SINGLE, found, "one of them", "Remove the one that is not of this checkpoint.")
    checkpoint.check_layout()
    _check_tensors(checkpoint)


def check_numbers(folder: Path) -> None:
    """Refuse sizes by which a library would build, enlarge or count without an end."""
    config = _settings(folder / "config.json")
    for key, value in _numbers(config):
        name = key.rpartition(".")[2]
        counts = "layer" in name or "experts" in name or name == "depth"
        most = _MOST_LAYERS if counts else _MOST
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(folder / "config.json", key, value, "a finite number")
        if isinstance(value, int) and abs(value) > most:
            raise _wrong(folder / "config.json", key, value, f"a number of at most {most}")
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            _check_pictures(folder / file, _settings(folder / file))


def _check_pictures(path: Path, settings: dict[str, Any]) -> None:
    """Of an image processor: what it divides by, and what it enlarges small pictures to."""
    inner = settings.get("image_processor", settings)
    area = isinstance(inner, dict) and "merge_size" in inner  # Qwen's edges are numbers of pixels
    most = {"min_pixels": _MOST_PIXELS, "max_pixels": _MOST}
    most |= {"shortest_edge": _MOST_PIXELS, "longest_edge": _MOST} if area else {}
    for key, value in _numbers(inner if isinstance(inner, dict) else {}):
        head, _, name = key.rpartition(".")
        is_size = name.endswith(("size", "_pixels")) or head.endswith("size")
        if is_size and not 1 <= value <= most.get(name, _MOST_SIDE):
            raise _wrong(path, key, value, f"a number from 1 to {most.get(name, _MOST_SIDE)}")
        if head.endswith("image_std") and not value > 0:
            raise _wrong(path, key, value, "a number above 0")


def _settings(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(path, f"no settings that can be read ({reason[:160]})", "a JSON object", _FETCH) from None
    if not isinstance(values, dict):
        raise DataError(path, f"{type(values).__name__} at its top", "a JSON object", _FETCH)
    return values


def _numbers(settings: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(path of keys, value) of every number, those in lists by the key of the list."""
    waiting: list[tuple[str, Any]] = [("", settings)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}" if key else str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{key}.{number}", inner) for number, inner in enumerate(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _wrong(path: Path, key: str, value: object, needed: str) -> DataError:
    return DataError(path, f"{key} {str(value)[:40]}", needed, "Mend it, or fetch the checkpoint again.")


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse missing, unexpected and mis-shaped tensors, by transformers' own reckoning on weights without content.

    It knows what each family leaves out (a tied head), ignores (`_keys_to_ignore_on_load_*`, rotary buffers of older
    versions) and renames or merges.
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
        raise DataError(where, f"no tensor {_some(found.missing_keys)}", "all that its config.json asks for", _FETCH)
    if found.unexpected_keys:
        needed = "only tensors that its config.json has a place for"
        raise DataError(where, f"the tensor {_some(found.unexpected_keys)}", needed, _FETCH)
    for renamed, has, wanted in sorted(found.mismatched_keys):
        name = next((name for name, other in names_in_memory(checkpoint).items() if other == renamed), renamed)
        needed = f"{tuple(wanted)}, as its config.json says"
        raise DataError(where, f"the tensor {name} of shape {tuple(has)}", needed, _FETCH)
    for name, reason in found.conversion_errors.items():
        said = " ".join(str(reason).split())[:160]
        raise DataError(where, f"the tensor {name}, which does not fit ({said})", "one that does", _FETCH)


def _some(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"{first} (and {len(others)} more)" if others else first
