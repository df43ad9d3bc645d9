"""Gives a running server the policy of each iteration: vLLM's and SGLang's protocols.

A server keeps a version for us, a text: the content hash of its policy once the canary has passed, and another text
from before its weights change until then. So wherever one of the two is killed, the version never claims more than was
proven. A server that was restarted has forgotten it, and is given its policy again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from dapo_stages.config import Config
from dapo_stages.engines.merged_checkpoint import merged_checkpoint
from dapo_stages.errors import EngineError
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.processes.servers import RefusedError, Server

_MARK = "/update_weight_version"
_Orders = Iterator[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Protocol:
    """What a kind of server understands."""

    start: str  # the command that starts one, without the policy
    info: str  # the path that tells its version
    orders: Callable[[Path, str], _Orders]  # paths and bodies that load a folder, with a version


def _vllm(folder: Path, version: str) -> _Orders:
    yield "/pause?mode=wait", {}
    yield "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    yield "/reset_prefix_cache?reset_external=true", {}
    yield "/reset_encoder_cache", {}
    yield "/reset_mm_cache", {}
    yield "/resume", {}


def _sglang(folder: Path, version: str) -> _Orders:
    content = {"model_path": str(folder), "weight_version": version, "flush_cache": True}
    yield "/update_weights_from_disk", content  # it lets running requests finish first


PROTOCOLS = {
    "vllm": Protocol(
        "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --logprobs-mode processed_logprobs "
        "--model",
        "/weight_info",
        _vllm,
    ),
    "sglang": Protocol(
        "SGLANG_VLM_CACHE_SIZE_MB=0 python -m sglang.launch_server --model-path",  # no images of an old vision tower
        "/model_info",
        _sglang,
    ),
}


class _Info(BaseModel):
    weight_version: str | None = None


class _Done(BaseModel):
    success: bool = True


class Reload:
    """Brings one server to one policy."""

    def __init__(self, server: Server, policy: PolicyFolder, config: Config) -> None:
        self._server, self._policy, self._settings = server, policy, config.model
        self.policy = policy.name  # folder or hub id; for an adapter, of its base
        self._kind = config.engines.server.reload
        self._protocol = PROTOCOLS[self._kind]
        self.proven = policy.content
        self.unproven = f"unproven {self.proven}"

    @property
    def command(self) -> str:
        """What starts such a server on this policy."""
        return f"{self._protocol.start} {self.policy}"

    async def version(self, client: httpx.AsyncClient) -> str | None:
        """The version that the server has. Raises EngineError if it knows of none."""
        try:
            return (await self._server.ask(client, _Info, self._protocol.info)).weight_version
        except RefusedError as refused:
            if refused.status != 404:
                raise
            raise EngineError(
                self._server.where,
                f"it cannot take policies as engines.server.reload={self._kind} wants ({self._protocol.info} is not "
                "found)",
                f"Start it with {self._protocol.start} POLICY, or set engines.server.reload to none.",
            ) from None

    async def load(self, client: httpx.AsyncClient) -> str:
        """Replace the server's weights by the policy's, and return the version that says that they are unproven.

        Each order is sent once, since one that failed half-way must not be repeated. Raises EngineError for the first
        that fails; the server keeps the version of an unproven policy then.
        """
        with merged_checkpoint(self._policy, self._settings) as folder:
            try:
                await self.mark(client, self.unproven)
                for path, content in self._protocol.orders(folder.resolve(), self.unproven):
                    await self._order(client, path, content)
            except EngineError as failure:
                raise EngineError(
                    self._server.where,
                    f"it could not be given policy {self._policy.folder} ({failure.problem})",
                    f"Restart it ({self.command}) and run the same command again: what it holds now is unknown, and "
                    "nothing was sampled from it.",
                ) from None
        return self.unproven

    async def mark(self, client: httpx.AsyncClient, version: str) -> None:
        """Set the server's version."""
        await self._order(client, _MARK, {"new_version": version, "abort_all_requests": False})

    async def _order(self, client: httpx.AsyncClient, path: str, content: dict[str, Any]) -> None:
        if not (await self._server.ask(client, _Done, path, content, retries=0)).success:
            advice = f"Restart it ({self.command}) and run the same command again."
            raise EngineError(self._server.where, f"it refused {path}", advice)
