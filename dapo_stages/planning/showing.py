"""A plan as text: memory, time and bytes of each stage, and what limits the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dapo_stages.planning.run_plan import GIB, Plan
from dapo_stages.planning.stage_times import OUTSIDE
from dapo_stages.terminal.console import tell

GB = 10**9


def show(found: dict[str, Any], plan: Plan, machine: str) -> None:
    """Print the answer (whole_plan.py); `machine` are the ranks of a node."""
    group, dtype, iterations = found["group"], plan.config.model.dtype, plan.config.planned_iterations
    tell(f"{found['model']}: {found['parameters']:,} parameters, {found['trained']:,} of them trained, {dtype}")
    print(
        f"{plan.nodes} node(s) of {machine}, train-step {found['parallel']}; a prompt of {group['prompt']} tokens "
        f"({group['vision']} of its image), {group['completions']} completions of {group['completion']}"
    )
    stays = found["resident"] if plan.nodes == 1 else None  # launches on several machines do not
    print("\nPeak memory of a rank, GiB of live bytes")
    _show_memory(found["memory"])
    if stays:
        print("With RESIDENT=1")
        _show_memory({stage: _held(memory, found["memory"][stage]) for stage, memory in stays["memory"].items()})
    print(f"\nSeconds per iteration on the slowest rank, at estimated rates; {found['sampled']} groups are sampled")
    _show_seconds(found, iterations)
    if stays:
        print("With RESIDENT=1")
        _show_seconds(stays, iterations)
    _show_pairs(found["beside"])
    print("\nGB on disk per iteration")
    for name, size in found["bytes"].items():
        print(_line(name, size / GB, ""))
    print(_line("on disk at most", found["kept"] / GB, f"of {iterations} iterations"))
    print("")
    for line in [*_limits(found), *(_staying(found, stays) if stays else [])]:
        tell(line)


def _show_memory(peaks: Mapping[str, Any]) -> None:
    for stage, memory in peaks.items():
        print(_line(stage, memory["total"] / GIB, _parts(memory["device"], GIB, 2)))
        if memory["host"]:
            print(_line("  on the host", sum(memory["host"].values()) / GIB, _parts(memory["host"], GIB, 2)))


def _show_pairs(pairs: Mapping[str, Any]) -> None:
    """Of stages that may run at the same time. On GPUs of their own, or in turns, each needs only its own."""
    print("\nGiB of two stages at the same time on the same rank (make -j2 SHARE_GPUS=1; rollout + train-step: LAG=1)")
    for pair, both in pairs.items():
        print(f"  {pair:<28} {both['total'] / GIB:9.2f}  {'fits' if both['fits'] else 'does not fit'}")


def _held(memory: dict[str, Any], by_itself: dict[str, Any]) -> dict[str, Any]:
    """Of a stage in a process that stays, only what it does not hold by itself, and the total."""
    more = {
        place: {part: size for part, size in memory[place].items() if part not in by_itself[place]}
        for place in ("device", "host")
    }
    return {"total": memory["total"], **more}


def _show_seconds(way: dict[str, Any], iterations: int) -> None:
    """Of each stage its sum, the phases outside its work, its work, and the parts of that."""
    print(f"  {'':<18} {'sum':>9}" + "".join(f"{name:>8}" for name in (*OUTSIDE, "work")))
    for stage, parts in way["seconds"].items():
        own = {name: seconds for name, seconds in parts.items() if name not in OUTSIDE}
        phases = [parts.get(phase, 0.0) for phase in OUTSIDE]
        print(_line(stage, sum(parts.values()), _columns([*phases, sum(own.values())]) + f"  {_parts(own, 1, 1)}"))
    sums = [sum(parts.get(phase, 0.0) for parts in way["seconds"].values()) for phase in OUTSIDE]
    work = f"{way['work']:.0%} is work; {iterations} iterations: {iterations * way['iteration'] / 3600:.1f} hours"
    print(_line("all", way["iteration"], _columns([*sums, way["work"] * way["iteration"]]) + f"  {work}"))
    if way["behind"]:
        print(f"  The state is written in {way['behind']:.1f} s while other stages run; train-step waits for the rest.")


def _columns(seconds: list[float]) -> str:
    return "".join(f"{one:8.1f}" for one in seconds).removeprefix("  ")


def _line(name: str, total: float, parts: str) -> str:
    return f"  {name:<18} {total:9.2f}  {parts}".rstrip()


def _parts(parts: Mapping[str, float], unit: int, digits: int) -> str:
    """`weights 15.45, logits 2.90`: the largest first, nothing that would show as 0."""
    shown = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{n} {v / unit:.{digits}f}" for n, v in shown if v / unit >= 0.5 * 10**-digits)


def _limits(found: dict[str, Any]) -> list[str]:
    """What limits the run, and what could be changed."""
    lines = []
    if found["room"] is not None:
        lines.append(f"vLLM has room for {found['room']} completions of full length at the same time.")
    for stage, fits in found["fits"].items():
        total = found["memory"][stage]["total"]
        if fits:
            spare, usable = (found["usable"] - total) / GIB, found["usable"] / GIB
            lines.append(f"{stage} fits: {spare:.1f} GiB to spare of {usable:.1f} usable.")
            continue
        lines += _too_large(found, stage, found["usable"], stage)
        if stage != "train-step" and found["memory"][stage]["device"].get("weights", 0) > found["usable"]:
            lines.append("  a rank holds the whole model here: " + _ELSEWHERE[stage])
    slowest, part = found["slowest"], found["slowest_part"]
    share = sum(found["seconds"][slowest].values()) / found["iteration"]
    lines.append(f"Slowest: {slowest}, {share:.0%} of an iteration, most of it {part}. {_FASTER[part]}")
    return lines


def _staying(found: dict[str, Any], stays: dict[str, Any]) -> list[str]:
    """What RESIDENT=1 gains, and what does not fit only because of it."""
    lines = []
    if large := [stage for stage, fits in stays["fits"].items() if found["fits"][stage] and not fits]:
        largest = max(large, key=lambda stage: stays["memory"][stage]["total"])
        others = [stage for stage in large if stage != largest]
        also = f" (nor {', '.join(others)})" if others else ""
        lines += _too_large(stays, largest, found["usable"], f"With RESIDENT=1, {largest}{also}")
    saved = found["iteration"] - stays["iteration"]
    shares = f"{stays['work']:.0%} instead of {found['work']:.0%} of it is work"
    if saved > 0:
        lines.append(f"RESIDENT=1 saves {saved:.0f} s of an iteration: {shares}.")
    return lines


def _too_large(way: dict[str, Any], stage: str, usable: int, what: str) -> list[str]:
    more = (way["memory"][stage]["total"] - usable) / GIB
    lines = [f"{what} does not fit: {more:.1f} GiB more than the {usable / GIB:.1f} usable."]
    for change, peak in way["ways"][stage].items():
        lines.append(f"  {change}: {peak / GIB:.1f} GiB, {'fits' if peak <= usable else 'still too much'}")
    return lines


_ELSEWHERE = {
    "rollout": "vLLM (engines.vllm.tensor_parallel_size) or a server splits it over GPUs.",
    "score-attention": "score on a device with more memory, or set attention.enabled=false (all weights 1).",
    "evaluate": "vLLM (evaluate.engine, engines.vllm.tensor_parallel_size) or a server splits it over GPUs.",
}
_FASTER = {
    "start": "Fewer, larger iterations (rollout.prompts_per_iteration), or RESIDENT=1 on one machine.",
    "verify": "Set verify to changed, or train.lora, whose files are small.",
    "load": "Fewer, larger iterations (rollout.prompts_per_iteration), a faster --disk, or RESIDENT=1 on one GPU.",
    "save": "Fewer, larger iterations, a faster --disk, train.lora, whose states are small, or RESIDENT=1 on one GPU.",
    "hash": "Fewer, larger iterations, or train.lora, whose files are small.",
    "generation": "Larger batches (batch_groups) while they fit, fewer questions (evaluate.max_questions, EVAL_EVERY), "
    "or vLLM; make -j2 evaluates during the next iteration, LAG=1 samples during training.",
    "forward": "Raise attention.batch_completions while it fits, or add ranks.",
    "updates": "Add ranks; train.gradient_checkpointing=false saves a quarter where it fits.",
    "between ranks": "Larger train.batch_completions (fewer micro-batches), another --parallel, or a faster --link.",
}
