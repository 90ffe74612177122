# Two commands set everything up: `make demo` and `make test`. A second run installs nothing.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := artifacts/demo
OBJECTS := artifacts/test-objects

.PHONY: demo test fuzz mutants lint format clean

demo: $(INSTALLED)
	rm -rf $(DEMO) $(DEMO)-checkpoint
	$(BIN)/gptoss-export make-checkpoint $(DEMO)-checkpoint --preset tiny
	$(BIN)/gptoss-export build $(DEMO)-checkpoint -o $(DEMO) --target aoti --device cpu \
		--max-batch 2 --max-context 4352 --prefill-chunk 64
	$(BIN)/gptoss-export run $(DEMO) --prompt "Hello, world" --max-new-tokens 16
	$(BIN)/gptoss-export verify $(DEMO) --checkpoint $(DEMO)-checkpoint
	@echo "The artifact is in $(DEMO): try '$(BIN)/gptoss-export inspect $(DEMO)'"

# One thread for each of two test processes: threads that wait for each other take the processors from other tests.
test: $(INSTALLED)
	rm -rf $(OBJECTS)
	OMP_NUM_THREADS=1 CXX="$(CURDIR)/tests/kept-g++" KEPT_OBJECTS="$(CURDIR)/$(OBJECTS)" \
		$(BIN)/python -m pytest -n 2 --dist worksteal

# Changed inputs of every kind, 10,000 of them; a quarter of an hour on two cores. The outcomes are printed as a table.
FUZZ_CASES ?= 10000
fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz/fuzz_machine.py
	rm -rf artifacts/fuzz
	GPTOSS_EXPORT_FUZZ_CASES=$(FUZZ_CASES) GPTOSS_EXPORT_FUZZ_COUNTS=artifacts/fuzz \
		$(BIN)/python -m pytest -n 2 --dist worksteal tests/fuzz/test_fuzz.py; \
		code=$$?; $(BIN)/python tests/fuzz/fuzz_report.py artifacts/fuzz; exit $$code

# One fault at a time in a copy of the project, and the tests that should notice it; about half an hour of two cores.
mutants: $(INSTALLED)
	$(BIN)/python tests/mutants/run.py --jobs 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first: the other packages then use the build that is there.
$(INSTALLED): pyproject.toml
	@command -v g++ >/dev/null || { echo "g++ not found; run: apt-get install g++" >&2; exit 1; }
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "Python 3.11 or 3.12 with venv is needed (apt-get install python3-venv); name it: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test,lint]"
	touch $(INSTALLED)

clean:
	rm -rf .venv $(OBJECTS) artifacts/demo artifacts/demo-checkpoint
