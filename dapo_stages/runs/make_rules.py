"""make's rules for the outputs of a run, from the table of the pipeline; they use variables of the Makefile."""

from __future__ import annotations

from dapo_stages.runs.pipeline import BEFORE, ITERATION, NEEDED, Input, Stage

# Only some iterations are evaluated. A report without the evaluation is made again once there is one.
_REPORT = """\
$(2)/report/manifest.json: $(call made_of,$(9)/report,%s $(if $(call evaluated,$(1)),$(2)/eval/manifest.json)) \\
  $(if $(6)$(evaluations),$(3)/report/manifest.json)
	$$(PY) $$(DAPO) report $$(config) --run $(R) --iteration $(1) --of $(ITERS) $$(replace)
	@$$(PY) $$(DAPO) prune $$(config) --run $(R)
$(if $(state/$(9)/eval),,$(if $(call evaluated,$(1)),$(2)/report/manifest.json: $(2)/eval/manifest.json))
"""
_START_REPORT = """\
$(R)/iter-0000/report/manifest.json: $(call made_of,iter-0000/report,$(R)/iter-0000/eval/manifest.json) $(R)/config.yaml
	$$(PY) $$(DAPO) report $$(config) --run $(R) --iteration 0 $$(replace)
"""


def text() -> str:
    """Two templates for the Makefile to evaluate.

    `once`: rules for the outputs before the first iteration, and a goal for each stage of an iteration.

    `iteration`, for each iteration, with the parameters 1 its number, 2 its folder, 3 the folder of the previous one,
    4 manifest of the policy it trains, 5 that policy, 6 what it continues from (empty in the first), 7 manifest of the
    policy it samples from, 8 that policy, 9 the name of its folder.
    """
    evaluation = next(stage for stage in ITERATION if stage.folder == "eval")
    stages = [stage for stage in ITERATION if stage.folder != "report"]
    folders = [place for stage in ITERATION for place in _places(stage)]
    lines = [
        f"STAGES := {' '.join(f'{stage.command}={stage.folder}' for stage in stages)}",
        f"launched := {' '.join(stage.launch for stage in stages if stage.launch)}",
        "",
        "define once",
        *(_before(stage, stage.folder) for stage in BEFORE),
        _before(evaluation, f"iter-0000/{evaluation.folder}"),
        _START_REPORT,
        *(f"{stage.command}: $(here)/{place}/manifest.json" for stage in stages for place in _places(stage)),
        "endef\n",
        "define iteration",
        f".PRECIOUS: $(foreach part,{' '.join(folders)},$(2)/$(part)/manifest.json)\n",
        *(_of_iteration(stage) for stage in stages),
        _REPORT % " ".join(f"$(2)/{name}/manifest.json" for name in NEEDED),
        "endef",
    ]
    return "\n".join(lines) + "\n"


def _places(stage: Stage) -> list[str]:
    """The outputs that a stage's command makes, in an iteration's folder."""
    return [stage.folder, *([f"{stage.folder}/{stage.beside}"] if stage.beside else [])]


def _before(stage: Stage, folder: str) -> str:
    """The rule for an output before the first iteration."""
    places = {one.name: str(one.place(0)) for one in stage.inputs}
    made_from = " ".join(f"$(R)/{place}/manifest.json" for place in places.values())
    options = "".join(f" --{name} $(R)/{place}" for name, place in places.items())
    return _rule(stage, f"$(R)/{folder}", folder, made_from, options)


def _of_iteration(stage: Stage) -> str:
    """The rule for an output of an iteration; what only its recipe needs is expanded when the recipe runs."""
    given = [_read(one) for one in stage.inputs]
    made_from = " ".join(dict.fromkeys(manifest for manifest, _ in given if manifest))
    number = [" --iteration $(1)"] if stage.numbered else []
    options = "".join([*(option for _, option in given), *number])
    folder = f"$(2)/{stage.folder}"
    rule = _rule(stage, folder, f"$(9)/{stage.folder}", made_from, options)
    if not stage.beside:
        return rule
    # The same command: it waits for an output that is written behind, or makes all of it again if it was lost.
    # With -j, make asks for it before the command has made both; with -n, it would show the command twice.
    # At the end it is written, although the process keeps it (keep.state_every).
    at_the_end = "$(if $(filter $(1),$(written)), --set keep.state_every=1)"
    again = _recipe(stage, options + at_the_end, folder).strip()
    shown = f"$$(if $$(wildcard {folder}/manifest.json),$$(wildcard $$@),made)"
    made = f"$$(if $$(dry),{shown},$$(shell test -e $$@ && echo made))"
    return f"{rule}{folder}/{stage.beside}/manifest.json: | {folder}/manifest.json\n\t$$(if {made},,{again})\n"


def _rule(stage: Stage, folder: str, name: str, made_from: str, options: str) -> str:
    head = f"{folder}/manifest.json: $(call made_of,{name},{made_from}) $(R)/config.yaml\n"
    return head + _recipe(stage, options, "$$(@D)")


def _recipe(stage: Stage, options: str, out: str) -> str:
    start = f"$$({stage.launch}_START)" if stage.launch else "$$(PY) $$(DAPO)"
    more = f"$$({stage.launch}_SET)" if stage.launch else ""
    return f"\t{start} {stage.command} $$(config){more}{options} --out {out} $$(replace)\n"


def _read(one: Input) -> tuple[str, str]:
    """Manifest of an input, and the option for it."""
    name, folder = one.name, one.output.partition("/")[0]
    if name == "history":  # all earlier rollouts: the stage finds them in the run
        return f"$(if $(6),$(if $({one.when}),$(3)/{folder}/manifest.json))", f" $(if $({one.when}),--{name} $(R))"
    if name == "reference":  # written by some earlier train-step, looked up when it is needed
        return "", f" $(if $({one.when}),--{name} $$(call reference,$(2)))"
    if one.of == "run":
        return f"$(R)/{folder}/manifest.json", f" --{name} $(R)/{one.output}"
    if one.of == "sampler":
        return "$(7)", f" --{name} $(8)"
    if one.of == "previous":
        if one.output == "policy":
            return "$(4)", f" --{name} $(5)"
        option = f" $(if $(6),--{name} $(3)/{one.output})"
        if any(one.output in _places(stage)[1:] for stage in ITERATION):  # an older one is not made again if it is gone
            there = f"$(filter-out stale,$(or $(state/$(9)/{folder}),unknown)),$(wildcard $(2)/{folder}/manifest.json)"
            kept = f"$(if $(filter $(9),$(again)),,$(and {there}))"
            return f"$(if $(6),$(if {kept},,$(3)/{one.output}/manifest.json))", option
        return f"$(if $(6),$(3)/{folder}/manifest.json)", option
    place = "train/policy" if one.output == "policy" else one.output
    return f"$(2)/{place.partition('/')[0]}/manifest.json", f" --{name} $(2)/{place}"
