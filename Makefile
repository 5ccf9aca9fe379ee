# Everything from a bare machine with Python 3.11: `make demo`, `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-heavy lint format train-embedded train-mini clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV). pip's usual $(TORCH) is taken: on Linux it runs on NVIDIA GPUs and on a CPU."
	@echo "For a smaller CPU-only torch, or for another kind of GPU: make setup TORCH='...' with what PyTorch's install page says."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -c 'from engine.glm import native; native.library()'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

demo: setup
	@$(BIN)/python -m app

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not heavy" -n 2 --dist loadfile

test-heavy: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m heavy

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --diff .

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# DATA is the folder of sources that the recipe names. Stop it at any time; the same command resumes.
train-embedded: setup
	$(BIN)/python -m engine train engine/training/recipes/embedded.yaml --data $(DATA) --out runs/embedded

# The same in small, in minutes.
train-mini: setup
	$(BIN)/python -m engine train engine/training/recipes/mini.yaml --data $(DATA) --out runs/mini
	$(BIN)/python -m engine report runs/mini

clean:
	rm -rf $(VENV)
