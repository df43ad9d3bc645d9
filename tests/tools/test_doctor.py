"""doctor: what this machine has; nothing about it may hang or need torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.commands import run

from dapo_stages.processes import machine_check
from dapo_stages.processes.machine_check import Check, checks, devices, probe

TORCH: dict[str, Any] = {"torch": "2.13.0", "cuda": None, "threads": 2, "devices": []}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself is asked in one test only."""
    monkeypatch.setattr(machine_check, "probe", lambda: TORCH)


def found(tmp_path: Path) -> dict[str, Check]:
    return {check.name: check for check in checks(tmp_path)}


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Other versions of packages than are installed; None: not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if versions.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_machine_that_runs_the_tests_is_ready(tmp_path: Path) -> None:
    result = run("doctor", "--place", tmp_path)
    assert result.code == 0, result.stdout
    assert result.stdout.startswith(f"✓ Python: {platform.python_version()} ({sys.executable})\n✓ disk: ")
    assert result.stdout.endswith("\nready for the default run: make iterate\n")
    assert f"torch {importlib.metadata.version('torch')}, " in result.stdout
    assert "\x1b" not in result.stdout


def test_json_says_the_same_and_nothing_else(tmp_path: Path) -> None:
    said = json.loads(run("doctor", "--place", tmp_path, "--json").stdout)
    assert said["ok"] is True
    assert {tuple(check) for check in said["checks"]} == {("name", "state", "found", "needed_for", "advice")}
    names = [check["name"] for check in said["checks"]]
    wanted = ["Python", "disk", "memory", "wandb", "deepspeed", "bitsandbytes", "vllm", "torchvision", "HF_TOKEN"]
    assert [name for name in wanted if name not in names] == []


def test_an_old_version_is_a_problem_and_the_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, transformers="4.50.0", peft=None)
    result = run("doctor", "--place", tmp_path)
    assert result.code == 3
    assert "✗ peft: not installed (for the default run)\n    make setup\n" in result.stdout
    assert "✗ transformers: 4.50.0, expected >=5.16 (for the default run)\n    make setup\n" in result.stdout
    assert result.stdout.endswith("\nmissing for the default run: peft, transformers\n")
    said = json.loads(run("doctor", "--place", tmp_path, "--json").stdout)
    assert said["ok"] is False and [c["name"] for c in said["checks"] if c["state"] == "problem"] == [
        "peft",
        "transformers",
    ]


def test_what_a_feature_needs_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, wandb=None, bitsandbytes="0.40.0", vllm=None)
    monkeypatch.chdir(tmp_path)
    result = run("doctor")
    assert result.code == 0
    install = f"    {sys.executable} -m pip install -e"
    assert f"– wandb: not installed (for report.trackers)\n{install} '.[trackers]'\n" in result.stdout
    assert "– bitsandbytes: 0.40.0, expected >=0.46 (for model.quantization)\n" in result.stdout
    assert "– vllm: not installed (for rollout.engine: vllm)\n    make venv-vllm (" in result.stdout
    (tmp_path / ".venv-vllm").mkdir()
    (tmp_path / ".venv-vllm/ready").touch()
    assert "✓ vllm: in .venv-vllm: " in run("doctor").stdout


def test_keys_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    there = found(tmp_path)
    assert (there["WANDB_API_KEY"].state, there["HF_TOKEN"].state) == ("ok", "optional")
    assert "very-secret" not in run("doctor", "--json").stdout


def test_a_full_or_closed_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2**29)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert found(tmp_path / "not/there")["disk"] == Check(
        "disk", "problem", f"0.5 GiB free in {tmp_path}", "the default run: 1 GiB", "Free space, or prune runs."
    )
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert found(tmp_path)["disk"].found.endswith(", not writable")


def test_little_memory_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PHYS_PAGES": 2**18, "SC_PAGE_SIZE": 2**12}  # 1 GiB
    monkeypatch.setattr(os, "sysconf", lambda name: sizes[name])
    assert (found(tmp_path)["memory"].state, found(tmp_path)["memory"].found) == ("problem", "1.0 GiB")


def test_without_an_installed_package_it_still_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "PACKAGE", "no-such-package")
    assert found(tmp_path)["no-such-package"] == Check(
        "no-such-package", "problem", "not installed", "checks of the other versions", "make setup"
    )


# Asking torch


@pytest.mark.long
def test_torch_names_its_devices() -> None:
    import torch

    said = probe()
    assert (said["torch"], said["cuda"]) == (torch.__version__, torch.version.cuda)
    assert len(said["devices"]) == torch.cuda.device_count()


def test_a_torch_that_hangs_is_given_up() -> None:
    started = time.monotonic()
    said = probe("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", limit=0.3)
    assert said == {"error": "no answer in 0.3 s"} and time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_torch", "ModuleNotFoundError: No module named 'no_such_torch'"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("print('no JSON')", "exit code 0"),
    ],
)
def test_a_torch_that_fails_says_why(code: str, said: str) -> None:
    assert probe(code) == {"error": said}


def test_missing_torch_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "probe", lambda: {"error": "No module named 'torch'"})
    result = run("doctor", "--place", tmp_path)
    assert result.code == 3
    assert "✗ torch: No module named 'torch' (for every stage with a model)\n" in result.stdout


def test_gpus_are_listed_with_their_memory() -> None:
    gpus = [{"name": "NVIDIA A100", "gib": 79.25}, {"name": "NVIDIA A100", "gib": 79.25}]
    said = list(devices({"torch": "2.13.0", "cuda": "13.0", "threads": 8, "devices": gpus}))
    assert [(check.name, check.found) for check in said] == [
        ("torch", "2.13.0, CUDA 13.0, 8 threads"),
        ("device 0", "NVIDIA A100, 79 GiB"),
        ("device 1", "NVIDIA A100, 79 GiB"),
    ]
