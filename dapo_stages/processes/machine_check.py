"""Checks what this machine has for dapo-stages. torch is queried in a separate process, which may hang or fail."""

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

# Extra -> what it is for. `make test` sets up those that only the project's own tests need.
EXTRAS = {
    "trackers": "report.trackers",
    "deepspeed": "LAUNCH=zero1, zero2, zero3",
    "quantization": "model.quantization",
    "bench": "make bench",
}
# Keys read from the environment; only whether they are set is reported.
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
    """One check: `optional` means that a feature is missing, `problem` that something for the default run is."""

    name: str
    state: State
    found: str
    needed_for: str = ""
    advice: str = ""


def checks(place: Path) -> Iterator[Check]:
    """All checks, cheapest first; `place` is where runs will be written."""
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
    """torch's version and devices; `error` instead if there is no answer within `limit` seconds."""
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
        child.kill()  # without wait(): a hanging driver can keep even a killed process
        return {"error": f"no answer in {limit:g} s"}
    with suppress(ValueError, IndexError):
        found = json.loads(said.splitlines()[-1])
        if child.returncode == 0 and isinstance(found, dict):
            return found
    last = complaint.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
    return {"error": last[0][:300]}


def devices(found: Mapping[str, Any]) -> Iterator[Check]:
    """The answer of `probe`, as checks."""
    if "error" in found:
        advice = f"make setup installs it; or {_pip()} torch. If the driver hangs, check nvidia-smi."
        yield Check("torch", "problem", found["error"], "every stage with a model", advice)
        return
    build = f"CUDA {found['cuda']}" if found["cuda"] else "without CUDA"
    yield Check("torch", "ok", f"{found['torch']}, {build}, {found['threads']} threads")
    for number, device in enumerate(found["devices"]):
        memory = f", {device['gib']:.0f} GiB" if device["gib"] else ""
        yield Check(f"device {number}", "ok", f"{device['name']}{memory}")
    if not found["devices"]:
        there = Path("/dev/nvidiactl").exists()
        seen = "an NVIDIA driver, but torch sees no GPU" if there else f"CPU only, {cores()} cores"
        advice = "Install a torch built for CUDA, or a newer driver: pytorch.org/get-started." if there else ""
        yield Check("device", "optional" if there else "ok", seen, "models larger than the embedded one", advice)


def _python() -> Check:
    from packaging.specifiers import SpecifierSet

    version = sys.version.split()[0]
    found, wanted = f"{version} ({sys.executable})", ""
    with suppress(importlib.metadata.PackageNotFoundError):
        wanted = "".join(importlib.metadata.metadata(PACKAGE).get_all("Requires-Python") or [])
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Check("Python", "ok", found)
    return Check("Python", "problem", found, f"everything: {wanted}", "make setup PYTHON=python3.12")


def _disk(place: Path) -> Check:
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / _GIB
    found = f"{free:.1f} GiB free in {place.resolve()}"
    if not os.access(place, os.W_OK):
        return Check("disk", "problem", f"{found}, not writable", "runs", "Use a folder that you may write to.")
    if free < _DISK:
        return Check("disk", "problem", found, f"the default run: {_DISK:g} GiB", "Free space, or prune runs.")
    return Check("disk", "ok", found)


def _memory() -> Check:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text(encoding="ascii")) / _GIB)
    found = f"{total:.1f} GiB"
    if total < _MEMORY:
        return Check("memory", "problem", found, f"the default run: {_MEMORY:g} GiB", "Use a machine with more memory.")
    return Check("memory", "ok", found)


def _packages() -> Iterator[Check]:
    """Installed versions, compared with the ranges that this package requires."""
    from packaging.requirements import Requirement

    try:
        texts = importlib.metadata.requires(PACKAGE) or []
        yield Check(PACKAGE, "ok", importlib.metadata.version(PACKAGE))
    except importlib.metadata.PackageNotFoundError:
        yield Check(PACKAGE, "problem", "not installed", "checks of the other versions", "make setup")
        return
    # Build backends write them in different orders.
    wanted = sorted((Requirement(text) for text in texts), key=lambda one: one.name)
    always = [one for one in wanted if one.marker is None]
    misfits = {one.name: found for one in always if (found := _misfit(one))}
    fitting = [one.name for one in always if one.name not in misfits]
    yield Check("packages", "ok", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in fitting))
    for name, found in misfits.items():
        yield Check(name, "problem", found, "the default run", "make setup")
    for extra, use in EXTRAS.items():
        of_extra = [one for one in wanted if one.marker is not None and one.marker.evaluate({"extra": extra})]
        for one in of_extra:
            misfit = _misfit(one)
            found = misfit or importlib.metadata.version(one.name)
            yield Check(one.name, "optional" if misfit else "ok", found, use, f"{_pip()} -e '.[{extra}]'")


def _misfit(wanted: Requirement) -> str | None:
    """What is wrong with the installed version; None if nothing is."""
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if wanted.specifier.contains(version, prereleases=True):
        return None
    return f"{version}, expected {wanted.specifier}"


def _vllm() -> Check:
    use, advice = "rollout.engine: vllm", "make venv-vllm (a separate environment)"
    with suppress(importlib.metadata.PackageNotFoundError):
        return Check("vllm", "ok", f"{importlib.metadata.version('vllm')} in this Python", use, advice)
    if Path(".venv-vllm/ready").exists():
        return Check("vllm", "ok", "in .venv-vllm: make iterate ROLLOUT_PYTHON=.venv-vllm/bin/python", use, advice)
    return Check("vllm", "optional", "not installed", use, advice)


def _torchvision() -> Check:
    use = "transformers' own AutoProcessor; the stages have their own"
    advice = "make setup, which does not replace a CPU build of torch, as pip install torchvision does"
    with suppress(importlib.metadata.PackageNotFoundError):
        return Check("torchvision", "ok", importlib.metadata.version("torchvision"), use, advice)
    return Check("torchvision", "optional", "not installed", use, advice)


def _program(name: str, without: State, use: str, advice: str) -> Check:
    found = shutil.which(name)
    return Check(name, "ok" if found else without, found or "not found", use, advice)


def _key(name: str, use: str) -> Check:
    there = bool(os.environ.get(name))
    return Check(name, "ok" if there else "optional", "set" if there else "not set", use, f"export {name}=…")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pip() -> str:
    return f"{sys.executable} -m pip install"
