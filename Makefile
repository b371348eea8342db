# make demo: install, sample the weights in models/, train 1,200 steps on synthetic faces on the CPU.   make test: install, lint, test.
# make test-long: the tests with many random cases, which begin at another place with MAGNET_TEST_SEED=1 in front.
PYTHON ?= python3

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Where no GPU is seen, PyTorch for CPUs is tried first: it takes less than 1 GB.
FOR_CPUS := https://download.pytorch.org/whl/cpu
SEES_GPU := $(PYTHON) -c "import shutil, sys; sys.exit(not shutil.which('nvidia-smi'))"

# Tests are shared out among processes, one for each core; each computes with one thread. A process that is done takes
# tests of another, also in the middle of a file: no test needs another one to have run.
test test-long: export OMP_NUM_THREADS = 1
SHARED_OUT := -n auto --dist worksteal

.PHONY: demo test test-long clean

demo: .venv/ready
	$(BIN)/python sample.py --out models/first-faces.png
	$(BIN)/python train.py --preset cpu --data synthetic --steps 1200
	@echo "Next: look at the newest grid in the run's samples/; for CelebA: $(BIN)/python download_celeba.py"

test: .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(SHARED_OUT)

test-long: .venv/tests
	$(BIN)/python -m pytest $(SHARED_OUT) -m long

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	@$(SEES_GPU) || { $(PIP) -qq --timeout 10 --retries 0 --index-url $(FOR_CPUS) -c requirements.txt torch torchvision \
	&& $(BIN)/python -c "import torchvision"; } || { $(BIN)/python -m pip uninstall --quiet --yes torch torchvision; \
	echo "No PyTorch from $(FOR_CPUS): the next command installs the one for GPUs, which takes 5.7 GB."; }
	$(PIP) -r requirements.txt
	@$(BIN)/python -c "open('.venv/ready', 'w').close()"

# Not after .venv/ready: the tests of CUDA code need the PyTorch for GPUs (they pretend one), and are skipped without it.
.venv/tests: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements-dev.txt
	@$(BIN)/python -c "open('.venv/tests', 'w').close()"

clean:
	$(PYTHON) -c "import shutil; shutil.rmtree('.venv', ignore_errors=True)"
