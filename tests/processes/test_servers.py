"""Responses of a server that are compressed, damaged, or never end."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from pydantic import BaseModel

from dapo_stages.config import JudgeConfig
from dapo_stages.errors import EngineError
from dapo_stages.processes import servers
from dapo_stages.processes.compressed import TooLarge, unpacked

MIB = 1 << 20
WELL = json.dumps({"said": "7"}).encode()


class Form(BaseModel):
    said: str


def ask(answer: Callable[[int], httpx.Response], **settings: float) -> tuple[str, int]:
    """The result for responses of a server, by the number of the attempt; and how many attempts there were."""
    tries = 0

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        return answer(tries)

    async def asked() -> str:
        config = JudgeConfig(model="m", **{"retries": 1, "backoff": 0, **settings})
        server = servers.Server("judge", "rewards.judge", "NO_KEY", config)
        async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://localhost") as client:
            return (await server.ask(client, Form, servers.CHAT, {"x": 1})).said

    return asyncio.run(asked()), tries


def packed(content: bytes, encoding: str) -> httpx.Response:
    """A response as sent over the wire: httpx compresses nothing."""

    async def body() -> AsyncIterator[bytes]:
        yield content

    return httpx.Response(200, headers={"Content-Encoding": encoding}, content=body())


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress), ("identity", bytes), ("", bytes)],
)
def test_a_packed_answer_is_read(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert ask(lambda number: packed(pack(WELL), encoding)) == ("7", 1)


@pytest.mark.parametrize(
    ("content", "encoding", "said"),
    [
        (gzip.compress(WELL)[:-9], "gzip", "truncated compressed response"),
        (b"\x1f\x8bnothing of the kind", "gzip", "damaged compressed response"),
        (gzip.compress(WELL)[:10] + b"\xff" * 20, "gzip", "damaged compressed response"),
        (WELL, "gzip", "damaged compressed response"),
        (WELL, "br", "response compressed as 'br', not as gzip, deflate"),
        (gzip.compress(gzip.compress(WELL)), "gzip, gzip", "response compressed as 'gzip, gzip', not as gzip, deflate"),
    ],
    ids=["truncated", "no gzip", "damaged", "not compressed", "brotli", "twice"],
)
def test_one_that_cannot_be_unpacked_is_asked_for_again(
    content: bytes, encoding: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(lambda number: packed(content, encoding) if number == 1 else packed(WELL, "")) == ("7", 2)
    assert f"judge http://localhost:8000: {said}; retrying in 0 s" in capsys.readouterr().err
    with pytest.raises(EngineError) as caught:
        ask(lambda number: packed(content, encoding))
    assert caught.value.problem == (
        f"no valid response in 2 attempts with rewards.judge.timeout=120 s (last error: {said})"
    )


def test_what_swells_beyond_the_bound_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = gzip.compress(bytes(32 * MIB))
    assert len(zeros) < MIB // 16
    with pytest.raises(TooLarge):
        unpacked(zeros, "gzip", MIB)
    assert unpacked(gzip.compress(bytes(MIB)), "gzip", MIB) == bytes(MIB)
    monkeypatch.setattr(servers, "_LONGEST_ANSWER", 8 * MIB)
    with pytest.raises(EngineError, match="expected a response of a few tokens, got one larger than 8 MiB"):
        ask(lambda number: packed(zeros, "gzip"))


def test_an_answer_that_drips_is_ended() -> None:
    """Each byte comes soon enough, the last one never."""

    async def drops() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b" "

    with pytest.raises(EngineError) as caught:
        ask(lambda number: httpx.Response(200, content=drops()), timeout=0.1)
    assert caught.value.problem == (
        "no valid response in 2 attempts with rewards.judge.timeout=0.1 s (last error: incomplete response after 0.2 s)"
    )
