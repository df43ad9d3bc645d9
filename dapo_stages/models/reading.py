"""The one place where whatever goes wrong while a checkpoint is read becomes a ModelError that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dapo_stages.errors import DapoStagesError, ModelError

_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # torch's is asked for by name: not everybody who reads imports torch


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Around code that takes a checkpoint's word for something: settings, tokenizer, weights.

    Libraries raise anything over a value they did not expect (KeyError, ZeroDivisionError, panics of Rust); errors of
    ours and a full memory stay what they are.
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
        if type(error).__name__ != "PanicException":  # of pyo3, which derives it from BaseException
            raise
        raise unusable(path, error) from error


def unusable(path: str | Path, error: BaseException) -> ModelError:
    """The error of a checkpoint that cannot be read."""
    reason = " ".join(str(error).split())[:300]
    if not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return ModelError(
        f"{path}: found no usable checkpoint ({reason}); needed a transformers folder with safetensors, or a hub id "
        "that can be reached. Mend model.name and run init-policy again."
    )
