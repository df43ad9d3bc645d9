"""The embedded policy's own processor, and small datasets to read."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from dapo_stages.config import Config


@pytest.fixture(scope="session")
def processor() -> Any:
    from dapo_stages.models.embedded.embedded_policy import build_processor
    from dapo_stages.models.embedded.embedded_tokenizer import build_tokenizer

    return build_processor(build_tokenizer())


@pytest.fixture()
def png() -> Callable[..., bytes]:
    """Bytes of a plain image."""

    def make(color: str = "red", size: tuple[int, int] = (56, 56)) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, color).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture()
def configure() -> Callable[..., Config]:
    """A configuration with a given `data` section."""

    def make(source: object, **data: Any) -> Config:
        return Config.model_validate({"model": {"name": "embedded"}, "data": {"source": str(source), **data}})

    return make
