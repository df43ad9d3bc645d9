"""Data parallelism in vLLM: several copies of a model, one per process, which `vllm.LLM` leaves to its caller."""

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
_PATIENCE = 5.0  # seconds that the copies have to exit
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Copies:
    """Does what Model does (vllm_model.py), in one process per copy; they end with this one."""

    def __init__(self, copies: int, checkpoint: str, settings: dict[str, Any]) -> None:
        context = get_context("spawn")
        self._connections: list[Connection] = []
        processes: list[SpawnProcess] = []
        # Otherwise Python waits for them at exit.
        self.end = Finalize(self, _end, (self._connections, processes), exitpriority=1)
        for gpus in shares(copies, settings["tensor_parallel_size"], os.environ.get(_VISIBLE)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_copy, args=(theirs, os.getpid(), gpus, checkpoint, settings))
            process.start()
            theirs.close()
            self._connections.append(ours)
            processes.append(process)
        _answers(self._connections)

    def generate(self, prompts: Sequence[Any], sampling: Sequence[vllm.SamplingParams]) -> list[vllm.RequestOutput]:
        """One output per prompt; of n copies each takes every n-th prompt."""
        asked = self._connections[: len(prompts)]
        parts = [(prompts[place :: len(asked)], sampling[place :: len(asked)]) for place in range(len(asked))]
        found: list[Any] = [None] * len(prompts)
        for place, answers in enumerate(_answers(asked, [("generate", part) for part in parts])):
            found[place :: len(asked)] = answers
        return found

    def reload(self, checkpoint: str) -> None:
        """All copies take the weights of a folder."""
        _answers(self._connections, [("reload", (checkpoint,))] * len(self._connections))

    def sleep(self) -> None:
        """All copies keep their weights in host memory until they are needed again."""
        _answers(self._connections, [("sleep", ())] * len(self._connections))


def shares(copies: int, each: int, visible: str | None) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each copy: in order, the GPUs that this process may use."""
    gpus = list(map(str, range(copies * each))) if visible is None else [name for name in visible.split(",") if name]
    if len(gpus) < copies * each:
        raise ConfigError(
            f"engines.vllm: data_parallel_size={copies} and tensor_parallel_size={each} need {copies * each} GPUs, but "
            f"only {len(gpus)} can be used ({_VISIBLE}={visible}). Reduce one of them."
        )
    return [",".join(gpus[start : start + each]) for start in range(0, copies * each, each)]


def _answers(connections: Sequence[Connection], requests: Sequence[Any] = ()) -> list[Any]:
    """The reply of each copy to a request, or once it has loaded. Raises RuntimeError with what vLLM raised in one."""
    try:
        for connection, request in zip(connections, requests, strict=False):
            connection.send(request)
        answers = [connection.recv() for connection in connections]
    except (EOFError, ConnectionError):
        raise EngineError(
            "engines.vllm.data_parallel_size",
            "a copy of the model has ended",
            "See its output above, and run the same command again: finished shards are kept.",
        ) from None
    failure = next((failure for _, failure in answers if failure is not None), None)
    if failure is not None:
        raise RuntimeError(failure)
    return [answer for answer, _ in answers]


def _end(connections: Sequence[Connection], processes: Sequence[SpawnProcess]) -> None:
    """Let the copies exit; kill those that are still busy."""
    for connection in connections:
        connection.close()
    until = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()


def _copy(connection: Connection, parent: int, gpus: str, checkpoint: str, settings: dict[str, Any]) -> None:
    """In a process of its own: load the model on some GPUs, then serve requests until the parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and ends this process
    os.environ[_VISIBLE] = gpus
    from dapo_stages.engines.vllm_model import Model

    model: Any = None
    while True:
        try:
            if model is None:
                model, answer = Model(checkpoint, settings), None
            else:
                name, arguments = connection.recv()
                answer = getattr(model, name)(*arguments)
            connection.send((answer, None))
        except EOFError:
            return
        except Exception as error:
            connection.send((None, f"{type(error).__name__}: {error}"))
            if model is None:
                return
