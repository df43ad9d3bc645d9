"""A judge with OpenAI's chat completions, answering by a function of what it was sent; it misbehaves on request."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.server import Fault, Serving, reply


@dataclass
class JudgeServer(Serving):
    """Serves on a free port of this machine until the `with` block ends. `verdict` sees the answers it is to judge."""

    verdict: Callable[..., str]
    faults: list[Fault | None] = field(default_factory=list)  # one per request; None and no more: well
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    finish_reason: str = "stop"

    def __enter__(self) -> JudgeServer:
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    server.requests.append(request)
                    server.headers.append(dict(self.headers))
                    fault = server.faults.pop(0) if server.faults else None
                said = {"role": "assistant", "content": server.verdict(*answers(request))}
                content = {"choices": [{"index": 0, "message": said, "finish_reason": server.finish_reason}]}
                if fault is not None:
                    fault(self, content)
                if content:
                    reply(self, content)

            def log_message(self, *args: object) -> None: ...

        self.serve(Handler)
        return self


def said_to(request: dict[str, Any]) -> str:
    """The text of the user's message, images left out."""
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


def answers(request: dict[str, Any]) -> list[str]:
    """What stands between the marks of the answers: found by the last mark of the message, as a model would."""
    text = said_to(request)
    mark = text[-16:]
    return re.findall(rf"^BEGIN ANSWER(?: [12])? {mark}\n(.*?)\nEND ANSWER(?: [12])? {mark}$", text, re.S | re.M)
