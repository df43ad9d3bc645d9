"""Processors, with or without torchvision."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from dapo_stages.models.families import FAMILIES, has_grids
from dapo_stages.small_files import read_json, read_text


def load_processor(path: str | Path) -> Any:
    """The processor saved in `path` (a folder or a hub name): AutoProcessor, or our own if torchvision is missing.

    The video half of Qwen's processors needs torchvision; images and text do not. Without torchvision the result is a
    processor with the same class name, but no video half.
    """
    from transformers import AutoConfig, AutoProcessor

    if has_torchvision():
        return AutoProcessor.from_pretrained(path, trust_remote_code=False)
    family = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
    if not has_grids(family):
        return AutoProcessor.from_pretrained(path, trust_remote_code=False)
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return image_processor(
        Qwen2VLImageProcessorPil.from_pretrained(path), tokenizer, _chat_template(path, tokenizer), family
    )


def image_processor(
    image_processor: Any, tokenizer: Any, chat_template: str | None = None, family: str = "qwen2_5_vl"
) -> Any:
    """A processor for images and text, with the standard class name of its family."""
    import transformers

    base: Any = getattr(transformers, FAMILIES[family].processor)

    def init(self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        base.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    # transformers reads a processor's parts from the signature of __init__, and saves its class name.
    without_video = type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})
    return without_video(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)


def save_processor(processor: Any, out: str | Path) -> None:
    """Write tokenizer, chat template and image processor into `out` under the standard class names.

    `preprocessor_config.json`, which releases of transformers before 5 and vLLM read, is written beside the newer
    `processor_config.json`.
    """
    folder = Path(out)
    processor.save_pretrained(folder)
    config_file = folder / "processor_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    # Every release of transformers, and vLLM, knows the name without its suffix.
    kind = config["image_processor"]["image_processor_type"].removesuffix("Pil").removesuffix("Fast")
    images = dict(config["image_processor"], image_processor_type=kind)
    config["image_processor"] = images
    _write_json(config_file, config)
    size = images.get("size") or {}
    if {"shortest_edge", "longest_edge"} <= size.keys():
        images = {**images, "min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    _write_json(folder / "preprocessor_config.json", {**images, "processor_class": config["processor_class"]})


def has_torchvision() -> bool:
    """Whether torchvision can be imported, with its own operators: with another build of torch it may be installed, but
    broken, or only its Python parts may work, as make setup has it beside a CPU build. Images are then prepared as if
    it were missing."""
    try:
        return bool(importlib.import_module("torchvision.extension")._has_ops())
    except (ImportError, RuntimeError, OSError, AttributeError):
        return False


def _chat_template(path: str | Path, tokenizer: Any) -> Any:
    """The template of the processor: its own file in a local folder, else the tokenizer's."""
    folder = Path(path)
    if (jinja := folder / "chat_template.jinja").is_file():
        return read_text(jinja)
    if (older := folder / "chat_template.json").is_file():
        return read_json(older)["chat_template"]
    return tokenizer.chat_template


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
