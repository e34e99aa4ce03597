# Every target a person or CI needs; each sets up what it needs first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
WHEELS := $(HOME)/.cache/longrope-export/wheels
TORCH  := torch==2.13.0
LLAMA  := llama-cpp-python==0.3.36

export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: setup demo demo-smollm2 default-model test test-slow quality style clean
.PHONY: bench-search bench-gguf bench-onnx

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

demo: setup
	$(BIN)/python -m longrope_export.demos default

demo-smollm2: setup
	$(BIN)/python -m longrope_export.demos smollm2

default-model: setup
	$(BIN)/pip install -q 'rdata>=0.11'
	$(BIN)/python -m longrope_export.default_model.train --out runs/default-model --minutes 70

test: setup
	$(BIN)/pytest

test-slow: setup
	$(BIN)/pytest -m slow --timeout 3600

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-search bench-gguf bench-onnx: bench-%: setup
	$(BIN)/python -m tests.bench.bench_$*

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
