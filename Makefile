# make demo    train a small ModernBERT on text found on this machine, and show what it learned
# make test    prove the package equal to the published architecture
# make slow    the tests that `make test` leaves out because they take minutes
# make lint    format, lint, types, import contracts, spelling, and the schemas of project files
# make docs    build the documentation into site/; a broken link is an error
# make check   what a change must pass: lint, docs and all tests
# make lowest, make newest   the tests with the lowest and the newest versions of every library that pyproject.toml allows
# make bench-gpu  what a GPU does: parity, training, the efficiency table, into build/gpu (torch must see the GPU)
# make faults  kill, damage and mislead runs, and write what came of it to build/faults
#
# Each makes its virtual environment first. It needs Python >= 3.11, pip and a C++ compiler.

PYTHON ?= python3
# The release the package is tested with. Any in pyproject.toml's range may be named instead.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled as they are first imported: most never are, and compiling all of them takes a minute.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# And kept, whatever the machine says: the tests start hundreds of processes, and half their time would be compiling.
unexport PYTHONDONTWRITEBYTECODE
# The tests that `make lowest` and `make newest` run.
TESTS ?= tests
RESOLUTION_lowest := lowest-direct
RESOLUTION_newest := highest

.PHONY: demo demo-quick test slow lint docs check lowest newest faults bench-gpu format clean

demo: $(VENV)/demo.stamp
	$(BIN)/modernbert demo

demo-quick: $(VENV)/demo.stamp
	$(BIN)/modernbert demo --quick

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell . .github
	$(BIN)/pre-commit validate-config
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*_*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint docs
	$(BIN)/python -m pytest -n auto --dist worksteal

lowest newest: $(VENV)/uv.stamp
	mkdir -p build/$@
	$(BIN)/uv pip compile --quiet --python $(BIN)/python --resolution $(RESOLUTION_$@) --all-extras --group dev \
		--output-file build/$@/versions.txt pyproject.toml
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python build/$@/venv
	$(BIN)/uv pip sync --quiet --python build/$@/venv build/$@/versions.txt
	$(BIN)/uv pip install --quiet --python build/$@/venv --no-deps --editable .
	build/$@/venv/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(TESTS)

faults: $(VENV)/dev.stamp
	$(BIN)/python -m tests.faults --out build/faults

# With the Python that is named, since a wheel for GPUs is the machine's own to choose: make bench-gpu PYTHON=python3.12
bench-gpu:
	$(PYTHON) -m benchmarks.gpu --out build/gpu

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$(TORCH)"
	touch $@

$(VENV)/uv.stamp: $(VENV)/python.stamp
	$(INSTALL) "uv>=0.8"
	touch $@

$(VENV)/docs.stamp: $(VENV)/dev.stamp
	$(INSTALL) --group docs
	touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp pyproject.toml
	$(INSTALL) -e '.[train]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/python.stamp pyproject.toml
	$(INSTALL) "pip>=25.1"  # which knows --group
	$(INSTALL) -e '.[train,serve,index,export,sentence-transformers,mteb,ray]' --group dev
	touch $@ $(VENV)/demo.stamp
