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
from dapo_stages.small_files import read_text
from dapo_stages.terminal.console import say, takes_unicode
from dapo_stages.terminal.options import ConfigFile, Overrides


def main(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; else stdout.", metavar="FILE")] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Run that --make is about, there or not.", metavar="DIR"),
    ] = None,
    make: Annotated[
        Path | None, typer.Option("--make", help="File to write with what the Makefile includes.", metavar="FILE")
    ] = None,
    outputs: Annotated[
        list[Path] | None,
        typer.Option("--for", help="Output of an iteration that is made next. May be repeated.", metavar="DIR"),
    ] = None,
    jobs: Annotated[
        tuple[int, int] | None,
        typer.Option("--jobs", help="Print the jobs of so many iterations, finished every so many.", hidden=True),
    ] = None,
    note: Annotated[Path | None, typer.Option("--note", help="Where a make leaves its process.", hidden=True)] = None,
    set_: Overrides = None,
) -> None:
    """Check a configuration and write it out with every key resolved.

    A file that already says the same is left alone, time stamp included. With --out, a data.source that is a path has
    to be there, what --for names must not be finished with other settings, and that of a run changes only while nothing
    is at work on the run.

    Example: dapo-stages config --config pipelines/embedded.yaml --out training_logs/first/config.yaml
    """
    from dapo_stages.data.sources import check_source

    settings = load_config(config, set_)
    text = dump_config(settings)
    if make is not None:
        _write(make, for_make(settings, run))
        return
    if jobs is not None:
        if jobs[1] < 1:
            raise ConfigError(f"EVAL_EVERY: found {jobs[1]}; needed a whole number of at least 1. Set it.")
        for job in of_cluster(settings, *jobs):
            print(job.name, job.iteration, *job.after)
        return
    if out is None:
        print(dump_config(settings, unicode=takes_unicode(sys.stdout)), end="")
        return
    _check_run(out, settings.model_dump(mode="json"))
    words = ["--config", str(config), *(word for override in set_ or [] for word in ("--set", override))]
    for folder in outputs or []:
        _check_finished(folder, out, settings, words)
    if not (out.parent / "data" / MANIFEST).exists():  # here and not after a policy has been made
        check_source(settings.data)
    if note is not None:
        join(note)
    if out.is_file() and read_text(out, errors="replace") != text:
        check_idle(out.parent, note)
    if _write(out, text):
        say(f"config: wrote {out}")


def _write(path: Path, text: str) -> bool:
    """Whether the file said anything else before; it is left alone if it did not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def _check_run(out: Path, values: dict[str, Any]) -> None:
    """Refuse another model or other data in a run whose policy or data are there: it would go on with the old ones."""
    import yaml

    if not out.is_file():
        return
    try:
        before = parse(read_text(out))
    except (yaml.YAMLError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise ConfigError(f"{out}: found no configuration; needed the one that dapo-stages wrote. Move it away.")
    for part, section, key in (("policy", "model", "name"), ("data", "data", "source")):
        if not (out.parent / part / MANIFEST).exists():
            continue
        old = before.get(section)
        had, has = old.get(key) if isinstance(old, dict) else None, values[section][key]
        if had != has:
            raise ConfigError(
                f"{out}: found {section}.{key} {has!r}; needed {had!r}, which {out.parent / part} was made from. "
                "Name another run (RUN=…), or remove that folder to start this one anew."
            )


def _check_finished(folder: Path, out: Path, settings: Config, words: list[str]) -> None:
    """Refuse new settings for an output that is finished: make would leave it, and change what the run says of it."""
    from dapo_stages.runs.changed_settings import of_output
    from dapo_stages.runs.layout import look
    from dapo_stages.runs.pipeline import FOLDERS
    from dapo_stages.runs.progress import command

    run, number = folder.parent.parent, int(folder.parent.name.removeprefix("iter-"))
    if look(run, folder, FOLDERS[folder.name]).state not in {"done", "pruned"}:
        return
    manifest = read_manifest(folder)
    before = of_output(manifest, number, load_config(out)) if out.is_file() else ()
    known = [(difference.key, difference.now) for difference in before]
    for found in of_output(manifest, number, settings):
        if (found.key, found.now) not in known:
            raise ConfigError(
                f"{folder}: found it finished, with {found.key} {found.was}; needed {found.now}, and make leaves alone "
                f"what is finished. Run `{command(run, number, folder.name, again=True, settings=words)}` to make it "
                "again; with another --out, and without --overwrite, it stays."
            )
