# `make demo` and `make test` do all the set-up: Python 3.11+, git and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where the data sets of `bench` and `results` lie, unpacked.
DATA ?= data
# What `bench` measures here: records, plots and the page. Those of the repository are of another machine.
BENCH ?= build/bench

.DEFAULT_GOAL := help
.PHONY: help setup demo test docs bench results release-check clean

help:
	@echo "make demo      install, train on built-in images (handwritten digits) with spoilt labels, say what repairs gave back"
	@echo "make test      install, then check the style, the types, the import contract, and run the tests"
	@echo "make docs      build the documentation as a site, with the API reference, into site/ (open site/index.html)"
	@echo "make bench     compare with other libraries on the data sets in DATA=$(DATA): the best model for the minutes, and speed;"
	@echo "               writes $(BENCH)/BENCHMARKS.md. About 45 minutes for the first, hours for the second"
	@echo "make results   train on the data sets in DATA=$(DATA) and write down the metrics in docs/RESULTS.md"
	@echo "make release-check  build the wheel, install it alone into an empty environment, run the demo there"
	@echo "make clean     remove what was installed and built; runs/ stays"

setup: $(STAMP)

# The stamp is written last, so an install that was broken off is done again; an unchanged one is reused.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed and $(PYTHON) is " \
	  + sys.version.split()[0] + ". Name a newer one: make PYTHON=/path/to/python3.11")'
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/assay demo

# Two files at a time, a thread each: half the time on 2 cores. Files with few tests, which may be long, do not come last.
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

$(VENV)/.docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

# Any warning, such as a link that leads nowhere, ends it. Searching needs a server: python3 -m http.server -d site
docs: $(VENV)/.docs
	$(BIN)/zensical build --clean --strict

# The compared libraries live in an environment of their own that sees this one, so that none of them can slip in here.
$(VENV)-bench/.installed: $(STAMP) benchmarks/requirements.txt
	@echo "Installing the compared libraries into $(VENV)-bench."
	@$(BIN)/python -m venv $(VENV)-bench
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(VENV)-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/assay-environment.pth"
	@$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/requirements.txt
	@touch $@

# The environment of the compared libraries, and a page, plots and records of this machine alone.
bench: $(VENV)-bench/.installed
	@mkdir -p $(BENCH)
	@echo "The best model for the minutes, on eurosat alone: about 45 minutes. All sets and budgets: 17 hours, without --sets"
	@echo "and --budgets. Records are kept in $(BENCH)/anytime, the plot is $(BENCH)/anytime.svg, the page $(BENCH)/BENCHMARKS.md."
	$(VENV)-bench/bin/python -m benchmarks.anytime $(DATA) --sets eurosat --budgets 0.5 2 5 \
	  --work $(BENCH)/anytime --plot $(BENCH)/anytime --page $(BENCH)/BENCHMARKS.md
	@echo "On a GPU, at most 5 minutes."
	$(VENV)-bench/bin/python -m benchmarks.gpu --device cuda --page $(BENCH)/BENCHMARKS.md
	@echo "Training every contender 3 times on the images in $(DATA); this takes hours. Adds to $(BENCH)/BENCHMARKS.md."
	$(VENV)-bench/bin/python -m benchmarks.speed $(DATA) --page $(BENCH)/BENCHMARKS.md

results: setup
	@echo "Training on the data sets in $(DATA) with the commands of the README; this takes a while. Writes docs/RESULTS.md."
	$(BIN)/python -m benchmarks.results $(DATA)
	$(BIN)/python -m benchmarks.reports $(DATA)
	$(BIN)/python -m benchmarks.tour

# The environment is empty and the commands run in its folder, without PYTHONPATH: what is missing in the wheel is missing there.
release-check: setup
	rm -rf build dist $(VENV)-release
	$(BIN)/python -m build
	$(BIN)/python -m benchmarks.release dist
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd $(VENV)-release && unset PYTHONPATH && bin/assay --help > help.txt && bin/assay recipes && bin/assay demo

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-release build dist site .cache src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
