"""Looking for secrets in everything that commands leave: bytes as they are, and what is packed in them."""

from __future__ import annotations

import base64
import gzip
import io
import re
import sqlite3
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq

CANARIES = {
    "HF_TOKEN": "hf_CANARYqhVnEwTzKpLmRsUa",
    "HUGGING_FACE_HUB_TOKEN": "hf_CANARYdXcVbNmAsDfGhJkL",
    "WANDB_API_KEY": "ca0a1ca0a1ca0a1ca0a1ca0a1ca0a1ca0a1ca0a1",
    "OPENAI_API_KEY": "sk-proj-CANARYo9i8u7y6t5r4e3w2",
    "DAPO_STAGES_API_KEY": "ds-CANARY-server-1q2w3e4r5t",
    "DAPO_STAGES_JUDGE_API_KEY": "ds-CANARY-judge-6y7u8i9o0p",
    "AWS_ACCESS_KEY_ID": "AKIACANARYIOSFODNN7E",
    "AWS_SECRET_ACCESS_KEY": "wJalrCANARYFEMIbPxRfiCYEXAMPLEKEY",
    "GITHUB_TOKEN": "ghp_CANARYzzTopAbCdEfGhIjKlMn",
    "DB_PASSWORD": "CANARY-correct-horse-battery",
}
PROXY_PASSWORD = "CANARYproxy0pass0word"
ENVIRONMENT = {
    **CANARIES,
    "HTTPS_PROXY": f"http://someone:{PROXY_PASSWORD}@127.0.0.1:9",
    "HTTP_PROXY": f"http://someone:{PROXY_PASSWORD}@127.0.0.1:9",
}
SECRETS = {**CANARIES, "HTTPS_PROXY": PROXY_PASSWORD}


def found_in(content: bytes, secrets: Mapping[str, str] = SECRETS) -> set[str]:
    """Names of the secrets that stand somewhere in these bytes, plain, or as Base64, hex or a URL has them."""
    return {name for name, value in secrets.items() if any(form in content for form in _forms(value))}


def leaks(folder: Path, secrets: Mapping[str, str] = SECRETS) -> dict[str, set[str]]:
    """File -> the secrets in it, in its name, or in what it packs."""
    result: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*")):
        found = found_in(str(path).encode(), secrets)
        if path.is_file():
            for content in contents(path):
                found |= found_in(content, secrets)
        if found:
            result[str(path.relative_to(folder))] = found
    return result


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and those that a reader of its kind gets out of it."""
    data = path.read_bytes()
    yield data
    if data[:4] == b"PAR1":
        with pq.ParquetFile(path) as file:
            yield repr(file.schema_arrow.metadata).encode()
            yield repr(file.read().to_pylist()).encode()
    elif data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    elif data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    elif data[:15] == b"SQLite format 3":
        with sqlite3.connect(path) as opened:
            yield "\n".join(opened.iterdump()).encode()
    elif path.suffix == ".wandb":
        yield from _records(path)
    elif path.suffix in {".html", ".json", ".md"}:
        for packed in re.findall(rb"[A-Za-z0-9+/]{64,}={0,2}", data):
            yield base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=False)


def _records(path: Path) -> Iterator[bytes]:
    """The records of W&B's offline file, LevelDB's log format: blocks of 32 KiB, which may cut a record in pieces."""
    data, at, record = path.read_bytes(), 7, b""  # ":W&B", magic, version
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for a header: the block is filled with zeros
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # whole, or the last piece
            yield record
            record = b""


def _forms(value: str) -> Iterator[bytes]:
    plain = value.encode()
    yield plain
    yield plain[::-1]
    yield plain.hex().encode()
    yield quote(value, safe="").encode()
    for shift in range(3):  # Base64 of it inside of something longer
        coded = base64.b64encode(b"\0" * shift + plain)
        yield coded[4 if shift else 0 : len(coded) // 4 * 4 - 4]
