"""Files of a run as a stranger would hand them over: every checksum right, the content hostile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dapo_stages.handoff.manifests import MANIFEST, Manifest, content_hash, read_manifest, write_manifest
from dapo_stages.handoff.shards import Shard, sha256_of


def publish(folder: Path, stage: str, *, policy: dict[str, Any] | None = None, names: tuple[str, ...] = ()) -> Path:
    """A manifest over the files of a folder, or over other names than these."""
    paths = [folder / name for name in names] or sorted(path for path in folder.rglob("*") if path.is_file())
    shards = [_shard(folder, path, names) for path in paths if path.name != MANIFEST]
    config: dict[str, Any] = {}
    manifest = Manifest(
        stage=stage, schema_version=_version(), package_version="0", config=config, seed=1, inputs={}, shards=shards,
        policy=policy or {}, started="", ended="", seconds=0.0,
        content_hash=content_hash(stage, config, 1, shards, policy),
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and give it the hash that belongs to it now."""
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    values.pop("checksum", None)  # manifests of older versions have none
    change(values)
    shards = [Shard(**shard) for shard in values["shards"]]
    values["content_hash"] = content_hash(values["stage"], values["config"], values["seed"], shards, values["policy"])
    (folder / MANIFEST).write_text(json.dumps(values), encoding="utf-8")


def replace(folder: Path, name: str, content: bytes) -> None:
    """Another file under the name of one of an output, with the checksum that belongs to it."""
    (folder / name).write_bytes(content)

    def change(values: dict[str, Any]) -> None:
        for shard in values["shards"]:
            if shard["name"] == name:
                shard |= {"bytes": len(content), "sha256": sha256_of(folder / name)}

    rewrite(folder, change)


def follow(folder: Path, name: str, source: Path) -> None:
    """Let a manifest name another one, as it is now, as what it was made from."""
    new = read_manifest(source).content_hash
    rewrite(folder, lambda values: values["inputs"][name].update(content_hash=new))


def _shard(folder: Path, path: Path, names: tuple[str, ...]) -> Shard:
    name = next((name for name in names if folder / name == path), None) or path.relative_to(folder).as_posix()
    return Shard(name, None, path.stat().st_size, sha256_of(path))


def _version() -> int:
    from dapo_stages.handoff.schemas import SCHEMA_VERSION

    return SCHEMA_VERSION
