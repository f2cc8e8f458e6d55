# Two commands are enough: `make run` and `make test`. A bare Python 3.11+ is all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt
RUN ?= runs/digits-simclr

.PHONY: run setup test browser lint dist bench notebooks docs clean

ifdef CONFIGER_PATH
run: setup            ## with CONFIGER_PATH=path/to/pretrain/simclr.ini: run that file; KEYS="epochs=5" over it
	$(BIN)/selfsight run "$(CONFIGER_PATH)" $(KEYS)
else
run: setup            ## pretrain on real handwritten digits, then print what was learned
	$(BIN)/selfsight pretrain digits/simclr --run $(RUN)
	$(BIN)/selfsight knn $(RUN)
	$(BIN)/selfsight linear $(RUN)
	$(BIN)/selfsight report $(RUN)
endif

setup: $(VENV)/.installed

test: $(VENV)/.installed-test   ## every test; about nine minutes on two cores
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

browser:               ## Debian's Chromium, in which the tests look at reports; without it they are skipped
	command -v chromium || (apt-get update --quiet && apt-get install --quiet --yes chromium)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dist: $(BIN)/uv        ## the wheel and the source archive, in dist/
	rm -rf dist
	$(BIN)/uv build --quiet --python $(BIN)/python

bench: $(VENV)/.installed-bench ## timings against other libraries, in one run
	$(BIN)/python -m benchmarks.augment
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.embed
	$(BIN)/python -m benchmarks.search

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.installed: $(BIN)/uv pyproject.toml constraints.txt
	$(INSTALL) -e ".[parquet,report]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e ".[test]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(INSTALL) -e ".[bench]"
	touch $@

notebooks: $(VENV)/.installed-notebooks ## run the notebooks; build/notebooks/*.html
	mkdir -p build/notebooks
	cd build/notebooks && for file in ../../notebooks/*.py; do \
	  ../../$(BIN)/jupytext --quiet --from py:percent --to ipynb --output $$(basename $$file .py).ipynb $$file && \
	  ../../$(BIN)/jupyter nbconvert --log-level WARN --to html --execute $$(basename $$file .py).ipynb || exit 1; \
	done

$(VENV)/.installed-notebooks: $(VENV)/.installed
	$(INSTALL) -e ".[notebooks]"
	touch $@

docs: $(VENV)/.installed-docs ## the documentation site, build/docs/html/index.html; a warning is an error
	mkdir -p build/docs/pages
	$(BIN)/python -m sphinx --quiet -W --keep-going -c docs build/docs/pages build/docs/html

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
