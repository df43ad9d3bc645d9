"""Our Makefile in a folder of its own: with the Python of the tests, or with a stand-in that runs no stage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.commands import ROOT

THIS_PYTHON = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
# What the Makefile asks of the configuration, every stand-in answers by the real thing; once for the same files.
ANSWERS = """#!/bin/sh
case "$*" in *" --make "*)
  for file; do :; done
  kept=../answers-$( (echo "$*"; find . -name '*.yaml' -exec cat {} +) | cksum | tr -d ' ')
  if [ ! -e "$kept" ]; then PYTHON "$@" || exit; cp "$file" "$kept.$$" && mv "$kept.$$" "$kept"; exit; fi
  cmp -s "$kept" "$file" || cp "$kept" "$file"; exit ;;
esac
""".replace("PYTHON", sys.executable)
# python -m dapo_stages STAGE … --out DIR: write DIR/manifest.json and note the call.
STAND_IN = """
[ "$1" = -m ] && [ "$2" != pip ] || exit 0
[ "$2" = dapo_stages.entrypoints.launch ] && launcher=$3
if [ "$2" = dapo_stages.entrypoints.on_gpus ]; then
  [ "$3" = --share ] || reserved=" on $3"
  while [ "$1" != -m ] || [ "$2" = dapo_stages.entrypoints.on_gpus ]; do shift; done
fi
shift 2
while [ -n "$launcher" ]; do
  case $1 in --*) launched="$launched $2"; shift 2 ;; *) break ;; esac
done
stage=$1; run=; out=; iteration=
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2 ;; --run) run=$2 ;; --iteration) iteration=$2 ;; --overwrite) again=' again' ;; esac
  shift
done
case $stage in
  config) mkdir -p "$(dirname "$out")"; [ -e "$out" ] || echo "planned_iterations: 2" > "$out"; exit 0 ;;
  status|prune|check) exit 0 ;;
  report) [ -n "$iteration" ] || exit 0; out=$run/$(printf 'iter-%04d' "$iteration")/report ;;
esac
mkdir -p "$out"; echo {} > "$out/manifest.json"
if [ "$stage" = train-step ]; then mkdir -p "$out/state"; echo {} > "$out/state/manifest.json"; fi
echo "$stage ${out#training_logs/t/}$again$launched$reserved" >> calls
"""


def with_makefile(folder: Path, python: str = THIS_PYTHON) -> Path:
    """A folder with our Makefile and a virtual environment that is ready, whose Python is a shell script."""
    shutil.copy(ROOT / "Makefile", folder)
    if not (folder / "pipelines/run.mk").exists():
        (folder / "pipelines").mkdir(exist_ok=True)
        shutil.copy(ROOT / "pipelines/run.mk", folder / "pipelines")
    if not (folder / "dapo_stages").exists():  # the names of the stages' modules are goals
        (folder / "dapo_stages").symlink_to(ROOT / "dapo_stages")
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (folder / ".venv/bin/python").write_text(python)
    (folder / ".venv/bin/python").chmod(0o755)
    (folder / ".venv/ready").touch()
    return folder


def project_with(folder: Path, iterations: int, script: str = STAND_IN) -> Path:
    """The same with a stand-in for Python, and a configuration of so many iterations."""
    (folder / "pipelines").mkdir()
    (folder / "pipelines/embedded.yaml").write_text(f"planned_iterations: {iterations}\n")
    return with_makefile(folder, ANSWERS + script)


def attempt(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make ARGUMENTS RUN=t`, which may fail."""
    environment = {"PATH": os.environ["PATH"]}
    command = ["make", "RUN=t", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def make(folder: Path, *arguments: str) -> list[str]:
    """Run make; the calls it made of stages, in their order."""
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    done = attempt(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return calls.read_text().splitlines() if calls.exists() else []


def dry(folder: Path, *arguments: str) -> list[str]:
    """The commands that `make -n` shows, one a line."""
    done = attempt(folder, "-n", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ").splitlines()
