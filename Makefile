# make            set up, compile every family, verify a few, show the coverage table
# make test       set up, lint, types, tests: what CI runs
# make browser    Chromium for the tests of the report, where there is none (Debian, as root)
# make verify-all verify every family with every case and record it in generated/ (over an hour on two cores)
# make bench      ratios of the compiler, of imports and of training steps, measured side by side

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
REPRESENTATIVE ?= llama gemma2 phi3 mixtral gpt_oss

# Tiny models: threads of one process only get in each other's way.
export OMP_NUM_THREADS := 1

.PHONY: all install generate verify test browser lint verify-all bench

all: install generate verify
	$(BIN)/regraft coverage

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

generate: install
	$(BIN)/regraft generate --jobs $(JOBS)
	$(BIN)/regraft generate --out examples/own_model/tarn_variants

verify: install
	$(BIN)/regraft verify $(REPRESENTATIVE) --cases default --jobs $(JOBS)
	$(BIN)/regraft verify $(REPRESENTATIVE) --cases default --jobs $(JOBS) --target rmpad --stages hf,packed

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

browser:
	@{ command -v chromium || command -v google-chrome || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; \
	}; } >/dev/null || \
	echo "no Chromium: tests of the report in a browser are skipped, or fail where CI=true; Debian has it as chromium" >&2

test: lint browser
	$(BIN)/regraft check
	$(BIN)/regraft check --out examples/own_model/tarn_variants
	$(BIN)/pytest -n $(JOBS)

verify-all: install
	$(BIN)/regraft verify --all --record --jobs $(JOBS)
	$(BIN)/regraft verify --all --record --jobs $(JOBS) --target rmpad

bench: install
	$(BIN)/python benchmarks/compile.py
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/training.py
