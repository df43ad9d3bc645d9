"""Requests to a server with OpenAI's chat completions API: temporary failures are retried, a refusal is an error.

Keys only come from the environment, and are not sent where somebody else could read them.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from dapo_stages.config import Endpoint
from dapo_stages.errors import ConfigError, EngineError
from dapo_stages.processes.compressed import ASKED, TooLarge, unpacked
from dapo_stages.small_files import shown
from dapo_stages.terminal.console import say

CHAT, MODELS = "/v1/chat/completions", "/v1/models"

_PASSING = frozenset({408, 425, 429, *range(500, 600)})  # of a server that is starting, busy or restarting
_LONGEST_WAIT = 60.0  # seconds between two attempts
_WHOLE = 2  # times the timeout, which only bounds pauses: the limit for a complete response, however slowly it comes
_LONGEST_ANSWER = 256 << 20  # bytes, decompressed

_Form = TypeVar("_Form", bound=BaseModel)


class _Unreadable(Exception):
    """A response that is damaged, or compressed in a way that was not requested."""


class RefusedError(EngineError):
    """The server refuses the request, and would refuse it again."""

    status: int = 0


class Server:
    """One server, as a section of the configuration describes it."""

    def __init__(self, name: str, section: str, key: str, settings: Endpoint) -> None:
        """`name` is its name in messages, `key` the environment variable with its own key."""
        url = httpx.URL(settings.url)
        self.where = f"{name} {url.scheme}://{url.netloc.decode()}"  # without user name and password
        self._section, self._key, self._settings, self._url = section, key, settings, url

    def client(self) -> httpx.AsyncClient:
        """A client for it, to be closed by the caller."""
        settings, near, key = self._settings, _is_loopback(self._url.host), self._credential()
        try:
            return httpx.AsyncClient(
                trust_env=not near,  # no proxy can reach this machine's own address
                base_url=settings.url.rstrip("/"),
                headers={"Accept-Encoding": ASKED} | ({"Authorization": f"Bearer {key}"} if key else {}),
                timeout=httpx.Timeout(settings.timeout, pool=None),
                limits=httpx.Limits(max_connections=settings.concurrency),
            )
        except (ValueError, httpx.InvalidURL):  # their texts may quote a proxy's password
            raise ConfigError(
                f"{self.where}: HTTPS_PROXY, HTTP_PROXY or ALL_PROXY is not of the form http://host:port. Fix or unset "
                "these environment variables."
            ) from None

    def _credential(self) -> str | None:
        key = secret(self._key)
        if not key and (_is_loopback(self._url.host) or self._url.scheme == "https"):
            key = secret("OPENAI_API_KEY")  # other services take it too, so it is never sent in the clear
        return key

    async def ask(
        self,
        client: httpx.AsyncClient,
        form: type[_Form],
        path: str,
        content: Mapping[str, Any] | None = None,
        *,
        retries: int | None = None,
    ) -> _Form:
        """The response to a request, with as many retries as the settings allow. With `content` it is a POST.

        Raises RefusedError for a status that retries would not change, EngineError after the last attempt.
        """
        settings = self._settings
        retries = settings.retries if retries is None else retries
        for attempt in range(retries + 1):
            wait = settings.backoff * 2**attempt
            try:
                async with (
                    asyncio.timeout(_WHOLE * settings.timeout),
                    client.stream("GET" if content is None else "POST", path, json=content) as response,
                ):
                    said = await self._read(response)
                if response.is_success:
                    return form.model_validate_json(said or b"{}")  # some orders are only acknowledged
                failure = f"status {response.status_code} ({_excerpt(said)})"
                if response.status_code not in _PASSING:
                    raise self._refused(response.status_code, f"request refused with {failure}")
                wait = max(wait, _asked_for(response))
            except ValidationError as error:  # it was cut off, or comes from a proxy
                failure = f"unexpected response ({error.errors()[0]['msg']})"
            except TimeoutError:
                failure = f"incomplete response after {_WHOLE * settings.timeout:g} s"
            except httpx.TransportError as error:
                failure = " ".join(f"{type(error).__name__} {error}".split())
            except _Unreadable as error:
                failure = str(error)
            if attempt < retries:
                wait = min(wait, _LONGEST_WAIT)
                say(f"{self.where}: {failure}; retrying in {wait:.0f} s")
                await asyncio.sleep(wait)
        raise EngineError(
            self.where,
            f"no valid response in {retries + 1} attempts with {self._section}.timeout={settings.timeout:g} s "
            f"(last error: {failure})",
            "See the server's log, restart it, and run the same command again: finished shards are kept.",
        )

    async def _read(self, response: httpx.Response) -> bytes:
        """The body without our key: some servers quote it, and responses are stored and printed."""
        packed = bytearray()
        try:
            async for piece in response.aiter_raw():  # httpx would decompress without a limit
                packed += piece
                if len(packed) > _LONGEST_ANSWER:
                    raise TooLarge
            said = unpacked(bytes(packed), response.headers.get("content-encoding", ""), _LONGEST_ANSWER)
        except TooLarge:
            raise EngineError(
                self.where,
                f"expected a response of a few tokens, got one larger than {shown(_LONGEST_ANSWER)}",
                f"Check what responds at {self._section}.url.",
            ) from None
        except ValueError as error:
            raise _Unreadable(str(error)) from None
        key = self._credential()
        return said.replace(key.encode(), b"[key]") if key else said

    def _refused(self, status: int, problem: str) -> RefusedError:
        advice = f"Fix the server's options or {self._section}, and run the same command again."
        if status in (401, 403):
            advice = (
                f"Set {self._key}, or OPENAI_API_KEY (only sent over https or to this machine), to a key that the "
                f"server accepts, or correct {self._section}, and run the same command again."
            )
        refused = RefusedError(self.where, problem, advice)
        refused.status = status
        return refused


def secret(name: str) -> str | None:
    """A key from the environment, without white space around it.

    Raises ConfigError, which does not quote it, if it has characters that no header may have: libraries would print it.
    """
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{name}: the key must be a single word, but has line breaks or non-ASCII characters. Set it again."
        )
    return key or None


def image_part(image: Mapping[str, Any]) -> dict[str, Any]:
    """An image of a shard (PNG) as a part of a message."""
    encoded = base64.b64encode(image["bytes"]).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _excerpt(said: bytes) -> str:
    return " ".join(said[:10_000].decode(errors="replace").split())[:300] or "empty"


def _asked_for(response: httpx.Response) -> float:
    """Seconds that a busy server asks to wait (Retry-After)."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0
