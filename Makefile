# Two commands matter: `make quickstart` and `make test`. PYTHON may name any Python from 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test bench scale paper lint env lab site site-test lock format reference clean

quickstart: env
	$(BIN)/distillery run 00_quickstart

test: env lint
	$(BIN)/python -m pytest tests -n 2 --dist loadgroup
	@# and without the fused kernel, as where there is no C++ compiler
	DISTILLERY_PLAIN=1 $(BIN)/python -m pytest tests/networks tests/matching tests/training -n 2 --dist loadgroup
	@# the notebooks compute everything anew, in a results folder of their own, two at a time with a thread each
	results=$$(mktemp -d) && OMP_NUM_THREADS=1 DISTILLERY_RESULTS=$$results $(BIN)/python -m pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env \
		--nbval-cell-timeout=300 --nbval-sanitize-with=tests/nbval_sanitize.cfg -p no:cacheprovider notebooks/ ; \
	code=$$? ; rm -rf "$$results" ; exit $$code

# every fast path beside the bare loop, which runs in a process of its own, and its plain twin, on a quiet machine; the table is kept under results/bench
bench: env
	run=$$(mktemp -d) && timer=$$($(BIN)/python -c "import torch; print('perf_counter' if torch.cuda.is_available() else 'process_time')") && \
	run_some() { OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks --benchmark-only --benchmark-timer=time.$$timer "$$@" ; } && \
	DISTILLERY_MALLOC=system run_some -k bare --benchmark-json=$$run/bare.json && run_some -k "not bare" --benchmark-json=$$run/ours.json && \
	$(BIN)/python tests/benchmarks/table.py $$run/bare.json $$run/ours.json results/bench ; \
	code=$$? ; rm -rf $$run ; exit $$code

# what sets larger than memory cost, on made-up ones: the table is kept under results/bench
scale: env
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/scale.py results/bench

# each row of paper scale: sets done, missing, and the minutes these need on this device; ARGS="00_quickstart --run -p data_root PATH" runs them
paper: env
	$(BIN)/distillery paper $(ARGS)

lint: env
	$(BIN)/ruff check lib tests notebooks docs
	$(BIN)/ruff format --check lib tests notebooks docs

env: $(VENV)/.done

# pip brings uv into the environment, uv installs the lock: hashes checked, hard links from its cache
$(VENV)/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5,<1"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

# JupyterLab has a lock of its own: in one environment with it, every worker of Ray takes seconds longer to start
lab: env
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-lab.lock
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

# static pages under build/site, for a browser without a server and without a network; Sphinx has a lock of its own too
site: env
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-site.lock
	rm -rf build/site
	$(BIN)/python docs/site/pages.py build/pages
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -c docs/site -d build/doctrees build/pages build/site
	@echo "open build/site/index.html"

# the pages in a real browser, at the width of a phone and of a desk (CHROMIUM names it, else the one on PATH)
site-test: site
	$(BIN)/python -m pytest docs/site

# the pins, after a change of pyproject.toml: versions stay where they are admitted (UPGRADE="--upgrade-package NAME" raises one)
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-header --quiet $(UPGRADE)
lock: env
	$(COMPILE) --extra notebooks --extra completion --extra ray --extra text --extra test -o requirements.lock
	$(COMPILE) --extra lab -c requirements.lock -o requirements-lab.lock
	$(COMPILE) --extra site -c requirements.lock -o requirements-site.lock

format: env
	$(BIN)/ruff check --fix lib tests notebooks docs
	$(BIN)/ruff format lib tests notebooks docs

clean:
	rm -rf $(VENV) build dist results/smoke

# refresh the committed notebooks: executed at smoke scale, outputs kept, times and versions stripped
reference: env
	results=$$(mktemp -d) && DISTILLERY_RESULTS=$$results $(BIN)/jupyter execute --inplace notebooks/*.ipynb ; \
	code=$$? ; rm -rf "$$results" ; exit $$code
	$(BIN)/nbstripout --keep-output --keep-count --keep-id \
		--extra-keys "metadata.language_info cell.metadata.execution cell.metadata.papermill" notebooks/*.ipynb
