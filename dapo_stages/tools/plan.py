"""plan: a model, a configuration and some GPUs in; memory, time and bytes of every stage out, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dapo_stages.config import Config, load_config
from dapo_stages.errors import ConfigError, ModelError
from dapo_stages.maths import devices
from dapo_stages.planning.dimensions import FAMILIES, Dimensions, dimensions_of
from dapo_stages.planning.published_models import EMBEDDED, PUBLISHED
from dapo_stages.planning.run_plan import Plan
from dapo_stages.planning.showing import GB, show
from dapo_stages.planning.stage_costs import Rates
from dapo_stages.planning.stage_memory import Parallel
from dapo_stages.planning.whole_plan import answer as answer_of
from dapo_stages.small_files import read_json
from dapo_stages.terminal.console import answer
from dapo_stages.terminal.options import Json, Overrides

QUESTIONS = 900  # held out: an assumption, a tenth of 9,000


def main(
    config_file: Annotated[
        Path | None, typer.Option("--config", help="YAML configuration; default: all default settings.", metavar="FILE")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Folder, hub id or `embedded`; default: model.name.", metavar="NAME")
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs per node, with one rank each.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Number of nodes.")] = 1,
    gpu: Annotated[
        devices.Gpu | None,
        typer.Option("--gpu", help="Type of GPU; default: the one that --memory suggests, or h100."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", min=0.1, help="GiB of memory per rank; default: that of --gpu.")
    ] = None,
    parallel: Annotated[
        Parallel | None,
        typer.Option("--parallel", help="How train-step is split over ranks; default: zero2, or single on one GPU."),
    ] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option("--device", help="Device of a rank.")] = "cuda",
    prompt: Annotated[
        int | None, typer.Option("--prompt", min=1, help="Prompt tokens; default: data.max_prompt_length.")
    ] = None,
    vision: Annotated[
        int | None,
        typer.Option("--vision", min=0, help="Image tokens per prompt; default: those of data.max_image_size."),
    ] = None,
    completion: Annotated[
        int | None, typer.Option("--completion", min=1, help="Completion tokens; default: the most allowed.")
    ] = None,
    informative: Annotated[
        float,
        typer.Option("--informative", min=0.01, max=1, help="Share of groups with some but not all completions right."),
    ] = 0.5,
    questions: Annotated[
        int | None,
        typer.Option("--questions", min=0, help="Held-out questions; default: evaluate.max_questions, or 900."),
    ] = None,
    tflops: Annotated[
        float | None, typer.Option("--tflops", min=0.001, help="Peak per rank; default: that of --gpu or two cores.")
    ] = None,
    utilization: Annotated[
        float, typer.Option("--utilization", min=0.01, max=1, help="Share of the peak that is reached: an assumption.")
    ] = devices.REACHED_OPERATIONS,
    bandwidth: Annotated[
        float | None,
        typer.Option("--bandwidth", min=0.1, help="GB/s of memory that are reached; default: 60% of those of --gpu."),
    ] = None,
    link: Annotated[
        float | None,
        typer.Option("--link", min=0.01, help="GB/s between ranks; default: 60% of NVLink, PCIe, network."),
    ] = None,
    disk: Annotated[float, typer.Option("--disk", min=0.01, help="GB/s of the file system: an assumption.")] = 2.0,
    image: Annotated[float, typer.Option("--image", min=0, help="KB per stored image: an assumption.")] = 300.0,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Estimate what a run needs: memory per rank, seconds and bytes per stage, and what limits it.

    It shows stages that start by themselves, and what changes in processes that stay (RESIDENT=1 of make). It needs
    only the model's configuration; the sizes of Qwen3.5, Qwen3-VL, Qwen2.5-VL and Qwen2-VL are built in. docs/sizing.md
    has every formula, and says what is measured and what is assumed.

    Example: dapo-stages plan --config pipelines/reference-7b.yaml --gpus 4 --memory 80
    """
    config = _configuration(config_file, set_)
    name = model or config.model.name
    ranks = gpus * nodes
    layout = parallel or ("single" if ranks == 1 else "zero2")
    if layout == "single" and ranks > 1:
        raise ConfigError(f"--parallel single: expected one GPU, got {ranks}. Use ddp or zero1 … zero3.")
    gpu = gpu or devices.gpu_with(memory or devices.GPUS["h100"].memory)
    machine = devices.GPUS[gpu] if device == "cuda" else devices.CPU
    peak = machine.bfloat16 if config.model.dtype == "bfloat16" else machine.float32
    between = min(machine.link, devices.NETWORK) if nodes > 1 else machine.link
    rates = Rates(
        operations=(tflops or peak) * 1e12 * utilization,
        memory=(bandwidth or devices.REACHED_BYTES * machine.bandwidth) * GB,
        disk=disk * GB,
        link=(link or devices.REACHED_BYTES * between) * GB,
        call=devices.CALL[device],
    )
    plan = Plan(
        _dimensions(name),
        config,
        ranks,
        layout,
        device,
        rates,
        prompt,
        vision,
        completion,
        informative,
        _questions(config) if questions is None else questions,
        nodes,
    )
    answered = answer_of(plan, name, memory or machine.memory, int(image * 1000))
    if as_json:
        answer(answered)
    else:
        show(answered, plan, f"{gpus} × {gpu.upper()}" if device == "cuda" else f"{gpus} rank(s) on CPUs")


def _configuration(path: Path | None, overrides: list[str] | None) -> Config:
    if path is not None:
        return load_config(path, overrides)
    from os import devnull

    return load_config(Path(devnull), overrides)  # nothing but defaults


def _questions(config: Config) -> int:
    """Held-out questions that are answered, as far as the configuration says."""
    held_out = config.data.synthetic.held_out if config.data.source == "embedded" else QUESTIONS
    return min(held_out, config.evaluate.max_questions or held_out)


def _dimensions(name: str) -> Dimensions:
    """Dimensions of a checkpoint folder, a built-in model, or one on the hub."""
    path = Path(name) / "config.json"
    try:
        if path.is_file():
            return dimensions_of(read_json(path))
        return dimensions_of({**PUBLISHED, "embedded": EMBEDDED}.get(name) or _from_hub(name))
    except (ValueError, KeyError) as error:
        *known, last = FAMILIES.values()
        raise ModelError(
            f"{name}: expected the configuration of a {', '.join(known)} or {last}, got {error}. Name one with --model."
        ) from None


def _from_hub(name: str) -> Any:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return read_json(Path(hf_hub_download(name, "config.json")))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{name}: no config.json in a folder or on the hub ({reason}). Name another with --model; built in are "
            f"{', '.join([*PUBLISHED, 'embedded'])}."
        ) from None
