"""Asking a server with OpenAI's chat completions: failures that may pass are tried again, a refusal is an error.

Keys come from the environment only, and are not sent where somebody else could read them.
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

_PASSING = frozenset({408, 425, 429, *range(500, 600)})  # what a server answers while it starts, is busy or restarts
_LONGEST_WAIT = 60.0  # seconds between two tries
_WHOLE = 2  # times the time-out, which ends silences: then an answer that drips is ended, too
_LONGEST_ANSWER = 256 << 20  # bytes, decompressed

_Form = TypeVar("_Form", bound=BaseModel)


class _Unreadable(Exception):
    """An answer that was damaged on its way, or packed as nobody asked for."""


class RefusedError(EngineError):
    """The server has answered that it will not do this, whenever it is asked."""

    status: int = 0


class Server:
    """One server as a section of the configuration describes it."""

    def __init__(self, name: str, section: str, key: str, settings: Endpoint) -> None:
        """`name` is what messages call it, `key` the variable of its own key."""
        url = httpx.URL(settings.url)
        self.where = f"{name} {url.scheme}://{url.netloc.decode()}"  # without a user's name and password
        self._section, self._key, self._settings, self._url = section, key, settings, url

    def client(self) -> httpx.AsyncClient:
        """Connections to it, to be closed by whoever asked for them."""
        settings, near, key = self._settings, _is_loopback(self._url.host), self._credential()
        try:
            return httpx.AsyncClient(
                trust_env=not near,  # no proxy knows this machine's own address
                base_url=settings.url.rstrip("/"),
                headers={"Accept-Encoding": ASKED} | ({"Authorization": f"Bearer {key}"} if key else {}),
                timeout=httpx.Timeout(settings.timeout, pool=None),
                limits=httpx.Limits(max_connections=settings.concurrency),
            )
        except (ValueError, httpx.InvalidURL):  # which may quote a proxy's password
            raise ConfigError(
                f"{self.where}: found a proxy in the environment that is none; needed http://host:port in HTTPS_PROXY, "
                "HTTP_PROXY or ALL_PROXY. Mend or unset these."
            ) from None

    def _credential(self) -> str | None:
        key = secret(self._key)
        if not key and (_is_loopback(self._url.host) or self._url.scheme == "https"):
            key = secret("OPENAI_API_KEY")  # it is for others, and not to be read on the way
        return key

    async def ask(
        self, client: httpx.AsyncClient, form: type[_Form], path: str, content: Mapping[str, Any] | None = None
    ) -> _Form:
        """What a request is answered with, after as many tries as it takes and are allowed.

        Raises RefusedError for a status that further tries would not change, EngineError after the last try.
        """
        settings = self._settings
        for attempt in range(settings.retries + 1):
            wait = settings.backoff * 2**attempt
            try:
                async with (
                    asyncio.timeout(_WHOLE * settings.timeout),
                    client.stream("POST" if content else "GET", path, json=content) as response,
                ):
                    said = await self._read(response)
                if response.is_success:
                    return form.model_validate_json(said)
                found = f"status {response.status_code} ({_excerpt(said)})"
                if response.status_code not in _PASSING:
                    raise self._refused(response.status_code, found)
                wait = max(wait, _asked_for(response))
            except ValidationError as error:  # it was cut, or comes from something in between
                found = f"an answer of another form ({error.errors()[0]['msg']})"
            except TimeoutError:
                found = f"an answer that was not whole after {_WHOLE * settings.timeout:g} s"
            except httpx.TransportError as error:
                found = " ".join(f"{type(error).__name__} {error}".split())
            except _Unreadable as error:
                found = str(error)
            if attempt < settings.retries:
                wait = min(wait, _LONGEST_WAIT)
                say(f"{self.where}: {found}; trying again in {wait:.0f} s")
                await asyncio.sleep(wait)
        raise EngineError(
            self.where,
            f"{found} at the last of {settings.retries + 1} tries",
            f"an answer within {self._section}.timeout={settings.timeout:g} s",
            "Look into the server's log, start it again, and run the same command again: finished shards are kept.",
        )

    async def _read(self, response: httpx.Response) -> bytes:
        """What the server says, without our key: some quote it, and answers are kept and printed."""
        packed = bytearray()
        try:
            async for piece in response.aiter_raw():  # httpx would unpack without a bound
                packed += piece
                if len(packed) > _LONGEST_ANSWER:
                    raise TooLarge
            said = unpacked(bytes(packed), response.headers.get("content-encoding", ""), _LONGEST_ANSWER)
        except TooLarge:
            found, needed = f"an answer beyond {shown(_LONGEST_ANSWER)}", "one of a few tokens"
            raise EngineError(self.where, found, needed, f"Look at what answers at {self._section}.url.") from None
        except ValueError as error:
            raise _Unreadable(str(error)) from None
        key = self._credential()
        return said.replace(key.encode(), b"[key]") if key else said

    def _refused(self, status: int, found: str) -> RefusedError:
        needed = "an answer"
        if status in (401, 403):
            needed = f"a key it takes, in {self._key} or OPENAI_API_KEY (this one over https or here only)"
        do = f"Mend the server's options or {self._section}, and run the same command again."
        refused = RefusedError(self.where, found, needed, do)
        refused.status = status
        return refused


def secret(name: str) -> str | None:
    """A key of the environment, without the blanks and ends of lines around it.

    Raises ConfigError, which does not quote it, if it holds what no header may: libraries would print all of it.
    """
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{name}: found a key with line breaks, or characters beyond ASCII; needed a single word. Set it again."
        )
    return key or None


def picture(image: Mapping[str, Any]) -> dict[str, Any]:
    """A picture of one of our shards (PNG) as a part of a message."""
    encoded = base64.b64encode(image["bytes"]).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _excerpt(said: bytes) -> str:
    return " ".join(said[:10_000].decode(errors="replace").split())[:300] or "nothing said"


def _asked_for(response: httpx.Response) -> float:
    """Seconds that a busy server asks to be left alone."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0
