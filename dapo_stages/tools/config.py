"""config: a YAML file and overrides in, the resolved configuration of a run out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dapo_stages.config import Config, dump_config, load_config
from dapo_stages.config.strict_yaml import parse
from dapo_stages.errors import ConfigError
from dapo_stages.handoff.manifests import MANIFEST, read_manifest
from dapo_stages.handoff.shards import write_text
from dapo_stages.runs.at_work import check_idle, join
from dapo_stages.runs.jobs import jobs as of_cluster
from dapo_stages.runs.makefile import for_make
from dapo_stages.runs.run_folder import Run
from dapo_stages.small_files import read_text
from dapo_stages.terminal.console import say, takes_unicode
from dapo_stages.terminal.options import ConfigFile, Overrides


def main(
    config_file: ConfigFile,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default: stdout.", metavar="FILE")] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Run that --make is for; it need not exist yet.", metavar="DIR"),
    ] = None,
    make: Annotated[
        Path | None, typer.Option("--make", help="File to write for the Makefile to include.", metavar="FILE")
    ] = None,
    outputs: Annotated[
        list[Path] | None,
        typer.Option("--for", help="Output of an iteration that will be made next. May be repeated.", metavar="DIR"),
    ] = None,
    jobs: Annotated[
        tuple[int, int] | None,
        typer.Option("--jobs", help="Print the jobs of N iterations, with an evaluation every M.", hidden=True),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="For --make: what was made from a lost policy is stale.", hidden=True)
    ] = False,
    note: Annotated[Path | None, typer.Option("--note", help="File where make notes its process.", hidden=True)] = None,
    set_: Overrides = None,
) -> None:
    """Check a configuration and write it with every setting resolved.

    A file with the same contents is left untouched, including its timestamp. With --out, a data.source that is a path
    must exist, the outputs that --for names must not be finished with other settings, and the configuration of a run
    only changes while nothing is running on it.

    Example: dapo-stages config --config pipelines/embedded.yaml --out training_logs/first/config.yaml
    """
    from dapo_stages.data.sources import check_source

    config = load_config(config_file, set_)
    text = dump_config(config)
    if make is not None:
        _write(make, for_make(config, Run(run) if run is not None else None, strict=strict))
        return
    if jobs is not None:
        if jobs[1] < 1:
            raise ConfigError(f"EVAL_EVERY: expected a whole number of at least 1, got {jobs[1]}. Set it to 1 or more.")
        for job in of_cluster(config, *jobs):
            print(job.name, job.iteration, ",".join(job.goals), *job.after)
        return
    if out is None:
        print(dump_config(config, unicode=takes_unicode(sys.stdout)), end="")
        return
    _check_run(out, config.model_dump(mode="json"))
    words = ["--config", str(config_file), *(word for override in set_ or [] for word in ("--set", override))]
    for folder in outputs or []:
        _check_finished(folder, out, config, words)
    if not (out.parent / "data" / MANIFEST).exists():  # now, not after a policy has been made
        check_source(config.data)
    if note is not None:
        join(note)
    if out.is_file() and read_text(out, errors="replace") != text:
        check_idle(out.parent, note)
    if _write(out, text):
        say(f"config: wrote {out}")


def _write(path: Path, text: str) -> bool:
    """Write the file unless it already has this text; returns whether it was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def _check_run(out: Path, values: dict[str, Any]) -> None:
    """Refuse another model or dataset in a run whose policy or data exist: it would continue with the old ones."""
    import yaml

    if not out.is_file():
        return
    try:
        before = parse(read_text(out))
    except (yaml.YAMLError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise ConfigError(f"{out}: this file is not a configuration that dapo-stages wrote. Move it away.")
    for part, section, key in (("policy", "model", "name"), ("data", "data", "source"), ("data", "data", "sources")):
        if not (out.parent / part / MANIFEST).exists():
            continue
        old = before.get(section)
        had, has = old.get(key) if isinstance(old, dict) else None, values[section][key]
        if (had or None) != (has or None):  # older files have no `sources`
            raise ConfigError(
                f"{out}: {section}.{key} is {has!r}, but {out.parent / part} was made from {had!r}. "
                "Name another run (RUN=…), or remove that folder to start this one over."
            )


def _check_finished(folder: Path, out: Path, config: Config, words: list[str]) -> None:
    """Refuse new settings for a finished output: make would not redo it, yet the run would record the new ones."""
    from dapo_stages.runs.changed_settings import of_output
    from dapo_stages.runs.commands import command
    from dapo_stages.runs.pipeline import FOLDERS

    run, number = Run(folder.parent.parent), int(folder.parent.name.removeprefix("iter-"))
    if run.state(folder, FOLDERS[folder.name]).state not in {"done", "pruned"}:
        return
    manifest = read_manifest(folder)
    before = of_output(manifest, number, load_config(out)) if out.is_file() else ()
    known = [(difference.key, difference.now) for difference in before]
    for found in of_output(manifest, number, config):
        if (found.key, found.now) not in known:
            raise ConfigError(
                f"{folder}: finished with {found.key}={found.was}, but it is now {found.now}, and make does not redo "
                f"finished outputs. Run `{command(run, number, folder.name, again=True, settings=words)}` to make it "
                "again; with another --out, and without --overwrite, this one stays."
            )
