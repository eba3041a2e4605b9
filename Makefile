PYTHON ?= python3
BIN := .venv/bin
DEMO ?=

# The test models are tiny: more threads cost more than they give, above all on a busy machine.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo docs test test-slow test-gpu coverage lint format bench bench-attacks bench-defenses bench-inference bench-privacy wheel-check clean demo-text bench-text

demo: .venv/.installed  ## Audit the demo model and write the report (DEMO=--quick for the short form)
	$(BIN)/auditorch demo -o auditorch-demo $(DEMO)

demo-text: .venv/.installed  ## Fine-tune MiniLM on movie snippets and audit it: some four minutes on two cores
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(BIN)/python examples/sentiment/prepare.py build/sentiment
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(BIN)/auditorch run examples/sentiment/audit.yaml -o auditorch-demo/text || test $$? -eq 1

test: .venv/.installed  ## The fast tests, side by side
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

test-gpu: .venv/.installed
	$(BIN)/python -m pytest -m gpu

coverage: .venv/.installed
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report --skip-covered

lint: .venv/.installed build/typing/auditorch
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.installed  ## Write docs/reference from the registry and the command line
	$(BIN)/python -m auditorch.audit.reference docs/reference

bench: bench-attacks

bench-attacks: .venv/.installed  ## PEERS=DIR adds libraries installed there with `pip install --no-deps --target DIR`
	$(BIN)/python benchmarks/attacks.py $(if $(PEERS),--peers $(PEERS)) --cache build/bench
	$(BIN)/python benchmarks/ensembles.py $(if $(PEERS),--peers $(PEERS))
	$(BIN)/python benchmarks/optimality.py $(if $(PEERS),--peers $(PEERS))
	$(BIN)/python benchmarks/masking.py

bench-defenses: .venv/.installed  ## What the defenses that train buy and cost; IDX=DIR reads the full Fashion-MNIST
	$(BIN)/python benchmarks/training.py $(if $(IDX),--idx $(IDX))

bench-inference: .venv/.installed  ## Certificates, defenses at inference and compression on the demo's data
	$(BIN)/python benchmarks/defenses_inference.py

bench-privacy: .venv/.installed  ## What a private step costs, beside Opacus; with IDX=DIR also accuracy by epsilon
	$(BIN)/python benchmarks/privacy.py steps --cpu-time
	$(if $(IDX),$(BIN)/python benchmarks/privacy.py accuracy --idx $(IDX))
	$(BIN)/python benchmarks/shadow.py $(if $(IDX),--idx $(IDX))
	$(BIN)/python benchmarks/leak_detectors.py

bench-text: .venv/.installed  ## PEERS=DIR holds TextAttack, WORDNET=DIR the files of WordNet (TEXT="--models cnn" for a part); needs demo-text
	$(BIN)/python benchmarks/text.py $(if $(PEERS),--peers $(PEERS)) $(if $(WORDNET),--wordnet $(WORDNET)) $(TEXT)

wheel-check: .venv/.installed  ## Build the wheel, install it in a fresh environment, use it from another folder
	rm -rf build/wheel build/lib build/bdist.* && mkdir -p build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install -q -c constraints.txt build/wheel/*.whl
	cp tests/smoke.py build/wheel/smoke.py
	cd build/wheel && venv/bin/python -I smoke.py

.venv/.installed: pyproject.toml constraints.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# Type checkers do not run the editable install's import hook: show them the folders under their package name.
build/typing/auditorch:
	mkdir -p $@
	for root in audit attacks defenses privacy reports; do ln -sfn ../../../$$root $@/$$root; done

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis auditorch-demo auditorch-report
