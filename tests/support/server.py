"""A server with OpenAI's chat completions, as small as tests need it: it reads prompts with the policy's own processor,
writes made-up completions that depend on the seed alone, or when greedy on the conversation alone, and misbehaves on
request."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dapo_stages.models.processor import load_processor

Fault = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]  # answers instead, or changes the answer


class Server(ThreadingHTTPServer):
    """One that says nothing of clients that have gone away: tests read what the code under test says."""

    daemon_threads = True
    request_queue_size = 64  # who finds the queue full tries again after a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Serving:
    """Answers on a free port of this machine until the `with` block ends."""

    def serve(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._http = Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"


@dataclass
class FakeServer(Serving):
    """Serves a policy folder on a free port of this machine, until the `with` block ends."""

    policy: Path
    root: str | None = None
    faults: list[Fault | None] = field(default_factory=list)  # one per completion request; None and no more: well
    always: Fault | None = None  # what happens to every answer, the first one that only asks how it answers included
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0  # an answer takes
    most: int = 0  # requests that were under way at the same time

    def __enter__(self) -> FakeServer:
        self.processor = load_processor(self.policy)
        self._lock, self._under_way = threading.Lock(), 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.tell(self)

            def do_POST(self) -> None:
                server.answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *args: object) -> None: ...

        self.serve(Handler)
        return self

    def tell(self, handler: BaseHTTPRequestHandler) -> None:
        reply(handler, {"data": [{"id": "policy", "root": self.root or str(self.policy)}]})

    def answer(self, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        trial = request["max_completion_tokens"] == 1
        with self._lock:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            fault = None
            if not trial:
                self.requests.append(request)
                self.headers.append(dict(handler.headers))
                fault = self.faults.pop(0) if self.faults else None
            content = self._certain(request) if trial else self._completions(request)
        time.sleep(self.seconds)
        with self._lock:
            self._under_way -= 1
        for change in (self.always, fault):
            if change is not None and content:
                change(handler, content)
        if content:  # a fault that has answered itself empties it
            reply(handler, content)

    def _certain(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a token lifted by 100 leads to."""
        [token] = request["logit_bias"]
        return {"prompt_token_ids": [0], "choices": [choice(0, [int(token)], [0.0], "length")]}

    def _completions(self, request: dict[str, Any]) -> dict[str, Any]:
        tokenizer = self.processor.tokenizer
        choices = []
        for index in range(request["n"]):
            greedy = request["temperature"] == 0  # then the conversation alone decides
            said = zlib.crc32(json.dumps(request["messages"]).encode())
            drawn = np.random.default_rng(said if greedy else request["seed"] + index)
            text = (
                f"<think> It is {drawn.choice(['red', 'blue'])}. </think> <answer>{drawn.choice(list('ABCD'))}</answer>"
            )
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *request["stop_token_ids"][:1]]
            choices.append(choice(index, ids, (-drawn.random(len(ids))).tolist(), "stop"))
        ids = self.read(request["messages"])["input_ids"][0].tolist()
        return {"prompt_token_ids": ids, "choices": choices[::-1]}

    def read(self, messages: list[dict[str, Any]]) -> Any:
        """A prompt as a server makes it: the chat template over the messages, then the processor."""
        images = []
        for message in messages:
            for part in message["content"]:
                if part["type"] == "image_url":
                    encoded = part["image_url"]["url"].removeprefix("data:image/png;base64,")
                    images.append(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
        plain = [
            {**m, "content": [{"type": "image"} if p["type"] == "image_url" else p for p in m["content"]]}
            for m in messages
        ]
        text = self.processor.apply_chat_template(plain, add_generation_prompt=True)
        return self.processor(text=[text], images=images or None, return_tensors="pt")


def choice(index: int, ids: list[int], logprobs: list[float], reason: str) -> dict[str, Any]:
    content = [{"token": "?", "logprob": value} for value in logprobs]
    return {"index": index, "token_ids": ids, "logprobs": {"content": content}, "finish_reason": reason}


def reply(handler: BaseHTTPRequestHandler, content: object, status: int = 200, **headers: str) -> None:
    body = json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def fails(status: int, **headers: str) -> Fault:
    """The status instead of an answer."""

    def fault(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        reply(handler, {"error": f"as asked for: {status}"}, status, **headers)
        content.clear()

    return fault


def cut(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    """Half of what was announced, then the connection ends."""
    body = json.dumps(content).encode()
    content.clear()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def half_json(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    """Half an answer that is announced as whole."""
    body = json.dumps(content).encode()
    content.clear()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) // 2))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])


def slow(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    """Longer than the tests' time-out."""
    time.sleep(5)
    content.clear()
    handler.close_connection = True


def gone(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    """Killed: the connection ends without an answer."""
    content.clear()
    handler.close_connection = True
