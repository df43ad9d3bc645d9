"""Loads a checkpoint into vLLM so that it is compiled once for all iterations.

vLLM compiles a model when it loads it, and caches the result by a hash of its settings. These include the checkpoint's
path, but not its weights, so every iteration's policy is loaded by the same path, a symbolic link.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_stages.errors import EngineError

if TYPE_CHECKING:
    import vllm


def load(checkpoint: str, settings: dict[str, Any]) -> vllm.LLM:
    """vLLM with a folder or hub id. The link lies in vLLM's cache, next to what it compiles."""
    import vllm
    from vllm import envs

    compiles = Path(checkpoint).is_dir() and not settings["enforce_eager"]
    links = Path(envs.VLLM_CACHE_ROOT) / "dapo-stages"
    with linked(Path(checkpoint), links) if compiles else nullcontext(checkpoint) as path:
        return vllm.LLM(str(path), **settings)


@contextmanager
def linked(checkpoint: Path, folder: Path) -> Iterator[Path]:
    """A link to a checkpoint while it is loaded, by the first name that no other process is using.

    Raises EngineError if another process replaced it, as on file systems whose locks hold on one machine only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = checkpoint.resolve()
    link, held = _first_free(folder)
    with held:
        link.unlink(missing_ok=True)  # of a process that failed or was killed
        link.symlink_to(target, target_is_directory=True)
        yield link
        if not link.is_symlink() or link.readlink() != target:
            raise EngineError(
                link,
                f"another process replaced this link while {checkpoint} was being loaded (locks in this folder do not "
                "hold on all machines that write there)",
                "Set VLLM_CACHE_ROOT to a folder on this machine, and run the same command again.",
            )
        link.unlink()


def _first_free(folder: Path) -> tuple[Path, AbstractContextManager[object]]:
    """The path of a link, and the lock that keeps other processes from it."""
    from filelock import FileLock, Timeout

    number = 0
    while True:
        try:
            return folder / f"policy-{number}", FileLock(folder / f".policy-{number}.lock").acquire(timeout=0)
        except Timeout:
            number += 1
