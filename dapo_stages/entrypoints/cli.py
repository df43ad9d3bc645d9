"""The console script: imports a command's module only when it is called, and turns errors into exit codes."""

from __future__ import annotations

import ast
import atexit
import gc
import os
import signal
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from dapo_stages import __version__
from dapo_stages.errors import EXIT_BAD_INPUT, EXIT_LOST, DapoStagesError, InterruptedStage, fixable
from dapo_stages.processes import collectives, phases
from dapo_stages.runs.pipeline import BEFORE, ITERATION
from dapo_stages.terminal.console import take_any_text
from dapo_stages.terminal.unseen import visible

# The pipeline in its order, what comes before it, and what is around it.
COMMANDS = (
    *(stage.command for stage in (*ITERATION, *BEFORE)),
    *(
        "new",
        "check",
        "plan",
        "status",
        "runs",
        "inspect",
        "doctor",
        "compare-evals",
        "compare-runs",
        "compare-weights",
        "config",
        "prune",
        "merge",
        "push",
    ),
)


def summary(command: str) -> str:
    """The first paragraph of a command's help, read from its source: `--help` imports no command."""
    spec = find_spec(module_of(command))
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return " ".join((ast.get_docstring(main) or "").split("\n\n")[0].split())


def module_of(command: str) -> str:
    """The module with a command's `main`: `train-step` -> dapo_stages.stages.train_step."""
    package = "stages" if any(command == stage.command for stage in (*BEFORE, *ITERATION)) else "tools"
    return f"dapo_stages.{package}.{command.replace('-', '_')}"


class LazyCommands(TyperGroup):
    """Knows every command's name and help, and imports only the module of the command that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return self.commands.get(cmd_name) or _command(lambda: None, cmd_name, summary(cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = _command(import_module(module_of(args[0])).main, args[0], None)
        elif args:  # typer suggests similar names from these
            self.commands.update((name, self.get_command(ctx, name)) for name in COMMANDS)
        return super().resolve_command(ctx, args)


_interrupted: list[InterruptedStage] = []  # the last one, if any

app = typer.Typer(cls=LazyCommands, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"dapo-stages {__version__}")
        raise typer.Exit


@app.callback()
def stages(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """DAPO for vision-language models, in stages that hand over Parquet files.

    rollout → score-attention → weight-tokens → train-step → report, chained by `make iterate`.
    """


def main() -> None:
    """Run the command line; exits 0, 2 (usage), 3 (bad data or configuration), 4 (locked), 5 (halted) or 130
    (interrupted), and 1 if another process of the stage was lost."""
    take_any_text()
    # Torch threads that spin while waiting take cores from other programs (see the Makefile).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Garbage collection over all imported objects costs a second during import, and almost as much at exit.
    gc.set_threshold(10_000, 20, 20)
    atexit.register(gc.freeze)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored in background jobs of a script
            signal.signal(number, _interrupt)
    _interrupted.clear()
    phases.begin_command()
    sys.unraisablehook = _unraisable
    try:
        app()
    except (DapoStagesError, InterruptedStage) as error:
        _end(str(error), error.exit_code)
    except MemoryError as error:
        what = " ".join(str(error).split())[:200]
        _end(f"out of memory{f' ({what})' if what else ''}. Use smaller batches.", EXIT_BAD_INPUT)
    except Exception as error:
        if _interrupted:  # an extension turned the interruption into an error of its own
            _end(str(_interrupted[0]), _interrupted[0].exit_code)
        if why := fixable(error):
            _end(why, EXIT_BAD_INPUT)
        if collectives.fail(repr(error), EXIT_LOST):
            raise
        sys.exit(EXIT_LOST)
    finally:
        collectives.leave()


def _end(why: str, code: int) -> NoReturn:
    """Print why, in the first of several processes that failed, and exit. Reasons quote data, so escape it."""
    if collectives.fail(why, code):
        print(visible(why), file=sys.stderr)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if trouble := collectives.trouble():
        _interrupted[:] = [InterruptedStage(str(trouble), trouble.exit_code)]
    else:
        why = f"stopped by {name}; finished work is kept. Run the same command again to resume."
        _interrupted[:] = [InterruptedStage(why)]
    raise _interrupted[0]


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Interrupt again if a signal arrived in a destructor, where Python ignores exceptions."""
    if isinstance(found.exc_value, InterruptedStage):
        # Not from here: this hook's exceptions are ignored, too.
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(found)


def _command(function: Any, name: str, text: str | None) -> Any:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, help=text)(function)
    return typer.main.get_command(single)
