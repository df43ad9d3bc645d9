"""A checkpoint in vLLM, in this process: loaded so that it is compiled once for all iterations, or reloaded in place.

vLLM compiles a model when it loads it, and caches the result by a hash of its settings. These include the checkpoint's
path, but not its weights, so every iteration's policy is loaded by the same path, a symbolic link.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_stages.errors import EngineError

if TYPE_CHECKING:
    import vllm


class Model:
    """Generates, and takes other weights of the same shapes."""

    def __init__(self, checkpoint: str, settings: dict[str, Any]) -> None:
        from vllm.platforms import current_platform

        self._llm = load(checkpoint, settings)
        if current_platform.is_cpu() and self._llm.model_config.is_mm_prefix_lm:
            raise EngineError(
                checkpoint,
                "in this model the tokens of an image see each other, which vLLM leaves out without a GPU",
                "Set rollout.engine and evaluate.engine to transformers.",
            )
        self._sleeps, self._is_asleep = bool(settings.get("enable_sleep_mode")), False

    def generate(self, prompts: Sequence[Any], sampling: Sequence[vllm.SamplingParams]) -> list[vllm.RequestOutput]:
        """One output per prompt."""
        self._wake_up()
        found: list[vllm.RequestOutput] = self._llm.generate(prompts, sampling, use_tqdm=False)
        return found

    def reload(self, checkpoint: str) -> None:
        """Replace the weights by those of a folder, and forget what was computed with the old ones."""
        self._wake_up()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": checkpoint})
        engine = self._llm.llm_engine
        if not engine.reset_prefix_cache():
            raise RuntimeError("its prefix cache could not be emptied")
        engine.reset_encoder_cache()
        engine.reset_mm_cache()

    def sleep(self) -> None:
        """Until it is needed again, keep the weights in host memory, and no cache. Without a GPU nothing changes."""
        if self._sleeps and not self._is_asleep:
            self._llm.sleep(level=1)
            self._is_asleep = True

    def _wake_up(self) -> None:
        if self._is_asleep:
            self._llm.wake_up()
            self._is_asleep = False

    def end(self) -> None:
        """Free its memory, and what the process has set up for it."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()


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
