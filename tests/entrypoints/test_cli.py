"""The command line as a whole: help, exit codes, what is imported, interruptions."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from reporting import tiny_run
from support.commands import ROOT, fresh, run, start

from dapo_stages.entrypoints import cli
from dapo_stages.entrypoints.cli import COMMANDS
from dapo_stages.handoff.manifests import Source, read_manifest

WITHOUT_MODEL = ("weight-tokens", "report", "status", "inspect", "plan", "compare-weights", "compare-evals", "doctor")


def main_of(command: str) -> Any:
    return import_module(cli.module_of(command)).main


def help_of(command: str) -> str:
    return inspect.cleandoc(main_of(command).__doc__)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.build(tmp_path_factory.mktemp("runs") / "tiny")


# Help


def test_the_pipeline_comes_first_and_in_its_order() -> None:
    order = ["rollout", "score-attention", "weight-tokens", "train-step", "evaluate", "report"]
    assert list(COMMANDS)[:6] == order


def test_every_stage_module_is_a_command() -> None:
    files = {
        path.stem.replace("_", "-")
        for part in ("stages", "tools")
        for path in (ROOT / "dapo_stages" / part).glob("*.py")
    }
    assert {name for name in files if hasattr(_stage(name), "main")} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_what_each_command_says(command: str) -> None:
    assert cli.summary(command) == " ".join(help_of(command).split("\n\n")[0].split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example_of_itself(command: str) -> None:
    assert f"\n\nExample: dapo-stages {command} " in help_of(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_uses_options_that_exist(command: str) -> None:
    example = help_of(command).split("Example: ")[1].split("\n\n")[0].split()
    shown = run(command, "--help").stdout
    assert [word for word in example if word.startswith("--") and word not in shown] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_is_shown_by_help(command: str) -> None:
    assert f"Example: dapo-stages {command} " in " ".join(run(command, "--help").stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_names_every_command(command: str) -> None:
    assert f"`{command}`" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command: str) -> None:
    for name, parameter in inspect.signature(main_of(command), eval_str=True).parameters.items():
        (option,) = parameter.annotation.__metadata__
        assert option.help, f"{command} {name}"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_that_takes_long(command: str) -> None:
    arguments = [sys.executable, "-c", SPY, *([command] if command else []), "--help"]
    done = subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert (done.stderr, done.returncode) == ("[] 0\n", 0)


HEAVY = '"torch", "transformers", "datasets", "deepspeed", "numpy", "pyarrow", "pandas", "PIL", "httpx", "jinja2"'
# Runs a command and prints what it loaded, and its exit code.
SPY = f"""
import sys
import tomllib
from dapo_stages.entrypoints import cli
try:
    cli.main()
except SystemExit as stop:
    code = stop.code
print(sorted({{{HEAVY}}} & set(sys.modules)), code, file=sys.stderr)
"""


def test_all_commands_are_listed_by_help_and_without_arguments() -> None:
    for result in (run("--help"), run()):
        assert [name for name in COMMANDS if name not in result.stdout + result.stderr] == []
    assert run("--help").code == 0


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert run("--version") == (0, f"dapo-stages {project['version']}\n", "")


def test_the_package_runs_as_a_module() -> None:
    result = fresh("config", "--config", "pipelines/embedded.yaml")
    assert result.code == 0 and result.stdout.startswith("seed: ")


@pytest.mark.long
def test_stages_without_a_model_work_without_torch(tiny: Path, tmp_path: Path) -> None:
    """In a Python that has neither torch nor transformers, on the files of a run."""
    calls: dict[str, list[object]] = {
        "weight-tokens": _weigh(tiny, tmp_path / "weights"),
        "report": ["--config", tiny / "config.yaml", "--run", tiny],
        "status": ["--run", tiny],
        "inspect": ["--run", tiny, "it1-p0-s0"],
        "plan": ["--config", tiny / "config.yaml"],
        "compare-weights": [*[tiny / "iter-0001/weights"] * 2, "--out", tmp_path / "comparison"],
        "compare-evals": [tiny / "iter-0000/eval", tiny / "iter-0001/eval"],
        "doctor": [],
    }
    assert set(calls) == set(WITHOUT_MODEL)
    hidden = (
        "import sys; sys.modules |= {'torch': None, 'transformers': None}\n"
        "from dapo_stages.entrypoints import cli; cli.main()"
    )
    for command, arguments in calls.items():
        result = fresh(command, *arguments, code=hidden)
        assert result.code == 0, result.stderr


# Completion by Tab


def completed(*words: str) -> list[str]:
    """The completions that bash gets for the last of some words, without loading anything slow."""
    code = "import sys; sys.argv = ['dapo-stages']; from dapo_stages.entrypoints import cli\n"
    code += "try: cli.main()\n"
    code += "except SystemExit: pass\n"
    code += f"assert not {{{HEAVY}}} & set(sys.modules)\n"
    asked = {"_DAPO_STAGES_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
    result = fresh(code=code, **asked, COMP_CWORD=str(len(words) - 1))
    assert result.code == 0, result.stderr
    return result.stdout.split()


def test_tab_completes_commands_options_and_values() -> None:
    offered = [completed("dapo-stages", "sta"), completed("dapo-stages", "inspect", "--fi")]
    offered += [completed("dapo-stages", "inspect", "--find", "d"), completed("dapo-stages", "rollout", "--it")]
    assert offered == [["status"], ["--find"], ["disagree"], ["--iteration"]]
    assert completed("dapo-stages", "") == list(COMMANDS)


def test_the_script_for_bash_is_one_that_bash_takes() -> None:
    program = Path(sys.executable).with_name("dapo-stages")
    words = [str(program), "--show-completion", "bash"]
    code = f"import sys; sys.argv = {words}; from dapo_stages.entrypoints import cli; cli.main()"
    script = fresh(code=code, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    assert "_DAPO_STAGES_COMPLETE=complete_bash" in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


# Exit codes


def test_usage_errors_exit_with_2() -> None:
    for arguments in (["nonsense"], ["rollout", "--nonsense"], ["rollout"], ["weight-tokens", "--iteration", "one"]):
        result = run(*arguments)
        assert (result.code, result.stdout) == (2, ""), arguments
        assert "Traceback" not in result.stderr
    assert "No such command" in run("nonsense").stderr
    assert "Missing option" in run("rollout").stderr


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_the_cores_to_others(
    monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str
) -> None:
    """A stage started by hand waits as it does under make, unless the user says otherwise."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    run("--version")
    assert os.environ["OMP_WAIT_POLICY"] == kept


def test_a_mistyped_command_is_answered_by_the_one_that_was_meant() -> None:
    result = run("statsu", "--run", "x")
    assert result.code == 2 and "No such command 'statsu'. Did you mean 'status'?" in result.stderr


def test_bad_data_exits_with_3_and_the_whole_message(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("seed: 1\n")
    result = fresh("weight-tokens", *_weigh(tmp_path, tmp_path / "out", config))
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr == (
        f"{tmp_path}/iter-0001/rollout/manifest.json: no such file: there is no output of rollout. Run rollout first.\n"
    )


def test_bad_configuration_exits_with_3_and_the_whole_message(tmp_path: Path) -> None:
    result = fresh("config", "--config", tmp_path / "run.yaml", "--set", "train.beta")
    assert result.code == 3
    (tmp_path / "run.yaml").write_text("sede: 1\n")
    result = fresh("config", "--config", tmp_path / "run.yaml")
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr == (
        f"{tmp_path}/run.yaml: sede is not a setting (did you mean seed?)\n"
        "Fix the file, or the --set option, and run the command again.\n"
    )


def test_a_locked_output_exits_with_4(tiny: Path, tmp_path: Path) -> None:
    hold = (
        "import sys\nfrom filelock import FileLock\nwith FileLock(sys.argv[1]): print(1, flush=True); sys.stdin.read()"
    )
    (tmp_path / "out").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "out/.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "1\n"
    result = run("weight-tokens", *_weigh(tiny, tmp_path / "out"))
    holder.communicate("")
    assert (result.code, result.stdout) == (4, "")
    assert result.stderr == (
        f"{tmp_path}/out: another run is writing here. Wait for it, stop it, or name another --out.\n"
    )
    assert run("weight-tokens", *_weigh(tiny, tmp_path / "out")).code == 0


def test_a_place_that_cannot_be_written_exits_with_3(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", full)
    result = run("weight-tokens", *_weigh(tiny, tmp_path / "out"))
    assert result.code == 3
    assert result.stderr == (
        f"{tmp_path}/out/.partial.json: no space left on the disk. Free some, then run the command again.\n"
    )


# What a stage says


def test_a_dry_run_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    result = run("weight-tokens", *_weigh(tiny, tmp_path / "out"), "--dry-run")
    rollout = read_manifest(tiny / "iter-0001/rollout").content_hash[:12]
    assert result.code == 0 and not (tmp_path / "out").exists()
    assert result.stderr.splitlines()[:2] == [
        f"weight-tokens would write {tmp_path}/out",
        f"  from rollouts {tiny}/iter-0001/rollout ({rollout})",
    ]


def test_json_is_the_only_thing_on_stdout(tiny: Path, tmp_path: Path) -> None:
    first = run("weight-tokens", *_weigh(tiny, tmp_path / "out"), "--json")
    again = run("weight-tokens", *_weigh(tiny, tmp_path / "out"), "--json")
    made, found = json.loads(first.stdout), json.loads(again.stdout)
    assert (made["status"], found["status"]) == ("done", "unchanged")
    assert made["content_hash"] == found["content_hash"] == Source(tmp_path / "out").manifest.content_hash


# Interruptions


def test_an_error_is_told_to_its_end() -> None:
    """A launcher sends SIGTERM as soon as another process has ended, even while this one prints its error."""
    code = """
import os, signal, sys
from dapo_stages import errors
from dapo_stages.entrypoints import cli
def fail():
    raise errors.DataError("file", "expected two, got one", "Fix it.")
class Importing:
    def find_spec(self, name, *_):
        if name == "dapo_stages.terminal.safe_text":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Importing())
cli.app = fail
cli.main()
"""
    result = fresh(code=code)
    assert (result.code, result.stderr) == (3, "file: expected two, got one. Fix it.\n")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("Late()\n    time.sleep(30)", id="in a destructor, where Python ignores exceptions"),
        pytest.param("wrapped()", id="in an extension that raises an error of its own"),
    ],
)
def test_a_signal_is_obeyed_wherever_it_arrives(body: str) -> None:
    code = f"""
import os, signal, time
from dapo_stages.entrypoints import cli
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
def wrapped():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    except BaseException:
        error = RuntimeError("unknown error in an extension")
    raise error
def stage():
    {body}
cli.app = stage
cli.main()
"""
    result = fresh(code=code)
    said = "stopped by SIGTERM; finished work is kept. Run the same command again to resume.\n"
    assert (result.code, result.stderr) == (130, said)


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_interrupted_stage_exits_with_130_and_the_same_command_finishes_it(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    run("weight-tokens", *_weigh(tiny, tmp_path / "undisturbed"))
    arguments = ("weight-tokens", *_weigh(tiny, tmp_path / "out"))
    process = start(*arguments, code=SLOW)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.splitlines()[-1]) == (
        130,
        f"stopped by {name}; finished work is kept. Run the same command again to resume.",
    )
    assert "Traceback" not in stderr
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".lock", ".partial.json", "weights-00000.parquet"}
    assert run(*arguments).code == 0
    made = read_manifest(tmp_path / "out", "weight-tokens")
    assert made.content_hash == read_manifest(tmp_path / "undisturbed").content_hash


# The second file takes forever, in code that survives every Exception.
SLOW = """
import time
from dapo_stages.entrypoints import cli
from dapo_stages.handoff import outputs
write = outputs.write_shard
def slowly(path, schema, rows):
    if not path.name.startswith("weights"):
        print("waiting", flush=True)
        for _ in range(600):
            try:
                time.sleep(1)
            except Exception:
                pass
    return write(path, schema, rows)
outputs.write_shard = slowly
cli.main()
"""


def _weigh(run_folder: Path, out: Path, config: Path | None = None) -> list[object]:
    here = run_folder / "iter-0001"
    inputs = ["--rollouts", here / "rollout", "--attention", here / "attention", "--iteration", 1, "--out", out]
    return ["--config", config or run_folder / "config.yaml", *inputs]


def _stage(name: str) -> Any:
    return import_module(cli.module_of(name)) if name != "--init--" else None
