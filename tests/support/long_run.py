"""A run of many iterations at little cost: the last iteration of a real run again and again, its large files linked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from dapo_stages.handoff.manifests import MANIFEST, Input, Manifest, content_hash, read_manifest, write_manifest
from dapo_stages.handoff.shards import Shard, describe_file
from dapo_stages.handoff.unfinished import LOCK
from dapo_stages.runs.pipeline import FOLDERS, iteration_name
from dapo_stages.runs.run_folder import Run

_PARTS = ("policy", "state", "reference")  # of a train-step, published before it


def lengthen(path: Path, last: int) -> None:
    """Continue a run up to iteration `last`: each is made from the one before it, as every manifest says."""
    run = Run(path)
    model = run.iterations()[-1]
    template = {path: read_manifest(path) for path in _outputs(run.folder(model))}
    hashes = {str(path): manifest.content_hash for path, manifest in template.items()}
    start = max(os.stat(path / MANIFEST).st_mtime_ns for path in template)
    for number in range(model + 1, last + 1):
        now: dict[str, str] = {}  # content hash in the template -> of this iteration
        for step, (path, manifest) in enumerate(template.items()):
            folder = run.folder(number) / path.relative_to(run.folder(model))
            time = start + (number - model) * 60_000_000_000 + step * 1_000_000_000
            copy = _copied(path, folder, manifest, model, number)
            inputs = {name: _moved(source, run, model, number, hashes) for name, source in manifest.inputs.items()}
            policy = {name: now.get(value, value) for name, value in manifest.policy.items()}
            copy = copy.model_copy(update={"inputs": inputs, "policy": policy})
            now[manifest.content_hash] = hashes[str(folder)] = copy.content_hash
            write_manifest(folder, copy, (time, time))


def _outputs(folder: Path) -> Iterator[Path]:
    """The outputs of an iteration in the order they were published."""
    for name in FOLDERS:
        if name == "train":
            yield from (folder / name / part for part in _PARTS if (folder / name / part / MANIFEST).exists())
        if (folder / name / MANIFEST).exists():
            yield folder / name


def _copied(source: Path, target: Path, manifest: Manifest, model: int, number: int) -> Manifest:
    """Its files, and what its manifest says of them; those of a report have the number of its iteration in them."""
    target.mkdir(parents=True, exist_ok=True)
    if source.name in FOLDERS:
        (target / LOCK).touch()
    if source.name == "report":
        shards = [_renumbered(source / shard.name, target, model, number) for shard in manifest.shards]
    else:
        shards = manifest.shards
        for shard in shards:
            if shard.name.split("/")[0] not in _PARTS and (source / shard.name).exists():
                os.link(source / shard.name, target / shard.name)
    config = manifest.config | ({"iteration": number} if "iteration" in manifest.config else {})
    later = timedelta(minutes=number - model)
    times = {
        name: (datetime.fromisoformat(value) + later).isoformat()
        for name, value in (("started", manifest.started), ("ended", manifest.ended))
    }
    made = content_hash(manifest.stage, config, manifest.seed, shards)
    return manifest.model_copy(update={"shards": shards, "config": config, "content_hash": made, **times})


def _renumbered(source: Path, folder: Path, model: int, number: int) -> Shard:
    target = folder / source.name
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".md":
        target.write_text(text.replace(f"## Iteration {model}\n", f"## Iteration {number}\n", 1), encoding="utf-8")
    elif text.startswith(f'{{"iteration":{model},'):
        target.write_text(text.replace(f":{model},", f":{number},", 1), encoding="utf-8")
    else:
        shutil.copyfile(source, target)
    return describe_file(folder, target)


def _moved(source: Input, run: Run, model: int, number: int, hashes: dict[str, str]) -> Input:
    """The input of this number that corresponds to one of the template."""
    path = source.path
    for offset in (0, 1):
        old, new = (iteration_name(one - offset) for one in (model, number))
        if f"/{old}/" in path:
            path = path.replace(f"/{old}/", f"/{new}/")
            break
    return Input(path=path, content_hash=hashes.get(str(run.place(path)), source.content_hash))
