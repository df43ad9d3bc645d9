# The rules of a run, for the Makefile that includes them: this project's, or one written by `dapo-stages new`. Every
# stage's manifest.json is a target: what exists is not redone, unless it was made from other inputs than the present
# ones. The variables below can be set on the command line. The Makefile that includes this file sets PY, the Python
# that has dapo-stages, and may set READY and READY_DEEPSPEED, files whose rules install it.

## RUN: name of the run; it is written to training_logs/RUN
## CONFIG: configuration of a new run; an existing run has its own
## SET: overrides of settings, such as SET='--set seed=7 --set train.beta=0.01'
## ITERS: number of iterations of the run; default: planned_iterations
## ITER: iteration for a single stage; default: the newest
## EVAL_EVERY: evaluate after every EVAL_EVERY iterations
## LAG: train-steps by which the sampling policy may be behind, for make -j2
## STRICT: 1: if a train-step whose state was lost gives another policy, make what followed again; default: keep it
## RESIDENT: 1: one process stays, runs the stages that need the model, and keeps it in memory; 0: each loads it
## PRELOAD: 1: fork stages from a process that has torch loaded; 0: start each by itself
RUN        ?= first
CONFIG     ?= dapo:embedded
SET        ?=
EVAL_EVERY ?= 1
STRICT     ?= 0
# 1: stages are forked from a process that has torch loaded (dapo_stages/entrypoints/preload.py); 0: each starts by
# itself. Not tried with CUDA, whose driver does not survive a fork; loading a large model takes longer there anyway.
PRELOAD    ?= $(if $(wildcard /dev/nvidiactl),0,1)
# 1: rollout, score-attention, train-step and evaluate run one after another in a process that stays until make ends and
# keeps policy and optimizer state in memory (dapo_stages/entrypoints/resident.py); launched ones in the processes of one
# launch (resident_launch.py). By default not where others need the same GPUs: vLLM, launches, another Python.
RESIDENT   ?= $(if $(wildcard /dev/nvidiactl),$(if $(others),0,1),0)
others      = $(filter vllm,$(engine) $(evaluate_engine))$(foreach stage,$(launched),$(filter-out 1,$($(stage)_LAUNCH))$(filter-out $(PY),$($(stage)_PYTHON)))
PIPELINES  := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))

# A run is a folder below training_logs: nothing is written to, or removed by clean-run from, any other place.
space  := $(subst ,, )
comma  := ,
hash   := \#
parts  := $(subst /, ,$(RUN))
unsafe := $(filter . .. -%,$(parts)) $(foreach c,' " ` \ ; & | < > ( ) { } [ ] * ? ! ~ % : = $$ $(hash) $(comma),$(findstring $(c),$(RUN)))
ifneq ([$(RUN)]$(if $(parts),$(strip $(unsafe)),none),[$(subst $(space),/,$(strip $(parts)))])
$(error RUN: '$(RUN)' is not a name of a run: expected letters, digits, . _ and -, such as first or study/first. \
  Name a folder of training_logs, or a new one)
endif
R := training_logs/$(RUN)
# A run that exists keeps its configuration unless another one is named.
ifeq ($(origin CONFIG),file)
ifneq ($(wildcard $(R)/config.yaml),)
CONFIG := $(R)/config.yaml
endif
endif
# For goals that concern a run, `dapo-stages config --make` tells what else the rules need: planned_iterations, lag,
# engines, curriculum and kl of the configuration; for each output whether it is sound or stale according to its inputs
# (state/iter-0001/rollout); iterations whose train-step is made again for its state (again); and the rules themselves
# (dapo_stages/runs/make_rules.py). Its answers are stored outside the run's folder, because make writes included files
# even under -n.
stages      := $(notdir $(wildcard $(PIPELINES)/../dapo_stages/stages/[a-z]*.py $(PIPELINES)/../stages/[a-z]*.py))
ABOUT_A_RUN := iterate $(subst _,-,$(stages:.py=))
strict    := $(filter 1,$(STRICT))
overrides := $(SET)$(if $(LAG), --set lag=$(LAG))
ANSWERS   := build/make/$(RUN).mk
ifneq ($(filter $(ABOUT_A_RUN) $(R)/%,$(MAKECMDGOALS)),)
dry := $(findstring n,$(firstword -$(MAKEFLAGS)))
ifneq ($(and $(dry),$(READY),$(if $(wildcard $(READY)),,missing)),)
$(error make -n: $(CONFIG) cannot be read before $(READY) is there. Run make setup first)
endif
$(if $(wildcard $(ANSWERS)),,$(shell mkdir -p $(dir $(ANSWERS)) && touch -t 200001010000 $(ANSWERS)))
include $(ANSWERS)
ifndef MAKE_RESTARTS # asking again after each restart would never end
$(ANSWERS): FORCE | $(if $(dry),,$(READY))
	@$(PY) -m dapo_stages config --config '$(CONFIG)' $(overrides) --run $(R)$(if $(strict), --strict) --make $@
endif
endif
ITERS ?= $(planned_iterations)
# Rollouts sampled by a policy that is LAG train-steps old need not wait for the newest: `make -j2 iterate LAG=1`
# samples iteration k + 1 while iteration k trains. A run keeps its lag.
LAG   ?= $(lag)
ifeq ($(origin ITER),undefined)
ITER  := $(or $(shell ls -d $(R)/iter-[0-9]* 2>/dev/null | tail -1 | sed 's/.*iter-0*//'),1)
endif

# Several processes: LAUNCH=zero2 launches train-step with accelerate/zero2.yaml (next to this file) and the other stages
# that need the model in as many plain processes; LAUNCH=4 means four plain ones for all stages. Each stage may have its
# own: ROLLOUT_LAUNCH=8. LAUNCH_ARGS are further options of accelerate launch, such as the rank of this machine.
## LAUNCH: processes of the stages that need the model: a number, or a file in accelerate/, such as zero2
## LAUNCH_ARGS: further options of accelerate launch
## TRAIN_LAUNCH ROLLOUT_LAUNCH SCORE_LAUNCH EVALUATE_LAUNCH: the same for one stage
LAUNCH          ?=
LAUNCH_ARGS     ?=
ACCELERATE      := $(PIPELINES)/accelerate
processes       := $(or $(shell sed -n 's/^num_processes: *\([0-9]*\).*/\1/p' $(ACCELERATE)/$(LAUNCH).yaml 2>/dev/null),$(LAUNCH))
TRAIN_LAUNCH    ?= $(LAUNCH)
# vLLM and servers have their own processes, so one of ours is enough. ROLLOUT_LAUNCH=4 has vLLM start four copies.
ROLLOUT_LAUNCH  ?= $(if $(filter vllm server,$(engine)),1,$(processes))
SCORE_LAUNCH    ?= $(processes)
EVALUATE_LAUNCH ?= $(if $(filter vllm server,$(evaluate_engine)),1,$(processes))

# Each stage may have its own Python environment, such as ROLLOUT_PYTHON=.venv-vllm/bin/python.
## ROLLOUT_PYTHON SCORE_PYTHON TRAIN_PYTHON EVALUATE_PYTHON: the Python of one stage, such as .venv-vllm/bin/python
ROLLOUT_PYTHON  ?= $(PY)
SCORE_PYTHON    ?= $(PY)
TRAIN_PYTHON    ?= $(PY)
EVALUATE_PYTHON ?= $(PY)
# With PRELOAD=1 the commands without a model run in the process that stays, too, which saves each the start of Python.
DAPO             = -m dapo_stages$(if $(filter 1,$(PRELOAD)),.entrypoints.$(if $(stays),resident,preload))
# The command that starts a stage, by its LAUNCH; launched stages are not forked from the process that has
# torch loaded. Launches on several machines do not stay.
ROLLOUT_ENGINE  := $(engine)
EVALUATE_ENGINE := $(evaluate_engine)
copies     = $(if $(filter vllm,$($(1)_ENGINE)),$(if $(wildcard $(ACCELERATE)/$($(1)_LAUNCH).yaml),,$(filter-out 1,$($(1)_LAUNCH))))
start      = $(if $(filter-out 1,$(1)),$(call launches,$(1),$(if $(LAUNCH_ARGS)$(filter multi-node,$(1)),,$(stays))),$(if $(stays),-m dapo_stages.entrypoints.resident,$(DAPO)))
launches   = -m dapo_stages.entrypoints.$(if $(2),resident_)launch --config_file $(call accelerate,$(1)) $(LAUNCH_ARGS)
stays      = $(filter 1,$(RESIDENT))
accelerate = $(or $(wildcard $(ACCELERATE)/$(1).yaml),$(if $(filter 0,$(shell expr '$(1)' : '[0-9]*$$')),$(error \
  LAUNCH: expected a number of processes or a file of accelerate/, got $(1). Name one of: $(patsubst $(ACCELERATE)/%.yaml,%,$(wildcard $(ACCELERATE)/*.yaml))),\
  $(ACCELERATE)/processes.yaml --num_processes $(1)))

# A GPU is used by one stage at a time, also of other runs: the next one waits (dapo_stages/processes/gpu_locks.py).
## GPUS: GPUs of the stages that need the model, as in CUDA_VISIBLE_DEVICES, such as 0,1; default: all
## ROLLOUT_GPUS SCORE_GPUS TRAIN_GPUS EVALUATE_GPUS: the same for one stage; stages with different ones can run at once
## SHARE_GPUS: 1: stages may use a GPU at the same time (dapo-stages plan says which fit); 0: one waits for the other
GPUS          ?=
ROLLOUT_GPUS  ?= $(GPUS)
SCORE_GPUS    ?= $(GPUS)
TRAIN_GPUS    ?= $(GPUS)
EVALUATE_GPUS ?= $(GPUS)
SHARE_GPUS    ?= 0
shares  = $(filter 1,$(SHARE_GPUS))
reserve = $(if $(filter server,$($(1)_ENGINE))$(filter cpu,$(device)),,$(or $($(1)_GPUS),$(if $(shares),,$(if $(wildcard /dev/nvidiactl),all))))
on      = $(if $(call reserve,$(1)),$(PY) -m dapo_stages.entrypoints.on_gpus $(if $(shares),--share )'$(call reserve,$(1))' $(1) )
export PYTHONUNBUFFERED := 1
export DAPO_STAGES_MAKE := $(shell echo $$PPID)
export TOKENIZERS_PARALLELISM := false
# Threads that spin while they wait take cores from a stage that runs at the same time (2.3 times slower on 2 cores).
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: $(ABOUT_A_RUN) help status doctor slurm clean-run FORCE

MAKEFILES_READ := $(PIPELINES)/run.mk $(firstword $(MAKEFILE_LIST))
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILES_READ)
	@echo
	@awk '/^## [A-Z_ ]+: / {text = $$0; sub(/^## [A-Z_ ]+: /, "", text); sub(/^## /, ""); sub(/: .*/, ""); \
	  printf "  %-16s %s\n", $$0 (length($$0) > 16 ? ":" : ""), text}' $(MAKEFILES_READ)
	@echo
	@echo "  now: RUN=$(RUN) CONFIG=$(CONFIG) ITERS=$(or $(ITERS),planned_iterations) ITER=$(ITER) EVAL_EVERY=$(EVAL_EVERY) LAG=$(or $(LAG),lag) SET='--set key=value' LAUNCH=$(LAUNCH)"

# Prune again, in case make was killed between the last report and its prune.
iterate: ## train: run ITERS iterations of the pipeline, with evaluations and a report
	@$(PY) $(DAPO) report $(config) --run $(R) --of $(ITERS)
	@$(PY) $(DAPO) prune $(config) --run $(R)

# ---- One run ---------------------------------------------------------------------------------------------------------

# Replace an output only if make found it out of date. What was begun with another policy, now lost, counts like
# outputs that were made with it.
replace = $(if $(strict)$(wildcard $@),--overwrite)
config  = --config $(R)/config.yaml

# Prerequisites $(2) of the output $(1): a sound one only needs them to exist, whatever their times.
made_of = $(if $(filter sound,$(state/$(1))),| $(2),$(if $(state/$(1)),FORCE) $(2) |)

# make deletes a target whose recipe is interrupted; a manifest is never half-written, so it stays.
.PRECIOUS: $(foreach part,policy data iter-0000/eval iter-0000/report,$(R)/$(part)/manifest.json)

# What would end the run shows now, not after a policy was made and a rollout was paid for. A report needs nothing of it.
checks = $(if $(filter-out report,$(MAKECMDGOALS)),$(foreach stage,$(launched),--stage $(stage)=$(call how,$($(stage)_LAUNCH)),$($(stage)_PYTHON)$(if $($(stage)_GPUS),$(comma)$($(stage)_GPUS))))
how    = $(or $(wildcard $(ACCELERATE)/$(1).yaml),$(1))

$(R)/config.yaml: FORCE | $(READY) $(if $(filter zero% multi-node,$(TRAIN_LAUNCH)),$(READY_DEEPSPEED))
	@$(if $(checks),$(PY) $(DAPO) check --config '$(CONFIG)' $(overrides) --run $(R) $(checks) --quiet)
	@$(PY) $(DAPO) config --config '$(CONFIG)' $(overrides) --out $@ $(asked) --note build/make/$(RUN)-$$PPID

# The policy after iteration $(1), 0 for the starting one, and its manifest.
folder    = $(R)/$(if $(filter 0,$(1)),iter-0000,$(word $(1),$(folders)))
policy    = $(if $(filter 0,$(1)),$(R)/policy,$(call folder,$(1))/train/policy)
made      = $(if $(filter 0,$(1)),$(R)/policy,$(call folder,$(1))/train)/manifest.json
evaluated = $(or $(filter $(1),$(due)),$(wildcard $(call folder,$(1))/eval/manifest.json))
# The reference of a KL term, searched when it is needed: the newest that a train-step before iteration $(1) has written
# (train.reference_update_every), or the starting policy.
reference = $(or $(shell ls $(R)/iter-[0-9]*/train/reference/manifest.json 2>/dev/null | \
  awk -v here='$(1)' '$$0 < here {sub("/manifest.json", ""); last = $$0} END {print last}'),$(R)/policy)
# $(1) iteration, $(2) the one before, $(3) the one whose policy samples
rules     = $(eval $(call iteration,$(1),$(call folder,$(1)),$(call folder,$(2)),$(call made,$(2)),$(call policy,$(2)),$(filter-out 0,$(2)),$(call made,$(3)),$(call policy,$(3)),$(word $(1),$(folders))))

# The rules exist once dapo-stages config has answered. A shell takes milliseconds, so none is started per iteration.
ifdef planned_iterations
last    := $(shell exec 2>/dev/null; [ '$(ITERS)' -ge 0 ] && [ '$(ITER)' -ge 0 ] && [ '$(LAG)' -ge 0 ] && [ '$(EVAL_EVERY)' -ge 1 ] && \
  echo $$(($(ITERS) > $(ITER) ? $(ITERS) : $(ITER))))
$(if $(last),,$(error ITERS, ITER, LAG, EVAL_EVERY: expected whole numbers, got $(ITERS), $(ITER), $(LAG), $(EVAL_EVERY)))
numbers := $(shell seq 1 $(last))
folders := $(shell seq -f iter-%04g 1 $(last))
here    := $(call folder,$(ITER))
# Without held-out rows, nothing is evaluated.
# Iterations whose state is written even if a process keeps it: nothing follows that would take it.
written := $(ITERS) $(if $(filter train-step,$(MAKECMDGOALS)),$(ITER))
due     := $(if $(evaluations),$(shell seq $(EVAL_EVERY) $(EVAL_EVERY) $(ITERS)) $(ITERS))
# The first iteration is preceded by the starting policy, and the first LAG + 1 sample with it.
before  := 0 $(numbers)
sampler := $(patsubst %,0,$(wordlist 1,$(LAG),$(numbers))) $(before)
$(foreach stage,$(launched),$(eval $(stage)_START := $(call on,$(stage))$($(stage)_PYTHON) $(call start,$(if $(call copies,$(stage)),1,$($(stage)_LAUNCH))))\
  $(eval $(stage)_SET := $(if $(call copies,$(stage)), --set engines.vllm.data_parallel_size=$(call copies,$(stage)))))
$(foreach n,$(numbers),$(call rules,$(n),$(word $(n),$(before)),$(word $(n),$(sampler))))
$(eval $(once))
iterate: $(foreach n,$(if $(evaluations),0) $(wordlist 1,$(ITERS),$(numbers)),$(call folder,$(n))/report/manifest.json) \
  $(foreach n,$(word $(ITERS),$(numbers)),$(call folder,$(n))/train/state/manifest.json)
endif

# ---- One stage of one iteration --------------------------------------------------------------------------------------

# make would keep a finished output of these stages, so config --for refuses other settings than its own.
asked   = $(foreach goal,$(MAKECMDGOALS),$(patsubst $(goal)=%,--for $(here)/%,$(filter $(goal)=%,$(STAGES))))

rollout: ## sample the completions of iteration ITER
score-attention: ## measure where the completions looked
weight-tokens: ## compute rewards, advantages and token weights
train-step: ## update the policy
evaluate: ## evaluate the policy on the held-out questions
report:          $(R)/config.yaml ## write the report of what exists
	$(PY) $(DAPO) report $(config) --run $(R) --of $(ITERS)
status: | $(READY) ## show what exists, what is stale, what to run next
	@$(PY) $(DAPO) status --run $(R)$(if $(ITERS), --of $(ITERS))
doctor: | $(READY) ## show what this machine has, and what is missing for which feature
	@$(PY) $(DAPO) doctor

## CLUSTER: settings for Slurm: a copy of slurm/cluster.env (next to run.mk)
CLUSTER ?= $(PIPELINES)/slurm/cluster.env
slurm: ## submit the run to Slurm, one job per stage (CLUSTER); with DRY_RUN=1, print the jobs
	@env -u MAKEFLAGS -u MFLAGS $(PIPELINES)/slurm/submit.sh 'RUN=$(RUN)' 'CLUSTER=$(CLUSTER)' 'EVAL_EVERY=$(EVAL_EVERY)' \
	  $(foreach name,CONFIG SET ITERS LAG,$(if $(filter command environment,$(origin $(name))),"$(name)=$($(name))"))

clean-run: ## remove the run RUN and everything in it
	rm -rf -- '$(R)' '$(ANSWERS)'

FORCE:
