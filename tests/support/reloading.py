"""A stand-in for a server that reloads its weights: it speaks vLLM's or SGLang's requests for that, and no others.

Its completions are made up; their logprobs are those of the weights it holds, by transformers' own forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal

import torch

from support.server import FakeServer, Fault, reply


@dataclass
class ReloadingServer(FakeServer):
    """Begins with the weights of `policy`, under the version of a server that just started."""

    kind: Literal["vllm", "sglang"] = "vllm"
    version: str | None = "default"
    stale_head: bool = False  # has another head than the policy's after reloading, as if it were that of old weights
    cold: float = 1.0  # the temperature it computes logprobs at, as a multiple of the one that was asked for
    orders: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refused: dict[str, Fault] = field(default_factory=dict)  # by path: what happens instead of obeying
    loaded: list[Path] = field(default_factory=list)

    def __enter__(self) -> ReloadingServer:
        super().__enter__()
        self.start(self.policy)
        return self

    def start(self, policy: Path) -> None:
        """As after a restart on a policy: nothing is remembered."""
        self._load(policy)
        # Rows of other tokens: how far training has moved the head does not matter then.
        self._head = self._model.lm_head.weight.detach().roll(1, 0)
        self.version, self.paused = "default", False

    def _load(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText

        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    # ---- requests

    def tell(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == {"vllm": "/weight_info", "sglang": "/model_info"}[self.kind]:
            missing = self.version is None  # as without VLLM_SERVER_DEV_MODE=1
            reply(handler, {"weight_version": self.version}, 404 if missing else 200)
        else:
            super().tell(handler)

    def answer(self, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        path, _, query = handler.path.partition("?")
        if path == "/v1/chat/completions":
            assert not self.paused
            return super().answer(handler, request)
        self.orders.append((handler.path, request))
        if fault := self.refused.pop(path, None):
            content: dict[str, Any] = {"success": False}
            fault(handler, content)
            return None if not content else reply(handler, content)
        if path == "/update_weight_version":
            self.version = request["new_version"]
            assert request["abort_all_requests"] is False  # SGLang's default is true
            return reply(handler, {"success": True})
        return (
            self._vllm(handler, path, query, request) if self.kind == "vllm" else self._sglang(handler, path, request)
        )

    def _vllm(self, handler: BaseHTTPRequestHandler, path: str, query: str, request: dict[str, Any]) -> None:
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
            assert query == ("mode=wait" if self.paused else "")
            return reply(handler, {"status": "paused" if self.paused else "resumed"})
        assert self.paused
        if path == "/collective_rpc":
            assert request["method"] == "reload_weights"
            self._reload(Path(request["kwargs"]["weights_path"]))
            return reply(handler, {"results": [None]})
        if path == "/reset_prefix_cache":
            return reply(handler, {"success": True})
        assert path in ("/reset_encoder_cache", "/reset_mm_cache")
        handler.send_response(200)  # without a body
        handler.send_header("Content-Length", "0")
        return handler.end_headers()

    def _sglang(self, handler: BaseHTTPRequestHandler, path: str, request: dict[str, Any]) -> None:
        assert path == "/update_weights_from_disk" and request["flush_cache"]
        self._reload(Path(request["model_path"]))
        self.version = request["weight_version"]
        reply(handler, {"success": True, "message": "", "num_paused_requests": 0})

    def _reload(self, folder: Path) -> None:
        assert folder.is_absolute()
        self._load(folder)
        self.loaded.append(folder)
        if self.stale_head:
            self._model.lm_head.weight = torch.nn.Parameter(self._head)  # no longer the embeddings, which are new

    # ---- completions

    def _completions(self, request: dict[str, Any]) -> dict[str, Any]:
        content = super()._completions(request)
        inputs = self.read(request["messages"])
        for one in content["choices"]:
            ids = one["token_ids"][: request["max_completion_tokens"]]
            values = self._logprobs(inputs, ids, request)
            one["token_ids"], one["logprobs"] = ids, {"content": [{"logprob": value} for value in values]}
            one["finish_reason"] = "stop" if ids[-1] in request["stop_token_ids"] else "length"
        return content

    def _logprobs(self, inputs: Any, ids: list[int], request: dict[str, Any]) -> list[float]:
        tokens = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
        images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
        kinds = (tokens == self.processor.image_token_id).int()
        with torch.no_grad():
            logits = self._model(input_ids=tokens, mm_token_type_ids=kinds, **images).logits[0, -len(ids) - 1 : -1]
        for token, bias in request["logit_bias"].items():
            logits[:, int(token)] += bias
        logits = logits / ((request["temperature"] or 1.0) * self.cold)
        found: list[float] = logits.log_softmax(-1)[torch.arange(len(ids)), ids].tolist()
        return found
