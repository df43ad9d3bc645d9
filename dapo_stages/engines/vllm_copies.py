"""Several copies of a model in vLLM: data parallelism, which `vllm.LLM` leaves to whoever starts it several times."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

from dapo_stages.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    import vllm

_PR_SET_PDEATHSIG = 1
_PATIENCE = 5.0  # seconds
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Copies:
    """Generates as `vllm.LLM` does, in a process for each copy; they end with this one."""

    def __init__(self, copies: int, checkpoint: str, settings: dict[str, Any]) -> None:
        context = get_context("spawn")
        self._connections: list[Connection] = []
        processes: list[SpawnProcess] = []
        Finalize(self, _end, (self._connections, processes), exitpriority=1)  # else Python waits for them at its end
        for gpus in shares(copies, settings["tensor_parallel_size"], os.environ.get(_VISIBLE)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_copy, args=(theirs, os.getpid(), gpus, checkpoint, settings))
            process.start()
            theirs.close()
            self._connections.append(ours)
            processes.append(process)
        _answers(self._connections)

    def generate(
        self, prompts: Sequence[Any], sampling: Sequence[vllm.SamplingParams], *, use_tqdm: bool = False
    ) -> list[vllm.RequestOutput]:
        """An answer for each prompt; every n-th one is of the same copy."""
        asked = self._connections[: len(prompts)]
        parts = [(prompts[place :: len(asked)], sampling[place :: len(asked)]) for place in range(len(asked))]
        found: list[Any] = [None] * len(prompts)
        for place, answers in enumerate(_answers(asked, parts)):
            found[place :: len(asked)] = answers
        return found


def shares(copies: int, each: int, visible: str | None) -> list[str]:
    """The GPUs of each copy, as CUDA_VISIBLE_DEVICES takes them; of those that this process may use, the first."""
    gpus = list(map(str, range(copies * each))) if visible is None else [name for name in visible.split(",") if name]
    if len(gpus) < copies * each:
        raise ConfigError(
            f"engines.vllm: found {len(gpus)} GPUs ({_VISIBLE}={visible}); needed {copies * each}, as "
            f"data_parallel_size is {copies} and tensor_parallel_size {each}. Lower one of them."
        )
    return [",".join(gpus[start : start + each]) for start in range(0, copies * each, each)]


def _answers(connections: Sequence[Connection], questions: Sequence[Any] = ()) -> list[Any]:
    """What each copy says when it has loaded, or to a question. Raises RuntimeError with what vLLM raised in one."""
    try:
        for connection, question in zip(connections, questions, strict=False):
            connection.send(question)
        answers = [connection.recv() for connection in connections]
    except (EOFError, ConnectionError):
        raise EngineError(
            "engines.vllm.data_parallel_size",
            "that a copy of the model has ended",
            "all of them",
            "Look into what it said, and run the same command again: finished shards are kept.",
        ) from None
    failure = next((failure for _, failure in answers if failure is not None), None)
    if failure is not None:
        raise RuntimeError(failure)
    return [answer for answer, _ in answers]


def _end(connections: Sequence[Connection], processes: Sequence[SpawnProcess]) -> None:
    """Let the copies end; those that are at work are ended."""
    for connection in connections:
        connection.close()
    until = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()


def _copy(connection: Connection, parent: int, gpus: str, checkpoint: str, settings: dict[str, Any]) -> None:
    """In a process of its own: load the model on some GPUs, then answer until the parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, and ends this one
    os.environ[_VISIBLE] = gpus
    from dapo_stages.engines.vllm_model import load

    model: Any = None
    while True:
        try:
            if model is None:
                model, answer = load(checkpoint, settings), None
            else:
                answer = model.generate(*connection.recv(), use_tqdm=False)
            connection.send((answer, None))
        except EOFError:
            return
        except Exception as error:
            connection.send((None, f"{type(error).__name__}: {error}"))
            if model is None:
                return
