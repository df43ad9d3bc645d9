"""What a machine has of what dapo-stages can use. torch is asked in a process of its own, which may hang or fail."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "dapo-stages"
TIME_LIMIT = 90.0  # seconds for torch to be imported and to name its devices
_GIB = 2**30
# The default run takes 0.1 GiB on disk in six iterations, its largest stage about 1.3 GiB of memory.
_DISK, _MEMORY = 1.0, 2.0

# Extra -> what it is for. Those that only the project's own tests need are set up by `make test`.
EXTRAS = {
    "trackers": "report.trackers",
    "deepspeed": "LAUNCH=zero1, zero2, zero3",
    "quantization": "model.quantization",
    "bench": "make bench",
}
# Keys read from the environment; only whether they are set is said.
KEYS = {
    "WANDB_API_KEY": "report.trackers: [wandb]; without it W&B writes files for `wandb sync`",
    "HF_TOKEN": "push, and models and data on the hub that ask for it",
}

_PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(), "devices": []}
if torch.cuda.is_available():
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found["devices"].append({"name": about.name, "gib": about.total_memory / 2**30})
elif torch.backends.mps.is_available():
    found["devices"].append({"name": "Apple GPU (mps)", "gib": None})
print(json.dumps(found))
"""

State = Literal["ok", "optional", "problem"]


@dataclass(frozen=True)
class Check:
    """One finding: `optional` is a feature that is not there, `problem` something that the default run needs."""

    name: str
    state: State
    found: str
    needed_for: str = ""
    do: str = ""


def checks(place: Path) -> Iterator[Check]:
    """Everything there is to check, cheapest first; `place` is where runs are to be written."""
    yield _python()
    yield _disk(place)
    yield _memory()
    yield from _packages()
    yield _vllm()
    yield _torchvision()
    yield _program("make", "problem", "make iterate", "Install make (Debian: apt-get install make).")
    yield _program("g++", "optional", "DeepSpeed, torch.compile", "Install a C++ compiler (Debian: g++).")
    yield _program("mergekit-yaml", "optional", "merge --method mergekit", f"{_pip()} mergekit")
    yield from (_key(name, use) for name, use in KEYS.items())
    yield from devices(probe())


def probe(code: str = _PROBE, limit: float = TIME_LIMIT) -> dict[str, Any]:
    """What torch says of itself and of its devices; `error` instead where it cannot, within `limit` seconds."""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        said, complaint = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()  # and not waited for: a hanging driver does not even let go of a killed process
        return {"error": f"no answer in {limit:g} s"}
    with suppress(ValueError, IndexError):
        found = json.loads(said.splitlines()[-1])
        if child.returncode == 0 and isinstance(found, dict):
            return found
    last = complaint.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
    return {"error": last[0][:300]}


def devices(found: Mapping[str, Any]) -> Iterator[Check]:
    """What `probe` found, as checks."""
    if "error" in found:
        do = f"make setup installs it; or {_pip()} torch. A driver that hangs: look at nvidia-smi."
        yield Check("torch", "problem", found["error"], "every stage with a model", do)
        return
    build = f"CUDA {found['cuda']}" if found["cuda"] else "without CUDA"
    yield Check("torch", "ok", f"{found['torch']}, {build}, {found['threads']} threads")
    for number, device in enumerate(found["devices"]):
        memory = f", {device['gib']:.0f} GiB" if device["gib"] else ""
        yield Check(f"device {number}", "ok", f"{device['name']}{memory}")
    if not found["devices"]:
        there = Path("/dev/nvidiactl").exists()
        seen = "an NVIDIA driver, but torch sees no GPU" if there else f"CPU only, {_cores()} cores"
        do = "Install a torch built for CUDA, or a newer driver: pytorch.org/get-started." if there else ""
        yield Check("device", "optional" if there else "ok", seen, "models beyond the embedded one", do)


def _python() -> Check:
    from packaging.specifiers import SpecifierSet

    version = sys.version.split()[0]
    found, wanted = f"{version} ({sys.executable})", ""
    with suppress(importlib.metadata.PackageNotFoundError):
        wanted = "".join(importlib.metadata.metadata(PACKAGE).get_all("Requires-Python") or [])
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Check("Python", "ok", found)
    return Check("Python", "problem", found, f"{wanted}: everything", "make setup PYTHON=python3.12")


def _disk(place: Path) -> Check:
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / _GIB
    found = f"{free:.1f} GiB free in {place.resolve()}"
    if not os.access(place, os.W_OK):
        return Check("disk", "problem", f"{found}, not writable", "runs", "Go to a folder that you may write to.")
    if free < _DISK:
        return Check("disk", "problem", found, f"{_DISK:g} GiB, a run of the default", "Make room, or prune runs.")
    return Check("disk", "ok", found)


def _memory() -> Check:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text(encoding="ascii")) / _GIB)
    found = f"{total:.1f} GiB"
    if total < _MEMORY:
        return Check("memory", "problem", found, f"{_MEMORY:g} GiB, the default", "Use a machine with more.")
    return Check("memory", "ok", found)


def _packages() -> Iterator[Check]:
    """Installed versions against the ranges of this package."""
    from packaging.requirements import Requirement

    try:
        texts = importlib.metadata.requires(PACKAGE) or []
        yield Check(PACKAGE, "ok", importlib.metadata.version(PACKAGE))
    except importlib.metadata.PackageNotFoundError:
        yield Check(PACKAGE, "problem", "not installed", "versions of all the rest", "make setup")
        return
    wanted = [Requirement(text) for text in texts]
    needed = [one for one in wanted if one.marker is None]
    misfits = {one.name: found for one in needed if (found := _misfit(one))}
    fitting = [one.name for one in needed if one.name not in misfits]
    yield Check("packages", "ok", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in fitting))
    for name, found in misfits.items():
        yield Check(name, "problem", found, "the default", "make setup")
    for extra, use in EXTRAS.items():
        of_extra = [one for one in wanted if one.marker is not None and one.marker.evaluate({"extra": extra})]
        for one in of_extra:
            misfit = _misfit(one)
            found = misfit or importlib.metadata.version(one.name)
            yield Check(one.name, "optional" if misfit else "ok", found, use, f"{_pip()} -e '.[{extra}]'")


def _misfit(wanted: Requirement) -> str | None:
    """What is wrong with the installed version; None if nothing is."""
    try:
        found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if wanted.specifier.contains(found, prereleases=True):
        return None
    return f"found {found}; needed {wanted.specifier}"


def _vllm() -> Check:
    use, do = "rollout.engine: vllm", "make venv-vllm (an environment of its own)"
    with suppress(importlib.metadata.PackageNotFoundError):
        return Check("vllm", "ok", f"{importlib.metadata.version('vllm')} in this Python", use, do)
    if Path(".venv-vllm/ready").exists():
        return Check("vllm", "ok", "in .venv-vllm: make iterate ROLLOUT_PYTHON=.venv-vllm/bin/python", use, do)
    return Check("vllm", "optional", "not installed", use, do)


def _torchvision() -> Check:
    use, do = "transformers' own image processors, which ours stands in for", f"{_pip()} torchvision"
    with suppress(importlib.metadata.PackageNotFoundError):
        return Check("torchvision", "ok", importlib.metadata.version("torchvision"), use, do)
    return Check("torchvision", "optional", "not installed", use, do)


def _program(name: str, without: State, use: str, do: str) -> Check:
    found = shutil.which(name)
    return Check(name, "ok" if found else without, found or "not found", use, do)


def _key(name: str, use: str) -> Check:
    there = bool(os.environ.get(name))
    return Check(name, "ok" if there else "optional", "set" if there else "not set", use, f"export {name}=…")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pip() -> str:
    return f"{sys.executable} -m pip install"
