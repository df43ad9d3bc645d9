"""Turns whatever goes wrong while a checkpoint is read into a ModelError that names the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dapo_stages.errors import DapoStagesError, ModelError

_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # torch's by name: not every caller imports torch


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Wrap code that trusts what a checkpoint contains: settings, tokenizer, weights.

    Libraries raise anything for a value that they do not expect (KeyError, ZeroDivisionError, panics of Rust). Our own
    errors and out-of-memory errors pass through.
    """
    try:
        yield
    except DapoStagesError:
        raise
    except Exception as error:
        if type(error).__name__ in _OF_MEMORY:
            raise
        raise unusable(path, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3 derives it from BaseException
            raise
        raise unusable(path, error) from error


def unusable(path: str | Path, error: BaseException) -> ModelError:
    """The error for a checkpoint that cannot be read."""
    reason = " ".join(str(error).split())[:300]
    if not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return ModelError(
        f"{path}: cannot load the checkpoint ({reason}). Set model.name to a transformers folder with safetensors or a "
        "hub id that can be reached, and run init-policy again."
    )
