"""The console script: finds the command's module only when it is called, and turns errors into exit codes."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from dapo_stages import __version__
from dapo_stages.errors import EXIT_BAD_INPUT, EXIT_LOST, DapoStagesError, InterruptedStage
from dapo_stages.processes import collectives
from dapo_stages.runs.pipeline import STAGES
from dapo_stages.terminal.console import take_any_text
from dapo_stages.terminal.unseen import visible

# Command -> first line of its help, the same as in its module (tests/entrypoints/test_cli.py); the pipeline first, in
# its order.
COMMANDS = {
    "rollout": "Sample completions for the prompts of an iteration and reward them.",
    "score-attention": "Measure where each completion token looked: masses on picture, question and the rest, "
    "VGR and AEI by layers.",
    "weight-tokens": "Turn rewards and attention into advantages and token weights, and keep the replay buffer.",
    "train-step": "Update the policy by DAPO: clipped token-level objective, each token by its weight, "
    "in mini-batches.",
    "report": "Write rollout_results.md, token_weights.md, eval_results.md and report.html from what a run has so far.",
    "init-policy": "Make the starting policy.",
    "prepare-data": "Make training and held-out prompts from a data set.",
    "evaluate": "Answer the held-out questions: greedily, by k samples, and (if configured) with the picture blanked.",
    "compare-evals": "Compare two policies on the same held-out questions: differences, intervals, paired tests.",
    "plan": "Say what a run needs before it starts: memory per rank, seconds and bytes per stage, and what limits it.",
    "status": "Say what exists per iteration and stage, which outputs are stale and why, and the next command.",
    "inspect": "Show one completion: its picture, its tokens by weight, rewards, advantage, and where its prompt is.",
    "doctor": "Check this machine: Python, devices, memory, disk, versions, what is missing for which feature; "
    "or a run.",
    "compare-weights": "Set token weights of the same rollouts side by side: correlations, spread, and the tokens they "
    "differ on most.",
    "config": "Check a configuration and write it out with every key resolved.",
    "prune": "Remove large files of old iterations, as the keep section says; their manifests stay.",
    "merge": "Merge an adapter into its base, or average policies, into a standard checkpoint.",
    "push": "Send a policy to the Hugging Face hub, with a model card made from its run.",
}


def module_of(command: str) -> str:
    """The module whose `main` a command is: `train-step` -> dapo_stages.stages.train_step."""
    package = "stages" if any(command == stage.command for stage in STAGES.values()) else "tools"
    return f"dapo_stages.{package}.{command.replace('-', '_')}"


class LazyCommands(TyperGroup):
    """Knows every command's name and help, and imports the module of the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return self.commands.get(cmd_name) or _command(lambda: None, cmd_name, COMMANDS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = _command(import_module(module_of(args[0])).main, args[0], None)
        elif args:  # typer looks here for the name that was meant
            self.commands.update((name, self.get_command(ctx, name)) for name in COMMANDS)
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=LazyCommands, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"dapo-stages {__version__}")
        raise typer.Exit


@app.callback()
def stages(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and exit.")
    ] = False,
) -> None:
    """DAPO for vision-language models, in stages that hand Parquet files to each other.

    rollout → score-attention → weight-tokens → train-step → report, chained by `make iterate`.
    """


def main() -> None:
    """Run the command line; exits 0, 2 (usage), 3 (bad data or configuration), 4 (locked), 5 (halted) or 130
    (interrupted), and 1 where another process of the stage is gone."""
    take_any_text()
    # Threads of torch that spin while they wait take the cores from whatever runs beside, as the Makefile says.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Looking for garbage among all that is imported takes a second while it is, and most of one at the end.
    gc.set_threshold(10_000, 20, 20)
    atexit.register(gc.freeze)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in a background job of a script
            signal.signal(number, _interrupt)
    try:
        app()
    except (DapoStagesError, InterruptedStage) as error:
        _end(str(error), error.exit_code)
    except MemoryError as error:
        what = " ".join(str(error).split())[:200]
        _end(f"found no memory left{f' ({what})' if what else ''}; needed more. Use smaller batches.", EXIT_BAD_INPUT)
    except Exception as error:
        if why := _mendable(error):
            _end(why, EXIT_BAD_INPUT)
        if collectives.fail(repr(error), EXIT_LOST):
            raise
        sys.exit(EXIT_LOST)
    finally:
        collectives.leave()


def _end(why: str, code: int) -> NoReturn:
    """Say why, in the first of several processes to fail, and exit. Reasons quote data, which steers no terminal."""
    if collectives.fail(why, code):
        print(visible(why), file=sys.stderr)
    sys.exit(code)


def _mendable(error: Exception) -> str | None:
    """What to say of an error of the system that a person can mend; None of another one."""
    if isinstance(error, OSError) and error.errno in _MENDABLE:
        where = error.filename2 or error.filename or "writing"  # the second: what is copied or renamed to
        return f"{where}: {_MENDABLE[error.errno]}, then run it again."
    if isinstance(error, UnicodeEncodeError) and not error.encoding.startswith("utf"):
        return (
            f"{error.object[:200]!a}: found characters that the locale's {error.encoding} has not; needed one that has "
            "them. Set PYTHONUTF8=1, or LC_ALL=C.UTF-8, then run it again."
        )
    return None


# What the file system refuses.
_MENDABLE = {
    errno.ENOSPC: "found a full disk; needed room. Make some",
    errno.EDQUOT: "found a used-up quota; needed room. Make some",
    errno.EFBIG: "found a limit on the size of files (ulimit -f); needed a higher one. Raise it",
    errno.EACCES: "found no permission; needed leave to read and write here. Grant it",
    errno.EPERM: "found no permission; needed leave to read and write here. Grant it",
    errno.EROFS: "found a read-only file system; needed one to write to. Name another place",
    errno.EISDIR: "found a folder; needed a file. Name another place",
}


def _interrupt(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if trouble := collectives.trouble():
        raise InterruptedStage(str(trouble), trouble.exit_code)
    raise InterruptedStage(f"stopped by {name}; what is finished stays. Run the same command again to carry on.")


def _command(function: Any, name: str, text: str | None) -> Any:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, help=text)(function)
    return typer.main.get_command(single)
