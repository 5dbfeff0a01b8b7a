# `PYTHON=python3 make gpu` uses that Python as it is, without a virtual environment or network.
GIVEN_PYTHON := $(PYTHON)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests stay together: they share what they have compiled.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: demo gallery gpu lab test test-all lint clean
.DELETE_ON_ERROR:

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,offline,notebooks]'
	touch $@

# What the slow tests alone need: programs that drive our classes, what populations are timed against, trackers, and Ray.
$(VENV)/.clients: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[clients,cluster,peers,trackers]'
	touch $@

# Results of other data or of another version stay, and the new ones go beside them, to results/demo/mnist-2.
demo: $(VENV)/.installed
	$(BIN)/python -m experiments.demo

# The studies that results/gallery/README.md shows, an hour on two cores; it goes on where it was interrupted.
SWEEP = $(BIN)/python -m experiments.sweep mnist
gallery: GRID = --lr 1e-4..1e-1:7 --beta2 0.9..0.9999:4 --eps 1e-8..1:5 --confirm 10
gallery: $(VENV)/.installed
	$(SWEEP) $(GRID) --seeds 3 --epochs 3 --target 95% --out results/gallery/mnist-mlp
	$(SWEEP) $(GRID) --seeds 2 --evaluations 4 --target 95% --model cnn --out results/gallery/mnist-cnn
	$(SWEEP) $(GRID) --seeds 2 --evaluations 4 --target 90% --model gru --out results/gallery/mnist-gru
	$(SWEEP) --axis batch_size 32 128 512 --beta2 0.9..0.9999:4 --lr 1e-4..1e-1:7 --seeds 3 --epochs 3 \
	    --evaluations 6 --confirm 10 --target 95% --out results/gallery/batch-size
	$(SWEEP) --optimizer adam adamw nadam amsgrad radam lion signum laprop adopt adan ademamix schedule-free rmsprop \
	    adadelta adagrad sgd momentum nesterov lamb lars stable-adamw adam-mini cautious-adamw cautious-lion prodigy muon \
	    --lr 1e-4..1e-1 lion=1e-5..1e-2 signum=1e-5..1e-2 cautious-lion=1e-5..1e-2 adadelta=1e-2..10 sgd=1e-2..10 \
	    momentum=1e-3..1 nesterov=1e-3..1 adagrad=1e-3..1 lars=1e-1..100 prodigy=1e-2..10 \
	    --beta1 0..0.99 schedule-free=0.5..0.99 --beta2 0.9..0.9999 --momentum 0.5..0.99 --sample sobol:32 --seeds 3 \
	    --confirm 10 --target 93% --out results/gallery/optimizers
	$(SWEEP) --optimizer adamw --lr 1e-4..1e-1 --beta1 0..0.99 --beta2 0.9..0.9999 --eps 1e-10..1e-1 --weight-decay 1e-5..1 \
	    --axis max_grad_norm 0.1..10 --sample sobol:1024 --halving 4 --evaluations 16 --eval-examples 2000 --epochs 3 \
	    --confirm 12 --target 95% --out results/gallery/six-axes
	$(SWEEP) $(GRID) --seeds 3 --epochs 3 --target 95% --out results/gallery/mnist-mlp-again
	$(BIN)/python -m experiments.compare results/gallery/mnist-mlp results/gallery/mnist-mlp-again results/gallery/six-axes \
	    --out results/gallery/six-axes-and-grid
	$(BIN)/python -m experiments.claims all --out results/gallery/claims

gpu: $(if $(GIVEN_PYTHON),,$(VENV)/.installed)
	$(or $(GIVEN_PYTHON),$(BIN)/python) -m experiments.gpu

lab: $(VENV)/.installed
	$(BIN)/python -m jupyterlab notebooks

test: $(VENV)/.installed
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.clients
	$(PYTEST)

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

clean:
	rm -rf $(VENV) results/demo
