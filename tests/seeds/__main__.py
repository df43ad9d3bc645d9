"""Runs the tests under each setting alone, and prints a table. Started again, it goes on; other code starts afresh."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from faults.resume import code

from seeds.plugin import read

ROOT = Path(__file__).resolve().parents[2]
NOTES = ROOT / "build/seeds"


@dataclass(frozen=True)
class Setting:
    """What stands for another machine: variables of the environment, and options of tests/conftest.py."""

    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


# ATen's kernels, and those of oneDNN and MKL, which choose for themselves.
SETTINGS = {
    "as-it-is": Setting(),
    "avx2": Setting({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}),
    "default": Setting({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}),
    "two-threads": Setting(options=("--threads=2",)),
    **{f"seed-{seed}": Setting(options=(f"--base-seed={seed}",)) for seed in range(1, 6)},
}
# The kernels in use, and a hash of what they compute: where it differs, they round differently.
KERNELS = """
import hashlib, torch
torch.set_num_threads(1)
torch.manual_seed(0)
a, b = torch.randn(64, 300), torch.randn(300, 64)
computed = torch.cat([(a @ b).softmax(-1), torch.nn.functional.gelu(a)], -1)
print(torch.backends.cpu.get_cpu_capability(), hashlib.sha256(computed.numpy().tobytes()).hexdigest()[:6])
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="seeds", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", nargs="*", choices=SETTINGS, help="settings; all by default")
    arguments = parser.parse_args()
    forget_other_code()
    names = arguments.only or list(SETTINGS)
    ended = [run(name, arguments.jobs) for name in names]
    print(table(names))
    return max(ended)


def forget_other_code() -> None:
    """Remove notes of what other code has shown."""
    NOTES.mkdir(parents=True, exist_ok=True)
    mark, now = NOTES / "code", code()
    if not mark.exists() or mark.read_text() != now:
        for path in NOTES.glob("*.jsonl"):
            path.unlink()
        mark.write_text(now)


def run(name: str, jobs: int) -> int:
    """The exit code of pytest under a setting."""
    setting = SETTINGS[name]
    print(f"{name}: {' '.join([*(f'{k}={v}' for k, v in setting.environment.items()), *setting.options])}", flush=True)
    options = ["-p", "seeds.plugin", "-n", str(jobs), "--dist", "loadscope", "-q", *setting.options]
    return subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, env=environment(name)).returncode


def environment(name: str) -> dict[str, str]:
    place = {"SEEDS_NOTES": str(NOTES / f"{name}.jsonl"), "PYTHONPATH": f"{ROOT}/tests:{ROOT}"}
    return {**os.environ, **place, **SETTINGS[name].environment}


def table(names: list[str]) -> str:
    """Markdown: a line for each setting."""
    lines = ["| setting | kernels | threads seen | tests | failures | minutes of tests |", "|---|---|---|---|---|---|"]
    for name in names:
        notes = list(read(NOTES / f"{name}.jsonl").values())
        threads = ", ".join(sorted({str(note["threads"]) for note in notes if note["threads"]}))
        failed = sum(note["outcome"] == "failed" for note in notes)
        minutes = sum(note["seconds"] for note in notes) / 60
        lines.append(f"| {name} | {kernels(name)} | {threads} | {len(notes)} | {failed} | {minutes:.1f} |")
    return "\n".join(lines)


def kernels(name: str) -> str:
    done = subprocess.run([sys.executable, "-c", KERNELS], env=environment(name), capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
